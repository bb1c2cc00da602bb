"""In Python what the commands do on the command line: the same code, the same files.

    import gdro_bench

    points = gdro_bench.run("ocr", method="gdro")
    points[["evaluations", "reward", "reward_low", "reward_high"]]

Bad input raises `gdro_bench.errors.BenchError`, which says what is wrong and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from gdro_bench.commands.results import Result

AnyPath = str | PathLike[str]
Settings = Mapping[str, Any]


def run(
    task: str,
    method: str = "gdro",
    *,
    profile: str = "pocket",
    seed: int = 0,
    settings: Settings | None = None,
    budget: int | None = None,
    out: AnyPath = "runs",
    prompts: AnyPath | None = None,
    train_prompts: AnyPath | None = None,
    track: Sequence[str] = (),
    device: str = "auto",
    quiet: bool = False,
) -> pd.DataFrame:
    """Trains a model on a task with one method and returns its evaluation points, as `runs` does: `gdro-bench run`.

    A run that was killed goes on, and one that has ended is read.

        points = gdro_bench.run("ocr", method="gdro", seed=1, settings={"method.gamma": 0.0})

    Args:
        settings: what to change in the TOML files, by their dotted names. budget: how much to spend, in velocity
            evaluations or the profile's own kind. out: folder that runs are kept in. prompts, train_prompts: files of
            one's own, one a line. track: names of trackers that show curves meanwhile. device: auto, cpu or cuda.
            quiet: whether no progress is shown.

    Raises:
        BenchError: an unknown name or setting, a bad prompt file, or a part of the run that fails for good.
    """
    from gdro_bench import distributed, models, progress
    from gdro_bench.comparison import points
    from gdro_bench.engine import plan, runner

    files = (_path(prompts), _path(train_prompts))
    made = plan.make_plan(task, method, profile, seed, Path(out), _written(settings), budget, *files, track)
    with (
        distributed.process_group(models.pick_device(device)) as processes,
        progress.RunBars(_console(quiet or not processes.is_main)) as bars,
    ):
        runner.execute(made, bars, processes)
    return points.of([made.folder])


def runs(folder: AnyPath = "runs") -> pd.DataFrame:
    """The evaluation points of all finished runs under a folder, a row each. A record in two folders counts once.

        ends = gdro_bench.runs("runs").query("mark == 1.0")
        ends.groupby(["task", "method"])["reward"].mean()

    Columns: `task`, `profile`, `method`, `changed` (the settings that differ from the profile's), `seed`, `budget`,
    `mark` (share of the budget), the costs `evaluations`, `images`, `updates` and `seconds` until there, each also
    `..._without_pool`, `reward` and its parts and judgements (`corrected`, `gold`, ...) with 95 % bootstrap intervals
    over prompts as `..._low` and `..._high`, and `folder`. What is not known is NaN.

    Raises:
        BenchError: there is no finished run, or one cannot be read.
    """
    from gdro_bench.comparison import entries, points

    return points.of(entries.distinct(entries.finished([], Path(folder))))


def evaluate(
    task: str,
    *,
    lora: AnyPath | None = None,
    weights: AnyPath | None = None,
    images: AnyPath | None = None,
    profile: str = "pocket",
    prompts: AnyPath | None = None,
    judge: str = "none",
    judge_url: str = "",
    judge_model: str = "",
    mask2former: str | None = None,
    clip: str | None = None,
    settings: Settings | None = None,
    out: AnyPath | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Result:
    """Scores a model's pictures, or those on disk, without training: `gdro-bench eval`.

        result = gdro_bench.evaluate("ocr", lora="runs/ocr/pocket/gdro-s0/lora")
        print(result.reward)  # mean [95 % interval]; .mean, .low and .high are numbers

    Args:
        lora: a folder of adapters, such as a run's `lora/`. weights: a folder of the model's, instead of the profile's.
            images: pictures to score instead of generating them: a CSV file (path, prompt), or a folder in GenEval's
            layout. prompts: a file of one's own. judge, judge_url, judge_model: who rates the pictures besides; an
            empty address or model is the profile's. mask2former, clip: sources of another detector. settings: as for
            `run`. out: folder for `eval.json` and `scores.csv`. device, quiet: as for `run`.

    Raises:
        BenchError: bad input, an instrument that cannot be had, or too many pictures without a score.
    """
    from gdro_bench.commands import evaluate as command

    request = command.EvalRequest(
        _path(images), _path(weights), _path(lora), mask2former, clip, judge, judge_url, judge_model, device
    )
    return command.execute(_console(quiet), request, task, profile, _written(settings), _path(prompts), _path(out))


def compare(
    *folders: AnyPath,
    runs: AnyPath = "runs",
    out: AnyPath | None = None,
    axis: str = "evaluations",
    level: float | None = None,
    reference: str | None = None,
    tuned: AnyPath | None = None,
    study: AnyPath | None = None,
    names: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Makes reports of finished runs and returns their folders: `gdro-bench compare`.

        (report,) = gdro_bench.compare("runs/ocr")
        pd.read_csv(report / "in-short.csv")  # page.html and the figures lie beside it

    Args:
        folders: whose runs must share a figure; without any, all under `runs`, a report for each task and profile.
            out: folder that reports go to. axis: unit of cost: evaluations, seconds, images or updates. level: the
            reward at which costs are compared. reference: the method that others are held against. tuned: a folder of
            `gdro-bench tune`. study: one of `gdro-bench study`. names: what methods are called in the report, such as
            {"gdro (pool.prompts=48)": "48 prompts"}. quiet: whether no headlines are printed.

    Raises:
        BenchError: there is nothing to compare, or runs do not belong together.
    """
    from gdro_bench.commands import compare as command
    from gdro_bench.comparison.entries import AXES
    from gdro_bench.errors import unknown

    if axis not in AXES:
        raise unknown("unit of cost called", axis, AXES)
    paths = tuple(map(Path, folders))
    searched, asked = _path(tuned), _path(study)
    return command.execute(
        _console(quiet), paths, Path(runs), _path(out), axis, level, reference, searched, asked, names
    )


def _path(given: AnyPath | None) -> Path | None:
    return None if given is None else Path(given)


def _written(settings: Settings | None) -> list[str]:
    """As `--set` takes them.

    Raises:
        BenchError: a value is neither a number, a word, a switch nor a list of them.
    """
    return [f"{name}={_toml(name, value)}" for name, value in (settings or {}).items()]


def _toml(name: str, value: Any) -> str:
    plain = value.tolist() if hasattr(value, "dtype") and hasattr(value, "tolist") else value  # of numpy
    if isinstance(plain, str):
        return json.dumps(plain, ensure_ascii=False)
    if isinstance(plain, bool | int | float):
        return repr(plain).lower()
    if isinstance(plain, list | tuple):
        return f"[{', '.join(_toml(name, one) for one in plain)}]"
    from gdro_bench.errors import BenchError

    raise BenchError(
        f"The setting {name} is {plain!r}.",
        'Give a number, a word, a switch or a list; of a table, "group.key" each.',
        2,
    )


def _console(quiet: bool) -> Console:
    from rich.console import Console

    return Console(quiet=quiet)
