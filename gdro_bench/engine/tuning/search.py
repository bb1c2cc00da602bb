"""A search for one method's settings, fixed before it starts: its space, and a plan for every trial."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gdro_bench import content
from gdro_bench.engine import plan, record
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.tuning import space as spaces
from gdro_bench.engine.tuning.space import Space
from gdro_bench.errors import BenchError

TRIALS = 24  # of a search that is not told how many
EXHAUSTED = 1000  # points of a space that were looked at for a new one
TUNING = "-tuning"  # the end of a prompt set's name that is for choosing settings
CHEAP = {  # few evaluations, and nothing looked at that does not choose a trial
    "profile.budget.marks": [0.5, 1.0],
    "profile.kept_images": 8,
    "profile.keep_adapters": False,
    "profile.drift.prompts": 0,
    "profile.health.prompts": 0,
    "profile.health.judge": "none",
    "profile.judge.name": "none",
    "profile.judge.gold": "none",
    "profile.judge.second_reader": "none",
}


@dataclass(frozen=True, slots=True)
class Search:
    """One method's search. `drawn` are the settings of each trial, by name, and `plans` its runs; the first trial has
    the method's own settings. `identity` is all that trials of one folder must agree in."""

    task: str
    profile: str
    method: str
    seed: int
    space: Space
    drawn: tuple[dict[str, Any], ...]
    plans: tuple[Plan, ...]
    folder: Path
    identity: dict[str, str]


def make_search(
    task: str,
    method: str,
    profile: str,
    trials: int | None,
    budget: int | None,
    seed: int,
    out: Path,
    settings: Sequence[str] = (),
    over: Sequence[str] = (),
) -> Search:
    """Reads and checks the space, and draws and checks all trials.

    Args:
        trials: how many, the method's own settings included; TRIALS if None. budget: of one trial; the profile's if
            None. seed: of the draws and of every run. settings: as of a run; those of the method change its own,
            the first trial's. over: values to try all combinations of, instead of points of the method's space.

    Raises:
        BenchError: a name or setting is unknown, there is no space or a bad one, or a method refuses one of its values
            or a trial's settings; or both `trials` and `over` are given.
    """
    if over and trials is not None:
        raise BenchError("--over tries all combinations.", "Leave out --trials.", 2)
    tuning = f"profile.prompts={_tuning_prompts(profile, settings, task)}"
    first = plan.make_plan(task, method, profile, seed, out, [*_cheap(profile, task), *settings, tuning], budget)
    own = first.settings["method"]
    where, space = _over(over, method, own) if over else _own_space(profile, method, task, own)
    first_point = {name: content.flatten(own)[name] for name in space}
    drawn = spaces.grid(space, first_point) if over else _drawn(space, first_point, seed, trials or TRIALS)
    for name, value in _ends(space):
        _checked(first, {name: value}, f"{where} lets {name} be {json.dumps(value)}", where)
    checked = [
        _checked(first, one, f"Trial {number} of {method} has {_said(one)}", where) for number, one in enumerate(drawn)
    ]
    folder = out / task / profile / method
    plans = tuple(replace(one, folder=folder / f"trial-{number:03d}") for number, one in enumerate(checked))
    return Search(task, profile, method, seed, space, drawn, plans, folder, _identity(first, space))


def _over(over: Sequence[str], method: str, own: Mapping[str, Any]) -> tuple[str, Space]:
    return "--over", spaces.over(over, method, own)


def _own_space(profile: str, method: str, task: str, own: Mapping[str, Any]) -> tuple[str, Space]:
    """The method's file of a search space, and what it says.

    Raises:
        BenchError: there is none, or it is not in order.
    """
    path = content.space_files(profile).get(method)
    if path is None:
        remedy = f"Write baselines/{profile}/{method}{content.SPACE_SUFFIX} in the current folder, or give --over."
        raise BenchError(f"Profile {profile!r} has no search space for {method!r}.", remedy, 2)
    return str(path), spaces.read(path, task, own)


def _drawn(space: Space, own: dict[str, Any], seed: int, trials: int) -> tuple[dict[str, Any], ...]:
    """The settings of each trial, the method's own first. Settings that an earlier search found are a point of the same
    sequence: a point is passed over that has been had, unless the space is all but exhausted."""
    found, number = [own], 0
    while len(found) < trials:
        number += 1
        one = spaces.draw(space, seed, number)
        if one not in found or number > EXHAUSTED:
            found.append(one)
    return tuple(found)


def _cheap(profile: str, task: str) -> list[str]:
    """What makes a trial cheap, of what the profile has."""
    there = content.flatten({"profile": plan.read_settings(content.find("profile", profile) / "profile.toml", task)})
    return [f"{name}={json.dumps(value)}" for name, value in CHEAP.items() if name in there]


def _tuning_prompts(profile: str, settings: Sequence[str], task: str) -> str:
    """The set of prompts that settings are chosen on: never the held-out ones that methods are compared on."""
    own = [setting for setting in settings if setting.startswith("profile.")]
    return plan.read_profile(profile, own, task).prompts.removesuffix(TUNING) + TUNING


def _ends(space: Space) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, domain in space.items() for value in domain.ends)


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items())


def _checked(first: Plan, settings: Mapping[str, Any], what: str, where: str) -> Plan:
    """The first trial's plan with these settings.

    Raises:
        BenchError: they cannot be, or the method refuses them.
    """
    try:
        return plan.with_settings(first, settings)
    except BenchError as error:
        raise BenchError(f"{what}: {error.problem}", f"{error.remedy} Or mend {Path(where).name}.", 2) from error


def _identity(first: Plan, space: Space) -> dict[str, str]:
    budget = first.profile.budget
    domains = [(name, asdict(domain)) for name, domain in space.items()]
    return {
        "seed": str(first.seed),
        "budget": f"{budget.limit:,} {budget.kind}",
        "space": content.digest(domains),
        "own settings": first.digests["method"],
        "profile": content.digest(record.identity_settings(first.settings["profile"])),
        "prompts": content.digest(first.digests["train"], first.digests["held_out"]),
    }
