"""Text readers: images in, lines of text out. The engine is named with its version in every record.

Reading runs in worker processes of one thread each: ONNX Runtime gains little from a second thread on small images,
and a crash in native code then costs an image, not the run. This module must not import torch: workers start faster.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gdro_bench.errors import BenchError


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read in an image: lines in the engine's order, their boxes [4, 2] px, or `failure` in words."""

    lines: tuple[str, ...] = ()
    boxes: tuple[tuple[tuple[float, float], ...], ...] = ()
    failure: str = ""


class Reader(Protocol):
    @property
    def name(self) -> str: ...
    def __call__(self, images: NDArray[np.uint8]) -> list[Reading]:
        """RGB images [B, H, W, 3] -> one reading each; a failure is reported in its reading, never raised."""
        ...


@dataclass(frozen=True, slots=True)
class ReaderConfig:
    """Numbers of the reader: `limit_side` px for detection, `workers` processes (0 reads in this process)."""

    limit_side: int
    workers: int


_engine: Any = None
_engine_limit = 0


def _start_engine(limit_side: int) -> None:
    """Loads RapidOCR once a process, with one thread and without the orientation classifier."""
    global _engine, _engine_limit
    if _engine is not None and _engine_limit == limit_side:
        return
    import logging

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    from rapidocr import RapidOCR

    parameters = {
        "Global.use_cls": False,
        "Global.log_level": "error",
        "Det.limit_side_len": limit_side,
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    _engine, _engine_limit = RapidOCR(params=parameters), limit_side


def _read_here(images: NDArray[np.uint8]) -> list[Reading]:
    return [_read_one(image) for image in images]


def _read_one(image: NDArray[np.uint8]) -> Reading:
    try:
        found = _engine(np.ascontiguousarray(image[:, :, ::-1]))  # RapidOCR takes arrays as BGR
    except Exception as error:  # an engine may raise anything; the image then has no score
        return Reading(failure=f"{type(error).__name__}: {error}"[:200])
    if found.txts is None:
        return Reading()
    boxes = tuple(tuple((float(x), float(y)) for x, y in box) for box in found.boxes)
    return Reading(tuple(found.txts), boxes)


class RapidReader:
    """PP-OCRv6 small detection and recognition as shipped in the wheel of `rapidocr`."""

    def __init__(self, config: ReaderConfig) -> None:
        self.config = config
        self.name = f"rapidocr {version('rapidocr')} PP-OCRv6 limit {config.limit_side}"
        self._workers: ProcessPoolExecutor | None = None
        if not config.workers:
            _start_engine(config.limit_side)

    def __call__(self, images: NDArray[np.uint8]) -> list[Reading]:
        if not self.config.workers:
            _start_engine(self.config.limit_side)
            return _read_here(images)
        if not len(images):
            return []
        chunks = np.array_split(images, min(len(images), 4 * self.config.workers))
        try:
            return [reading for part in self._pool().map(_read_here, chunks) for reading in part]
        except BrokenProcessPool:
            self._workers = None  # a new pool is started at the next call
            return [Reading(failure="a reader process died")] * len(images)

    def _pool(self) -> ProcessPoolExecutor:
        if self._workers is None:
            self._workers = ProcessPoolExecutor(
                self.config.workers, get_context("spawn"), _start_engine, (self.config.limit_side,)
            )
        return self._workers


class TesseractReader:
    """Tesseract, if it is installed: an engine of another family, to see whether what one reads the other reads too.

    It was made for scanned pages: pictures become grey, and small ones larger. Boxes are not asked for.
    """

    HEIGHT = 256  # px that a picture is enlarged to

    def __init__(self) -> None:
        """Raises:
        BenchError: there is no `tesseract` on this machine."""
        if shutil.which("tesseract") is None:
            raise BenchError("Tesseract is not installed.", "Install it (Debian: apt install tesseract-ocr).")
        said = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, check=True).stdout
        self.name = said.splitlines()[0]

    def __call__(self, images: NDArray[np.uint8]) -> list[Reading]:
        with ThreadPoolExecutor() as threads:
            return list(threads.map(self._read, images))

    def _read(self, image: NDArray[np.uint8]) -> Reading:
        picture, buffer = ImageOps.autocontrast(Image.fromarray(image).convert("L")), io.BytesIO()
        enlarged = max(1.0, self.HEIGHT / picture.height)
        size = (round(picture.width * enlarged), round(picture.height * enlarged))
        picture.resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
        command = ["tesseract", "stdin", "stdout", "--psm", "6", "-l", "eng"]  # one block of text
        environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
        found = subprocess.run(command, input=buffer.getvalue(), capture_output=True, env=environment, check=False)
        if found.returncode:
            return Reading(failure=found.stderr.decode(errors="replace").strip()[:200])
        lines = (line.strip() for line in found.stdout.decode(errors="replace").splitlines())
        return Reading(tuple(line for line in lines if line))


def area(box: tuple[tuple[float, float], ...]) -> float:
    """Area of a polygon in square px (shoelace formula)."""
    turned = box[1:] + box[:1]
    return abs(math.fsum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(box, turned, strict=True))) / 2
