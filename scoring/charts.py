"""Line charts as inline SVG; their colours come from the page's style."""

import math
from collections.abc import Mapping, Sequence

from scoring.markup import Markup, element

WIDTH, HEIGHT = 360, 220  # of the drawing, in its own units; it is as wide as the page lets it be
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 48, 28  # room for ticks and titles

Points = Sequence[tuple[int, float]]  # epoch, value


def line_chart(title: str, series: Mapping[str, Points]) -> Markup:
    """One or two lines over epochs, from zero up.

    Args:
        title: what the values are.
        series: by the line's name its points, (epoch, value); a value that is not finite is left out.

    Returns:
        A `figure`, as wide as the page lets it be; its colours are the page's, by the classes `s0`, `d0`, ...
    """
    lines = {name: [(x, y) for x, y in points if _drawable(y)] for name, points in series.items()}
    values = [y for points in lines.values() for _, y in points]
    epochs = [x for points in lines.values() for x, _ in points] or [1]
    greatest = max(values, default=0.0) or 1.0  # an axis there is, also without values above zero
    step = nice_step(greatest)
    top = step * math.ceil(greatest / step)
    first, last = min(epochs), max(epochs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    shapes = [element("text", title, x=0, y=16, class_="title")]
    for tick in range(round(top / step) + 1):
        _, y = place(first, tick * step)
        shapes.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        shapes.append(element("text", f"{tick * step:g}", x=LEFT - 6, y=y + 4, text_anchor="end"))
    for epoch in sorted({first, (first + last) // 2, last}):
        x, _ = place(epoch, 0)
        shapes.append(element("text", str(epoch), x=x, y=HEIGHT - 8, text_anchor="middle"))
    for number, (name, points) in enumerate(lines.items()):
        placed = [place(*point) for point in points]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        shapes.append(element("polyline", points=corners, class_=f"line s{number}"))
        for (x, y), (epoch, value) in zip(placed, points):
            tip = element("title", f"{name}, epoch {epoch}: {value:.4g}")
            shapes.append(element("circle", tip, cx=x, cy=y, r=3, class_=f"d{number}"))
        shapes.append(element("circle", cx=LEFT + 4 + 80 * number, cy=32, r=4, class_=f"d{number}"))
        shapes.append(element("text", name, x=LEFT + 14 + 80 * number, y=36))
    return element(
        "figure", element("svg", shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    )


def nice_step(greatest: float) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten, for three to six of them."""
    power = 10.0 ** math.floor(math.log10(greatest))
    return next(power * factor for factor in (0.2, 0.5, 1.0, 2.0) if greatest / (power * factor) <= 5)


def _drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
