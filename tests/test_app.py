"""The page of app.py: over HTTP, and in headless Chromium, with a small random captioner."""

import importlib.util
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from PIL import Image

import app
from captioner import load_captioner
from image_description import answer
from scoring.attention_sheet import WIDTH
from tests.browser_cases import CHROMIUM, PATIENCE, browser
from tests.captioner_cases import save_random_captioner
from tests.training_cases import ROOT, ended

MISSING = importlib.util.find_spec("gradio") is None
with_gradio = pytest.mark.skipif(MISSING, reason="no gradio: `make app` installs it")

pytestmark = pytest.mark.timeout(600)  # gradio and torch take their time where others compute, too

# The app, but a search takes a while and ends the process if another one is under way.
PROGRAM = """
import os, threading, time
import app, captioner
from support import command_line

search, alone = captioner.Captioner.decode, threading.Lock()

def decode(*arguments):
    if not alone.acquire(blocking=False):
        os._exit(3)
    time.sleep(0.3)
    found = search(*arguments)
    alone.release()
    return found

captioner.Captioner.decode = decode
command_line.run(app.main)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("app") / "checkpoint1.pt"
    save_random_captioner(path)
    return path


@pytest.fixture(scope="module")
def address(checkpoint):
    """Of the running page, which is started in a folder that is not the repository."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM, "-c", checkpoint, "--port", str(port)]
    setting = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=checkpoint.parent, env=setting, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = next((line for line in process.stdout if line.startswith("http")), None)
        assert line, process.stderr.read()
        yield line.split()[0]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
    finally:
        process.kill()


@pytest.fixture
def good(tmp_path) -> Path:
    path = tmp_path / "good.png"
    Image.linear_gradient("L").convert("RGB").resize((50, 40)).save(path)
    return path


def huge() -> bytes:
    """A BMP that claims 400 megapixels."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "BMP")
    content = bytearray(file.getvalue())
    struct.pack_into("<ii", content, 18, 20_000, 20_000)
    return bytes(content)


def ask(address: str, name: str, content: bytes) -> tuple[str, dict | None]:
    """What the page answers to an uploaded file: HTML, and the sheet as gradio describes it."""
    files = {"files": (name, content)}
    (place,) = requests.post(f"{address}/gradio_api/upload", files=files, timeout=PATIENCE).json()
    return call(address, {"path": place, "meta": {"_type": "gradio.FileData"}})


def call(address: str, file: dict) -> tuple[str, dict | None]:
    """What the page answers to a request that names a file, whoever wrote it."""
    body = {"data": [file]}
    place = f"{address}/gradio_api/call/caption"
    number = requests.post(place, json=body, timeout=PATIENCE).json()["event_id"]
    events = requests.get(f"{place}/{number}", timeout=PATIENCE).text
    event, _, data = events.strip().rpartition("\n")
    assert event.endswith("event: complete"), events
    html, sheet = json.loads(data.removeprefix("data: "))
    return html, sheet


@with_gradio
def test_the_page_says_what_the_captioner_says(address, checkpoint, good):
    """In words of the checkpoint's own, and with a sheet that can be fetched."""
    captioner = load_captioner(checkpoint)
    html, sheet = ask(address, "good.png", good.read_bytes())
    captioner.options = replace(captioner.options, n_best=2)  # its beams: fewer than the page would show
    assert html == answer(captioner, None, good)[0]
    assert html.count("<li>") == 1
    fetched = requests.get(sheet["url"], stream=True, timeout=PATIENCE).raw
    assert Image.open(fetched).width == WIDTH


@with_gradio
def test_what_is_no_image_or_too_large_is_one_line(address):
    html, sheet = ask(address, "<b>not an image.jpg", b"hello")
    assert html.startswith('<p role="alert">cannot read the picture ')
    assert "no image of a kind that is read here" in html
    assert "/" not in html.removesuffix("</p>")  # no place on the server's disk
    assert sheet is None
    html, sheet = ask(address, "huge.bmp", huge())
    assert "400,000,000 pixels, and at most 250,000,000 are read" in html
    assert sheet is None
    large = {"files": ("large.png", bytes(101 * 2**20))}
    assert requests.post(f"{address}/gradio_api/upload", files=large, timeout=PATIENCE).status_code == 413


@with_gradio
@pytest.mark.parametrize("name", ["good.png", "missing.png"])
def test_no_request_opens_a_file_of_the_machine(address, good, name):
    """Gradio checks the paths of requests that describe a file as its own page does, and of no others."""
    place = good.with_name(name)
    uploads = Path(tempfile.gettempdir()).resolve() / "gradio"
    for path in (place, uploads / os.path.relpath(place, uploads)):
        html, sheet = call(address, {"path": str(path)})
        assert html.startswith('<p role="alert">only what was uploaded to this page')
        assert sheet is None


@with_gradio
def test_one_search_at_a_time(address, good):
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: ask(address, "good.png", good.read_bytes())[0], range(3)))
    assert len(set(answers)) == 1
    assert 'class="caption"' in answers[0]


@with_gradio
def test_it_listens_to_this_machine_alone(address):
    with pytest.raises(OSError):  # noqa: PT011 - refused, or no such address
        socket.create_connection(("127.0.0.2", urlsplit(address).port), timeout=5)


@with_gradio
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing")
def test_a_browser_shows_caption_and_sheet_and_asks_nobody_else(address, good, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"hello")
    with browser(tmp_path / "profile") as tab:
        tab.open(address)
        tab.wait_for("document.querySelector('input[type=file]') !== null")
        time.sleep(1)  # until the page has its handlers
        tab.upload(good)
        caption = tab.wait_for("document.querySelector('.caption')?.innerText !== undefined")
        assert caption
        assert tab.wait_for("document.querySelector('#sheet img')?.naturalWidth") == WIDTH
        assert tab.value("document.querySelectorAll('img').length") >= 5  # its own, the sheet, three examples
        tab.wait_for("document.querySelector('[aria-label=\"Remove Image\"]') !== null")
        tab.value("document.querySelector('[aria-label=\"Remove Image\"]').click()")
        tab.wait_for("document.querySelector('input[type=file]') && !document.querySelector('.caption')")
        tab.upload(bad)
        line = tab.wait_for("document.querySelector('[role=alert]')?.innerText")
        assert line.startswith("cannot read the picture bad.png: it is damaged")
    others = {urlsplit(url).netloc for url in tab.requested if url.startswith(("http", "ws"))}
    assert others == {urlsplit(address).netloc}


def test_without_gradio_one_line_says_what_to_install(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, message = ended(app.main, "-c", checkpoint, capsys=capsys)
    assert code == 2
    assert message.count("\n") == 1
    assert "`make app`" in message
