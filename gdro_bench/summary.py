"""What a finished run says on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from gdro_bench.record import Run


def print_run(console: Console, run: Run, folder: Path) -> None:
    """Base, marks, gain with interval, what it cost, where it is and what to type next."""
    table = Table(title=f"{run.method} on {run.task}, {run.profile}, seed {run.seed}", title_justify="left")
    for heading in ("budget", "updates", "velocity evaluations", "reward [95 %]", "gain over base [95 %]", "unscored"):
        table.add_column(heading, justify="right")
    for point in run.points:
        name = "base" if point.mark == 0 else f"{point.mark:.0%}"
        gain = "" if point.mark == 0 else str(point.gain)
        cost = f"{point.evaluations:,}"
        table.add_row(name, f"{point.updates}", cost, str(point.reward), gain, str(point.unscored))
    console.print(table)
    last = run.points[-1]
    verdict = "above" if last.gain.low > 0 else "below" if last.gain.high < 0 else "within noise of"
    console.print(f"The held-out reward is {verdict} the base's ({run.instruments['reward']}).")
    console.print(
        f"Spent: {last.collection_evaluations:,} evaluations on collecting {last.images_sampled:,} images, "
        f"{last.optimisation_evaluations:,} on optimising, {last.reward_calls:,} reward calls."
    )
    console.print(f"Record: {folder / 'run.json'}   pictures: {folder / 'sheet.png'}", soft_wrap=True)
    console.print(f"Next: gdro-bench run {run.task} --method {run.method} --seed {run.seed + 1}", soft_wrap=True)
