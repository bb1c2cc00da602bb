"""`judge`: has the pictures of finished runs judged, now or again."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from gdro_bench import progress
from gdro_bench.comparison import entries
from gdro_bench.engine import card, judging
from gdro_bench.engine.folders import locked
from gdro_bench.profile import JudgeConfig


def execute(
    console: Console,
    folders: tuple[Path, ...],
    runs: Path,
    judge: str,
    judge_url: str,
    judge_model: str,
    gold: str,
    second_reader: str,
) -> None:
    """Judges every finished run in the folders, or under `runs`.

    Raises:
        BenchError: an unknown judge, one that does not answer or fails too often, or no finished run.
    """
    judges = judging.open_judges(JudgeConfig(judge, gold, second_reader, judge_url, judge_model))
    finished = entries.finished(folders, runs)[0]
    with progress.EvaluationBar(console) as bar:
        for folder in finished:
            with locked(folder):  # a run that ends just now judges itself
                judging.judge_run(folder, judges, bar.evaluating)
                card.write(folder)
    looked_in = shlex.join(map(str, folders)) or f"--runs {shlex.quote(str(runs))}"
    console.print(f"Judged {len(finished)} runs. Next: gdro-bench compare {looked_in}", soft_wrap=True, markup=False)
