"""How much each method's numbers were searched, as `gdro-bench tune` records it, and whether methods are matched in it.

A method whose numbers were searched for longer has an advantage that no budget of a run shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from gdro_bench.comparison.entries import Comparison, Entry
from gdro_bench.comparison.tables import Table
from gdro_bench.engine.tuning import tuned
from gdro_bench.engine.tuning.tuned import Tuned
from gdro_bench.errors import BenchError

NOT_SEARCHED = "not searched by tune"
OTHER = "numbers of no trial"


@dataclass(frozen=True, slots=True)
class Searches:
    """The search of each entry, by its label; None where there was none, `foreign` those whose runs have the numbers of
    no trial of it."""

    by_label: dict[str, Tuned | None]
    foreign: frozenset[str] = frozenset()

    @property
    def matched(self) -> bool:
        """Whether all had as many trials of the same budget, and run with a trial's numbers."""
        return len(set(self._extents().values())) == 1

    def _extents(self) -> dict[str, str]:
        return {label: OTHER if label in self.foreign else _extent(one) for label, one in self.by_label.items()}

    @property
    def sentence(self) -> str:
        """For the headlines."""
        extents = self._extents()
        if self.matched:
            (extent,) = set(extents.values())
            unknown = {
                NOT_SEARCHED: "No method's numbers were searched by tune.",
                OTHER: "All have numbers of no trial.",
            }
            return unknown.get(extent, f"The numbers of all methods were searched alike: {extent}.")
        told = "; ".join(f"{label}: {extent}" for label, extent in extents.items())
        return f"The methods are not matched, because the searches for their numbers differ ({told})."

    def titled(self, table: Table) -> Table:
        """Its title speaks of a match only where there is one."""
        if self.matched or "At matched" not in table.title:
            return table
        title = table.title.replace("At matched", "At equal")
        return replace(table, title=f"{title} (the searches differ: not matched)")

    def table(self, entries: Sequence[Entry]) -> Table:
        """What the search of each entry's numbers cost, and which trial's numbers its runs have."""
        ones = [self.by_label[entry.label] for entry in entries]
        cells = [[entry.label, *_cells(one, entry)] for one, entry in zip(ones, entries, strict=True)]
        columns = {
            "label": [entry.label for entry in entries],
            "trials": [len(one.trials) if one else math.nan for one in ones],
            "budget": [one.budget if one else math.nan for one in ones],
            "evaluations": [one.evaluations if one else math.nan for one in ones],
        }
        header = ["method", "trials and budget of each", "evaluations in all", "numbers of"]
        return Table("searches", "How the numbers were searched", header, cells, pd.DataFrame(columns))


def of(compared: Comparison, found: Sequence[Tuned]) -> Searches:
    """The searches of a comparison's entries among those that were found.

    Raises:
        BenchError: two are of one method.
    """
    run, by_method = compared.first, dict[str, Tuned]()
    for one in found:
        if (one.task, one.profile) != (run.task, run.profile):
            continue
        if one.method in by_method:
            raise BenchError(
                f"There are two searches of {one.method} on {one.task}, {one.profile}.", "Give a --tuned with one."
            )
        by_method[one.method] = one
    of_entries = {entry.label: by_method.get(entry.method) for entry in compared.entries}
    known = [(entry, search) for entry in compared.entries if (search := of_entries[entry.label]) is not None]
    foreign = {entry.label for entry, search in known if tuned.numbers_of(search, entry.runs[0].run) is None}
    return Searches(of_entries, frozenset(foreign))


def _extent(one: Tuned | None) -> str:
    if one is None:
        return NOT_SEARCHED
    return f"{len(one.trials)} x {one.budget:,} {one.budget_kind}"


def _cells(one: Tuned | None, entry: Entry) -> list[str]:
    if one is None:
        return [NOT_SEARCHED, "", ""]
    trial = tuned.numbers_of(one, entry.runs[0].run)
    best = "" if trial is None or trial.number == one.best else ", which is not the best"
    whose = "no trial" if trial is None else f"trial {trial.number}{best or ', the best'}"
    return [_extent(one), f"{one.evaluations:,}", whose]
