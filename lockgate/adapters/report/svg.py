"""A matplotlib figure as inline SVG: text stays text, ids are unique in the page, title and description are attached."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_LONG_DECIMAL = re.compile(r"(-?\d+\.\d{2})\d+")
ET.register_namespace("", _SVG)
ET.register_namespace("xlink", _XLINK)
_FONT = re.compile(r"font:\s*(?:(\d+)\s+)?([\d.]+px)[^;]*")


def inline_svg(figure: Figure, *, prefix: str, title: str, description: str) -> Markup:
    """The figure as an `<svg>` element. `prefix` must be unique in the page."""
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    root = ET.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    # matplotlib's style sheet says `*`, which inside a page means the whole page.
    for definitions in root.findall(f"{{{_SVG}}}defs"):
        if definitions.find(f"{{{_SVG}}}style") is not None:
            root.remove(definitions)
    _make_ids_unique(root, prefix)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("d", "x", "y", "width", "height", "transform", "points", "style"):
                element.set(name, _LONG_DECIMAL.sub(r"\1", value))
        style = element.get("style")
        if style is not None and "font:" in style:
            element.set("style", _FONT.sub(_plain_font, style))
    # The page sets the size; the view box keeps the proportions.
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title {prefix}-description")
    for tag, name, text in (("desc", "description", description), ("title", "title", title)):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{prefix}-{name}"})
        element.text = text
        root.insert(0, element)
    text = ET.tostring(root, encoding="unicode", short_empty_elements=True)
    # Built by an XML serialiser from escaped text: safe to place in the page as it is.
    return Markup(text)


def _plain_font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"


def _make_ids_unique(root: ET.Element, prefix: str) -> None:
    """Prefix every id that something refers to; drop the others."""
    wanted: set[str] = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            wanted.update(_REFERENCE.findall(value))
            if name in ("href", f"{{{_XLINK}}}href") and value.startswith("#"):
                wanted.add(value[1:])
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                if value in wanted:
                    element.set(name, f"{prefix}-{value}")
                else:
                    del element.attrib[name]
            elif name in ("href", f"{{{_XLINK}}}href") and value.startswith("#"):
                element.set(name, f"#{prefix}-{value[1:]}")
            else:
                element.set(name, _REFERENCE.sub(rf"url(#{prefix}-\1)", value))
