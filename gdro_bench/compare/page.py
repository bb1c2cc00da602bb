"""A comparison's page: one HTML file that needs nothing else. All text from records and prompts is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from gdro_bench.compare.grids import Grid
    from gdro_bench.compare.tables import Table

STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")
INTRODUCTION = (
    "Every method trained the same base model on the same reward with the same budget; all numbers are of held-out "
    "prompts with fixed noise. The reward is what was trained on; judge, statistics and the pictures themselves say "
    "what a gain was paid with."
)


def render(
    title: str,
    said: Sequence[str],
    tables: Sequence[Table],
    figures: Mapping[str, Path],
    grids: Sequence[Grid],
    runs: Sequence[Sequence[str]],
) -> str:
    """The page's HTML. tables: the one in short first. figures: title -> PNG file. runs: cells of the list of runs."""
    drawn = list(figures.items())
    parts = [
        f"<p>{INTRODUCTION}</p>",
        _list(said),
        _table(tables[0]),
        *(_figure(name, path) for name, path in drawn[:1]),
        *(_table(table) for table in tables[1:]),
        *(_grid(grid) for grid in grids),
        *(_figure(name, path) for name, path in drawn[1:]),
        _runs(runs),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = f"<h1>{escape(title)}</h1>\n" + "\n".join(parts)
    dialog = '<dialog><img alt=""><p></p><p class="note">Click to close.</p></dialog>'
    style, script = (path.read_text(encoding="utf-8") for path in (STYLE, SCRIPT))
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{style}</style></head>\n<body>\n{body}\n{dialog}\n'
        f"<script>{script}</script>\n</body></html>\n"
    )


def _list(said: Sequence[str]) -> str:
    return '<ul class="said">' + "".join(f"<li>{escape(sentence)}</li>" for sentence in said) + "</ul>"


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _figure(name: str, path: Path) -> str:
    image = f'<img src="{_uri(path.read_bytes())}" alt="{escape(name)}">'
    caption = f"<figcaption>{escape(CAPTIONS.get(name, ABLATION))}</figcaption>"
    return f"<h2>{escape(name)}</h2>\n<figure>{image}{caption}</figure>"


CAPTIONS = {
    "Reward against cost": "Thick: mean over seeds; thin: each seed; band: 95 % interval. A pool is paid for before "
    "the first update: the flat start of a curve. The dashed line is the matched reward R*.",
    "Corrected score against cost": "The reward bent by a judge that no method sees: r (u - 3) + 0.2, with r the mean "
    "reward and u the mean of the judge's axes (arXiv 2601.02036, section 4.1). Reward that costs quality lowers it.",
    "Reward against the pictures' statistics": "From the base (dot) to the end of the budget (marker, "
    "with 95 % intervals). A method whose "
    "reward rises while a statistic leaves the base's value changes more than it was asked to.",
}
ABLATION = "Runs that differ in this number alone. Band: 95 % interval."


def _cells(tag: str, cells: Sequence[str]) -> str:
    return "".join(f"<{tag}>{cell}</{tag}>" for cell in cells)


def _table(table: Table) -> str:
    head = _cells("th", [f"<button>{escape(cell)}</button>" for cell in table.header])
    rows = "".join(f"<tr>{_cells('td', list(map(_value, row)))}</tr>" for row in table.cells)
    return (
        f'<h2>{escape(table.title)}</h2>\n<p class="note screen">Click a heading to sort.</p><div class="wide">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _value(cell: str) -> str:
    """A cell, its interval in a line of its own."""
    value, bracket, interval = cell.partition(" [")
    return escape(value) + (f' <span class="interval">[{escape(interval)}</span>' if bracket else "")


def _grid(grid: Grid) -> str:
    rows = []
    for i, prompt in enumerate(grid.prompts):
        pictures = [
            _picture(images[i], grid.captions[title][i], f"{prompt} ({title})")
            for title, images in grid.columns.items()
        ]
        rows.append(f"<tr>{_cells('td', [escape(prompt), *pictures])}</tr>")
    head = _cells("th", ["prompt", *map(escape, grid.columns)])
    table = f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return (
        f'<h2>{escape(grid.title)}</h2>\n<p class="note">Same noise along a row; below a picture, what was seen.</p>'
        f'<div class="wide">{table}</div>'
    )


def _picture(image: NDArray[np.uint8], caption: str, alt: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    picture = f'<img src="{_uri(buffer.getvalue())}" alt="{escape(alt)}">'
    return f"<button>{picture}</button>{escape(caption) or '(nothing read)'}"


def _runs(runs: Sequence[Sequence[str]]) -> str:
    head = _cells("th", ["method", "seed", "digest of its numbers", "command"])
    rows = "".join(
        f"<tr>{_cells('td', [*map(escape, run[:3]), f'<code>{escape(run[3])}</code>'])}</tr>" for run in runs
    )
    table = f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<h2>Runs</h2>\n<div class="wide">{table}</div>'
