"""OCR engines behind one call: a BGR picture in, lines of text with their boxes out.

Each is loaded once a process, with one thread: see `readers`. This module must not import torch: workers start faster.
PaddleOCR's two lines differ in everything but their purpose. Line 2 is the engine of Flow-GRPO's published code; its
models for English are named here. Line 3 changes its defaults from version to version, so it is told which to take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdro_bench.errors import BenchError, first_line

Box = tuple[tuple[float, float], ...]  # corners in px
Engine = Callable[[NDArray[np.uint8]], list[tuple[str, Box]]]  # BGR [H, W, 3] -> lines with their boxes


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine, by two functions of `ReaderConfig.limit_side` and `ReaderConfig.models`: `name`, with its version, as
    records carry it, and `start`, which loads it. Both may raise `BenchError`. In the registry as a `reader`."""

    name: Callable[[int, str | None], str]
    start: Callable[[int, str | None], Engine]


PADDLE_DEFAULTS = {2: ("en_PP-OCRv3_det", "en_PP-OCRv4_rec"), 3: ("PP-OCRv5_server_det", "en_PP-OCRv5_mobile_rec")}


SURE = 0.5  # line 2's drop_score


def _box(corners: Any) -> Box:
    return tuple((float(x), float(y)) for x, y in corners)


# ---------------------------------------------------------------------------------------------------------------
# RapidOCR: PP-OCRv6 small detection and recognition, as shipped in its wheel


def rapid_name(limit_side: int, models: str | None) -> str:
    """Raises:
    BenchError: models of one's own, which it would not read."""
    if models:
        raise BenchError("RapidOCR reads with the models that come with it.", "Leave out profile.reader.models.", 2)
    return f"rapidocr {version('rapidocr')} PP-OCRv6 limit {limit_side}"


def start_rapid(limit_side: int, models: str | None) -> Engine:
    """Without the orientation classifier."""
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
    rapid = RapidOCR(params=parameters)

    def read(image: NDArray[np.uint8]) -> list[tuple[str, Box]]:
        result = rapid(image)
        return [] if result.txts is None else list(zip(result.txts, map(_box, result.boxes), strict=True))

    return read


# ---------------------------------------------------------------------------------------------------------------
# PaddleOCR, lines 2 and 3


def paddle_name(limit_side: int, models: str | None) -> str:
    """Names line and models.

    Raises:
        BenchError: PaddleOCR is not installed, or the folder does not hold its two models.
    """
    line, number = _paddle_line()
    detection, recognition = _model_names(_model_folders(models) if models else PADDLE_DEFAULTS[line])
    return f"paddleocr {number} {detection} {recognition} limit {limit_side}"


def start_paddle(limit_side: int, models: str | None) -> Engine:
    """Line 2 as Flow-GRPO calls it; line 3 without its turning and unwarping of documents.

    Raises:
        BenchError: it cannot be loaded, for want of models in most cases.
    """
    line, _ = _paddle_line()
    folders = _model_folders(models) if models else None
    try:
        return (_start_paddle_2 if line == 2 else _start_paddle_3)(limit_side, folders)
    except Exception as error:  # Paddle raises whatever it meets
        raise BenchError(
            f"PaddleOCR cannot load its models: {first_line(error)[:200].rstrip('.! ')}.",
            f"Put {' and '.join(PADDLE_DEFAULTS[line])}, unpacked, into a folder and set profile.reader.models to it.",
        ) from error


def _paddle_line() -> tuple[int, str]:
    try:
        number = version("paddleocr")
    except PackageNotFoundError as error:
        raise BenchError("PaddleOCR is not installed.", "Run `pip install 'gdro-bench[paddle]'`.") from error
    return (2 if number.startswith("2.") else 3), number


def _model_folders(models: str) -> tuple[str, str]:
    """Of detection and recognition, each found by the end of its name, as Paddle's archives are called."""
    matches = [sorted(str(f) for f in Path(models).glob(f"*_{part}*") if f.is_dir()) for part in ("det", "rec")]
    if [len(folders) for folders in matches] != [1, 1]:
        raise BenchError(
            f"{models} does not hold one folder *_det and one folder *_rec.",
            "Unpack PaddleOCR's detection and recognition model there, or leave profile.reader.models out.",
        )
    return matches[0][0], matches[1][0]


def _model_names(models: tuple[str, str]) -> tuple[str, str]:
    """Of folders or names: archives add `_infer`."""
    detection, recognition = (Path(model).name.removesuffix("_infer") for model in models)
    return detection, recognition


def _start_paddle_2(limit_side: int, folders: tuple[str, str] | None) -> Engine:
    from paddleocr import PaddleOCR

    given = {} if folders is None else {"det_model_dir": folders[0], "rec_model_dir": folders[1]}
    paddle = PaddleOCR(
        use_angle_cls=False, lang="en", use_gpu=False, show_log=False, det_limit_side_len=limit_side, cpu_threads=1,
        **given,
    )  # fmt: skip
    return lambda image: lines_of_2(paddle.ocr(image, cls=False))


def lines_of_2(result: Any) -> list[tuple[str, Box]]:
    """What line 2 returns for one picture: [[[box, (text, score)], ...]], or [None] if there is no text."""
    return [(text, _box(box)) for box, (text, score) in result[0] or () if score > 0]


def _start_paddle_3(limit_side: int, folders: tuple[str, str] | None) -> Engine:
    from paddleocr import PaddleOCR

    detection, recognition = _model_names(folders or PADDLE_DEFAULTS[3])
    given = dict(zip(("text_detection_model_dir", "text_recognition_model_dir"), folders or (), strict=False))
    paddle = PaddleOCR(
        use_doc_orientation_classify=False, use_doc_unwarping=False, use_textline_orientation=False, device="cpu",
        text_det_limit_side_len=limit_side, text_det_limit_type="max", cpu_threads=1,
        text_detection_model_name=detection, text_recognition_model_name=recognition, **given,
    )  # fmt: skip
    return lambda image: lines_of_3(paddle.predict(image))


def lines_of_3(result: Any) -> list[tuple[str, Box]]:
    """What line 3 returns for one picture: [{"rec_texts": ..., "rec_scores": ..., "rec_polys": ...}]; what is less sure
    than `SURE` is left out, as line 2 does by itself."""
    page = result[0]
    read = zip(page["rec_texts"], page["rec_scores"], page["rec_polys"], strict=True)
    return [(text, _box(box)) for text, score, box in read if score >= SURE]


RAPIDOCR = EngineKind(rapid_name, start_rapid)
PADDLEOCR = EngineKind(paddle_name, start_paddle)
