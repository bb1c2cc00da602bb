"""What judges say of a run's pictures, which no method ever sees: a table beside the record, made when the run is done
or at any time later from the pictures that it kept.

`judged.parquet` has a row a kept picture of every mark: `mark`, `prompt`, the judge's mean `u` over the task's axes and
the axes themselves, `gold` where a gold score is known, `second_reader`, the reward by another reader, and what was
said. It grows mark by mark; killed, or left by a judge that went away, the same command goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gdro_bench import registry, task
from gdro_bench.engine import record, samples
from gdro_bench.engine.record import Run
from gdro_bench.errors import BenchError
from gdro_bench.files import write_atomically
from gdro_bench.profile import JudgeConfig
from gdro_bench.score import Score, Scorer, judge_mean
from gdro_bench.task import Correction, Prompt

BATCH = 64
TABLE, INSTRUMENTS = "judged.parquet", "judged.json"
Done = Callable[[int, int], None]  # how many pictures of how many


def open_judges(config: JudgeConfig) -> dict[str, Scorer]:
    """The instruments by what they are: `judge`, `gold` and `second reader`, those that there are.

    Raises:
        BenchError: an unknown name, or an instrument that cannot be had.
    """
    return {what: registry.lookup("judge", name)(config) for what, name in _asked(config).items()}


def _asked(config: JudgeConfig) -> dict[str, str]:
    named = {"judge": config.name, "gold": config.gold, "second reader": config.second_reader}
    return {what: name for what, name in named.items() if name != "none"}


def judge_run(folder: Path, judges: Mapping[str, Scorer], done: Done) -> None:
    """Judges what has not been judged of a finished run's pictures by these very instruments.

    Raises:
        BenchError: the run is not finished, its pictures are gone, or a judge is.
    """
    run = record.read(folder)
    by, prompts = task.load(run.task).correction, _prompts(folder)
    if instruments(folder) != (names := _names(judges)):
        (folder / TABLE).unlink(missing_ok=True)
        write_atomically(folder / INSTRUMENTS, json.dumps(names, indent=1).encode())
    rows: list[dict[str, Any]] = read(folder).to_dict("records") if (folder / TABLE).exists() else []
    for i, point in enumerate(run.points):
        if any(row["mark"] == point.mark for row in rows):
            continue
        before = run.points[i - 1] if i else None
        if before is not None and before.updates == point.updates:  # the same model, the same pictures
            rows += [row | {"mark": point.mark} for row in rows if row["mark"] == before.mark]
        else:
            rows += _rows(folder, point.mark, prompts, judges, by, done)
        partial = folder / f"{TABLE}.partial"
        pd.DataFrame(rows).to_parquet(partial)
        partial.replace(folder / TABLE)


def finish(run: Run, folder: Path, config: JudgeConfig, done: Done) -> None:
    """Has a finished run judged by its profile's judges, unless others have begun to judge it or it was judged already,
    or the profile names none."""
    if _asked(config) and not is_complete(run, folder):
        judges = open_judges(config)
        if instruments(folder) in ({}, _names(judges)):
            judge_run(folder, judges, done)


def _names(judges: Mapping[str, Scorer]) -> dict[str, str]:
    return {what: judge.name for what, judge in judges.items()}


def instruments(folder: Path) -> dict[str, str]:
    """Which instruments judged a run; none if it was not judged."""
    path = folder / INSTRUMENTS
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def read(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / TABLE)


def is_complete(run: Run, folder: Path) -> bool:
    """Whether every mark has been judged, by whatever instruments."""
    if not (folder / TABLE).exists():
        return False
    return set(read(folder)["mark"]) == {point.mark for point in run.points}


def _prompts(folder: Path) -> list[Prompt]:
    scores = record.read_scores(folder)
    texts = scores[scores["mark"] == 0.0].sort_values("prompt")["text"]
    return [Prompt(text, task.first_quoted(text) or "") for text in texts]


def _rows(
    folder: Path,
    mark: float,
    prompts: list[Prompt],
    judges: Mapping[str, Scorer],
    by: Correction,
    done: Done,
) -> list[dict[str, Any]]:
    path = samples.path_of(folder, mark)
    kept = samples.numbers(path)
    if not kept:
        raise BenchError(f"The pictures of {folder} at {mark:.0%} are gone.", "Delete the folder and run it again.")
    rows: list[dict[str, Any]] = []
    for start in range(0, len(kept), BATCH):
        some = kept[start : start + BATCH]
        images = samples.read(path, some)
        asked = [prompts[number] for number in some]
        said = {what: judge(images, asked) for what, judge in judges.items()}
        rows += [
            {"mark": mark, "prompt": number} | _columns({what: scores[i] for what, scores in said.items()}, by)
            for i, number in enumerate(some)
        ]
        done(len(rows), len(kept))
    return rows


def _columns(said: Mapping[str, Score], by: Correction) -> dict[str, Any]:
    columns: dict[str, Any] = {f"{what.replace(' ', '_')}_note": score.note for what, score in said.items()}
    if "judge" in said:
        axes = {name: np.array([value]) for name, value in said["judge"].parts.items()}
        columns |= {"u": float(judge_mean(axes, by)[0]), **said["judge"].parts}
    if "gold" in said:
        columns["gold"] = said["gold"].value
    if "second reader" in said:
        columns["second_reader"] = said["second reader"].value
    return columns
