"""A comparison in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gdro_bench.comparison import matched
from gdro_bench.comparison.entries import AXES, Comparison, LoadedRun
from gdro_bench.comparison.tables.words import WIDE
from gdro_bench.engine.record import Run

ENOUGH = 10  # seeds: where they alone differ, a bootstrap over five holds the truth in 9 cases of 10, over three in 8
SIMULATED = "simulated, they hold the truth"  # how far methods differ, benchmarks/coverage.py; seeds up to 0.06 apart


def _instruments(compared: Comparison) -> str:
    return " ".join(
        f"{what.capitalize()}: {name.removeprefix(f'{what}: ')}." for what, name in compared.instruments.items()
    )


def _end(end: matched.AtBudget, run: Run) -> str:
    seeds = len(end.entry.runs)
    over = "1 seed" if seeds == 1 else f"{seeds} seeds"
    if math.isnan(end.gain.mean):
        return f"What {end.entry.label} gains over the base by {run.limit:,} {run.budget_kind} ({over}) is not known."
    return (
        f"{end.entry.label} ends at {end.reward}, {end.gain.against_zero} the base by {end.gain}, "
        f"after {run.limit:,} {run.budget_kind} ({over})."
    )


def _missing(compared: Comparison) -> list[str]:
    """Which runs were not judged where others were; how many pictures have no score, if any; in how many judgements the
    judge gave none."""
    runs = [run for entry in compared.entries for run in entry.runs]
    unscored = sum(int(np.isnan(run.parts["reward"]).sum()) for run in runs)
    pictures = sum(run.parts["reward"].size for run in runs)
    unjudged, judged = sum(run.unjudged for run in runs), sum(run.to_judge for run in runs)
    lines = [f"{unscored:,} of {pictures:,} pictures could not be scored and are in no mean."] if unscored else []
    lines += [f"{unjudged:,} of {judged:,} pictures could not be judged and are in no mean."] if unjudged else []
    return _not_judged(runs) + lines


def _not_judged(runs: Sequence[LoadedRun]) -> list[str]:
    roles = {role for run in runs for role in run.judges}
    lacking = [run.folder.name for run in runs if roles - run.judges.keys()]
    if not lacking:
        return []
    named = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
    return [
        f"{len(lacking)} of {len(runs)} runs ({named}) lack a judgement that others have, so nothing of it is told of "
        "any: gdro-bench judge FOLDER."
    ]


def headlines(compared: Comparison, at_budget: Sequence[matched.AtBudget], level: float | None, axis: str) -> list[str]:
    """What the table in short leaves out, in sentences."""
    sentences = [_end(at_budget[compared.entries.index(compared.reference)], compared.first)]
    if level is not None:
        sentences.append(
            f"Costs to equal reward, in {AXES[axis]}, are geometric means over levels of reward: from the base's up to "
            f"the one that stands with them, {matched.UPTO:.0%} of the way to the highest that both methods surely "
            f"reach. Another cut gives another number (below); of one level alone, R* = {level:.3f}, their "
            f"intervals are wider. Wide: an interval whose ends are more than a factor {WIDE} apart: it tells little. "
            "No clear rise: not even the highest point of the curve is above the base beyond noise, the "
            "best of so many points being high by luck, too."
        )
    elif len(compared.entries) > 1:
        sentences.append("No method's reward rises above the base's beyond noise: nothing to match.")
    sentences.append(
        f"{_instruments(compared)} Brackets are 95 % bootstrap intervals over {_drawn_anew(compared)}; "
        f"{len(set(compared.reference.runs[0].prompts))} prompts."
    )
    return [*sentences, *_of_variants(compared), *_of_one_pool(compared), *_missing(compared)]


def _drawn_anew(compared: Comparison) -> str:
    """What intervals are over, in words."""
    seeds = [len(entry.runs) for entry in compared.entries]
    alone = f"prompts alone where there is one seed (its luck is not in them: {SIMULATED} in 49 to 95 cases of 100)"
    few = "" if min(seeds) >= ENOUGH else f"; of three to five {SIMULATED} in 91 to 99 cases of 100"
    several = f"seeds and prompts{few}"
    return alone if max(seeds) == 1 else several if min(seeds) > 1 else f"{several}; over {alone}"


def _of_variants(compared: Comparison) -> list[str]:
    """How variants of the reference's method are held against it, if there are any."""
    to = compared.reference
    variants = any(entry.method == to.method and entry is not to for entry in compared.entries)
    told = f"{to.label} with other settings is compared with {to.label}'s runs of the same seeds only."
    return [told] if variants else []


def _of_one_pool(compared: Comparison) -> list[str]:
    """Whose interval over seeds is narrower than that of methods that draw prompts anew with every seed."""
    several = [entry for entry in compared.entries if len(entry.runs) > 1]
    methods = {entry.label: entry.runs[0].run.settings["method"] for entry in several}
    names = [
        label
        for label, of in methods.items()
        if of.get("pool", {}).get("shared") and of.get("mode", "offline") != "online"
    ]
    told = "All seeds of {} train on the prompts of one pool: their intervals do not hold the luck of another."
    return [told.format(", ".join(names))] if names else []
