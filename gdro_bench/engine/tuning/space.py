"""Search spaces: which of a method's settings are searched, and where. `baselines/<profile>/<method>.search.toml`:

    [space]
    "optimiser.learning_rate" = {low = 1e-4, high = 4e-3, log = true}
    "optimiser.warmup_steps" = {low = 0, high = 40}
    "pool.prompts" = {choices = [24, 48, 96, 192]}

A table `[tasks.<task>.space]` takes the place of single entries on that task.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gdro_bench import content
from gdro_bench.errors import BenchError, unknown
from gdro_bench.registry import lookup

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
BITS = 32  # of a drawn point
DIGITS = 3  # significant ones of a drawn number: they can be copied into a TOML file


@dataclass(frozen=True, slots=True)
class Choices:
    """A number that takes one of these values."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def at(self, u: float) -> Any:
        """The value at u in [0, 1)."""
        return self.values[int(u * len(self.values))]


@dataclass(frozen=True, slots=True)
class Interval:
    """A number between two, ends included: uniform in itself or, with `log`, in its logarithm; a `whole` one or not."""

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def ends(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    def __contains__(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)

    def at(self, u: float) -> Any:
        """The value at u in [0, 1)."""
        high = self.high + 1 if self.whole else self.high
        value = self.low * (high / self.low) ** u if self.log else self.low + u * (high - self.low)
        value = math.floor(value) if self.whole else float(f"{value:.{DIGITS - 1}e}")
        return min(max(value, self.low), self.high)


Domain = Choices | Interval
Space = dict[str, Domain]  # by the setting's dotted name in the method's TOML


def read(path: Path, task: str, own: Mapping[str, Any]) -> Space:
    """The space in a file, for a task.

    Args:
        own: the method's own settings for that task, nested as in its TOML.

    Raises:
        BenchError: the file is not in order, names no setting of the method, or leaves one of `own` outside.
    """
    table = content.read(path)
    _only(table, ("space", "tasks"), path)
    by_task = content.tables_in(table.get("tasks", {}), f"[tasks] in {path}")
    entries = _entries(table, path)
    for name, one in by_task.items():
        content.find("task", name)
        _only(one, ("space",), path)
    entries = entries | _entries(by_task.get(task, {}), path)
    if not entries:
        raise BenchError(
            f"{path} has no [space].", 'Add one, such as "optimiser.learning_rate" = {choices = [1e-3]}.', 2
        )
    if len(entries) > len(PRIMES):
        raise BenchError(f"{path} has {len(entries)} settings.", f"Search {len(PRIMES)} at most.", 2)
    values = content.flatten(own)
    for name in entries:
        if name not in values:
            raise unknown(f"setting in {path.name.removesuffix(content.SPACE_SUFFIX)}.toml called", name, values)
    return {name: _domain(entry, values[name], f"{path}: {name}") for name, entry in entries.items()}


def over(values: Sequence[str], method: str, own: Mapping[str, Any]) -> Space:
    """A space of given values, `["method.optimiser.learning_rate=1e-3,3e-3"]`: what `grid` tries all of.

    Args:
        own: as of `read`.

    Raises:
        BenchError: as `content.varied`; one names no setting of the method, or leaves its own value out.
    """
    own, found = content.flatten(own), dict[str, Domain]()
    for varied in content.varied(values):
        settings = [content.parsed(setting) for setting in varied]
        group, _, name = settings[0][0].partition(".")
        if group != "method":
            raise BenchError(f"--over {settings[0][0]} is of no method's setting.", "Write method.NAME=A,B.", 2)
        choices = [value for _, value in settings]
        if name not in own and _may_be_given(method, *settings[0]):
            remedy = f"Give the first trial's value, too: --set {varied[0]}."
            raise BenchError(f"{method}.toml leaves out {name}, so the first trial has none.", remedy, 2)
        if name not in own:
            raise unknown(f"setting in {method}.toml called", name, own)
        found[name] = _domain({"choices": choices}, own[name], f"--over method.{name}")
    return found


def _may_be_given(method: str, setting: str, value: Any) -> bool:
    """Whether it is a setting of the method that its file need not have."""
    try:
        content.set_value({"method": {}}, setting, value, {"method": lambda: lookup("method", method).config_type})
    except BenchError:
        return False
    return True


def grid(space: Space, own: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """All combinations of a space's values, by name, the method's own first."""
    values = itertools.product(*(domain.ends for domain in space.values()))
    combined = [dict(zip(space, one, strict=True)) for one in values]
    return (dict(own), *(one for one in combined if one != own))


def _entries(table: Mapping[str, Any], path: Path) -> dict[str, Any]:
    entries = table.get("space", {})
    if not isinstance(entries, dict):
        raise BenchError(f"{path}: space is {entries!r}.", "Write [space] with an entry for each setting.", 2)
    return entries


def _only(table: Any, known: tuple[str, ...], path: Path) -> None:
    if not isinstance(table, dict):
        raise BenchError(f"{path}: {table!r} is no table.", "Write [space] with an entry for each setting.", 2)
    for key in table:
        if key not in known:
            raise unknown(f"table in {path} called", key, known)


def _domain(entry: Any, own: Any, where: str) -> Domain:
    """Raises:
    BenchError: the entry is of neither form, empty, or does not hold the method's own value."""
    if not isinstance(entry, dict) or set(entry) not in ({"choices"}, {"low", "high"}, {"low", "high", "log"}):
        raise BenchError(f"{where} is {entry!r}.", "Write {choices = [1, 2]} or {low = 1, high = 9, log = true}.", 2)
    domain = _choices(entry["choices"], own, where) if "choices" in entry else _interval(entry, own, where)
    if own not in domain:
        raise BenchError(
            f"{where} leaves out {own!r}, the method's own value, which is the first trial.",
            "Widen it to hold that.",
            2,
        )
    return domain


def _choices(values: Any, own: Any, where: str) -> Choices:
    listed = values if isinstance(values, list) else []
    alike = [float(v) if isinstance(own, float) and _is_number(v) else v for v in listed]
    if not alike or len({repr(value) for value in alike}) < len(alike):
        raise BenchError(f"{where}: choices are {values!r}.", "Write a list of different values.", 2)
    for value in alike:
        if type(value) is not type(own):
            raise BenchError(f"{where}: {value!r} is not of the kind of {own!r}.", f"Write {type(own).__name__}s.", 2)
    return Choices(tuple(alike))


def _interval(entry: Mapping[str, Any], own: Any, where: str) -> Interval:
    low, high, log = entry["low"], entry["high"], entry.get("log", False)
    if not _is_number(own):
        raise BenchError(f"{where} is no number but {own!r}.", "Write {choices = [...]} for it.", 2)
    if not isinstance(log, bool):
        raise BenchError(f"{where}: log is {log!r}.", "It must be true or false.", 2)
    whole = isinstance(own, int)
    for end in (low, high):
        if not _is_number(end) or not math.isfinite(end) or (whole and not isinstance(end, int)):
            raise BenchError(f"{where}: {end!r} is no end.", f"Write a {'whole' if whole else 'finite'} number.", 2)
    if low >= high:
        raise BenchError(f"{where}: low {low} is not below high {high}.", "Exchange them, or write one choice.", 2)
    if log and low <= 0:
        raise BenchError(f"{where}: low {low} has no logarithm.", "Raise it above 0, or leave out log.", 2)
    return Interval(low, high, log, True) if whole else Interval(float(low), float(high), log, False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------
# Drawing


def draw(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The settings of trial `number`, by name: a function of space, seed and number alone."""
    point = uniform_point(len(space), seed, number)
    return {name: domain.at(u) for (name, domain), u in zip(space.items(), point, strict=True)}


def uniform_point(dimensions: int, seed: int, number: int) -> list[float]:
    """Point `number` of a sequence that fills the cube [0, 1)^d more evenly than independent draws: [d].

    Halton's sequence, a prime a dimension, its digits permuted at random (Owen, arXiv 1706.02808). Any point is had
    without those before it.
    """
    return [_radical_inverse(base, seed, number) for base in PRIMES[:dimensions]]


def _radical_inverse(base: int, seed: int, number: int) -> float:
    """The digits of `number`, permuted, mirrored at the point."""
    rng = np.random.default_rng(content.seed("search", seed, base))
    value, place = 0.0, 1.0
    for _ in range(math.ceil(BITS / math.log2(base))):
        number, digit = divmod(number, base)
        place /= base
        value += place * int(rng.permutation(base)[digit])
    return value
