"""The paper on which the diagrams are drawn: one panel, one palette for light and for dark, a few shapes.

A diagram stands on a panel of its own, so it can be read on any page, and it follows the reader's preference
for light or dark.  Lengths are in pixels.
"""

import sys
from pathlib import Path

# So that the scripts beside this one can import the models.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from markup import Markup, element

HERE = Path(__file__).resolve().parent
STYLE = """
svg { --paper: #ffffff; --edge: #d0d7de; --ink: #1f2328; --soft: #59636e;
  --grey: #eaeef2; --grey-edge: #aeb6bf; --blue: #e3effc; --blue-edge: #3f7fc4;
  --orange: #fdeedd; --orange-edge: #c4761b; --green: #e2f4e5; --green-edge: #2f8f46 }
@media (prefers-color-scheme: dark) { svg {
  --paper: #10151c; --edge: #3d444d; --ink: #e6edf3; --soft: #a3acb6;
  --grey: #262d36; --grey-edge: #656e79; --blue: #13304f; --blue-edge: #5ba0ea;
  --orange: #43290d; --orange-edge: #e39a4a; --green: #123a1e; --green-edge: #4fb868 } }
text { font: 14px system-ui, -apple-system, "Segoe UI", "Noto Sans", Arial, sans-serif; fill: var(--ink) }
.code { font-family: ui-monospace, Menlo, Consolas, "Liberation Mono", monospace; font-size: 13px }
.title { font-size: 15px; font-weight: 600 } .small { font-size: 12px } .soft { fill: var(--soft) }
.middle { text-anchor: middle } .end { text-anchor: end }
.line { fill: none; stroke: var(--soft); stroke-width: 1.4 } .head { fill: var(--soft) }
.paper { fill: var(--paper); stroke: var(--edge) }
.grey { fill: var(--grey); stroke: var(--grey-edge) }
.blue { fill: var(--blue); stroke: var(--blue-edge) }
.orange { fill: var(--orange); stroke: var(--orange-edge) }
.green { fill: var(--green); stroke: var(--green-edge) }
.frame { fill: none; stroke-width: 1.5 } .hidden { fill: var(--paper); fill-opacity: 0.72 }
.wave { fill: none; stroke: #8cc7ea; stroke-width: 2 }
.cut { fill: none; stroke: var(--paper); stroke-width: 2 }
"""


def write(path: Path, width: int, height: int, title: str, *content: object) -> None:
    """Writes a diagram; `title` is what a screen reader says."""
    sheet = element(
        "svg", element("title", title), element("style", Markup(STYLE)),
        element("rect", class_="paper", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=10), *content,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width, height=height,
        role="img",
    )  # fmt: skip
    path.write_text(sheet.replace("><", ">\n<") + "\n", encoding="utf-8")


def text(x: float, y: float, words: str, style: str = "") -> Markup:
    return element("text", words, x=x, y=y, class_=style or None)


def box(x: float, y: float, width: float, height: float, style: str, radius: float = 6) -> Markup:
    return element("rect", class_=style, x=x, y=y, width=width, height=height, rx=radius)


def labelled_box(
    x: float, y: float, width: float, height: float, style: str, label: str, note: str = ""
) -> list[Markup]:
    """A box with a line in its middle and, beneath, a smaller one."""
    middle, centre = x + width / 2, y + height / 2 + 5
    if not note:
        return [box(x, y, width, height, style), text(middle, centre, label, "middle")]
    return [
        box(x, y, width, height, style),
        text(middle, centre - 8, label, "middle"),
        text(middle, centre + 10, note, "small soft middle"),
    ]


def arrow(*points: tuple[float, float]) -> list[Markup]:
    """A line through the points, which run straight across or down, with a head at the last."""
    (x0, y0), (x1, y1) = points[-2:]
    dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
    back, side = (x1 - 7 * dx, y1 - 7 * dy), (4 * dy, 4 * dx)
    head = [(x1, y1), (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1])]
    return [
        element("polyline", class_="line", points=_points([*points[:-1], back])),
        element("polygon", class_="head", points=_points(head)),
    ]


def scenes() -> list[Markup]:
    """Two pictures of 90 × 90, and the blur: a boat on the sea; a house and a tree on a meadow."""
    sea = [
        element("rect", width=90, height=58, fill="#a9d7f2"),
        element("rect", y=58, width=90, height=32, fill="#2f7fb5"),
        element("circle", cx=72, cy=17, r=9, fill="#ffd75e"),
        element("polygon", points="43,12 43,50 18,50", fill="#ffffff"),
        element("polygon", points="47,20 47,50 66,50", fill="#f3efe4"),
        element("polygon", points="12,54 76,54 66,70 24,70", fill="#b5452f"),
        element(
            "path",
            d="M4 78 q8 -5 16 0 t16 0 t16 0 t16 0 t16 0",
            class_="wave",
        ),
    ]
    meadow = [
        element("rect", width=90, height=56, fill="#cfe6f5"),
        element("rect", y=56, width=90, height=34, fill="#86bd5b"),
        element("rect", x=10, y=38, width=34, height=30, fill="#f1e2c4"),
        element("polygon", points="5,40 27,20 49,40", fill="#b0503c"),
        element("rect", x=22, y=50, width=10, height=18, fill="#6b4a33"),
        element("rect", x=64, y=44, width=7, height=28, fill="#7a5636"),
        element("circle", cx=67, cy=33, r=17, fill="#3d8b46"),
        element("path", d="M0 80 q22 -8 45 0 t45 0 V90 H0 Z", fill="#6fa848"),
    ]
    gauss = element("feGaussianBlur", stdDeviation=6)
    blur = element("filter", gauss, id="blur", x=0, y=0, width=1, height=1)
    return [element("g", sea, id="scene0"), element("g", meadow, id="scene1"), blur]


def _points(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
