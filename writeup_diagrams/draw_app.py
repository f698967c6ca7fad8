"""Takes the screenshot of app.py's page, app.png, in headless Chromium.

make app &                                  # or app.py with another captioner
python writeup_diagrams/draw_app.py http://127.0.0.1:7860
"""

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.browser_cases import browser  # noqa: E402

WIDTH = 1000  # of the window, pixels
COLORS = 128  # a palette of so few keeps the file below 300 kB
EXAMPLE = "document.querySelectorAll('.gallery-item')[1]"  # the dog


def draw(address: str, path: Path, width: int = WIDTH, dark: bool = False) -> None:
    """Writes the page as it answers the second example.

    Args:
        address: of the running page.
        path: the PNG.
        width: of the window, pixels; below 600 it is a phone's.
        dark: as for a reader who prefers dark pages.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, browser(Path(profile)) as tab:
        tab.open(address, width, dark=dark)
        tab.wait_for(f"{EXAMPLE} !== undefined")
        time.sleep(2)  # until it has its handlers
        tab.value(f"{EXAMPLE}.click()")
        tab.wait_for("document.querySelector('#sheet img')?.naturalWidth")
        time.sleep(1)  # until it is laid out
        image = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    image.quantize(COLORS).save(path, optimize=True)


if __name__ == "__main__":
    draw(sys.argv[1], HERE / "app.png")
