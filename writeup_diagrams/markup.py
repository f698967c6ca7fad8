"""HTML and SVG as text: elements from a name, attributes and content, with everything escaped.

    >>> element("a", "more & more", href="page.html", class_="next")
    '<a href="page.html" class="next">more &amp; more</a>'

Text is escaped; what `element` returns is `Markup`, and goes into another element as it is.
"""

from html import escape


class Markup(str):
    """Text that is markup already."""


def element(name: str, *content: object, **attributes: object) -> Markup:
    """One element with its content.

    Args:
        name: of the element.
        content: text, numbers, `Markup`, or lists of these.
        attributes: by name; `class_` is class and `stroke_width` is stroke-width.  None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = joined(*content)
    return Markup(f"<{name}{written}>{inside}</{name}>" if inside else f"<{name}{written}/>")


def joined(*content: object) -> Markup:
    """Pieces of content one after the other."""
    pieces = []
    for piece in content:
        if isinstance(piece, list | tuple):
            pieces.append(joined(*piece))
        elif isinstance(piece, Markup):
            pieces.append(piece)
        elif piece is not None:
            pieces.append(escape(_text(piece), quote=False))
    return Markup("".join(pieces))


def _text(value: object) -> str:
    """Numbers without needless digits: coordinates are in pixels."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
