"""Progress on a terminal: bars of runs, evaluations, searches and fits, each with its rate and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self.unit}/s" if task.speed else "", style="dim")


def bars(console: Console, unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=60,
    )


def fitted(console: Console, what: str, images: int, fit: Callable[[Callable[[int, float], None]], T]) -> T:
    """What `fit` returns, under a bar: it reports images seen and loss."""
    with bars(console, "images") as shown:
        task = shown.add_task(what, total=images)
        return fit(lambda seen, loss: shown.update(task, completed=seen, description=f"{what}, loss {loss:.3f}"))


class _Bars:
    """Bars that are drawn on a terminal alone."""

    def __init__(self, console: Console, unit: str) -> None:
        self.console, self.progress = console, bars(console, unit)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self.progress.stop()


class RunBars(_Bars):
    """A `board.Watcher` that draws bars; without a terminal it prints a line at every tenth of the budget."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "it")
        self.budget = self.progress.add_task("budget", total=None)
        self.evaluation = self.progress.add_task("evaluating", total=None, visible=False)
        self.runs = self.progress.add_task("runs", total=None, visible=False)
        self.tenth = -1

    def spent(self, spent: float, limit: int, doing: str) -> None:
        self.progress.update(self.budget, completed=min(spent, limit), total=limit, description=doing)
        tenth = int(10 * spent / limit)
        if not self.console.is_terminal and tenth > self.tenth:
            self.tenth = tenth
            self.console.print(f"{min(100, int(100 * spent / limit))} % of the budget; {doing}")

    def trains(self) -> None:
        """The bar says so already."""

    def evaluating(self, done: int, total: int) -> None:
        self.progress.update(self.evaluation, completed=done, total=total, visible=done < total)

    def warn(self, sentence: str) -> None:
        self.console.print(f"Warning: {sentence}", soft_wrap=True, markup=False)

    def next_run(self, name: str, done: int, total: int) -> None:
        self.progress.reset(self.budget)
        self.tenth = -1
        self.progress.update(self.runs, completed=done, total=total, visible=total > 1, description="runs")
        if not self.console.is_terminal:
            self.console.print(f"Run {done + 1} of {total}: {name}")


class EvaluationBar(_Bars):
    """One bar for pictures that are being scored; without a terminal it is silent."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "pictures")
        self.task = self.progress.add_task("scoring", total=None)

    def evaluating(self, done: int, total: int) -> None:
        self.progress.update(self.task, completed=done, total=total)


class TrialBars(_Bars):
    """One bar for what all trials of all searches spend; without a terminal it prints a line for each trial that ends.

    Args:
        limit: of one trial's budget, of its `kind`. total: trials.
    """

    def __init__(self, console: Console, limit: int, kind: str, total: int) -> None:
        super().__init__(console, kind)
        self.limit, self.kind, self.total = limit, kind, total
        self.task = self.progress.add_task("trials", total=limit * total)
        self.shares: dict[str, float] = {}  # of the trials under way
        self.finished, self.done, self.began = 0, 0.0, time.monotonic()
        self.done_before: float | None = None

    def found(self, finished: int) -> None:
        """So many trials have ended, here or in another process."""
        self.finished = finished
        self._draw()

    def spent(self, name: str, share: float, doing: str) -> None:
        """A trial under way has spent this share of its budget."""
        if name not in self.shares:
            self._not_ours(share)  # where it goes on from
        self.shares[name] = min(share, 1.0)
        running = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        self._draw(f"{running}; {doing}" if len(self.shares) == 1 else running)

    def ended(self, name: str, outcome: str, finished: int) -> None:
        if self.shares.pop(name, None) is None:
            self._not_ours(1.0)  # its folder had the record already
        self.found(finished)
        self.console.print(f"{name}: {outcome} ({self._left()})", soft_wrap=True, markup=False)

    def warn(self, sentence: str) -> None:
        self.console.print(f"Warning: {sentence}", soft_wrap=True, markup=False)

    def _not_ours(self, share: float) -> None:
        """So much of a trial was spent before this process took it up: it is no work of this process's rate."""
        self.done_before = (self.done_before or 0.0) + self.limit * share

    def _draw(self, description: str | None = None) -> None:
        self.done = self.limit * (self.finished + sum(self.shares.values()))
        if self.done_before is None:
            self.done_before = self.done
            self.progress.reset(self.task, completed=int(self.done))
        self.progress.update(self.task, completed=self.done, description=description)

    def _left(self) -> str:
        """How many have ended, the rate, and the time left at it."""
        told, rate = f"{self.finished} of {self.total} ended", self.rate
        if not rate:
            return told
        seconds = (self.limit * self.total - self.done) / rate
        return f"{told}, {rate:,.0f} {self.kind}/s, {in_words(seconds)} left"

    @property
    def rate(self) -> float:
        """Spent a second since this process began."""
        return (self.done - (self.done_before or 0.0)) / max(time.monotonic() - self.began, 1e-9)


def in_words(seconds: float) -> str:
    """A duration in its natural unit: `40 s`, `18 min`, `7.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
