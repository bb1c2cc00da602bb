"""Many runs that differ in method, seed or numbers, one after another or side by side. They share pools, and each
resumes by itself."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Protocol

from gdro_bench import content
from gdro_bench import task as tasks
from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import plan, record, runner
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.record import Run
from gdro_bench.errors import BenchError


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan and its record, or why there is none."""

    plan: Plan
    run: Run | None
    failure: str = ""


class Watcher(runner.ProgressListener, Protocol):
    """Also sees which run of how many is under way."""

    def next_run(self, name: str, done: int, total: int) -> None: ...


def parse_seeds(written: str) -> list[int]:
    """Seeds from `0,1,2`.

    Raises:
        BenchError: one is not a whole number of at least 0.
    """
    parts = [part.strip() for part in written.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise BenchError(f"The seeds are {written!r}.", "Write whole numbers with commas: --seeds 0,1,2.", 2)
    return [int(part) for part in parts]


def combinations(over: Sequence[str]) -> list[tuple[str, ...]]:
    """Settings of every run of a sweep: one of each `group.key=a,b`'s values, in all combinations.

    Raises:
        BenchError: one is not of that form.
    """
    choices = []
    for varied in over:
        key, equals, values = varied.partition("=")
        if not equals or not values:
            raise BenchError(f"--over {varied!r} is not of the form group.key=a,b.", "Try method.tau=0.5,0.05.", 2)
        choices.append([f"{key}={value.strip()}" for value in values.split(",")])
    return list(itertools.product(*choices))


def plans(
    task: str,
    methods: Sequence[str],
    over: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str] = (),
    **options: Any,
) -> list[Plan]:
    """Every run of the sweep, checked before the first begins; those that come out the same are made once."""
    made = [
        plan.make_plan(task, method, seed=seed, settings=(*settings, *varied), **options)
        for method in methods
        for varied in combinations(over)
        for seed in seeds
    ]
    return list({made.folder: made for made in made}.values())


def execute(plans: Sequence[Plan], listener: Watcher, processes: ProcessGroup) -> list[Outcome]:
    """Runs them all; one that fails does not keep the others from their turn."""
    outcomes = []
    for done, one in enumerate(plans):
        listener.next_run(one.folder.name, done, len(plans))
        try:
            outcomes.append(Outcome(one, runner.execute(one, listener, processes)))
        except BenchError as error:
            outcomes.append(Outcome(one, None, str(error)))
    return outcomes


# ---------------------------------------------------------------------------------------------------------------
# Side by side: a process each


@dataclass(frozen=True, slots=True)
class _Child:
    """A run under way: its process, which the two ends of a pipe join to this one."""

    plan: Plan
    process: BaseProcess
    said: Connection


class _Sender:
    """A `ProgressListener` in a child, which passes on what it sees."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def spent(self, spent: float, limit: int, doing: str) -> None:
        self.pipe.send(("spent", spent, limit, doing))

    def evaluating(self, done: int, total: int) -> None:
        """Of one run among many: not shown."""

    def warn(self, sentence: str) -> None:
        self.pipe.send(("warn", sentence))


def execute_side_by_side(plans: Sequence[Plan], listener: Watcher, device: str, jobs: int) -> list[Outcome]:
    """Runs up to `jobs` of them at once, each with its share of the cores; records are those of one after another at
    as many threads. Runs that may fill one pool are never under way together until one of them has ended."""
    board = _Board(list(plans), listener, device, max(1, (os.cpu_count() or 1) // jobs))
    with _ending(board.running):
        while board.waiting or board.running:
            board.start(jobs)
            board.listen()
    return [board.outcomes[one.folder.as_posix()] for one in plans]


@contextmanager
def _ending(running: list[_Child]) -> Iterator[None]:
    """However this ends, no child outlives it."""
    try:
        yield
    finally:
        for child in running:
            child.process.terminate()
        for child in running:
            child.process.join(20)
            if child.process.is_alive():
                child.process.kill()
                child.process.join()


class _Board:
    """Which runs wait, which are under way, and what came of the others."""

    def __init__(self, waiting: list[Plan], listener: Watcher, device: str, threads: int) -> None:
        self.waiting, self.listener, self.device, self.threads = waiting, listener, device, threads
        self.total = len(waiting)
        self.running: list[_Child] = []
        self.outcomes: dict[str, Outcome] = {}
        self.filled: set[str] = set()  # pools of runs that ended well
        self.spent: dict[str, float] = {}

    def start(self, jobs: int) -> None:
        """As many as may run now."""
        for one in list(self.waiting):
            if len(self.running) >= jobs:
                return
            busy = {pool_key(child.plan) for child in self.running} - self.filled - {None}
            if pool_key(one) in busy:
                continue
            self.waiting.remove(one)
            self.listener.next_run(one.folder.name, self.total - len(self.waiting) - 1, self.total)
            self.running.append(_started(one, self.device, self.threads))

    def listen(self) -> None:
        """Waits until a child says something or ends."""
        ready = wait([child.said for child in self.running])
        for child in [child for child in self.running if child.said in ready]:
            try:
                self._hear(child, child.said.recv())
            except EOFError:
                self._end(child, Outcome(child.plan, None, _died(child)))

    def _hear(self, child: _Child, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "spent":
            self.spent[child.plan.folder.name] = rest[0] / rest[1]
            shares = ", ".join(
                f"{c.plan.folder.name} {self.spent.get(c.plan.folder.name, 0):.0%}" for c in self.running
            )
            done = sum(self.spent.values()) / self.total
            self.listener.spent(done * 100, 100, shares)
        elif kind == "warn":
            self.listener.warn(f"{child.plan.folder.name}: {rest[0]}")
        elif kind == "failed":
            self._end(child, Outcome(child.plan, None, rest[0]))
        else:
            self.spent[child.plan.folder.name] = 1.0
            self.filled.add(pool_key(child.plan) or "")
            self._end(child, Outcome(child.plan, record.read(child.plan.folder)))

    def _end(self, child: _Child, outcome: Outcome) -> None:
        child.process.join()
        child.said.close()
        self.running.remove(child)
        self.outcomes[child.plan.folder.as_posix()] = outcome


def pool_key(one: Plan) -> str | None:
    """Names the pool that a run fills, None where it has none: runs of one pool have one key."""
    pool = getattr(one.config, "pool", None)
    if pool is None:
        return None
    return content.digest([tasks.digest(one.train[: pool.prompts]), asdict(pool), asdict(one.profile.sampler)])


def _started(one: Plan, device: str, threads: int) -> _Child:
    context = multiprocessing.get_context("spawn")
    said, saying = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(one, device, threads, saying))
    process.start()
    saying.close()  # the child has it: its death ends the pipe
    return _Child(one, process, said)


def _died(child: _Child) -> str:
    child.process.join()
    return f"Its process ended with {child.process.exitcode}; type the same command again to go on."


def _work(one: Plan, device: str, threads: int, pipe: Connection) -> None:
    """One run, in a process of its own."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this one
    signal.signal(signal.SIGTERM, _stop)
    torch.set_num_threads(threads)
    try:
        runner.execute(one, _Sender(pipe), ProcessGroup(device=device))
        pipe.send(("done",))
    except BenchError as error:
        pipe.send(("failed", str(error)))
    except (KeyboardInterrupt, BrokenPipeError):
        pass


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # unwinds, so that reading processes end and files are closed
