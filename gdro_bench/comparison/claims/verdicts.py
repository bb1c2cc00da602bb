"""Finished runs and rules -> verdicts, each with its settings, seeds and the commands that repeat its runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gdro_bench.comparison import entries, matched, prediction
from gdro_bench.comparison.claims.measures import MEASURES, UNKNOWN
from gdro_bench.comparison.claims.rules import Claim, Rules, Test, Who
from gdro_bench.comparison.entries import Comparison, Entry
from gdro_bench.comparison.grouping import Group, changes
from gdro_bench.engine import record
from gdro_bench.engine.tuning.tuned import Tuned
from gdro_bench.stats import Estimate

REPRODUCED, PARTLY, NOT, UNDECIDED = "reproduced", "partly", "not reproduced", "undecided"
NO_RUNS, INCOMPLETE, AT_MOST = "no runs", "incomplete", "at most partly"
SETTLED = (REPRODUCED, PARTLY, AT_MOST, NOT)
HOLD, FAIL = {REPRODUCED, PARTLY}, {NOT, AT_MOST}
BEST = (REPRODUCED, PARTLY, UNDECIDED, NO_RUNS, AT_MOST, NOT)  # of alternatives the first counts
ANSWERS = {REPRODUCED: "yes", NOT: "no"}  # of an open question
MOST_NAMED = 4
LENGTH = {"profile.budget.limit", "profile.budget.marks"}  # how long a run is, and where it is evaluated


@dataclass(frozen=True, slots=True)
class Finding:
    """A test and what was found: its number, verdict and the fewest seeds of an entry; `missing` says which runs there
    are none of; `runs` names those that were judged and their budget, `commands` repeat them."""

    test: Test
    estimate: Estimate
    verdict: str
    seeds: int
    missing: str
    runs: str
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    claim: Claim
    findings: tuple[Finding, ...]
    word: str
    few_seeds: bool

    @property
    def is_provisional(self) -> bool:
        """What is undecided is so with any seeds."""
        return self.few_seeds and self.word in SETTLED

    @property
    def told(self) -> str:
        """For people: the word, as an answer if the claim is a question."""
        word = ANSWERS.get(self.word, self.word) if self.claim.kind == "question" else self.word
        return f"{word} (provisional)" if self.is_provisional else word


def judge(rules: Rules, groups: Sequence[Group], searches: Sequence[Tuned] = ()) -> list[Verdict]:
    """A verdict on every claim, from runs of one profile. searches: how settings were chosen, if that is known."""
    compared = [entries.compare(group.runs, variants=True) for group in groups]
    return [_verdict(claim, compared, rules.seeds, searches) for claim in rules.claims]


def _verdict(claim: Claim, compared: Sequence[Comparison], seeds: int, searches: Sequence[Tuned]) -> Verdict:
    findings = tuple(_finding(test, compared, searches) for test in claim.tests)
    fewest = min(finding.seeds for finding in findings)
    return Verdict(claim, findings, _combined(claim, findings), fewest < seeds)


def _finding(test: Test, compared: Sequence[Comparison], searches: Sequence[Tuned]) -> Finding:
    """Of the comparisons that the test may see and that have all its runs, the one with most runs, or the longest."""
    wanted = [who for who in (test.of, test.against) if who is not None]
    of_task = eligible(test, compared)
    complete = [one for one in of_task if all(find(who, one.all_entries) for who in wanted)]
    if not complete:
        lacking = [str(who) for who in wanted if not any(find(who, one.all_entries) for one in of_task)]
        told = f"{test.task}: {' and '.join(lacking or map(str, wanted))}" + ("" if lacking else ", of one budget")
        return Finding(test, UNKNOWN, NO_RUNS, 0, f"no runs of {told}", "", ())
    order: dict[str, Callable[[Comparison], int]] = {"main": _runs, "long": lambda one: one.first.limit}
    chosen = max(complete, key=order[test.budget])
    found = [entry for who in wanted if (entry := find(who, chosen.all_entries, searches)) is not None]
    comparison = seen_by(test, chosen, found)
    estimate = measured(test, comparison)
    seen = comparison.entries
    commands = tuple(record.command(loaded.run) for entry in seen for loaded in entry.runs)
    fewest, first = min(len(entry.runs) for entry in seen), chosen.first
    told = f"{_named(seen, len(commands))}; {first.limit:,} {first.budget_kind}{_level(test, comparison)}"
    return Finding(test, estimate, verdict(test, estimate), fewest, "", told, commands)


def _named(seen: Sequence[Entry], runs: int) -> str:
    """A cell holds few names; the page has every run's command."""
    if len(seen) > MOST_NAMED:
        return f"{runs} runs of {len(seen)} methods or settings"
    return ", ".join(entry.label for entry in seen)


def eligible(test: Test, compared: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of the test's task on the profile's own prompts and, where the test is of the main budget, at its
    own budget: runs on tuning prompts, or shorter ones, judge no claim beside those. All, where there is none of these.
    """
    of_task = [one for one in compared if one.first.task == test.task]
    changed = [changes([run for entry in one.all_entries for run in entry.runs]) for one in of_task]
    own = [one for one, what in zip(of_task, changed, strict=True) if not what]
    longer = [one for one, what in zip(of_task, changed, strict=True) if what <= LENGTH]
    return (own if test.budget == "main" else []) or longer or of_task


def _runs(compared: Comparison) -> int:
    return sum(len(entry.runs) for entry in compared.all_entries)


def seen_by(test: Test, compared: Comparison, found: Sequence[Entry]) -> Comparison:
    """Of a comparison what the test sees; `found`: its entry, and the one that it is held against."""
    scope = MEASURES[test.measure].scope
    if scope == "pair":
        entry, other = entries.same_seeds(*found)
        return Comparison((entry, other), other, compared.prompt_weights, {})
    seen = found[:1] if scope == "alone" else prediction.seen_by_gold(compared) or found[:1]
    return Comparison(tuple(seen), found[0], compared.prompt_weights, {})


def measured(test: Test, seen: Comparison) -> Estimate:
    """The test's number of the first entry that it sees."""
    if test.part not in (None, "reward", *seen.parts) and MEASURES[test.measure].scope != "gold":
        return UNKNOWN
    return MEASURES[test.measure].measured(seen, seen.entries[0], test.part or "")


def _level(test: Test, seen: Comparison) -> str:
    """R* in words, if the test has to do with it and there is one."""
    level = matched.common_level(seen) if MEASURES[test.measure].matched else None
    return "" if level is None else f"; R* = {level:.3f}"


def find(who: Who, among: Sequence[Entry], searches: Sequence[Tuned] = ()) -> Entry | None:
    """The entry that is meant; of several (of `above` and `named`) one whose settings searches chose, then the one with
    most seeds, then the one with fewest changed settings, then the lowest number, then the first by its label."""
    fitting = [entry for entry in among if entry.method == who.method and _fits(who, entry, among)]
    lowest = {e.label: _number(who, e) if who.above is not None else 0.0 for e in fitting}
    ordered = sorted(
        fitting,
        key=lambda e: (not _is_chosen(e, searches), -len(e.runs), len(_changes(e)), lowest[e.label], e.label),
    )
    return ordered[0] if ordered else None


def _is_chosen(entry: Entry, searches: Sequence[Tuned]) -> bool:
    """Whether no trial of as many evaluations, of all searches of its method on its task and profile, did better than
    the one with its settings. A search of one trial chooses nothing beside those of others."""
    run = entry.runs[0].run
    best: dict[tuple[str, int], tuple[float, str]] = {}
    for one in searches:
        if (one.task, one.profile, one.method) == (run.task, run.profile, run.method):
            made = [(trial.value.mean, trial.digest) for trial in one.trials if trial.value is not None]
            budget = (one.budget_kind, one.budget)
            best[budget] = max([best.get(budget, (-math.inf, "")), *made])
    return run.digests["method"] in {digest for _, digest in best.values()}


def _changes(entry: Entry) -> Mapping[str, str]:
    """The settings of the method that were changed, by name, as they were written."""
    settings = [s.removeprefix("method.") for s in entry.runs[0].run.changed if s.startswith("method.")]
    return dict(setting.split("=", 1) for setting in settings)


def _value(who: Who, entry: Entry) -> Any:
    assert who.number is not None
    return entries.setting_of(entry, who.number)


def _number(who: Who, entry: Entry) -> float:
    """The value, NaN for a word: it is neither above a number nor equal to one."""
    value = _value(who, entry)
    return float(value) if isinstance(value, int | float) else math.nan


def _fits(who: Who, entry: Entry, among: Sequence[Entry]) -> bool:
    changes = _changes(entry)
    if who.number is None or who.number not in changes:
        return who.number is None and not changes
    value = _number(who, entry)
    if who.named is not None:
        return str(_value(who, entry)) == who.named
    if who.above is not None:
        return value > who.above
    if len(changes) > 1:
        return False
    if who.value is not None:
        return value == who.value
    own = next((e for e in among if e.method == who.method and not _changes(e)), None)
    return own is not None and math.isclose(value, (who.times or 1) * _number(who, own))


def verdict(test: Test, estimate: Estimate) -> str:
    """By the whole interval: reproduced on the claimed side of the bound, partly on that of the weaker bound; at most
    partly short of the bound, and not at all if short of the weaker one, too; else undecided. An interval that ends on
    a bound is on neither side: what does not move at all neither rises nor falls."""
    if np.isnan([estimate.mean, estimate.low, estimate.high]).any():
        return UNDECIDED
    sign = 1 if test.at_most is None else -1
    worst, best = sorted((sign * estimate.low, sign * estimate.high))
    weakly = test.bound if test.weakly is None else test.weakly
    if worst > sign * test.bound:
        return REPRODUCED
    if worst > sign * weakly:
        return PARTLY
    if best < sign * test.bound:
        return AT_MOST if best > sign * weakly else NOT
    return UNDECIDED


def _combined(claim: Claim, findings: Sequence[Finding]) -> str:
    of_task: dict[str, list[str]] = {}
    for finding in findings:
        if not finding.test.condition:
            conditions = [f.verdict for f in findings if f.test.condition and f.test.task == finding.test.task]
            of_task.setdefault(finding.test.task, []).append(conditioned(finding.verdict, conditions))
    if claim.alternatives:
        return combined([min(words, key=BEST.index) for words in of_task.values()])
    return combined([word for words in of_task.values() for word in words])


def conditioned(word: str, conditions: Sequence[str]) -> str:
    """A test's verdict with those of its task's conditions, without which it shows nothing: undecided if one of them
    fails; if one is not surely met, the test can still fail, and not hold."""
    if NO_RUNS in conditions:
        return NO_RUNS
    if FAIL & set(conditions):
        return UNDECIDED
    return max([word, *conditions], key=BEST.index) if word in HOLD else word


def combined(words: Sequence[str]) -> str:
    """Of a claim, from those of its tests: theirs if all agree; incomplete if there are no runs of one; partly if one
    holds, be it weakly; at most partly if one fails, be it in part, and none holds; undecided else."""
    if len(set(words)) == 1:
        return words[0]
    if NO_RUNS in words:
        return INCOMPLETE
    if HOLD & set(words):
        return PARTLY
    return AT_MOST if FAIL & set(words) else UNDECIDED
