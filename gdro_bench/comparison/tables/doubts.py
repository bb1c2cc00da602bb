"""Where gold, which no method sees, contradicts the verdict behind the reward."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gdro_bench import stats
from gdro_bench.comparison import matched
from gdro_bench.comparison.entries import Comparison, Entry, Floats
from gdro_bench.comparison.tables.table import Table
from gdro_bench.comparison.tables.words import BY_TAG, spread, spreads, told

VERDICTS = ("exact", "correct")  # of OCR and of GenEval
WHOLE = 1 - 1e-9  # gold of a picture that shows all facts


def doubt_table(compared: Comparison) -> Table | None:
    """Of the pictures that the reward calls right, the share on which gold finds a fact broken: the base's and each
    method's at the end, how far it is from the base's, and by tag of GenEval. None where there is no verdict or no
    gold."""
    verdict = next((name for name in VERDICTS if name in compared.parts), None)
    if verdict is None or "gold" not in compared.parts:
        return None
    tags = {name: name.removeprefix(BY_TAG) for name in compared.parts if name.startswith(BY_TAG)}
    cells, numbers = [], []
    for label, entry, mark in [("base", compared.reference, 0), *((e.label, e, -1) for e in compared.entries)]:
        broken = {name: _broken(entry, name) for name in (verdict, *tags)}
        curves = {name: _curves(compared, entry, values) for name, values in broken.items()}
        shares = {name: matched.estimate(curve[:, mark]) for name, curve in curves.items()}
        change = matched.estimate(curves[verdict][:, mark] - curves[verdict][:, 0])
        pictures = {name: int(np.isfinite(values[:, mark]).sum()) for name, values in broken.items()}
        texts = [f"{share} of {pictures[name]}" for name, share in shares.items()]
        cells.append([label, texts[0], told(change, entry) if mark else "", *texts[1:]])
        numbers.append({"label": label, "pictures": pictures[verdict]} | spreads(shares) | spread("change", change))
    header = ["method", "a fact is broken, of those called right", "against the base's", *tags.values()]
    title = "Of the pictures that the reward calls right, the share on which gold finds a fact broken"
    return Table("doubts", title, header, cells, pd.DataFrame(numbers))


def _broken(entry: Entry, verdict: str) -> Floats:
    """[S, M, N]: of pictures that the verdict calls right 1 where gold is below 1, else 0; NaN for all others."""
    right, gold = entry.values(verdict), entry.values("gold")
    return np.where((right == 1) & ~np.isnan(gold), gold < WHOLE, np.nan)


def _curves(compared: Comparison, entry: Entry, values: Floats) -> Floats:
    """The share at every evaluation point, as observed and in every resample: [1 + R, M]."""
    drawn = stats.replicates(values, entry.seed_weights, compared.prompt_weights)
    return np.vstack([stats.known_mean(values, (0, 2)), drawn])
