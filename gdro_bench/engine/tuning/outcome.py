"""What a trial's folder says of it, and the sum of all of them when a search has ended."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from gdro_bench import content
from gdro_bench.engine import record
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.tuning.search import Search
from gdro_bench.engine.tuning.study import StudyOf
from gdro_bench.engine.tuning.tuned import FILE, SCHEMA, Trial, Tuned
from gdro_bench.errors import BenchError
from gdro_bench.files import write_atomically
from gdro_bench.stats import Estimate, paired_gain
from gdro_bench.version import __version__

FAILURE = "failure.json"


def result(search: Search, number: int) -> Trial | None:
    """What a trial's folder says; None if it has not ended."""
    plan, settings = search.plans[number], search.drawn[number]
    digest = content.digest(plan.settings["method"])
    if (plan.folder / FAILURE).exists():
        told = json.loads((plan.folder / FAILURE).read_text(encoding="utf-8"))
        return Trial(number, settings, digest, None, None, told["failure"], None, told["evaluations"], None, None)
    if not (plan.folder / "run.json").exists():
        return None
    run = record.read(plan.folder)
    last = run.points[-1]
    value = None if math.isnan(last.reward.mean) else last.reward
    failure = "" if value else "No picture could be scored."
    spent = (last.updates, last.evaluations, last.pool_evaluations, _seconds(plan))
    return Trial(number, settings, digest, value, None, failure, *spent)


def fail(plan: Plan, sentence: str, spent: float) -> None:
    """Tells in a trial's folder why it failed and what it had `spent` by then, of its budget's kind."""
    evaluations = int(spent) if plan.profile.budget.kind == "evaluations" else None
    told = {"failure": sentence, "evaluations": evaluations}
    write_atomically(plan.folder / FAILURE, json.dumps(told, indent=1).encode())


def _seconds(plan: Plan) -> float | None:
    """Of training, the pool's as if it had been made now; None if they were not kept."""
    try:
        last = json.loads((plan.folder / "timing.json").read_text(encoding="utf-8"))[-1]
        return float(last["collection"] + last["optimisation"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def summed_up(study: StudyOf) -> Tuned:
    """The search whose trials have all ended, written to its folder."""
    search = study.search
    trials = [one for number in range(len(search.plans)) if (one := result(search, number)) is not None]
    _check_alike(search)
    trials = [replace(one, gain=_gain(search, one)) for one in trials]
    values = {one.number: one.value.mean for one in trials if one.value is not None}
    budget, shares = search.plans[0].profile.budget, study.importance()
    done = Tuned(
        *(SCHEMA, __version__, search.task, search.profile, search.method, search.seed, budget.kind, budget.limit),
        {name: asdict(domain) for name, domain in search.space.items()},
        tuple(trials),
        max(values, key=lambda number: (values[number], -number)) if values else None,
        len(trials) - len(values),
        sum(one.evaluations or 0 for one in trials),
        sum(one.seconds or 0.0 for one in trials),
        *shares,
    )
    write_atomically(search.folder / FILE, json.dumps(asdict(done), indent=1, allow_nan=False).encode())
    return done


def _check_alike(search: Search) -> None:
    """A search that goes on after an upgrade may have another base or reader.

    Raises:
        BenchError: two trials were not measured alike.
    """
    measured: dict[str, str] = {}
    for plan in (one for one in search.plans if (one.folder / "run.json").exists()):
        run = record.read(plan.folder)
        alike = content.digest([run.digests.get("model"), run.digests.get("task"), run.instruments["reward"]])
        measured.setdefault(alike, plan.folder.name)
    if len(measured) > 1:
        first, other = list(measured.values())[:2]
        raise BenchError(
            f"{first} and {other} in {search.folder} have another base, task or reward: they cannot be ranked.",
            "Delete the older trials' folders, or give another --out, and type the command again.",
        )


def _gain(search: Search, trial: Trial) -> Estimate | None:
    """Over the first trial, None where one of the two failed."""
    folders = [search.plans[number].folder for number in (0, trial.number)]
    if trial.value is None or not all((folder / "run.json").exists() for folder in folders):
        return None
    own, ours = (_ends(folder) for folder in folders)
    gain = paired_gain(own["value"].to_numpy(), ours["value"].to_numpy(), prompts=own["text"].tolist())
    return None if math.isnan(gain.mean) else gain


def _ends(folder: Path) -> Any:
    """The scores at the end of the budget."""
    scores = record.read_scores(folder)
    return scores[np.isclose(scores["mark"], 1.0)]
