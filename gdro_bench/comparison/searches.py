"""What search each method's settings took, as `gdro-bench tune` records it, and whether methods are matched in it.

A method whose settings were searched for longer has an advantage that no budget of a run shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from gdro_bench.comparison.entries import Comparison, Entry
from gdro_bench.comparison.tables.table import Table
from gdro_bench.engine.tuning import tuned
from gdro_bench.engine.tuning.tuned import Tuned
from gdro_bench.errors import BenchError

NOT_SEARCHED = "not searched by tune"
NOT_GIVEN = "Whether the methods' settings were searched alike is not told: give --tuned."
OTHER = "settings of no trial"


@dataclass(frozen=True, slots=True)
class Searches:
    """The searches of each entry's settings, by its label, none where there was none: first all in short trials,
    say, and then one of them in long ones. `foreign` are entries whose runs have the settings of no trial of them."""

    by_label: dict[str, tuple[Tuned, ...]]
    foreign: frozenset[str] = frozenset()

    @property
    def matched(self) -> bool:
        """Whether all had as many trials of the same budget, and run with a trial's settings."""
        return len(set(self._extents().values())) == 1

    def _extents(self) -> dict[str, str]:
        return {label: OTHER if label in self.foreign else _extent(found) for label, found in self.by_label.items()}

    @property
    def sentence(self) -> str:
        """For the headlines."""
        extents = self._extents()
        if self.matched:
            (extent,) = set(extents.values())
            unknown = {
                NOT_SEARCHED: "No method's settings were searched by tune.",
                OTHER: "All have settings of no trial.",
            }
            return unknown.get(extent, f"The settings of all methods were searched alike: {extent}.")
        labels = {extent: [label for label, own in extents.items() if own == extent] for extent in extents.values()}
        told = "; ".join(f"{', '.join(of)}: {extent}" for extent, of in labels.items())
        return f"The methods are not matched, because their settings were not searched alike ({told})."

    def titled(self, table: Table) -> Table:
        """Its title speaks of a match where there is one."""
        if "At equal" not in table.title:
            return table
        if self.matched:
            return replace(table, title=table.title.replace("At equal", "At matched"))
        return replace(table, title=f"{table.title} (not searched alike: not matched)")

    def table(self, entries: Sequence[Entry]) -> Table:
        """What the searches of each entry's settings cost, those of one budget together, and which trials' settings its
        runs have."""
        rows = [(entry, group) for entry in entries for group in _by_budget(self.by_label[entry.label]) or [()]]
        columns = {
            "label": [entry.label for entry, _ in rows],
            "trials": [_trials(group) if group else math.nan for _, group in rows],
            "budget": [group[0].budget if group else math.nan for _, group in rows],
            "evaluations": [_spent(group) if group else math.nan for _, group in rows],
        }
        header = ["method", "trials and budget of each", "evaluations in all", "settings of"]
        cells = [[entry.label, *_cells(group, entry)] for entry, group in rows]
        return Table("searches", "How the settings were searched", header, cells, pd.DataFrame(columns))


def of(compared: Comparison, found: Sequence[Tuned]) -> Searches:
    """The searches of a comparison's entries among those that were found, the shortest trials first.

    Raises:
        BenchError: two are of one method, of the same values of the same settings, of trials of one budget, and have
            tried some settings both.
    """
    run, by_method = compared.first, dict[str, tuple[Tuned, ...]]()
    for one in sorted(found, key=_budget):
        if (one.task, one.profile) != (run.task, run.profile):
            continue
        before = by_method.get(one.method, ())
        if any(_is_again(one, other) for other in before):
            problem = f"There are two searches of {one.method} on {one.task}, {one.profile}, of {_extent((one,))}."
            raise BenchError(problem, "Give a --tuned with one.")
        by_method[one.method] = (*before, one)
    of_entries = {entry.label: by_method.get(entry.method, ()) for entry in compared.entries}
    foreign = {
        entry.label
        for entry in compared.entries
        if (known := of_entries[entry.label]) and not any(tuned.trial_of(one, entry.runs[0].run) for one in known)
    }
    return Searches(of_entries, frozenset(foreign))


def _is_again(one: Tuned, other: Tuned) -> bool:
    """Whether it is the same search once more: another one may try other values of a setting, or begin elsewhere."""
    alike = (one.budget, one.budget_kind, one.space) == (other.budget, other.budget_kind, other.space)
    return alike and not {trial.digest for trial in one.trials}.isdisjoint(trial.digest for trial in other.trials)


def _by_budget(found: Sequence[Tuned]) -> list[tuple[Tuned, ...]]:
    """Searches whose trials have one budget, together; `found` is sorted by it."""
    return [tuple(group) for _, group in itertools.groupby(found, _budget)]


def _budget(one: Tuned) -> tuple[float, str]:
    return one.budget, one.budget_kind


def _trials(group: Sequence[Tuned]) -> int:
    return sum(len(one.trials) for one in group)


def _spent(group: Sequence[Tuned]) -> float:
    return sum(one.evaluations for one in group)


def _extent(found: Sequence[Tuned]) -> str:
    told = [f"{_trials(group)} x {group[0].budget:,} {group[0].budget_kind}" for group in _by_budget(found)]
    return ", then ".join(told) or NOT_SEARCHED


def _cells(group: Sequence[Tuned], entry: Entry) -> list[str]:
    if not group:
        return [NOT_SEARCHED, "", ""]
    trials = [(one, tuned.trial_of(one, entry.runs[0].run)) for one in group]
    told = [
        f"trial {trial.number}, {'the best' if trial.number == one.best else 'which is not the best'}"
        for one, trial in trials
        if trial is not None
    ]
    return [_extent(group), f"{_spent(group):,}", "; ".join(told) or "no trial"]
