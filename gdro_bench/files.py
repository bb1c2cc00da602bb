"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from gdro_bench.errors import BenchError


def no_room(path: Path, error: Exception) -> BenchError:
    return BenchError(
        f"{path} cannot be written: {error}.", "Free some space or give another --out; the run goes on from here."
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; several processes may write it at once, and one of them wins.

    Raises:
        BenchError: the folder cannot be made or written to, or the disk is full.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise no_room(path, error) from error
