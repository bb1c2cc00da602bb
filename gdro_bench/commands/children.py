"""Processes of this machine that do a command's work: each starts with nothing, is handed its work once it has imported
all it needs, and ends when its parent says so or is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from gdro_bench.instruments.readers import end_with_parent

STOPS = (signal.SIGINT, signal.SIGTERM)
READY = ("ready",)
PATIENCE = 10  # seconds for which a process that was told to stop may go on

Message = tuple[Any, ...]  # what it is, and what is told
Target = Callable[[Any, int, Callable[[Message], None]], None]  # does work, on so many threads, and tells of it


@dataclass(slots=True)
class Child:
    """A process, this end of the pipe between it and this one, and what it is to do."""

    process: BaseProcess
    pipe: Connection
    work: Any
    begun: bool = False

    def hear(self) -> Message | None:
        """Its next message; None if it has ended."""
        try:
            message: Message = self.pipe.recv()
            if message == READY:
                self.begun = True
                self.pipe.send(self.work)
        except (EOFError, ConnectionError):
            self.process.join()
            self.pipe.close()
            return None
        return message


def threads_of(jobs: int) -> int:
    """A process's share of this machine's cores, of so many processes."""
    return max(1, (os.cpu_count() or 1) // jobs)


def start(target: Target, work: Any, threads: int, begun: Callable[[Child], None]) -> None:
    """Starts a process that does `target(work, threads, tell)`. What is handed over at the start must fit into a pipe,
    or this would wait for it: so the process asks for its work.

    Args:
        begun: is told of the child before any signal is heard again, so that none is left behind.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(target, threads, theirs))
    with _undisturbed():
        process.start()
        begun(Child(process, ours, work))
    theirs.close()  # the child has it: its death ends the pipe


def speaking(children: Collection[Child]) -> list[Child]:
    """Those that have something to say, or have ended; waits until there is one."""
    ready = wait([child.pipe for child in children])
    return [child for child in children if child.pipe in ready]


def end(children: Collection[Child]) -> None:
    """Ends them all. One that has not begun has nothing to put in order."""
    for child in children:
        child.process.terminate() if child.begun else child.process.kill()
    deadline = time.monotonic() + PATIENCE
    for child in children:
        child.process.join(max(0, deadline - time.monotonic()))
        if child.process.is_alive():
            child.process.kill()
            child.process.join()


@contextmanager
def _undisturbed() -> Iterator[None]:
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


# ---------------------------------------------------------------------------------------------------------------
# In the child


def _child(target: Target, threads: int, pipe: Connection) -> None:
    """Its work, in a process of its own. What stops it ends it with no word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this one
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        pipe.send(READY)
        target(pipe.recv(), threads, pipe.send)
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> None:
    """Unwinds, so that reading processes end and files are closed; once, whoever else sends the signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
