"""Loading large instruments through transformers: from a folder, or from the hub where it can be reached."""

from __future__ import annotations

import re
from typing import Any

from safetensors import SafetensorError

from gdro_bench.errors import BenchError, first_line


def load_model(
    cls: Any, source: str, what: str, extra: str, unused: re.Pattern[str] | None = None, **options: Any
) -> Any:
    """A model with its weights, never from pickles, which can run code. `unused` matches the names of weights that the
    class has and no prediction needs: files from before it had them are whole.

    Raises:
        BenchError: it cannot be had, some of its weights are not there, or what it needs is not installed.
    """
    model, info = load(cls, source, what, extra, use_safetensors=True, output_loading_info=True, **options)
    missing = [name for name in drawn_at_random(model, info) if not (unused and unused.search(name))]
    if missing:
        raise BenchError(
            f"{what} in {source!r} lacks {len(missing)} of its weights, {missing[0]} among them.",
            "Download the whole of it again.",
        )
    return model


def drawn_at_random(model: Any, info: dict[str, Any]) -> list[str]:
    """Weights that no file had, sorted, so that transformers drew them; `info` is what it tells of the loading."""
    parameters = {name for name, _ in model.named_parameters()}  # buffers are computed, and not in every file
    return sorted(parameters & set(info["missing_keys"]))


def load(cls: Any, source: str, what: str, extra: str, **options: Any) -> Any:
    """`cls.from_pretrained(source)`; for weights see `load_model`.

    Raises:
        BenchError: it cannot be had, or what it needs is not installed.
    """
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:  # damaged, or of other shapes
        raise BenchError(
            f"{what} cannot be loaded from {source!r}: {first_line(error).rstrip('.')}.",
            f"Give the folder of a downloaded copy, or a hub id if the hub can be reached; needs the extra `{extra}`.",
        ) from error
