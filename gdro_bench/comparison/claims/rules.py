"""Claims and the rules that settle them, as a TOML file says: what is measured, of which runs, against which bound.

A rule is fixed before the runs that it judges; the file's digest stands on the page of verdicts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gdro_bench import content
from gdro_bench.comparison.claims.measures import MEASURES
from gdro_bench.content import Range
from gdro_bench.errors import BenchError, unknown

OWN = Path(__file__).parent / "rules.toml"


@dataclass(frozen=True, slots=True)
class Who:
    """Runs of a method: with its own settings, or with one `number` that is changed, such as `k`, and is `value`, is
    `times` the method's own, is `above` a value, or is the word `named`. With `above` or `named` others may be changed
    with it: a GDRO that collects in rounds may have a pool of another size."""

    method: str
    number: str | None
    value: float | None
    times: Annotated[float, Range(0, above=True)] | None
    above: float | None
    named: str | None

    def __str__(self) -> str:
        if self.number is None:
            return self.method
        return f"{self.method} ({self.number} {self.wanted})"

    @property
    def wanted(self) -> str:
        if self.value is not None:
            return f"= {self.value:g}"
        if self.times is not None:
            return f"= {self.times:g} times its own"
        return f"above {self.above:g}" if self.above is not None else f"= {self.named}"


@dataclass(frozen=True, slots=True)
class Test:
    """One number and its bound: `measure` (a key of `MEASURES`) of the runs `of`, held against those of `against` if
    the measure compares two. It holds if the whole interval is `at_most` or `at_least` so much; weakly, if it is so
    for the bound `weakly`. `budget`: of the runs that there are, the group with most of them, or the longest. A
    `condition` is needed for the claim, and alone it is no part of what is claimed."""

    task: str
    measure: str
    of: Who
    against: Who | None
    part: str | None
    at_most: float | None
    at_least: float | None
    weakly: float | None
    budget: Literal["main", "long"]
    condition: bool | None

    @property
    def bound(self) -> float:
        bound = self.at_least if self.at_most is None else self.at_most
        assert bound is not None  # checked by `load`
        return bound

    @property
    def rule(self) -> str:
        """The rule in words."""
        side = "at least" if self.at_most is None else "at most"
        weakly = "" if self.weakly is None else f"; partly, if {side} {self.weakly:g}"
        return f"{side} {self.bound:g}{weakly}"


@dataclass(frozen=True, slots=True)
class Claim:
    """What is claimed, where, and the tests that settle it; a `question` is open in the paper. With `alternatives` one
    test of each task is enough."""

    name: str
    says: str
    source: str
    kind: Literal["claim", "question"]
    alternatives: bool | None
    tests: tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """All claims of a file. With fewer than `seeds` seeds a verdict is provisional."""

    seeds: Annotated[int, Range(1)]
    claims: tuple[Claim, ...]


def load(path: Path) -> tuple[Rules, str]:
    """The rules and the digest of their file.

    Raises:
        BenchError: the file cannot be read, or a rule is of no use.
    """
    rules = content.load(path, Rules)
    for name, count in Counter(claim.name for claim in rules.claims).items():
        if count > 1:
            raise BenchError(f"{path.name} has {count} claims called {name!r}.", "Give each a name of its own.", 2)
    for claim in rules.claims:
        _check(claim, path.name)
    return rules, hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _check(claim: Claim, where: str) -> None:
    if not any(not test.condition for test in claim.tests):
        raise BenchError(f"{where}: the claim {claim.name!r} has no test.", "Give it one.", 2)
    for test in claim.tests:
        told = f"{where}: a test of the claim {claim.name!r}"
        if test.measure not in MEASURES:
            raise unknown("measure", test.measure, list(MEASURES))
        if (test.at_most is None) == (test.at_least is None):
            raise BenchError(f"{told} must have one bound.", "Give at_most or at_least.", 2)
        compares = MEASURES[test.measure].scope == "pair"
        if compares != (test.against is not None):
            needs = "needs" if compares else "has no use for"
            raise BenchError(f"{told}: {test.measure} {needs} `against`.", "Mend it.", 2)
        if MEASURES[test.measure].of_part != (test.part is not None):
            needs = "needs" if MEASURES[test.measure].of_part else "has no use for"
            raise BenchError(f"{told}: {test.measure} {needs} `part`.", "Mend it.", 2)
        for who in (test.of, test.against):
            _check_who(who, told)


def _check_who(who: Who | None, told: str) -> None:
    if who is None:
        return
    wanted = [who.value, who.times, who.above, who.named]
    if sum(one is not None for one in wanted) != (who.number is not None):
        raise BenchError(
            f"{told}: {who.method} must have a number with one of value, times, above and named, or none of them.",
            "Mend it.", 2,
        )  # fmt: skip
