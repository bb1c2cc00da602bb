"""The page of a study: one file that works offline, remembers answers in the browser and exports them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from gdro_bench.comparison.study.pairs import Study
from gdro_bench.score import Images

HERE = Path(__file__).parent


def render(study: Study, pictures: Sequence[tuple[Images, Images]]) -> str:
    """The HTML. Nothing in it tells whose picture is where."""
    shown = [
        {"prompt": pair.text, "left": _uri(left), "right": _uri(right)}
        for pair, (left, right) in zip(study.pairs, pictures, strict=True)
    ]
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("study.html.j2").render(
        study=study.name, question=study.question, pairs=shown, style=_own("study.css"), script=_own("study.js")
    )


def _own(name: str) -> Markup:
    """A file of the package, which is not escaped."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


def _uri(image: Images) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
