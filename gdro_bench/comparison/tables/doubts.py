"""Where gold, which no method sees, contradicts the verdict behind the reward."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gdro_bench import stats
from gdro_bench.comparison.entries import Comparison, Entry, Floats
from gdro_bench.comparison.tables.table import Table
from gdro_bench.comparison.tables.words import BY_TAG, spread, spreads, told
from gdro_bench.stats import Estimate

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
        shares = {name: _share(compared, entry, values, mark) for name, values in broken.items()}
        change = _share(compared, entry, broken[verdict], mark, since=0)
        texts = [f"{share} of {_known(broken[name], mark)}" for name, share in shares.items()]
        cells.append([label, texts[0], told(change, entry) if mark else "", *texts[1:]])
        row = {"label": label, "pictures": _known(broken[verdict], mark)}
        numbers.append(row | spreads(shares) | spread("change", change))
    header = ["method", "share of pictures called right", "against the base's", *tags.values()]
    title = "Of the pictures that the reward calls right, the share on which gold finds a fact broken"
    return Table("doubts", title, header, cells, pd.DataFrame(numbers))


def _broken(entry: Entry, verdict: str) -> Floats:
    """[S, M, N]: of pictures that the verdict calls right 1 where gold is below 1, else 0; NaN for all others."""
    right, gold = entry.values(verdict), entry.values("gold")
    return np.where((right == 1) & ~np.isnan(gold), gold < WHOLE, np.nan)


def _share(compared: Comparison, entry: Entry, values: Floats, mark: int, since: int | None = None) -> Estimate:
    """At an evaluation point; less that at another, if one is given. Both are over the pictures called right there."""
    seen = stats.known_mean(values, (0, 2))
    drawn = stats.replicates(values, entry.seed_weights, compared.prompt_weights)
    if since is None:
        return stats.estimate(float(seen[mark]), drawn[:, mark])
    return stats.estimate(float(seen[mark] - seen[since]), drawn[:, mark] - drawn[:, since])


def _known(values: Floats, mark: int) -> int:
    return int(np.isfinite(values[:, mark]).sum())
