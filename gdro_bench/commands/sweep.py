"""Many runs that differ in method, seed or settings, one after another or side by side. They share pools, and each
resumes by itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gdro_bench import content
from gdro_bench.commands.board import Outcome, Watcher
from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import plan, runner
from gdro_bench.engine.plan import Plan
from gdro_bench.errors import BenchError, first_line


def parse_seeds(written: str) -> list[int]:
    """Seeds from `0,1,2`.

    Raises:
        BenchError: one is not a whole number of at least 0, or too large for a generator.
    """
    parts = [part.strip() for part in written.split(",")]
    if not all(part.isdecimal() and int(part) <= content.LARGEST_SEED for part in parts):
        raise BenchError(f"The seeds are {written[:80]!r}.", "Write whole numbers with commas: --seeds 0,1,2.", 2)
    return [int(part) for part in parts]


def combinations(over: Sequence[str]) -> list[tuple[str, ...]]:
    """Settings of every run of a sweep: one of each `group.key=a,b`'s values, in all combinations.

    Raises:
        BenchError: as `content.varied`.
    """
    return list(itertools.product(*content.varied(over)))


def plans(
    task: str,
    methods: Sequence[str],
    over: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str] = (),
    **options: Any,
) -> list[Plan]:
    """Every run of the sweep, checked before the first begins; those that come out the same are made once.

    Raises:
        BenchError: as `make_plan`; a setting is varied and given one value, too; two runs of other settings would share
            a folder.
    """
    given = {setting.partition("=")[0] for setting in settings}
    if both := sorted(given & {setting.partition("=")[0] for varied in combinations(over) for setting in varied}):
        raise BenchError(f"Both --set and --over are given for {both[0]}.", "Leave one of them out.", 2)
    made = [
        plan.make_plan(task, method, seed=seed, settings=(*settings, *varied), **options)
        for method in methods
        for varied in combinations(over)
        for seed in seeds
    ]
    by_folder: dict[Path, Plan] = {}
    for one in made:
        if by_folder.setdefault(one.folder, one).settings != one.settings:
            raise BenchError(
                f"Runs of other settings would share {one.folder}.",
                "Vary a setting that moves the result, or give each of them an --out.",
                2,
            )
    return list(by_folder.values())


def execute(plans: Sequence[Plan], listener: Watcher, processes: ProcessGroup) -> list[Outcome]:
    """Runs them all; one that fails does not keep the others from their turn."""
    outcomes = []
    for done, one in enumerate(plans):
        listener.next_run(one.folder.name, done, len(plans))
        try:
            outcomes.append(Outcome(one, runner.execute(one, listener, processes)))
        except (BenchError, OSError, RuntimeError) as error:
            if processes.size > 1:  # it may be of this process alone, and the others would wait in another run
                raise
            told = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {first_line(error)}"
            outcomes.append(Outcome(one, None, told))
    return outcomes
