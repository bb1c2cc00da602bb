"""Real processes, for tests of how they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 400  # seconds, for a busy machine


def children(parent: int) -> list[int]:
    """Processes of this parent that have not ended."""
    rows = [[*status.split(")")[-1].split(), pid] for pid, status in _statuses()]
    return [int(row[-1]) for row in rows if int(row[1]) == parent and row[0] != "Z"]


def running(pids: list[int]) -> list[int]:
    return [int(pid) for pid, status in _statuses() if int(pid) in pids and status.split(")")[-1].split()[0] != "Z"]


def _statuses() -> Iterator[tuple[str, str]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield path.parent.name, path.read_text()
        except OSError:  # it ended while we looked
            continue


def started(*command: object) -> subprocess.Popen[str]:
    """In a process group of its own, as a terminal gives it; a shell's background job would hand down that Ctrl-C is
    to be ignored."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_children(process: subprocess.Popen[str], count: int) -> list[int]:
    deadline = time.monotonic() + PATIENCE
    while len(pids := children(process.pid)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return pids


def descendants(parent: int) -> list[int]:
    """All that it started, and what those started."""
    own = children(parent)
    return own + [pid for child in own for pid in descendants(child)]


@contextmanager
def stopping(*command: object) -> Iterator[subprocess.Popen[str]]:
    """A process that the test is to stop; if it fails before, the process and its group are killed."""
    with started(*command) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
