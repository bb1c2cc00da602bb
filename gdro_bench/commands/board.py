"""Runs that go side by side: which wait, which are under way, what came of the others. Where they take place is the
workers' part: processes of this machine (`side_by_side`) or a Ray cluster (`on_ray`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import record, runner
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.pool_keys import exact_key, pool_key
from gdro_bench.engine.record import Run
from gdro_bench.errors import BenchError

GO_ON = "type the same command again to go on"
SHOWN = 4  # runs that the bar names

Message = tuple[Any, ...]
# What a run says: ("began",), ("spent", spent, limit, doing), ("warn", sentence), ("filled",) once its pool is complete
# on disk, and at last ("done",) or ("failed", sentence).


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan and its record, or why there is none."""

    plan: Plan
    run: Run | None
    failure: str = ""


class Watcher(runner.ProgressListener, Protocol):
    """Also sees which run of how many is under way."""

    def next_run(self, name: str, done: int, total: int) -> None: ...


class Workers(Protocol):
    """Who does the runs. A run is named by its plan's folder."""

    def has_room(self) -> bool:
        """Whether one more run may be given to them now."""
        ...

    def begin(self, one: Plan) -> None: ...

    def listen(self) -> Iterable[tuple[Path, Message]]:
        """What the runs have said, after a wait for it; the last word of each is `done` or `failed`."""
        ...


class Board:
    """Gives plans to workers and hears what they say."""

    def __init__(self, plans: Sequence[Plan], listener: Watcher, workers: Workers) -> None:
        self.plans, self.listener, self.workers = plans, listener, workers
        self.waiting, self.running = list(plans), dict[Path, Plan]()
        self.outcomes: dict[Path, Outcome] = {}
        self.pools = {one.folder: (pool_key(one), exact_key(one)) for one in plans}
        self.filled: set[str] = set()  # by `exact_key`
        self.spent: dict[Path, float] = {}
        self.begun = 0

    def run(self) -> list[Outcome]:
        """All of them; one that fails does not keep the others from their turn."""
        while self.waiting or self.running:
            self._begin()
            for folder, message in self.workers.listen():
                self._hear(folder, *message)
        return [self.outcomes[one.folder] for one in self.plans]

    def _begin(self) -> None:
        """As many as may run now."""
        for one in list(self.waiting):
            if not self.workers.has_room():
                return
            if self._may_begin(one):
                self.waiting.remove(one)
                self.running[one.folder] = one
                self.workers.begin(one)

    def _may_begin(self, one: Plan) -> bool:
        """No run that may be filling the same pool is under way."""
        pool, exact = self.pools[one.folder]
        under_way = [self.pools[folder] for folder in self.running]
        return pool is None or exact in self.filled or pool not in {p for p, e in under_way if e not in self.filled}

    def _hear(self, folder: Path, kind: str, *rest: Any) -> None:
        if kind == "warn":
            self.listener.warn(f"{folder.name}: {rest[0]}")
        elif folder not in self.running:
            return  # said before its end, heard after it
        elif kind == "began":
            self.listener.next_run(folder.name, self.begun, len(self.plans))
            self.begun += 1
        elif kind == "spent":
            self._show(folder, rest[0] / rest[1])
        elif kind == "filled":
            self.filled.add(self.pools[folder][1])
        else:
            self.outcomes[folder] = _outcome(self.running.pop(folder), rest[0] if kind == "failed" else "")
            self.spent[folder] = 1.0

    def _show(self, folder: Path, share: float) -> None:
        self.spent[folder] = share
        speaking = [one for one in self.running if one in self.spent]
        shares = [f"{one.name} {self.spent[one]:.0%}" for one in speaking[:SHOWN]]
        more = [f"{len(speaking) - SHOWN} more"] if len(speaking) > SHOWN else []
        self.listener.spent(100 * sum(self.spent.values()) / len(self.plans), 100, ", ".join(shares + more))


def _outcome(one: Plan, failure: str) -> Outcome:
    if failure:
        return Outcome(one, None, failure)
    try:
        return Outcome(one, record.read(one.folder))
    except BenchError as error:
        return Outcome(one, None, str(error))


# ---------------------------------------------------------------------------------------------------------------
# The run's end of it


class Sender:
    """A `ProgressListener` that passes on what it sees."""

    def __init__(self, say: Callable[[Message], object]) -> None:
        self.say = say
        self.training = False

    def spent(self, spent: float, limit: int, doing: str) -> None:
        self.say(("spent", spent, limit, doing))

    def trains(self) -> None:
        if not self.training:
            self.say(("filled",))
        self.training = True

    def evaluating(self, done: int, total: int) -> None:
        """Of one run among many: not shown."""

    def warn(self, sentence: str) -> None:
        self.say(("warn", sentence))


def work(one: Plan, device: str, threads: int, say: Callable[[Message], object]) -> Message:
    """Does one run, in a process that does nothing else, and returns its last word."""
    import torch

    say(("began",))
    torch.set_num_threads(threads)
    try:
        runner.execute(one, Sender(say), ProcessGroup(device=device))
    except BenchError as error:
        return ("failed", str(error))
    return ("done",)
