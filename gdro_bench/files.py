"""Files written whole or not at all, and files that are locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import time
import uuid
from pathlib import Path
from typing import IO, Any

from gdro_bench.errors import BenchError, first_line

GO_ON = "The same command then goes on from the last checkpoint."
REMEDIES = {  # of what keeps a file from being written
    errno.ENOSPC: f"Free some space on that disk. {GO_ON}",
    errno.EDQUOT: f"Free some of your quota on that disk. {GO_ON}",
    errno.EACCES: "Ask for the right to write there, or give another --out.",
    errno.EPERM: "Ask for the right to write there, or give another --out.",
    errno.EROFS: "That disk is read-only: give another --out.",
    errno.ENOTDIR: "A part of that path is a file, not a folder: give another --out.",
    errno.EEXIST: "A file is there already: give another --out.",
    errno.EISDIR: "A folder is there already: give another --out.",
    errno.ENAMETOOLONG: "That name is too long: give another --out.",
}


def not_written(path: Path, error: Exception) -> BenchError:
    """The error for a file that cannot be written, with the remedy for its cause."""
    number = error.errno if isinstance(error, OSError) else None
    remedy = REMEDIES.get(number or 0, f"Free some space there, or give another --out. {GO_ON}")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return BenchError(f"{path} cannot be written: {reason}.", remedy)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; several processes may write it at once, and one of them wins.

    Raises:
        BenchError: the folder cannot be made or written to, or the disk is full.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a machine that loses power may have the new name and not the bytes
        os.replace(partial, path)
    except BaseException as error:  # Ctrl-C, too, leaves nothing behind
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise not_written(path, error) from error
        raise


def sync(path: Path) -> None:
    """Has a file, or all files of a folder, reach the disk: after a loss of power a new name may have no bytes else."""
    for file in [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]:
        with file.open("rb+") as open_file:
            os.fsync(open_file.fileno())


def take(path: Path) -> IO[str] | None:
    """Takes a lock file, which is held until what is returned is closed or the process dies; None if another holds it.

    Raises:
        BenchError: the file cannot be made.
    """
    file = _lock_file(path)
    if not lock(file, wait=False):
        file.close()
        return None
    return file


def wait_for(path: Path) -> IO[str]:
    """As `take`, once nobody else holds it."""
    file = _lock_file(path)
    lock(file, wait=True)
    return file


def lock(file: IO[str], wait: bool) -> bool:
    """Locks an open file; whether it could, if it was not to wait for whoever holds it.

    Raises:
        BenchError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise BenchError(
            f"{file.name} cannot be locked: {error.strerror or error}.",
            "Give --out on a disk with file locks, or mount this one with them (Lustre: -o flock).",
        ) from error
    return True


def await_file(path: Path, seconds: float = 90.0) -> None:
    """Until a file that another machine wrote is seen here, or so long: NFS may tell for a while that it is not there,
    and listing its folder makes it look again."""
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        with contextlib.suppress(OSError):
            os.listdir(path.parent)
        time.sleep(0.2)


def _lock_file(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise not_written(path, error) from error


def strict_json(value: Any, sort: bool = False) -> bytes:
    """Tables, lists and numbers as JSON, tables sorted by name if asked. JSON has no NaN: an unknown number is null."""
    return json.dumps(_without_nan(value), indent=1, sort_keys=sort, allow_nan=False).encode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
