"""Loading large instruments through transformers: from a folder, or from the hub where it can be reached."""

from __future__ import annotations

from typing import Any

from gdro_bench.errors import BenchError, first_line


def load(cls: Any, source: str, what: str, extra: str, **options: Any) -> Any:
    """`cls.from_pretrained(source)`. For weights give `use_safetensors=True`, because pickles can run code.

    Raises:
        BenchError: it cannot be had, or what it needs is not installed.
    """
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError) as error:
        raise BenchError(
            f"{what} cannot be loaded from {source!r}: {first_line(error).rstrip('.')}.",
            f"Give the folder of a downloaded copy, or a hub id if the hub can be reached; needs the extra `{extra}`.",
        ) from error
