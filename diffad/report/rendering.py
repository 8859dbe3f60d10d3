"""HTML from Jinja templates, with matplotlib figures as inline SVG and pictures as data URIs."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import cv2
import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVEL = {
    "jpeg": cv2.IMWRITE_JPEG_QUALITY,
    "png": cv2.IMWRITE_PNG_COMPRESSION,
    "webp": cv2.IMWRITE_WEBP_QUALITY,
}
_DRAWING = Lock()  # matplotlib's settings are global, and the page renders reports in several threads


def render(template: Path, **values: Any) -> str:
    """Fill a template with values, which are escaped unless they are Markup.

    The template may include files of its own folder.

    Raises:
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    return _environment(template.parent).get_template(template.name).render(values)


@cache
def _environment(folder: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": words, "number": number}
    return environment


def number(value: float) -> str:
    """A score as text, with three significant digits."""
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def words(name: str) -> str:
    """The name of a category or key, with spaces for underscores."""
    return name.replace("_", " ")


def data_uri(picture: npt.NDArray[np.uint8], kind: str, level: int) -> str:
    """A picture as a data URI.

    Args:
        picture: RGB or grey.
        kind: "jpeg", "png" or "webp".
        level: quality of JPEG and WebP, 0 to 100; compression of PNG, 0 to 9.
    """
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    _, data = cv2.imencode(f".{kind}", bgr, (_LEVEL[kind], level))
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def inline_svg(figure: Figure, label: str, colours: Mapping[str, str] | None = None) -> Markup:
    """Convert a figure to an SVG element that takes its width and fonts from the page.

    Args:
        figure: a point of the figure becomes a unit of the SVG's coordinates. It must not rely on clipping
            or markers, which are removed.
        label: the element's accessible name.
        colours: "#rrggbb" in the figure → its replacement in the SVG, such as "var(--ink)".
    """
    import matplotlib

    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with _DRAWING, matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(buffer, format="svg", metadata=metadata)
    drawn = buffer.getvalue()
    opening, inner = drawn[drawn.index("<svg") : drawn.rindex("</svg>")].split(">", 1)
    view = opening[opening.index("viewBox") :].split('"')[1]
    inner = re.sub(r"<!--.*?-->|<defs>.*?</defs>", "", inner, flags=re.DOTALL)
    inner = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", _shortened, inner))
    for colour, replacement in (colours or {}).items():
        inner = inner.replace(colour, replacement)
    name = escape(label)
    attributes = f'viewBox="{view}" role="img" aria-label="{name}" stroke-linejoin="round"'
    return Markup(f"<svg {attributes}><title>{name}</title>{inner}</svg>")


def _shortened(tag: re.Match[str]) -> str:
    """A tag without ids and clip paths, which would clash within the page, and without superfluous bytes."""
    text = re.sub(r' (?:id|clip-path)="[^"]*"| transform="rotate\(-0 [^"]*"', "", tag[0])
    text = re.sub(r' font-family: [^;"]*;?', "", text)
    text = re.sub(r"-?\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), text)
    return "" if re.fullmatch(r"</?g\s*/?>", text) else text
