"""The same search for every method: trials one after another or side by side, in any number of processes and machines.

Every process takes the next open trial until none is left; the trials' folders say which are. So `--jobs` starts
processes that do what two that were started by hand do.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gdro_bench import models
from gdro_bench.commands import children
from gdro_bench.commands.children import Child, Message
from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import runner
from gdro_bench.engine.tuning import outcome
from gdro_bench.engine.tuning.search import Search, make_search
from gdro_bench.engine.tuning.study import Claim, StudyOf
from gdro_bench.engine.tuning.tuned import Trial, Tuned
from gdro_bench.errors import BenchError, TrainingFailed

POLL = 0.5  # seconds between looks at trials that other processes have


class Watcher(Protocol):
    """Sees the trials of all searches; the command line draws a bar."""

    def found(self, finished: int) -> None: ...
    def spent(self, name: str, share: float, doing: str) -> None: ...
    def ended(self, name: str, outcome: str, finished: int) -> None: ...
    def warn(self, sentence: str) -> None: ...


def searches(task: str, methods: Sequence[str], **options: Any) -> list[Search]:
    """A search for every method, all checked before the first trial begins."""
    return [_search_of(task, method, **options) for method in dict.fromkeys(methods)]


def _search_of(task: str, method: str, **options: Any) -> Search:
    """Raises:
    BenchError: as `make_search`, with the method's name."""
    try:
        return make_search(task, method, **options)
    except BenchError as error:
        raise BenchError(f"{method}: {error.problem}", error.remedy, error.exit_code) from error


def execute(
    searches: Sequence[Search], watcher: Watcher, processes: ProcessGroup, device: str, jobs: int
) -> list[Tuned]:
    """Runs what is still open of all trials, and sums up each search.

    Raises:
        BenchError: Optuna is missing, a folder holds another search, or a part of a trial fails that its settings are
            not to blame for.
    """
    studies = [StudyOf(search) for search in searches] if processes.is_main else []
    watcher.found(_finished(studies))
    if jobs > 1:
        _side_by_side(searches, watcher, device, jobs)
        _check_ended(studies)
    else:
        _work(searches, studies, watcher, processes)
    return [outcome.summed_up(study) for study in studies]


def _finished(studies: Sequence[StudyOf]) -> int:
    return sum(len(study.search.plans) - len(study.unfinished()) for study in studies)


def _check_ended(studies: Sequence[StudyOf]) -> None:
    open_ = sum(len(study.unfinished()) for study in studies)
    if open_:
        raise BenchError(f"All processes died with {open_} trials open.", "Type the same command again to go on.")


# ---------------------------------------------------------------------------------------------------------------
# One process


def _work(searches: Sequence[Search], studies: Sequence[StudyOf], watcher: Watcher, processes: ProcessGroup) -> None:
    """Takes trials until all have ended. The main process chooses; all others of its group work for it."""
    while True:
        chosen, claim = _next(studies) if processes.is_main else (None, None)
        chosen = processes.broadcast(chosen)
        if chosen is None:
            return
        which, number = chosen
        if which < 0:  # the rest is under way elsewhere, or waits for a pool that is being filled there
            watcher.found(_finished(studies))
            time.sleep(POLL)
            continue
        try:
            filled = functools.partial(studies[which].filled, claim) if claim is not None else _nothing
            trial = _run(searches[which], number, _Listener(_name(searches[which], number), watcher, filled), processes)
            if claim is not None:
                studies[which].finish(claim, trial.value.mean if trial.value else None)
        finally:
            if claim is not None:
                claim.release()
        watcher.ended(_name(searches[which], number), _outcome(trial), _finished(studies))


def _next(studies: Sequence[StudyOf]) -> tuple[tuple[int, int] | None, Claim | None]:
    """The study and number of the next open trial; (-1, -1) if others have all that are open; None if none is. Methods
    take turns: a search that is cut short has as many trials of each."""
    open_ = sorted((number, which) for which, study in enumerate(studies) for number in study.unfinished())
    for number, which in open_:
        claim = studies[which].claim(number)
        if claim is not None:
            return (which, number), claim
    return ((-1, -1) if open_ else None), None


def _nothing() -> None:
    """What a process does that is not the main one of its group."""


def _run(search: Search, number: int, listener: _Listener, processes: ProcessGroup) -> Trial:
    """A trial to its end, which may be a failure by its own settings."""
    plan = search.plans[number]
    if processes.broadcast(outcome.result(search, number) is None):
        try:
            runner.execute(plan, listener, processes)
        except TrainingFailed as error:
            if processes.is_main:
                outcome.fail(plan, error.problem, listener.amount)
                runner.forget_progress(plan.folder)
            processes.barrier()
    trial = outcome.result(search, number)
    assert trial is not None
    return trial


def _name(search: Search, number: int) -> str:
    return f"{search.method}, trial {number}"


def _outcome(trial: Trial) -> str:
    return f"failed: {trial.failure}" if trial.value is None else str(trial.value)


class _Listener:
    """A `runner.ProgressListener` of one trial, which tells the watcher whose progress it is."""

    def __init__(self, name: str, watcher: Watcher, filled: Callable[[], None]) -> None:
        self.name, self.watcher, self.filled, self.amount = name, watcher, filled, 0.0

    def spent(self, spent: float, limit: int, doing: str) -> None:
        self.amount = spent
        self.watcher.spent(self.name, spent / limit, doing)

    def trains(self) -> None:
        self.filled()

    def evaluating(self, done: int, total: int) -> None:
        """Of one trial among many: not shown."""

    def warn(self, sentence: str) -> None:
        self.watcher.warn(f"{self.name}: {sentence}")


# ---------------------------------------------------------------------------------------------------------------
# Side by side


class _Sender:
    """A `Watcher` in a child, which passes on what it sees."""

    def __init__(self, say: Callable[[Message], None]) -> None:
        self.say = say

    def found(self, finished: int) -> None:
        self.say(("found", finished))

    def spent(self, name: str, share: float, doing: str) -> None:
        self.say(("spent", name, share, doing))

    def ended(self, name: str, outcome: str, finished: int) -> None:
        self.say(("ended", name, outcome, finished))

    def warn(self, sentence: str) -> None:
        self.say(("warn", sentence))


def _side_by_side(searches: Sequence[Search], watcher: Watcher, device: str, jobs: int) -> None:
    """Starts `jobs` processes and passes on what they see, until all have ended."""
    running: list[Child] = []
    try:
        for slot in range(jobs):
            children.start(_share_of_work, (searches, device, slot), children.threads_of(jobs), running.append)
        while running:
            for child in children.speaking(running):
                if not _hear(child, watcher):
                    child.process.join()
                    running.remove(child)
    finally:
        children.end(running)


def _hear(child: Child, watcher: Watcher) -> bool:
    """Passes on one message; False if the child has ended.

    Raises:
        BenchError: what the child came upon.
    """
    message = child.hear()
    if message is None:
        watcher.warn(f"A process ended with {child.process.exitcode}; others take up its trial.")
        return False
    kind, *what = message
    if kind == "refused":
        raise BenchError(*what)
    if kind not in ("done", *children.READY):
        getattr(watcher, kind)(*what)
    return bool(kind != "done")


def _share_of_work(given: tuple[Sequence[Search], str, int], threads: int, say: Callable[[Message], None]) -> None:
    """Takes trials, in a process of its own."""
    import torch

    searches, device, slot = given
    torch.set_num_threads(threads)
    try:
        studies = [StudyOf(search) for search in searches]
        _work(searches, studies, _Sender(say), ProcessGroup(device=models.own_device(device, slot)))
        say(("done",))
    except BenchError as error:
        say(("refused", error.problem, error.remedy, error.exit_code))
