"""A run's folder: whose it is, and that only one process group works in it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gdro_bench import content
from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import record
from gdro_bench.engine.plan import Plan
from gdro_bench.errors import BenchError
from gdro_bench.files import lock, not_written, write_atomically

ANEW = "Delete that file and type the same command again: the run goes on."


class FolderInUse(BenchError):
    """Another process works there."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process can run in this folder. A process that dies gives the lock back, however it dies.

    Raises:
        BenchError: another process is running there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise not_written(folder, error) from error
    with file:
        if not lock(file, wait=False):
            file.seek(0)
            raise FolderInUse(
                f"{folder} is being run by process {file.read().strip() or 'another'}.",
                "Wait for it, or give another --out.",
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def check_shared(folder: Path, processes: ProcessGroup) -> None:
    """Raises:
    BenchError: a process does not see what the first one writes there."""
    if processes.size == 1:
        return
    path = folder / ".shared"
    token = processes.broadcast(secrets.token_hex(8))
    if processes.is_main:
        write_atomically(path, token.encode())
    processes.barrier()
    sees = path.exists() and path.read_text(encoding="utf-8") == token
    blind = [rank for rank, saw in enumerate(processes.gather_objects([sees], processes.size)) if not saw]
    if processes.is_main:
        path.unlink(missing_ok=True)
    if blind:
        raise BenchError(
            f"Processes {', '.join(map(str, blind))} do not see {folder}.",
            "Give an --out that all machines share; pools and checkpoints lie there.",
        )


def claim(plan: Plan, model: str, reward: str, is_main: bool) -> None:
    """Writes what will be run into the folder, or checks that it was made for the very same.

    Raises:
        BenchError: it holds another run, or a damaged plan.
    """
    check_claim(plan, model, reward)
    if is_main:
        digests = _digests(plan, model, reward)
        write_atomically(plan.folder / "plan.json", json.dumps(digests, indent=1).encode())


def check_claim(plan: Plan, model: str, reward: str) -> None:
    """Raises:
    BenchError: the folder's plan is another's, or damaged."""
    path = plan.folder / "plan.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError("it is no table")
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is damaged: {error}.", ANEW) from error
    for key, value in _digests(plan, model, reward).items():
        if key in before and before[key] != value:
            raise BenchError(
                f"{plan.folder} holds a run with another {key} ({before[key]}, now {value}).",
                "Give another --out, or delete that folder.",
            )


def adapters_of(folder: Path, mark: float) -> Path:
    """Where the run in `folder` keeps its adapters of the evaluation point at this share of the budget."""
    return folder / "loras" / repr(float(mark))


def _digests(plan: Plan, model: str, reward: str) -> dict[str, str]:
    """Of what moves a number of the run: judges and reading processes may change when it goes on."""
    settings = record.identity_settings(plan.settings["profile"])
    health = content.digest(plan.settings["profile"].get("health", {}))  # one rule for all points of a run
    own = {"profile": content.digest(settings), "model": model, "reward": reward, "health": health}
    return plan.digests | own | {"schema": str(record.SCHEMA)}
