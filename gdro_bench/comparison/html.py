"""What all pages are made with: templates that escape text, files of the package, and pictures inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
from markupsafe import Markup
from numpy import uint8
from numpy.typing import NDArray
from PIL import Image


def template(path: Path) -> jinja2.Template:
    """All that it is given is escaped; a name that it is not given is an error."""
    loader = jinja2.FileSystemLoader(path.parent)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    ).get_template(path.name)


def verbatim(path: Path) -> Markup:
    """A file of the package, which is not escaped."""
    return Markup(path.read_text(encoding="utf-8"))


def uri(png: bytes) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def uri_of(image: NDArray[uint8]) -> str:
    """A picture [H, W, 3] as such an address."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return uri(buffer.getvalue())
