"""Runs one plan: drives the method until its budget is spent, evaluates at the marks, keeps it all on disk."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from gdro_bench import __version__, figures, registry, sampling, score, stats
from gdro_bench.budget import ACCOUNTS, Ledger, MeteredPolicy, MeteredScorer
from gdro_bench.distributed import ProcessGroup, gather_scores
from gdro_bench.engine import divergence, judging, record, samples
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.record import Point, Run
from gdro_bench.engine.run_state import RunState
from gdro_bench.errors import BenchError
from gdro_bench.files import no_room, write_atomically
from gdro_bench.methods import Method, TrainContext
from gdro_bench.models import open_policy
from gdro_bench.policy import Policy
from gdro_bench.pool import Pool
from gdro_bench.profile import Sampler
from gdro_bench.rewards import panel
from gdro_bench.rewards.instruments import open_reward
from gdro_bench.score import Images, Score, Scorer
from gdro_bench.task import Prompt

CHECKPOINT_UPDATES = 20
SHEET_PROMPTS = 16


class ProgressListener(Protocol):
    """Sees a run's progress; the command line draws bars."""

    def spent(self, spent: float, limit: int, doing: str) -> None: ...
    def evaluating(self, done: int, total: int) -> None: ...


class Execution:
    """One plan being run, by of the process group alike; the first of them alone writes."""

    def __init__(self, chosen: Plan, scorer: Scorer, watcher: ProgressListener, processes: ProcessGroup) -> None:
        self.plan, self.scorer, self.watcher, self.processes = chosen, scorer, watcher, processes
        self.ahead = chosen.profile.score_ahead or 0
        budget = chosen.profile.budget
        self.state = RunState(Ledger(budget.limit, budget.kind))
        self.policy: Policy = open_policy(chosen.profile, processes.device, chosen.seed)
        processes.lockstep = chosen.profile.pretrained is not None and chosen.profile.pretrained.sharded
        self.checkpoint = chosen.folder / "checkpoint.pt"
        self._claim_folder()
        self.method = self._start()

    def _claim_folder(self) -> None:
        """Writes what will be run, or checks that the folder was made for the very same."""
        digests = self.plan.digests | {"model": self.policy.name, "reward": self.scorer.name}
        path = self.plan.folder / "plan.json"
        if path.exists():
            found = json.loads(path.read_text())
            for key, value in digests.items():
                if found.get(key) != value:
                    raise BenchError(
                        f"{self.plan.folder} holds a run with another {key} ({found.get(key)}, now {value}).",
                        "Give another --out, or delete that folder.",
                    )
        if self.processes.is_main:
            write_atomically(path, json.dumps(digests, indent=1).encode())

    def _start(self) -> Method:
        state: dict[str, Any] | None = None
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.state = RunState.from_json(state["state"])
        ledger = self.state.ledger
        context = TrainContext(
            MeteredPolicy(self.policy, ledger),
            MeteredScorer(self.scorer, ledger),
            self.plan.train,
            self.plan.profile.sampler,
            Pool(self.plan.folder.parents[2] / "pools", ledger, self.processes),
            self.plan.seed,
            self.processes,
            self.ahead,
            self.plan.profile.max_unscored,
        )
        method: Method = registry.lookup("method", self.plan.method)(self.plan.config, context)
        if state is not None:
            method.load_state_dict(state["method"])
        return method

    def run(self) -> Run:
        """To the end of the budget; killed at any moment, it goes on to the same numbers."""
        marks = self.plan.profile.budget.marks
        if not self.state.points:
            self._evaluate(0.0)
            self._save()
        while len(self.state.points) <= len(marks):
            mark = marks[len(self.state.points) - 1]
            while self.state.ledger.spent < mark * self.state.ledger.limit:
                self._step()
            self._evaluate(mark)
            self._save()
        return self._finish()

    def _step(self) -> None:
        start, ledger = time.perf_counter(), self.state.ledger
        before = ledger.accounts()
        step = self.method.step()
        spent = ledger.optimisation if step.kind == "optimise" else ledger.collection
        spent.seconds += time.perf_counter() - start if self.processes.is_main else 0.0
        ledger.share(before, self.processes)
        self.state.log(step)
        self.watcher.spent(ledger.spent, ledger.limit, step.progress)
        if step.kind == "optimise" and self.state.updates % CHECKPOINT_UPDATES == 0:
            self._save()

    def _save(self) -> None:
        if not self.processes.is_main:
            return
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        try:
            torch.save({"method": self.method.state_dict(), "state": self.state.to_json()}, partial)
            os.replace(partial, self.checkpoint)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise no_room(self.checkpoint, error) from error

    # -- evaluation

    def _evaluate(self, mark: float) -> None:
        """Scores the held-out prompts, one image each, from noise that is a function of task and prompt alone."""
        if self.state.points and self.state.points[-1].updates == self.state.updates:
            self._evaluate_again(mark)
            return
        prompts, sampler = self.plan.held_out, self.plan.profile.sampler
        with self.method.evaluated():
            pictures, scores = self._painted(prompts, sampler)
            drifted = divergence.measure(self.policy, prompts, self.plan.task.name, sampler, self.plan.profile.drift)
        if self.processes.is_main:
            self._keep_samples(mark, pictures[: self.plan.profile.kept_images])
        statistics = [seen | moved for seen, moved in zip(panel.statistics(pictures), drifted, strict=True)]
        rows = [
            {"mark": mark, "prompt": i, "text": prompt.text, "value": one.value, "note": one.note, **one.parts}
            for i, (prompt, one) in enumerate(zip(prompts, scores, strict=True))
        ]
        self._enter(mark, [row | more for row, more in zip(rows, statistics, strict=True)])

    def _painted(self, prompts: list[Prompt], sampler: Sampler) -> tuple[Images, list[Score]]:
        """A picture a prompt, and its score; each process takes some batches."""
        processes, batches = self.processes, self.processes.batches(len(prompts), sampler.batch)
        images: list[torch.Tensor] = []

        def painted() -> Iterator[score.GeneratedBatch]:
            for rows in processes.own(batches):
                pictures = sampling.held_out_images(self.policy, prompts[rows], self.plan.task.name, sampler)
                images.append(torch.from_numpy(pictures))
                yield pictures, prompts[rows]
                self.watcher.evaluating(min(len(prompts), rows.stop), len(prompts))  # all are about as far

        scored = score.score_batches(painted(), self.scorer, self.ahead)
        scores = gather_scores(processes, scored, len(batches), self.plan.profile.max_unscored)
        return torch.cat(processes.gather_tensors(images, len(batches))).cpu().numpy(), scores

    def _evaluate_again(self, mark: float) -> None:
        """Nothing was learnt since the last mark (the pool was filled, say): what it painted then, it paints now."""
        last, folder = self.state.points[-1].mark, self.plan.folder
        if self.processes.is_main:
            shutil.copyfile(samples.path_of(folder, last), samples.path_of(folder, mark))
        self._enter(mark, [row | {"mark": mark} for row in self.state.scores if row["mark"] == last])

    def _enter(self, mark: float, rows: list[dict[str, Any]]) -> None:
        self.state.scores += rows
        self.state.points.append(self._point(mark, rows))
        ledger = self.state.ledger
        spent = {name: getattr(ledger, name).seconds for name in ACCOUNTS}
        self.state.seconds.append({"mark": mark} | spent)

    def _point(self, mark: float, rows: list[dict[str, Any]]) -> Point:
        values, prompts = np.array([row["value"] for row in rows]), [row["text"] for row in rows]
        base = np.array([row["value"] for row in self.state.scores if row["mark"] == 0.0])
        scored = [row for row in rows if not math.isnan(row["value"])]
        ledger = self.state.ledger
        return Point(
            mark=mark,
            updates=self.state.updates,
            pool_evaluations=ledger.pool.evaluations,
            collection_evaluations=ledger.collection.evaluations,
            optimisation_evaluations=ledger.optimisation.evaluations,
            pool_images=ledger.pool.images,
            images_sampled=ledger.collection.images,
            images_trained=ledger.optimisation.images,
            reward_calls=ledger.total.reward_calls,
            reward=stats.bootstrap_mean(values, prompts=prompts),
            gain=stats.paired_gain(base, values, prompts=prompts),
            unscored=int(np.isnan(values).sum()),
            parts={name: _mean([row[name] for row in scored]) for name in rows[0] if name not in record.SCORE_COLUMNS},
        )

    def _keep_samples(self, mark: float, images: Images) -> None:
        samples.write(samples.path_of(self.plan.folder, mark), images)

    # -- the end

    def _finish(self) -> Run:
        run = Run(
            schema=record.SCHEMA,
            version=__version__,
            task=self.plan.task.name,
            profile=self.plan.profile_name,
            method=self.plan.method,
            seed=self.plan.seed,
            settings=self.plan.settings,
            changed=self.plan.changed,
            digests=self.plan.digests | {"model": self.policy.name},
            instruments={"reward": self.scorer.name},
            budget_kind=self.state.ledger.kind,
            limit=self.state.ledger.limit,
            points=tuple(self.state.points),
        )
        if self.processes.is_main:
            self._write(run)
        return run

    def _write(self, run: Run) -> None:
        """All that a finished run leaves; the record last, because it says that the run is finished."""
        folder, state = self.plan.folder, self.state
        pd.DataFrame(state.scores).to_parquet(folder / "scores.parquet")
        pd.DataFrame(state.steps).to_parquet(folder / "steps.parquet")
        with self.method.evaluated():
            self.policy.save(folder / "lora")
        self._sheet()
        write_atomically(folder / "timing.json", json.dumps(state.seconds, indent=1).encode())
        record.write(run, folder)
        self.checkpoint.unlink()

    def _sheet(self) -> None:
        """The first held-out prompts before and after, from the same noise."""
        final = self.plan.profile.budget.marks[-1]
        columns, captions = {}, {}
        for title, mark in (("before", 0.0), ("after", final)):
            path = samples.path_of(self.plan.folder, mark)
            columns[title] = samples.read(path, samples.numbers(path)[:SHEET_PROMPTS])
            captions[title] = [r["note"] for r in self.state.scores if r["mark"] == mark][: len(columns[title])]
        prompts = [p.text for p in self.plan.held_out[: len(columns["before"])]]
        figures.sample_sheet(self.plan.folder / "sheet", columns, captions, prompts)


def _mean(values: list[float]) -> float:
    """Of the values that are there: a part may not concern every prompt."""
    there = [value for value in values if not math.isnan(value)]
    return float(np.mean(there)) if there else math.nan


def execute(chosen: Plan, watcher: ProgressListener, processes: ProcessGroup) -> Run:
    """Runs the plan, or goes on with it, or returns its record if it is finished; then has its pictures judged."""
    if processes.broadcast_flag((chosen.folder / "run.json").exists()):
        run = record.read(chosen.folder)
    else:
        run = Execution(chosen, open_reward(chosen.task, chosen.profile, processes.device), watcher, processes).run()
    if processes.is_main:
        judging.finish(run, chosen.folder, chosen.profile.judge, watcher.evaluating)
    return run
