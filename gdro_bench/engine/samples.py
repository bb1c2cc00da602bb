"""The pictures that a run keeps at an evaluation point: one zip file of PNG pictures, `samples/<mark>.zip`.

A zip file opens anywhere, loses nothing, and lets one picture be read without the others. It is written whole or not at
all, and its name carries the mark to its last digit, so that close evaluation points cannot share one.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gdro_bench.errors import BenchError
from gdro_bench.files import write_atomically
from gdro_bench.score import Images


def path_of(folder: Path, mark: float) -> Path:
    """Where the run in `folder` keeps its pictures of the evaluation point at this share of the budget."""
    return folder / "samples" / f"{float(mark)!r}.zip"


def write(path: Path, images: Images, of: Sequence[int] | None = None) -> None:
    """Keeps pictures [N, H, W, 3] of these held-out prompts, the first N if none are named."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, image in zip(of or range(len(images)), images, strict=True):
            picture = io.BytesIO()
            Image.fromarray(image).save(picture, "PNG", optimize=True)
            archive.writestr(zipfile.ZipInfo(f"{number:04d}.png"), picture.getvalue())  # without a date
    write_atomically(path, buffer.getvalue())


def numbers(path: Path) -> list[int]:
    """Which held-out prompts' pictures are kept, rising; none where there is no file.

    Raises:
        BenchError: the file is damaged.
    """
    if not path.exists():
        return []
    with _opened(path) as archive:
        return sorted(int(Path(name).stem) for name in archive.namelist())


def read(path: Path, wanted: Iterable[int]) -> Images:
    """The pictures of these held-out prompts, [N, H, W, 3].

    Raises:
        BenchError: the file is gone or damaged, or lacks one of them.
    """
    with _opened(path) as archive:
        try:
            pictures = [Image.open(io.BytesIO(archive.read(f"{number:04d}.png"))) for number in wanted]
            return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
            raise _damaged(path, error) from error


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BenchError:
    return BenchError(f"The pictures in {path} cannot be read: {error}.", "Delete the run's folder and run it again.")
