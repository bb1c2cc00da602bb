"""Looks up what a name stands for: our own table first, then other packages' entry points; imported on use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from gdro_bench.errors import unknown


def lookup(kind: str, name: str, table: Mapping[str, str]) -> Any:
    """The object behind `name` in a table of "module:object", or in the entry-point group `gdro_bench.<kind>s`.

    Raises:
        BenchError: nothing has that name.
    """
    known = {e.name: e.value for e in entry_points(group=f"gdro_bench.{kind}s")} | dict(table)
    if name not in known:
        raise unknown(kind, name, known)
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
