"""What a model's adapters give when they are turned down: reward, judge and divergence at several scales of their
updates, without training. A scale of 0 is the base, 1 the adapters as they were saved.

A reward that was hacked keeps rising to 1, while the corrected score turns before.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from gdro_bench import figures, progress, sampling, stats, version
from gdro_bench.commands import evaluate, summary
from gdro_bench.commands.evaluate import EvalRequest, Pictures
from gdro_bench.commands.results import Result, ScaledResult
from gdro_bench.engine import divergence, judging
from gdro_bench.engine.plan import evaluation_inputs
from gdro_bench.errors import BenchError
from gdro_bench.files import strict_json, write_atomically
from gdro_bench.models import open_model, pick_device
from gdro_bench.policy import Policy, Scalable
from gdro_bench.profile import JudgeConfig, Profile
from gdro_bench.score import Score, Scorer, check
from gdro_bench.stats import Estimate
from gdro_bench.task import Prompt, Task

LARGEST = 2.0  # further out than that, adapters are not those that were trained
UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def parse_scales(written: str) -> tuple[float, ...]:
    """Scales from `0,0.25,0.5,0.75,1`, rising, each once.

    Raises:
        BenchError: there is none, or one is no number from 0 to `LARGEST`.
    """
    try:
        scales = [float(part) for part in written.split(",")]
    except ValueError:
        scales = []
    if not scales or not all(0 <= scale <= LARGEST for scale in scales):  # NaN is not, either
        raise BenchError(
            f"The scales of the adapters are {written!r}.",
            f"Write numbers from 0 to {LARGEST:g} with commas: --lora-scale 0,0.25,0.5,0.75,1.",
            2,
        )
    return tuple(sorted({abs(scale) for scale in scales}))  # -0 is 0


@dataclass(frozen=True, slots=True)
class Instruments:
    """What looks at the pictures: the reward, a judge if one is asked, and the profile's gold score if it has one."""

    scorer: Scorer
    judge: Scorer | None
    gold: Scorer | None

    @classmethod
    def open(cls, task: Task, profile: Profile, request: EvalRequest) -> Instruments:
        """Raises:
        BenchError: an instrument cannot be had."""
        config = JudgeConfig("none", profile.judge.gold, "none", "", "")
        return cls(*evaluate.instruments(task, profile, request), judging.open_judges(config).get("gold"))


@dataclass(frozen=True, slots=True)
class Seen:
    """The pictures at one scale, by all instruments, and the KL of the path from the base [n], in nats."""

    scale: float
    pictures: Pictures
    scores: list[Score]
    judgements: list[Score] | None
    golds: list[Score] | None
    path_kl: list[float]


def execute(
    console: Console,
    request: EvalRequest,
    scales: Sequence[float],
    task_name: str,
    profile_name: str,
    settings: Sequence[str],
    prompts: Path | None,
    out: Path | None,
) -> None:
    """Scores the held-out prompts' pictures at every scale, prints a table, and writes what came out under `out`.

    Raises:
        BenchError: as `evaluate.execute`; no adapters were named, or the model cannot scale them.
    """
    request.check(prompts, out)
    inputs = request.inputs(task_name, profile_name, settings, prompts)
    evaluate.check_free(out, inputs)
    if request.lora is None:
        raise BenchError("--lora-scale needs adapters to scale.", "Add --lora FOLDER, such as a run's lora/.", 2)
    task, profile, held_out = evaluation_inputs(task_name, profile_name, settings, prompts)
    instruments = Instruments.open(task, profile, request)
    policy = open_model(profile, request.weights, request.lora, pick_device(request.device))
    evaluate.encode(policy, held_out)
    with progress.EvaluationBar(console) as bar:
        seen = [look(policy, scale, held_out, task, profile, instruments, bar.evaluating) for scale in scales]
        if out is not None:
            evaluate.write_scores(out, [row for one in seen for row in _rows(one)])
        for one in seen:
            check(one.scores, profile.max_unscored)
        lots = [one.pictures for one in seen]
        asked, refusal = evaluate.ask(lots, instruments.judge, task.correction, bar.evaluating)
    if asked:
        seen = [replace(one, judgements=judgements) for one, judgements in zip(seen, asked, strict=True)]
    results = [result(one, task, profile, instruments) for one in seen]
    summary.print_frontier(console, results)
    if out is not None:
        write(out, seen, results, instruments, task, inputs)
        names = ("eval.json", "scores.csv", "frontier.png", "frontier.pdf")
        console.print(f"Written: {', '.join(str(out / name) for name in names)}", soft_wrap=True, markup=False)
    if refusal is not None:
        raise refusal
    for one, found in zip(seen, results, strict=True):
        evaluate.check_judged(found.result.judge, one.judgements or [], profile.max_unscored)


def look(
    policy: Policy,
    scale: float,
    prompts: list[Prompt],
    task: Task,
    profile: Profile,
    instruments: Instruments,
    done: evaluate.Done,
) -> Seen:
    """Generates and scores the prompts' pictures at one scale, from the noise that a run's evaluation points use.

    Raises:
        BenchError: the model cannot scale its adapters.
    """
    if not isinstance(policy, Scalable):
        raise BenchError(f"The model {policy.name} cannot scale its adapters.", "Leave out --lora-scale.", 2)
    some, drift = prompts[: profile.drift.prompts], profile.drift
    path_kl: list[float] = []
    with policy.scaled(scale):
        images = sampling.held_out_images(policy, prompts, task.name, profile.sampler)
        if some:
            path_kl = divergence.paths(policy, some, task.name, profile.sampler, drift.noise_level).kl.tolist()
    pictures = Pictures([policy.name] * len(prompts), list(images), prompts)
    golds = evaluate.score(pictures, instruments.gold, done) if instruments.gold else None
    return Seen(scale, pictures, evaluate.score(pictures, instruments.scorer, done), None, golds, path_kl)


def result(seen: Seen, task: Task, profile: Profile, instruments: Instruments) -> ScaledResult:
    """Means with 95 % intervals over prompts."""
    prompts = seen.pictures.prompts
    texts = [prompt.text for prompt in prompts]
    found: Result = evaluate.result(instruments.scorer, prompts, seen.scores)
    if instruments.judge is not None and seen.judgements is not None:
        found = evaluate.with_judge(found, prompts, seen.scores, instruments.judge, seen.judgements, task.correction)
    golds = np.array([gold.value for gold in seen.golds or []])
    moved = np.array(seen.path_kl)
    return ScaledResult(
        seen.scale,
        found,
        stats.bootstrap_mean(golds, prompts=texts) if len(golds) else UNKNOWN,
        stats.bootstrap_mean(moved, prompts=texts[: len(moved)]) if len(moved) else UNKNOWN,
    )


def write(
    folder: Path,
    seen: Sequence[Seen],
    results: Sequence[ScaledResult],
    instruments: Instruments,
    task: Task,
    inputs: dict[str, Any],
) -> None:
    """`eval.json` with an entry a scale, `scores.csv` with a row a scale and picture, and the figure `frontier`."""
    gold = instruments.gold.name if instruments.gold else ""
    entries = [_entry(found) for found in results]
    told = {"inputs": inputs, "version": version.of_code(), "gold": gold, "scales": entries}
    write_atomically(folder / "eval.json", strict_json(told))
    evaluate.write_scores(folder, [row for one in seen for row in _rows(one)])
    draw(folder / "frontier", results, gold, task.title)


def _entry(found: ScaledResult) -> dict[str, Any]:
    """An evaluation's own fields, with its scale, gold score and divergence."""
    more = {"gold": dataclasses.asdict(found.gold), "path_kl": dataclasses.asdict(found.path_kl)}
    return {"scale": found.scale, **dataclasses.asdict(found.result), **more}


def _rows(seen: Seen) -> list[dict[str, Any]]:
    rows = evaluate.table(seen.pictures, seen.scores, seen.judgements)
    golds = {"gold": [gold.value for gold in seen.golds]} if seen.golds is not None else {}
    moved = seen.path_kl + [math.nan] * (len(rows) - len(seen.path_kl))
    columns = golds | {"path_kl": moved}
    return [
        {"scale": seen.scale, **row, **{name: values[i] for name, values in columns.items()}}
        for i, row in enumerate(rows)
    ]


def draw(path: Path, results: Sequence[ScaledResult], gold: str, title: str) -> None:
    """Reward, corrected score and gold score against the scale, those that are known."""
    reward, judge = results[0].result.instrument, results[0].result.judge
    curves = {f"held-out reward: {reward}": [found.result.reward for found in results]}
    if judge:
        curves[f"corrected score of the means: {judge}"] = [found.corrected for found in results]
    if gold:
        curves[gold] = [found.gold for found in results]
    figures.frontier(path, [found.scale for found in results], curves, title)
