"""`judge`: has the pictures of finished runs judged, now or again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from gdro_bench import progress
from gdro_bench.comparison import entries
from gdro_bench.engine import card, judging, record
from gdro_bench.engine.folders import FolderInUse, locked
from gdro_bench.errors import BenchError
from gdro_bench.profile import JudgeConfig
from gdro_bench.score import Scorer


def execute(
    console: Console,
    folders: tuple[Path, ...],
    runs: Path,
    judge: str,
    judge_url: str,
    judge_model: str,
    gold: str | None,
    second_reader: str,
) -> None:
    """Judges every finished run in the folders, or under `runs`; one without pictures, or in use, does not keep the
    others from it. gold: None for that of each run's own profile, which looks at pictures of its size.

    Raises:
        BenchError: an unknown judge or none at all, one that does not answer or fails too often, no finished run, or in
            the end those whose pictures are gone or whose folder is in use.
    """
    config = JudgeConfig(judge, gold or "none", second_reader, judge_url, judge_model)
    judges = judging.open_judges(config)
    finished, gone = entries.finished(folders, runs), list[BenchError]()
    names = {folder: _gold_of(folder) if gold is None else "none" for folder in finished}
    golds = {name: _open_gold(name, config) for name in set(names.values())}
    if not judges and not any(golds.values()):
        raise BenchError("No instrument is named.", "Give --judge, --gold or --second-reader.", 2)
    with progress.EvaluationBar(console) as bar:
        for folder in finished:
            try:
                with locked(folder):  # a run that ends just now judges itself
                    judging.judge_run(folder, judges | golds[names[folder]], bar.evaluating)
                    card.write(folder)
            except (judging.PicturesGone, FolderInUse) as error:
                gone.append(error)
    looked_in = shlex.join(map(str, folders)) or f"--runs {shlex.quote(str(runs))}"
    judged = f"Judged {len(finished) - len(gone)} runs. Next: gdro-bench compare {looked_in}"
    console.print(judged, soft_wrap=True, markup=False)
    if gone:
        raise BenchError(" ".join(error.problem for error in gone), gone[0].remedy)


def _gold_of(folder: Path) -> str:
    """The name of the gold score in a run's profile."""
    judges: dict[str, str] = record.read(folder).settings["profile"].get("judge", {})
    return judges.get("gold", "none")


def _open_gold(name: str, config: JudgeConfig) -> dict[str, Scorer]:
    return judging.open_judges(replace(config, name="none", gold=name, second_reader="none"))
