"""The answers to a study -> who was preferred, with intervals over prompts and raters, and how far raters agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gdro_bench import content, stats
from gdro_bench.comparison.study import pairs
from gdro_bench.comparison.study.pairs import Study
from gdro_bench.comparison.tables.table import Table
from gdro_bench.errors import BenchError
from gdro_bench.files import write_atomically
from gdro_bench.stats import Estimate

KEPT = "read-answers"  # the folder in a study's where copies of its answers are kept
CHOICES = ("left", "tie", "right")
OUTCOMES = ("preferred", "alike", "other preferred")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answers:
    """One rater's choices by the pair's number; a study may be left unfinished."""

    rater: str
    choices: dict[int, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The reference against another method: the share of answers that prefer it, that call both alike and that prefer
    the other, its win rate (ties count half), from how many raters and answers."""

    method: str
    other: str
    shares: dict[str, Estimate]
    win_rate: Estimate
    raters: int
    answers: int


def read(path: Path, study: Study) -> Answers:
    """The file that a study's page has saved.

    Raises:
        BenchError: it cannot be read, is damaged, or answers another study.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        name, rater = str(table["study"]), str(table["rater"]).strip()
        choices = {int(row["pair"]): str(row["choice"]) for row in table["answers"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BenchError(
            f"The answers {path} cannot be read: {type(error).__name__}: {str(error)[:120]}.",
            "Ask for the file that the page saves, unchanged.",
        ) from error
    if name != study.name:
        raise BenchError(
            f"{path} answers study {name[:40]}, not {study.name}.", "Give the folder of that study: --out."
        )
    if not all(0 <= pair < len(study.pairs) and choice in CHOICES for pair, choice in choices.items()):
        raise BenchError(f"{path} names pairs or choices that the study has not.", "Ask for the file again, unchanged.")
    return Answers(rater or path.stem, choices)


def read_all(paths: Sequence[Path], study: Study) -> list[Answers]:
    """Raises:
    BenchError: one cannot be used, two are one rater's, or none answers anything."""
    found = [read(path, study) for path in paths]
    names = [one.rater for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BenchError(
            f"Two files are of the rater {twice[0]!r}.", "Leave one out, or give them different names in it."
        )
    if not any(one.choices for one in found):
        raise BenchError("No pair was answered.", "Answer some on the study's page and save them.")
    return found


def keep(paths: Sequence[Path], folder: Path) -> None:
    """Copies these files into a study's folder, in the place of those of an earlier call."""
    names = [f"{number:03d}.json" for number in range(len(paths))]
    for name, answered in zip(names, [path.read_bytes() for path in paths], strict=True):
        write_atomically(folder / KEPT / name, answered)
    for path in (folder / KEPT).iterdir():
        if path.name not in names:
            path.unlink()


def kept(folder: Path) -> tuple[Study, Table]:
    """A study and what the answers say that its folder keeps.

    Raises:
        BenchError: there is no study, or no answers were kept.
    """
    study, files = pairs.read_key(folder), sorted((folder / KEPT).glob("*.json"))
    if not files:
        raise BenchError(
            f"The study in {folder} has no answers yet.",
            f"Read them first: gdro-bench study --out {folder} --answers FILE",
        )
    return study, table(study, read_all(files, study))


# ---------------------------------------------------------------------------------------------------------------
# Preferences


def verdicts(study: Study, raters: Sequence[Answers]) -> list[Verdict]:
    """One for every method that the reference was shown with."""
    return [_verdict(study, other, raters) for other in study.others]


def _verdict(study: Study, other: str, raters: Sequence[Answers]) -> Verdict:
    shown = [pair for pair in study.pairs if other in (pair.left, pair.right)]
    outcomes = np.full((len(raters), len(shown)), np.nan)  # 1: the reference is preferred, 0: alike, -1: the other
    for row, rater in enumerate(raters):
        for column, pair in enumerate(shown):
            if pair.number in rater.choices:
                side = 1.0 if pair.left == study.reference else -1.0
                outcomes[row, column] = side * {"left": 1, "tie": 0, "right": -1}[rater.choices[pair.number]]
    answered = ~np.isnan(outcomes)
    people = stats.draws_of_few(len(raters), content.seed("raters", study.name))
    prompts = stats.draws_of([pair.text for pair in shown], seed=0)

    def mean(values: Floats) -> Estimate:
        known = np.where(answered, values, np.nan)
        drawn = stats.replicates(known[:, None], people, prompts)[:, 0]
        return stats.estimate(float(stats.known_mean(known)), drawn)

    shares = {name: mean((outcomes == sign).astype(float)) for name, sign in zip(OUTCOMES, (1, 0, -1), strict=True)}
    at_all = int(answered.any(axis=1).sum())
    return Verdict(study.reference, other, shares, mean((outcomes + 1) / 2), at_all, int(answered.sum()))


def agreement(study: Study, raters: Sequence[Answers]) -> float:
    """Krippendorff's alpha of the choices, as names without order: 1 is perfect agreement, 0 is chance; NaN where no
    pair was answered twice (Krippendorff 2004, Content Analysis, chapter 11)."""
    table = [
        [CHOICES.index(one.choices[p.number]) if p.number in one.choices else -1 for p in study.pairs] for one in raters
    ]
    return nominal_alpha(np.array(table, dtype=np.int64))


def nominal_alpha(chosen: NDArray[np.int64]) -> float:
    """Krippendorff's alpha for names; NaN where no unit has two, or all that are paired are one name. chosen: [raters,
    units], a number from 0 for each name, -1 where nothing is known."""
    names = range(max(int(chosen.max(initial=-1)) + 1, 1))
    counts = np.array([(chosen == name).sum(axis=0) for name in names], dtype=float)  # [names, units]
    counts = counts[:, counts.sum(axis=0) > 1]
    met = counts.sum(axis=0)  # answers to each unit that can be paired
    total = met.sum()
    apart = ((met**2 - (counts**2).sum(axis=0)) / (met - 1)).sum()  # pairs that differ, each unit's by its weight
    expected = total**2 - (counts.sum(axis=1) ** 2).sum()
    return float(1 - (total - 1) * apart / expected) if expected else float("nan")


# ---------------------------------------------------------------------------------------------------------------
# The table


def table(study: Study, raters: Sequence[Answers]) -> Table:
    """A row for every method that the reference was shown with."""
    cells, numbers = [], []
    for verdict in verdicts(study, raters):
        cells.append([
            f"{verdict.method} against {verdict.other}", *map(str, verdict.shares.values()), str(verdict.win_rate),
            str(verdict.raters), str(verdict.answers),
        ])  # fmt: skip
        row: dict[str, object] = {"method": verdict.method, "other": verdict.other}
        row |= {"raters": verdict.raters, "answers": verdict.answers}
        for name, value in {**verdict.shares, "win rate": verdict.win_rate}.items():
            row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
        numbers.append(row)
    header = ["comparison", *OUTCOMES, "win rate, ties half", "raters", "answers"]
    alpha = agreement(study, raters)
    told = "not known: no pair was answered twice, or all chose one side" if np.isnan(alpha) else f"{alpha:.2f}"
    title = f"What people prefer, at matched {study.at} (agreement between raters, Krippendorff's alpha: {told})"
    return Table("study", title, header, cells, pd.DataFrame(numbers))
