"""Pictures side by side: the same prompts and noise, painted by the base and by every method at matched reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gdro_bench.compare import matched
from gdro_bench.compare.entries import Comparison, Entry
from gdro_bench.engine import samples

Column = tuple[str, Entry, int]  # its title, and whose pictures at which mark
GRID_ROWS = {"first": 5, "rises": 3, "falls": 3, "judged": 5}
GRID_TITLES = {
    "first": "The first held-out prompts",
    "rises": "Where the reward rose most",
    "falls": "Where the reward fell most",
    "judged": "At the end of the budget, where the judge's rating fell most",
}


@dataclass(frozen=True, slots=True)
class Grid:
    """Pictures beside each other: columns title -> images [rows, H, W, 3], captions title -> what was read or seen."""

    name: str
    title: str
    prompts: list[str]
    columns: dict[str, NDArray[np.uint8]]
    captions: dict[str, list[str]]


def grids(compared: Comparison, at_reward: Sequence[matched.AtReward]) -> list[Grid]:
    """Base and methods on the same noise: at matched reward the first prompts, and where the reward moved most; at the
    end of the budget where the judge's rating fell most."""
    made = _moved(compared, _columns(compared, at_reward), "reward", ("first", "rises", "falls"))
    if "u" in compared.parts:
        ends = [(f"{entry.label}, 100%", entry, len(entry.points) - 1) for entry in compared.entries]
        made += _moved(compared, ends, "u", ("judged",))
    return made


def _moved(compared: Comparison, columns: list[Column], part: str, names: Sequence[str]) -> list[Grid]:
    """Grids of these names, of the base and these columns; `part` is what rose or fell."""
    shown: list[Column] = [("base", compared.reference, 0), *columns]
    kept = np.array(sorted(set.intersection(*(_kept(entry, mark) for _, entry, mark in shown))), dtype=np.int64)
    change = np.nan_to_num(np.mean([_change(entry, mark, part)[kept] for _, entry, mark in columns], axis=0))
    order = np.argsort(-change, kind="stable")
    rises, falls = order[change[order] > 0], order[::-1][change[order[::-1]] < 0]
    rows = {"first": kept, "rises": kept[rises], "falls": kept[falls], "judged": kept[falls]}
    return [_grid(name, rows[name][: GRID_ROWS[name]], shown) for name in names if len(rows[name])]


def _columns(compared: Comparison, at_reward: Sequence[matched.AtReward]) -> list[Column]:
    """Every entry where it reaches the matched reward, or at its last mark if it does not or nothing is matched."""
    if not at_reward:
        return [(entry.label, entry, len(entry.points) - 1) for entry in compared.entries]
    columns = []
    for row in at_reward:
        mark = len(row.entry.points) - 1 if row.mark is None else row.mark
        there = f"{row.entry.points[mark].mark:.0%}" + (", R* not reached" if row.mark is None else "")
        columns.append((f"{row.entry.label}, {there}", row.entry, mark))
    return columns


def _kept(entry: Entry, mark: int) -> set[int]:
    """The held-out prompts whose pictures were kept."""
    return set(samples.numbers(_samples(entry, mark)))


def _samples(entry: Entry, mark: int) -> Path:
    return samples.path_of(entry.runs[0].folder, entry.points[mark].mark)


def _change(entry: Entry, mark: int, part: str) -> NDArray[np.float64]:
    values = entry.runs[0].parts[part]
    changed: NDArray[np.float64] = values[mark] - values[0]
    return changed


def _grid(name: str, rows: NDArray[np.int64], shown: Sequence[Column]) -> Grid:
    columns, captions = {}, {}
    for title, entry, mark in shown:
        columns[title] = samples.read(_samples(entry, mark), rows.tolist())
        captions[title] = [entry.runs[0].notes[mark][i] for i in rows]
    prompts = [shown[0][1].runs[0].prompts[i] for i in rows]
    return Grid(name, GRID_TITLES[name], prompts, columns, captions)
