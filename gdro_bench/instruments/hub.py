"""Loading large instruments through transformers: from a folder, or from the hub where it can be reached."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError

from gdro_bench.errors import BenchError, first_line


def load(cls: Any, source: str, what: str, extra: str, **options: Any) -> Any:
    """`cls.from_pretrained(source)`. For weights give `use_safetensors=True`, because pickles can run code.

    Raises:
        BenchError: it cannot be had, some of its weights are not there, or what it needs is not installed.
    """
    weighted = "use_safetensors" in options
    try:
        loaded = cls.from_pretrained(source, **options, **({"output_loading_info": True} if weighted else {}))
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:  # damaged, or of other shapes
        raise BenchError(
            f"{what} cannot be loaded from {source!r}: {first_line(error).rstrip('.')}.",
            f"Give the folder of a downloaded copy, or a hub id if the hub can be reached; needs the extra `{extra}`.",
        ) from error
    if not weighted:
        return loaded
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers would draw them at random
        raise BenchError(
            f"{what} in {source!r} lacks {len(missing)} of its weights, {missing[0]} among them.",
            "Download the whole of it again.",
        )
    return model
