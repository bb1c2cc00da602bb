"""`study`: blind comparisons of methods by people: writes the page, and says what the answers say."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gdro_bench.comparison import entries, grouping
from gdro_bench.comparison.study import answers, page, pairs
from gdro_bench.comparison.tables.table import csv_bytes
from gdro_bench.errors import BenchError
from gdro_bench.files import write_atomically

PAGE = "study.html"
QUESTION = "Which picture is the better answer to these words?"


def execute(
    console: Console,
    folders: tuple[Path, ...],
    runs: Path,
    out: Path | None,
    files: Sequence[Path],
    count: int,
    at: str,
    seed: int,
    question: str,
    reference: str | None,
) -> None:
    """Writes a study of the finished runs, or with `files` tells what was answered.

    Raises:
        BenchError: no runs that can be compared, no pictures of theirs, no such study, or answers that cannot be used.
    """
    folder = out or runs / "study"
    if files:
        _tell(console, folder, files)
    else:
        _write(console, _compared(folders, runs, reference), folder, count, at, seed, question)


def _compared(folders: tuple[Path, ...], runs: Path, reference: str | None) -> entries.Comparison:
    groups, _ = grouping.groups(folders, runs)
    if len(groups) > 1:
        names = ", ".join(group.name for group in groups)
        raise BenchError(
            f"The runs under {runs} make {len(groups)} comparisons: {names}.", "Name the folders of one.", 2
        )
    return entries.compare(groups[0].runs, bool(folders), reference)


def _write(
    console: Console, compared: entries.Comparison, folder: Path, count: int, at: str, seed: int, question: str
) -> None:
    study = pairs.draw(compared, at, count, seed, question)
    pairs.write_key(study, folder)
    write_atomically(folder / PAGE, page.render(study, pairs.pictures(compared, study)).encode())
    console.print(f"{len(study.pairs)} pairs of {study.reference} and {', '.join(study.others)}.", markup=False)
    for line in (
        f"Give raters this file: {folder / PAGE}",
        f"Keep this one, which tells whose picture is where: {folder / pairs.KEY}",
        f"Then: gdro-bench study --out {shlex.quote(str(folder))} --answers FILE --answers FILE",
    ):
        console.print(line, soft_wrap=True, markup=False)


def _tell(console: Console, folder: Path, files: Sequence[Path]) -> None:
    study = pairs.read_key(folder)
    table = answers.table(study, answers.read_all(files, study))
    answers.keep(files, folder)  # for `compare --study`, which reads the folder
    write_atomically(folder / "study.csv", csv_bytes(table.numbers))
    write_atomically(folder / "study.md", f"## {table.title}\n\n{table.markdown()}".encode())
    console.print(table.title, markup=False)
    for row in table.cells:
        told = "; ".join(f"{name} {cell}" for name, cell in zip(table.header[1:], row[1:], strict=True))
        console.print(f"- {row[0]}: {told}", soft_wrap=True, markup=False)
    console.print(f"Table: {folder / 'study.md'}", soft_wrap=True, markup=False)
