"""The last healthy mark of a run: the one before a judge or the divergence turned, found on training prompts.

At every evaluation point the policy also paints a few of the training prompts, always the same from the same noise. A
judge that runs beside the model rates them; without one, only how far the policy has moved is known. The held-out
prompts are never looked at, so a checkpoint that is chosen here can be reported there without a bias.

What this costs is not on the ledger, as for the held-out evaluation; `health.json` counts it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gdro_bench import sampling, stats
from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import divergence
from gdro_bench.engine.folders import adapters_of
from gdro_bench.engine.plan import Plan
from gdro_bench.errors import BenchError
from gdro_bench.files import strict_json, write_atomically
from gdro_bench.instruments import panel
from gdro_bench.policy import Policy
from gdro_bench.score import Images, Scorer, check_axes, judge_mean, open_scorer

FILE = "health.json"
Row = dict[str, Any]  # of one health picture
Floats = NDArray[np.float64]


# ---------------------------------------------------------------------------------------------------------------
# The rule


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which evaluation point was the last healthy one, its place in the list (None: none is known to be), why, and
    what each point was: healthy, not, or not known."""

    last: int | None
    why: str
    healthy: tuple[bool | None, ...]


def verdict(marks: Sequence[float], ratings: Floats, path_kl: Floats, kl_limit: float) -> Verdict:
    """The last healthy one of M evaluation points.

    With a judge: the last point before its mean rating fell significantly below its best so far and stayed there. A
    point has fallen if the 95 % interval of its difference from the best point so far, paired over prompts, lies below
    0. A fall that is made good has not stayed, so the last healthy point is the last that has not fallen. A fall at the
    last point counts: whether it stays is then not known.

    Without one (no rating is known): the last point before the KL of the path from the base went above `kl_limit`.

    Args:
        marks: shares of the budget [M], rising. ratings: of each prompt [M, N], NaN where not known. path_kl: means
            over prompts [M], nats; NaN where not known.
    """
    if not np.isnan(ratings).all():
        healthy = by_judge(ratings)
        last = max((i for i, well in enumerate(healthy) if well), default=None)
        return Verdict(last, _why_judged(marks, ratings, last), healthy)
    healthy = tuple(None if math.isnan(kl) else bool(kl <= kl_limit) for kl in path_kl)
    turned = healthy.index(False) if False in healthy else len(healthy)
    last = max((i for i in range(turned) if healthy[i]), default=None)
    return Verdict(last, _why_moved(marks, path_kl, kl_limit, turned), healthy)


def by_judge(ratings: Floats) -> tuple[bool | None, ...]:
    """For each point of ratings [M, N] whether it has not fallen below the best before it; None where no prompt is
    rated at both."""
    healthy: list[bool | None] = []
    best: int | None = None
    for i, row in enumerate(ratings):
        if best is None:
            healthy.append(None if np.isnan(row).all() else True)
            best = i if healthy[-1] else None
            continue
        change = stats.paired_gain(ratings[best], row)
        healthy.append(None if math.isnan(change.mean) else not change.high < 0)
        best = i if change.mean > 0 else best
    return tuple(healthy)


def _why_judged(marks: Sequence[float], ratings: Floats, last: int | None) -> str:
    means = stats.known_mean(ratings, axis=1)
    if last is None:
        return "The judge rated no point."
    fell = next((i for i in range(last + 1, len(marks)) if not math.isnan(means[i])), None)
    if fell is None:
        return "The judge's mean rating on training prompts never fell below its best and stayed there."
    best = int(np.nanargmax(means[:fell]))
    change = stats.paired_gain(ratings[best], ratings[fell])
    since = "and did not come back" if fell < len(marks) - 1 else "where the run ended"
    return (
        f"The judge's mean rating on training prompts changed at {marks[fell]:.0%} by {change} "
        f"from its best, {means[best]:.3f} at {marks[best]:.0%}, {since}."
    )


def _why_moved(marks: Sequence[float], path_kl: Floats, kl_limit: float, turned: int) -> str:
    if np.isnan(path_kl).all():
        return "Neither a judge's rating nor the divergence is known."
    if turned == len(marks):
        return f"No judge rated; the path's KL from the base stayed within {kl_limit:g} nats."
    over = f"{path_kl[turned]:.1f} nats, over {kl_limit:g}"
    return f"No judge rated; at {marks[turned]:.0%} the path's KL from the base was {over}."


# ---------------------------------------------------------------------------------------------------------------
# What it is told from


@dataclass(frozen=True, slots=True)
class Health:
    """What looks at a plan's policy on its health prompts, on all processes alike."""

    plan: Plan
    policy: Policy
    judge: Scorer | None
    processes: ProcessGroup

    @classmethod
    def of(cls, plan: Plan, policy: Policy, processes: ProcessGroup) -> Health:
        """Raises:
        BenchError: the judge cannot be had."""
        config = plan.profile.health
        asked = bool(plan.health) and config is not None and config.judge != "none"
        judge = open_scorer("judge", config.judge, plan.profile.judge) if asked and config else None
        return cls(plan, policy, judge, processes)

    def write(self, rows: Sequence[Row]) -> None:
        """`health.json` of what was seen so far."""
        write(self.plan, rows, self.judge.name if self.judge else "none")

    def look(self, mark: float) -> list[Row]:
        """A row for each health prompt: the judge's `rating`, the path's KL and the pictures' statistics."""
        prompts = self.plan.health
        if not prompts:
            return []
        images = self._images()
        ratings, moved = self._ratings(images), self._path_kl()
        return [
            {"mark": mark, "prompt": i, "rating": rating, "path_kl": kl, **statistics}
            for i, (rating, kl, statistics) in enumerate(zip(ratings, moved, panel.statistics(images), strict=True))
        ]

    def _images(self) -> Images:
        """A picture for each prompt, [N, H, W, 3]; each process takes some batches."""
        prompts, plan, processes = self.plan.health, self.plan, self.processes
        batches = processes.batches(len(prompts), plan.profile.sampler.batch)
        own: list[torch.Tensor] = []
        for rows in processes.passes(batches):
            painted = sampling.fixed_images(self.policy, prompts[rows], plan.task.name, plan.profile.sampler, "health")
            if not processes.padding:
                own.append(torch.from_numpy(painted))
        images: Images = processes.gather_rows(own, batches).numpy()
        return images

    def _ratings(self, images: Images) -> list[float]:
        if self.judge is None:
            return [math.nan] * len(images)
        scores = self.judge(images, self.plan.health)
        check_axes(self.judge, scores, self.plan.task.correction)
        ratings: list[float] = judge_mean(scores, self.plan.task.correction).tolist()
        return ratings

    def _path_kl(self) -> list[float]:
        """Of the first prompts, as many as the profile's `drift` has; NaN for the others."""
        prompts, profile = self.plan.health, self.plan.profile
        some = prompts[: profile.drift.prompts]
        noise = profile.drift.noise_level
        found = divergence.paths(self.policy, some, self.plan.task.name, profile.sampler, noise).kl if some else ()
        return [*map(float, found), *[math.nan] * (len(prompts) - len(some))]


# ---------------------------------------------------------------------------------------------------------------
# The file


@dataclass(frozen=True, slots=True)
class Healthy:
    """What a run's `health.json` names: the last healthy mark (None: not known), where its adapters
    are, if the run kept them, and why."""

    mark: float | None
    adapters: Path | None
    why: str


def write(plan: Plan, rows: Sequence[Row], judge: str) -> None:
    """Writes `health.json`: each point's statistics, which one is the last healthy and why. Nothing without rows."""
    if not rows or plan.profile.health is None:
        return
    marks = list(dict.fromkeys(row["mark"] for row in rows))
    ratings = _by_point(rows, marks, "rating", len(plan.health))
    kl = _by_point(rows, marks, "path_kl", len(plan.health))
    found = verdict(marks, ratings, stats.known_mean(kl, axis=1), plan.profile.health.kl_limit)
    mark = None if found.last is None else marks[found.last]
    adapters = None if mark is None else adapters_of(Path(), mark)
    kept = adapters is not None and (plan.folder / adapters).is_dir()
    points = [_point(mark_, rows, ratings[i], found.healthy[i]) for i, mark_ in enumerate(marks)]
    table = {
        "last_healthy": {"mark": mark, "adapters": str(adapters) if kept else None, "why": found.why},
        "judge": judge,
        "kl_limit": plan.profile.health.kl_limit,
        "prompts": [prompt.text for prompt in plan.health],
        "cost": _cost(plan, len(marks)),
        "points": points,
    }
    write_atomically(plan.folder / FILE, strict_json(table))


def _by_point(rows: Sequence[Row], marks: Sequence[float], name: str, prompts: int) -> Floats:
    """A column of the rows as [M, N], NaN where there is no row."""
    values = np.full((len(marks), prompts), np.nan)
    for row in rows:
        values[marks.index(row["mark"]), row["prompt"]] = row[name]
    return values


def _point(mark: float, rows: Sequence[Row], ratings: Floats, healthy: bool | None) -> dict[str, Any]:
    of_it = [row for row in rows if row["mark"] == mark]
    names = [name for name in of_it[0] if name not in ("mark", "prompt", "rating")]
    means = {name: float(stats.known_mean(np.array([row[name] for row in of_it], dtype=float))) for name in names}
    rating = dataclasses.asdict(stats.bootstrap_mean(ratings))
    return {"mark": mark, "healthy": healthy, "rating": rating, "statistics": means, "ratings": ratings.tolist()}


def _cost(plan: Plan, points: int) -> dict[str, Any]:
    pictures, looked_at = len(plan.health), min(plan.profile.drift.prompts, len(plan.health))
    evaluations = (pictures + 2 * looked_at) * plan.profile.sampler.evaluations
    return {
        "what": "at each evaluation point, outside the budget and its ledger; a point without training copies the last",
        "points": points,
        "images_each": pictures,
        "evaluations_each": evaluations,
    }


def read(folder: Path) -> Healthy | None:
    """The last healthy mark of the run in `folder`; None where it was not looked for.

    Raises:
        BenchError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["last_healthy"]
        mark = None if named["mark"] is None else float(named["mark"])
        kept = None if mark is None or named["adapters"] is None else adapters_of(folder, mark)
        return Healthy(mark, kept, str(named["why"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BenchError(
            f"{path} is damaged: {type(error).__name__}: {str(error)[:120]}.",
            "Delete that file: the run's record stands without it.",
        ) from error
