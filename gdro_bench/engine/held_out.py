"""Evaluation on the held-out prompts: the same prompts and noise at every evaluation point of every run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gdro_bench import sampling, score, stats
from gdro_bench.distributed import ProcessGroup, gather_scores
from gdro_bench.engine import divergence, record
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.record import Point
from gdro_bench.engine.run_state import RunState
from gdro_bench.errors import BenchError
from gdro_bench.instruments import panel
from gdro_bench.policy import Policy
from gdro_bench.score import Images, Score, Scorer

STATISTICS_TOGETHER = 32  # pictures that one process computes them of
Row = dict[str, Any]  # of scores.parquet: one held-out picture
Report = Callable[[int, int], None]  # hears how many pictures of how many are done


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What evaluates a plan's policy, on all processes alike."""

    plan: Plan
    policy: Policy
    scorer: Scorer
    processes: ProcessGroup

    def evaluate(self, mark: float, report: Report) -> tuple[Images, list[Row]]:
        """Pictures [N, H, W, 3] of the held-out prompts and a row for each: score, statistics and divergence.

        Raises:
            BenchError: too many pictures could not be scored.
        """
        plan = self.plan
        images, scores = self._scored_images(report)
        moved = divergence.measure(self.policy, plan.held_out, plan.task.name, plan.profile.sampler, plan.profile.drift)
        rows = [
            {"mark": mark, "prompt": i, "text": prompt.text, "value": one.value, "note": one.note, **one.parts}
            for i, (prompt, one) in enumerate(zip(plan.held_out, scores, strict=True))
        ]
        measured = [one | drift for one, drift in zip(self._statistics(images), moved, strict=True)]
        self._check_names(scores, measured)
        return images, [row | one for row, one in zip(rows, measured, strict=True)]

    def _statistics(self, images: Images) -> list[dict[str, float]]:
        """Of each picture; each process computes some."""
        rows = self.processes.batches(len(images), STATISTICS_TOGETHER)
        own = [panel.alone(images[some]) for some in self.processes.own(rows)]
        each = [one for batch in self.processes.gather_objects(own, len(rows)) for one in batch]
        return panel.with_those_of_the_set(each, images)

    def _check_names(self, scores: Sequence[Score], measured: Sequence[Mapping[str, float]]) -> None:
        """Raises:
        BenchError: a part of the reward has the name of a statistic, whose column it would share."""
        if taken := set(score.part_names(scores)) & set(itertools.chain(*measured)):
            raise BenchError(
                f"{self.scorer.name} gives a part called {min(taken)!r}, as a statistic of all pictures is.",
                "Rename it.",
                2,
            )

    def _scored_images(self, report: Report) -> tuple[Images, list[Score]]:
        """A picture for each prompt, and its score; each process takes some batches."""
        prompts, sampler, processes = self.plan.held_out, self.plan.profile.sampler, self.processes
        batches = processes.batches(len(prompts), sampler.batch)
        images: list[torch.Tensor] = []

        def generated() -> Iterator[score.GeneratedBatch]:
            for rows in processes.passes(batches):
                pictures = sampling.held_out_images(self.policy, prompts[rows], self.plan.task.name, sampler)
                if processes.padding:
                    continue
                images.append(torch.from_numpy(pictures))
                yield pictures, prompts[rows]
                report(min(len(prompts), rows.stop), len(prompts))  # all processes are about as far

        own = score.score_batches(generated(), self.scorer, self.plan.profile.score_ahead or 0)
        scores = gather_scores(processes, own, len(batches), self.plan.profile.max_unscored)
        return processes.gather_rows(images, batches).numpy(), scores


def point_of(mark: float, rows: Sequence[Row], base: Sequence[Row], state: RunState) -> Point:
    """The evaluation point that these rows make; its gain is over the `base`'s rows, paired by prompt and noise."""
    values, before = (np.array([row["value"] for row in some]) for some in (rows, base))
    prompts, ledger = [row["text"] for row in rows], state.ledger
    scored = [row for row in rows if not math.isnan(row["value"])]
    return Point(
        mark=mark,
        updates=state.updates,
        pool_evaluations=ledger.pool.evaluations,
        collection_evaluations=ledger.collection.evaluations,
        optimisation_evaluations=ledger.optimisation.evaluations,
        pool_images=ledger.pool.images,
        images_sampled=ledger.collection.images,
        images_trained=ledger.optimisation.images,
        reward_calls=ledger.total.reward_calls,
        reward=stats.bootstrap_mean(values, prompts=prompts),
        gain=stats.paired_gain(before, values, prompts=prompts),
        unscored=int(np.isnan(values).sum()),
        parts={name: _mean([row.get(name, math.nan) for row in scored]) for name in _parts(rows)},
    )


def _parts(rows: Sequence[Row]) -> list[str]:
    """The columns of all rows that are parts of the score; one that could not be scored may have none."""
    return [name for name in dict.fromkeys(itertools.chain(*rows)) if name not in record.SCORE_COLUMNS]


def _mean(values: list[float]) -> float:
    """Of the values that are there: a part may not concern every prompt."""
    there = [value for value in values if not math.isnan(value)]
    return float(np.mean(there)) if there else math.nan
