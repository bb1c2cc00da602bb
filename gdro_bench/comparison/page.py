"""A comparison's page: one HTML file that needs nothing else.

`page.html.j2` holds its structure and escapes all text from records and prompts; here its data are prepared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdro_bench.comparison import html

if TYPE_CHECKING:
    from gdro_bench.comparison.drawings import Figure
    from gdro_bench.comparison.grids import Grid
    from gdro_bench.comparison.tables.table import Table

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class RunRow:
    """A line of the list of runs: its entry's label, seed, the digest of its method's settings, what repeats it."""

    label: str
    seed: int
    digest: str
    command: str


@dataclass(frozen=True, slots=True)
class ClaimSection:
    """A claim on a page of verdicts: its verdict and source, the table of its tests (titled by the claim itself), and
    which of the page's commands repeat its runs, from 1 on."""

    verdict: str
    source: str
    table: Table
    commands: list[int]


def render(
    title: str,
    headlines: Sequence[str],
    tables: Sequence[Table],
    figures: Sequence[Figure],
    grids: Sequence[Grid],
    runs: Sequence[RunRow],
    tested_on: str,
) -> str:
    """The page's HTML. tables: the one in short first. figures: the one below it first. tested_on: the prompts, in
    words."""
    return html.template(HERE / "page.html.j2").render(
        title=title,
        headlines=headlines,
        tables=_named("table", map(_table, tables)),
        figures=_named("figure", map(_figure, figures)),
        grids=_named("grid", map(_grid, grids)),
        runs=runs,
        tested_on=tested_on,
        style=html.verbatim(HERE / "page.css"),
        script=html.verbatim(HERE / "page.js"),
    )


def render_claims(
    title: str,
    sentences: Sequence[str],
    summary: Table,
    sections: Sequence[ClaimSection],
    commands: Sequence[str],
    figure: Path,
    figure_title: str,
) -> str:
    """The HTML of a page of verdicts. figure: a PNG file."""
    return html.template(HERE / "claims" / "claims.html.j2").render(
        title=title,
        sentences=sentences,
        summary=_table(summary),
        sections=[
            {
                "verdict": one.verdict,
                "source": one.source,
                "table": _table(one.table),
                "runs": told_numbers(one.commands),
            }
            for one in sections
        ],
        commands=commands,
        figure=html.uri(figure.read_bytes()),
        figure_title=figure_title,
        style=html.verbatim(HERE / "page.css"),
    )


def told_numbers(numbers: Sequence[int]) -> str:
    """Rising numbers for people, runs of three and more as a span: 1 to 3, 7, 9."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(f"{s[0]} to {s[-1]}" if len(s) > 2 else ", ".join(map(str, s)) for s in spans)


def _named(kind: str, parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The page's parts, each with what links on the page call it."""
    return [{**part, "id": f"{kind}-{number}"} for number, part in enumerate(parts, 1)]


def _figure(figure: Figure) -> dict[str, str]:
    return {"title": figure.title, "caption": figure.caption, "uri": html.uri(figure.path.read_bytes())}


def _table(table: Table) -> dict[str, Any]:
    return {"title": table.title, "header": table.header, "rows": [[_cell(c) for c in row] for row in table.cells]}


def _cell(text: str) -> dict[str, str]:
    """A value, its interval apart, and what is said of that in words."""
    value, bracket, rest = text.partition(" [")
    interval, close, remark = rest.partition("]")
    return {"value": value, "interval": f"[{interval}{close}" if bracket else "", "remark": remark.lstrip(", ")}


def _grid(grid: Grid) -> dict[str, Any]:
    rows = [{"prompt": prompt, "pictures": _pictures(grid, i)} for i, prompt in enumerate(grid.prompts)]
    told = any(any(captions) for captions in grid.captions.values())
    return {"title": grid.title, "header": ["prompt", *grid.columns], "rows": rows, "told": told}


def _pictures(grid: Grid, row: int) -> list[dict[str, str]]:
    return [
        {"uri": html.uri_of(images[row]), "alt": f"{grid.prompts[row]} ({title})", "caption": grid.captions[title][row]}
        for title, images in grid.columns.items()
    ]
