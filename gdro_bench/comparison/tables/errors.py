"""Errors by kind, as gold names them: how many are gone, and against the reference."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from gdro_bench.comparison import matched
from gdro_bench.comparison.entries import Comparison
from gdro_bench.comparison.tables.table import Table
from gdro_bench.comparison.tables.words import against, change_text, spread
from gdro_bench.score import BY_ERROR

FEW = 10  # pictures: of fewer no share that is gone is told


def error_table(compared: Comparison) -> Table | None:
    """For each kind of error that gold names: how often the base makes it, of the pictures on which it can be seen, or
    of their letters, and how much more often or seldom each method makes it at the end, of the prompts where it can be
    seen then, too; of an error that the base makes on enough pictures, also how much of it is gone. None where gold
    names none."""
    parts = [name for name in compared.parts if name.startswith(BY_ERROR)]
    if not parts:
        return None
    cells, numbers = [], []
    for part in parts:
        kind, before = part.removeprefix(BY_ERROR), matched.part_at(compared, compared.reference, part, 0)
        few = _pictures(compared, part) < FEW
        seen = int(np.isfinite(compared.reference.runs[0].parts[part][0]).sum())
        cells.append([kind, f"{before} of {seen}"])
        for entry in compared.entries:
            gone, change = (of(compared, entry, part) for of in (matched.removed, matched.since_base))
            both = matched.seen_at_both(entry, part)
            told = f", {abs(gone.mean):.0%} {'gone' if gone.mean >= 0 else 'more'}"
            share = "" if few or math.isnan(gone.mean) else told
            cells[-1].append(change_text(change) + share + (f" (of {both})" if both != seen else ""))
            row: dict[str, object] = {"error": kind, "label": entry.label} | spread("base", before)
            row |= spread("end", matched.part_at(compared, entry, part, -1))
            numbers.append(row | spread("removed", gone) | spread("change", change))
    header = ["error", "base: share of pictures or their letters", *(entry.label for entry in compared.entries)]
    title = (
        "Errors by kind: how often the base makes them, and by how much that share changes by the end of the budget "
        f"(below 0: fewer errors; how much is gone is told where the base makes it on {FEW} pictures or more)"
    )
    return Table("errors", title, header, cells, pd.DataFrame(numbers))


def error_difference_table(compared: Comparison) -> Table | None:
    """How much more often each method makes each kind of error at the end of the budget than the reference does."""
    to, parts = compared.reference, [name for name in compared.parts if name.startswith(BY_ERROR)]
    others = [entry for entry in compared.entries if entry is not to]
    if not parts or not others:
        return None
    rows = {part: [(entry, matched.against(compared, entry, part)) for entry in others] for part in parts}
    header = ["error", f"{to.label}: share at the end", *(entry.label for entry in others)]
    cells = [
        [
            part.removeprefix(BY_ERROR),
            str(matched.part_at(compared, to, part, -1)),
            *(against(compared, entry, apart) for entry, apart in row),
        ]
        for part, row in rows.items()
    ]
    numbers = [
        {"error": part.removeprefix(BY_ERROR), "label": entry.label} | spread("difference", apart)
        for part, row in rows.items()
        for entry, apart in row
    ]
    title = f"Errors by kind: shares at the end of the budget, against {to.label}'s"
    return Table("errors-apart", title, header, cells, pd.DataFrame(numbers))


def _pictures(compared: Comparison, part: str) -> float:
    """Of how many of the base's pictures an error is; of letters, the sum of shares."""
    return float(np.nansum(compared.reference.runs[0].parts[part][0]))
