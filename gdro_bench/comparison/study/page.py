"""The page of a study: one file that works offline, remembers answers in the browser and exports them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gdro_bench.comparison import html
from gdro_bench.comparison.study.pairs import Study
from gdro_bench.score import Images

HERE = Path(__file__).parent


def render(study: Study, pictures: Sequence[tuple[Images, Images]]) -> str:
    """The HTML. Nothing in it tells whose picture is where."""
    shown = [
        {"prompt": pair.text, "left": html.uri_of(left), "right": html.uri_of(right)}
        for pair, (left, right) in zip(study.pairs, pictures, strict=True)
    ]
    return html.template(HERE / "study.html.j2").render(
        study=study.name,
        question=study.question,
        pairs=shown,
        style=html.verbatim(HERE / "study.css"),
        script=html.verbatim(HERE / "study.js"),
    )
