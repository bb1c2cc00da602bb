"""Text readers: images in, lines of text out. The engine is named with its version in every record.

Reading runs in worker processes of one thread each: ONNX Runtime gains little from a second thread on small images,
and a crash in native code then costs an image at most, not the run. Workers leave Ctrl-C to their parent and end with
it, however it ends. This module must not import torch: workers start faster.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.util import Finalize
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gdro_bench import registry
from gdro_bench.errors import BenchError
from gdro_bench.instruments.engines import Box, Engine, EngineKind
from gdro_bench.profile import ReaderConfig


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read in an image: lines in the engine's order, their boxes [4, 2] px, or `failure` in words."""

    lines: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    failure: str = ""


class Reader(Protocol):
    @property
    def name(self) -> str: ...
    def __call__(self, images: NDArray[np.uint8]) -> list[Reading]:
        """RGB images [B, H, W, 3] -> one reading each; a failure is reported in its reading, never raised."""
        ...


def _engine_kind(config: ReaderConfig) -> EngineKind:
    """Raises:
    BenchError: no reader has that name."""
    kind: EngineKind = registry.lookup("reader", config.engine or "rapidocr")
    return kind


_engine: tuple[ReaderConfig, Engine] | None = None  # of this process


def _read_here(config: ReaderConfig, images: NDArray[np.uint8]) -> list[Reading]:
    """Loads the engine at the first call of a process."""
    global _engine
    if _engine is None or _engine[0] != config:
        _engine = (config, _engine_kind(config).start(config.limit_side, config.models))
    return [_read_one(_engine[1], image) for image in images]


def _read_one(engine: Engine, image: NDArray[np.uint8]) -> Reading:
    try:
        lines = engine(np.ascontiguousarray(image[:, :, ::-1]))  # both engines take arrays as BGR
    except Exception as error:  # an engine may raise anything; the image then has no score
        return Reading(failure=f"{type(error).__name__}: {error}"[:200])
    return Reading(tuple(text for text, _ in lines), tuple(box for _, box in lines))


class EngineReader:
    """Reads with the engine of a profile, in worker processes that are replaced when they die."""

    def __init__(self, config: ReaderConfig) -> None:
        """Raises:
        BenchError: the engine or its models are not there."""
        self._workers: ProcessPoolExecutor | None = None
        self.config = config
        self.name = _engine_kind(config).name(config.limit_side, config.models)

    def __call__(self, images: NDArray[np.uint8]) -> list[Reading]:
        """Raises:
        BenchError: the engine cannot be loaded."""
        if not self.config.workers:
            return _read_here(self.config, images)
        if not len(images):
            return []
        try:
            return self._read(np.array_split(images, min(len(images), 4 * self.config.workers)))
        except KeyboardInterrupt:
            self.close()
            raise

    def _read(self, chunks: list[NDArray[np.uint8]]) -> list[Reading]:
        futures = [self._submit(chunk) for chunk in chunks]
        results = [_result(future) for future in futures]
        if None in results:
            self._workers = None  # a new pool is started at the next submission
        return [
            reading
            for chunk, readings in zip(chunks, results, strict=True)
            for reading in ([self._alone(image) for image in chunk] if readings is None else readings)
        ]

    def close(self) -> None:
        """Ends the workers after what they are reading, and waits for that; what waits is not read."""
        if self._workers is not None:
            self._workers.shutdown(wait=True, cancel_futures=True)
            self._workers = None

    def __del__(self) -> None:
        """Left to itself, a pool closes in a thread of its own, and an interpreter that ends meanwhile may print a
        traceback."""
        self.close()

    def _submit(self, images: NDArray[np.uint8]) -> Future[list[Reading]]:
        if self._workers is None:
            self._workers = _pool(self.config.workers)
        try:
            return _submit_shielded(self._workers, self.config, images)
        except BrokenProcessPool:  # it died since the last call
            self._workers = _pool(self.config.workers)
            return _submit_shielded(self._workers, self.config, images)

    def _alone(self, image: NDArray[np.uint8]) -> Reading:
        """An image that a dying worker took with it, once more: if it was what killed the worker, it dies alone."""
        readings = _result(self._submit(image[None]))
        if readings is None:
            self._workers = None
            return Reading(failure="a reader process died")
        return readings[0]


def _pool(workers: int) -> ProcessPoolExecutor:
    """Whose workers are told to end when this process does: in a child process Python waits for them before it tells
    them, if a `Finalize` does not come first."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker)
    Finalize(None, _end, (weakref.ref(pool),), exitpriority=100)  # before the queue that it tells them by closes
    return pool


def _end(known: weakref.ref[ProcessPoolExecutor]) -> None:
    pool = known()
    if pool is not None:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit_shielded(
    pool: ProcessPoolExecutor, config: ReaderConfig, images: NDArray[np.uint8]
) -> Future[list[Reading]]:
    """Submits with Ctrl-C and SIGTERM blocked in this thread: a worker that this starts inherits that, and so prints no
    traceback if one comes while it is still importing or has not been told all that it needs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with _nameless_main():
            return pool.submit(_read_here, config, images)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Keeps a worker that starts meanwhile from importing the program, of which it needs nothing: a script without
    `if __name__ == "__main__"` would run again in it."""
    main = sys.modules["__main__"].__dict__
    kept: dict[str, object] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(kept)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends this worker when the parent is gone, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # inherited, see _submit_shielded
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Ends this process when its parent is gone."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _result(future: Future[list[Reading]]) -> list[Reading] | None:
    """The readings, or nothing if the worker died."""
    try:
        return future.result()
    except BrokenProcessPool:
        return None


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
        version = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, check=True).stdout
        self.name = version.splitlines()[0]

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
        result = subprocess.run(command, input=buffer.getvalue(), capture_output=True, env=environment, check=False)
        if result.returncode:
            said = result.stderr.decode(errors="replace").strip()[:200]
            return Reading(failure=said or f"tesseract ended with {result.returncode}")  # killed ones say nothing
        lines = (line.strip() for line in result.stdout.decode(errors="replace").splitlines())
        return Reading(tuple(line for line in lines if line))


def area(box: Box) -> float:
    """Area of a polygon in square px (shoelace formula)."""
    turned = box[1:] + box[:1]
    return abs(math.fsum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(box, turned, strict=True))) / 2
