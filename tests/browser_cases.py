"""A headless Chromium, driven over its DevTools protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0")
PATIENCE = 120  # seconds until a page shows what is waited for; nothing is measured by it


class Tab:
    """A page in the browser."""

    def __init__(self, socket: Any, loop: asyncio.AbstractEventLoop):
        self.socket, self.loop, self.number = socket, loop, 0
        self.requested: list[str] = []  # the address of everything that the page asked for

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        return self.loop.run_until_complete(self._exchange(message))

    async def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        await self.socket.write_message(json.dumps(message))
        while True:
            answer = json.loads(await self.socket.read_message())
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, address: str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Shows a page in a window of this size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Network.enable")
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """What an expression in JavaScript is."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.value(expression)):
            assert time.monotonic() < end, (
                f"{expression} stays {value!r}: {self.value('document.body.innerText')}"
            )
            time.sleep(0.1)
        return value

    def upload(self, path: Path) -> None:
        """Gives a file to the page's first field for files."""
        found = self.call("Runtime.evaluate", expression="document.querySelector('input[type=file]')")
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, which ends with the block.

    Args:
        profile: an empty folder.
    """
    from tornado.websocket import websocket_connect  # Jupyter's, so it is among the requirements for tests

    process = subprocess.Popen(
        [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
    )
    loop = asyncio.new_event_loop()
    try:
        written, end = profile / "DevToolsActivePort", time.monotonic() + PATIENCE
        while not (written.exists() and len(lines := written.read_text().splitlines()) > 1):
            assert process.poll() is None, "the browser did not start"
            assert time.monotonic() < end
            time.sleep(0.1)
        targets = requests.get(f"http://127.0.0.1:{lines[0]}/json/list", timeout=PATIENCE).json()
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        yield Tab(loop.run_until_complete(connect(websocket_connect, address)), loop)
    finally:
        process.terminate()
        process.wait()
        loop.close()


async def connect(websocket_connect: Any, address: str) -> Any:
    """A connection that takes screenshots: a message may have 64 MB."""
    return await websocket_connect(address, max_message_size=2**26)
