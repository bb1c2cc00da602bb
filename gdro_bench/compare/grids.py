"""Pictures side by side: the same prompts and noise, painted by the base and by every method at matched reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gdro_bench.compare import matched
from gdro_bench.compare.entries import Comparison, Entry

GRID_ROWS = {"first": 5, "rises": 3, "falls": 3}
GRID_TITLES = {
    "first": "The first held-out prompts",
    "rises": "Where the reward rose most",
    "falls": "Where the reward fell most",
}


@dataclass(frozen=True, slots=True)
class Grid:
    """Pictures beside each other: columns title -> images [rows, H, W, 3], captions title -> what was read."""

    name: str
    title: str
    prompts: list[str]
    columns: dict[str, NDArray[np.uint8]]
    captions: dict[str, list[str]]


def grids(compared: Comparison, at_reward: Sequence[matched.AtReward]) -> list[Grid]:
    """Base and methods at matched reward on the same noise: the first prompts, and where the reward moved most."""
    shown: list[tuple[str, Entry, int]] = [("base", compared.reference, 0)]
    for row in at_reward:
        mark = len(row.entry.points) - 1 if row.mark is None else row.mark
        there = f"{row.entry.points[mark].mark:.0%}" + (", R* not reached" if row.mark is None else "")
        shown.append((f"{row.entry.label}, {there}", row.entry, mark))
    kept = min(_kept(entry, mark) for _, entry, mark in shown)
    change = np.mean([_change(entry, mark)[:kept] for _, entry, mark in shown[1:]] or [np.zeros(kept)], axis=0)
    order = np.argsort(-np.nan_to_num(change), kind="stable")
    rows = {"first": np.arange(kept), "rises": order[change[order] > 0], "falls": order[::-1][change[order[::-1]] < 0]}
    made = [_grid(name, chosen[: GRID_ROWS[name]], shown) for name, chosen in rows.items() if len(chosen)]
    return made if kept else []


def _kept(entry: Entry, mark: int) -> int:
    return len(list(_samples(entry, mark).glob("*.png")))


def _samples(entry: Entry, mark: int) -> Path:
    return entry.runs[0].folder / "samples" / f"{entry.points[mark].mark:.2f}"


def _change(entry: Entry, mark: int) -> NDArray[np.float64]:
    reward = entry.runs[0].parts["reward"]
    changed: NDArray[np.float64] = reward[mark] - reward[0]
    return changed


def _grid(name: str, rows: NDArray[np.int64], shown: Sequence[tuple[str, Entry, int]]) -> Grid:
    columns, captions = {}, {}
    for title, entry, mark in shown:
        paths = [_samples(entry, mark) / f"{i:04d}.png" for i in rows]
        columns[title] = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
        captions[title] = [entry.runs[0].notes[mark][i] for i in rows]
    prompts = [shown[0][1].runs[0].prompts[i] for i in rows]
    return Grid(name, GRID_TITLES[name], prompts, columns, captions)
