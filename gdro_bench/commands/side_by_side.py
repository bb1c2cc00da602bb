"""The runs of a sweep side by side on this machine, a process each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from gdro_bench.commands.board import GO_ON, Board, Message, Outcome, Watcher, work
from gdro_bench.engine.plan import Plan
from gdro_bench.instruments.readers import end_with_parent

STOPS = (signal.SIGINT, signal.SIGTERM)
READY: Message = ("ready",)
PATIENCE = 10  # seconds for which a run that was told to stop may go on


def threads_of(jobs: int) -> int:
    """A run's share of this machine's cores."""
    return max(1, (os.cpu_count() or 1) // jobs)


def execute(plans: Sequence[Plan], listener: Watcher, device: str, jobs: int) -> list[Outcome]:
    """Runs up to `jobs` of them at once, each with its share of the cores; records are those of one after another at
    as many threads. Runs that share a pool wait until one of them has filled it."""
    workers = Processes(device, jobs)
    try:
        return Board(plans, listener, workers).run()
    finally:
        workers.end()


@dataclass(slots=True)
class _Child:
    """A run, its process, and this end of the pipe between them."""

    plan: Plan
    process: BaseProcess
    pipe: Connection
    begun: bool = False


class Processes:
    """`Workers` that are processes of this machine, up to `jobs` at once."""

    def __init__(self, device: str, jobs: int) -> None:
        self.device, self.jobs = device, jobs
        self.children: dict[Path, _Child] = {}

    def has_room(self) -> bool:
        return len(self.children) < self.jobs

    def begin(self, one: Plan) -> None:
        """Starts a process. It asks for its plan once it has imported all it needs: what is handed over at the start
        must fit into a pipe, or this would wait for that."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self.device, threads_of(self.jobs), theirs))
        with undisturbed():
            process.start()
            self.children[one.folder] = _Child(one, process, ours)
        theirs.close()  # the child has it: its death ends the pipe

    def listen(self) -> Iterator[tuple[Path, Message]]:
        ready = wait([child.pipe for child in self.children.values()])
        for folder, child in [(folder, child) for folder, child in self.children.items() if child.pipe in ready]:
            message = _heard(child)
            if message == READY:
                child.begun = True
                child.pipe.send(child.plan)
                continue
            if message[0] in ("done", "failed"):
                child.process.join()
                child.pipe.close()
                del self.children[folder]
            yield folder, message

    def end(self) -> None:
        """No child outlives this."""
        end({child.process: child.begun for child in self.children.values()})


def end(begun: Mapping[BaseProcess, bool]) -> None:
    """Ends processes. One that has not begun has nothing to put in order."""
    for process, has_begun in begun.items():
        process.terminate() if has_begun else process.kill()
    deadline = time.monotonic() + PATIENCE
    for process in begun:
        process.join(max(0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of this. A process that is started inside has both blocked, and so prints
    no traceback while it is still importing."""
    came: list[int] = []
    resource_tracker.ensure_running()  # when it starts, it unblocks both
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in STOPS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _heard(child: _Child) -> Message:
    try:
        message: Message = child.pipe.recv()
    except (EOFError, ConnectionError):
        child.process.join()
        return ("failed", f"Its process ended with {child.process.exitcode}; {GO_ON}.")
    return message


# ---------------------------------------------------------------------------------------------------------------
# In the child


def _work(device: str, threads: int, pipe: Connection) -> None:
    """One run, in a process of its own."""
    with until_stopped():
        pipe.send(READY)
        one: Plan = pipe.recv()
        pipe.send(work(one, device, threads, pipe.send))


@contextmanager
def until_stopped() -> Iterator[None]:
    """What a child does inside ends, with no word, when its parent says so or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this one
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> None:
    """Unwinds, so that reading processes end and files are closed; once, whoever else sends the signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
