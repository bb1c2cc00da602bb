"""What stands at the end of the budget: rewards, what they are made of, what else changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from gdro_bench import stats
from gdro_bench.comparison import matched, robust
from gdro_bench.comparison.entries import CORRECTED, Comparison, Entry
from gdro_bench.comparison.tables.costs import mean_ratio_text
from gdro_bench.comparison.tables.table import Table
from gdro_bench.comparison.tables.words import (
    BY_TAG,
    OTHERS,
    PARTS,
    PREFIXES,
    against,
    label_of,
    labels,
    spread,
    spreads,
    tabled,
    told,
    with_interval,
)
from gdro_bench.stats import Estimate


def short_table(
    compared: Comparison, at_reward: Sequence[matched.AtReward], at_budget: Sequence[matched.AtBudget]
) -> Table:
    """For every method in six columns at most: is it better at the same cost, how cheap is it, and was the gain paid
    for? A difference within noise is called so."""
    lines = [_in_short(compared, end, at_reward[i] if at_reward else None) for i, end in enumerate(at_budget)]
    header = ["method", *(heading for heading, _, _ in lines[0])]
    cells, numbers = [], []
    for end, line in zip(at_budget, lines, strict=True):
        cells.append([_called(end.entry, compared), *(cell for _, cell, _ in line)])
        spreads = [spread(name, estimate) for _, _, (name, estimate) in line]
        row: dict[str, object] = {"label": end.entry.label, "seeds": len(end.entry.runs)}
        numbers.append(row | {k: v for spread in spreads for k, v in spread.items()})
    return Table("in-short", "In short", header, cells, pd.DataFrame(numbers))


def _called(entry: Entry, compared: Comparison) -> str:
    """Its label, and its seeds if others have more."""
    seeds = len(entry.runs)
    fewer = seeds < max(len(other.runs) for other in compared.entries)
    return f"{entry.label} ({seeds} seed{'s'[: seeds > 1]})" if fewer else entry.label


def _in_short(
    compared: Comparison, end: matched.AtBudget, row: matched.AtReward | None
) -> list[tuple[str, str, tuple[str, Estimate]]]:
    """An entry's cells: heading, text, and the number behind it with its name."""
    to, apart = compared.reference.label, against(compared, end.entry, end.difference)
    line = [
        ("reward at the end", str(end.reward), ("reward", end.reward)),
        (f"against {to}'s", apart, ("difference", end.difference)),
    ]
    if row is not None:
        heading, cheaper = f"cost to equal reward, times {to}'s", row.mean[True]
        line.append((heading, mean_ratio_text(row, cheaper, to), ("mean_ratio", cheaper)))
    if CORRECTED in compared.parts:
        score = end.parts[CORRECTED]
        line.append(("corrected score at the end", str(score), ("corrected", score)))
    if "gold" in compared.parts:
        change = matched.since_base(compared, end.entry, "gold")
        line.append(("gold, against the base's", told(change, end.entry), ("gold_change", change)))
    return line


def budget_table(compared: Comparison, rows: Sequence[matched.AtBudget]) -> Table:
    parts, run = tabled(compared), compared.first
    falls = {CORRECTED: "corrected score against its highest before"} if CORRECTED in compared.parts else {}
    header = ["method", "seeds", "reward", "gain over base", *falls.values()]
    header += map(label_of, parts)
    cells, numbers = [], []
    for row in rows:
        texts = [row.entry.label, str(len(row.entry.runs)), str(row.reward), str(row.gain)]
        fallen = {name: matched.since_best(compared, row.entry, name) for name in falls}
        texts += [told(fall, row.entry) for fall in fallen.values()]
        cells.append([*texts, *(str(row.parts[name]) for name in parts)])
        number: dict[str, object] = {"label": row.entry.label, "seeds": len(row.entry.runs)}
        number |= spread("reward", row.reward) | spread("gain", row.gain) | spread("difference", row.difference)
        numbers.append(number | spreads({f"{name}_fall": fall for name, fall in fallen.items()}) | spreads(row.parts))
    title = f"At equal budget, {run.limit:,} {run.budget_kind}"
    return Table("matched-budget", title, header, cells, pd.DataFrame(numbers))


def quality_table(compared: Comparison) -> Table | None:
    """What no method is trained on, at the end of the budget, less the base's and less the reference's: where a reward
    rises while these fall, it was hacked. None where nothing of the kind was measured."""
    parts, to = [name for name in tabled(compared) if name != "path_kl"], compared.reference  # the base's is 0
    if not parts:
        return None
    header = ["method", *(f"{label_of(part)} - {whose}'s" for part in parts for whose in ("base", to.label))]
    cells, numbers = [], []
    for entry in compared.entries:
        line, row = [entry.label], dict[str, object](label=entry.label)
        for part in parts:
            change, apart = matched.since_base(compared, entry, part), matched.against(compared, entry, part)
            line += [told(change, entry), against(compared, entry, apart)]
            row |= spread(f"{part}_change", change) | spread(f"{part}_difference", apart)
        cells.append(line)
        numbers.append(row)
    title = f"What no method is trained on, at the end of the budget, less the base's and less {to.label}'s"
    return Table("quality-apart", title, header, cells, pd.DataFrame(numbers))


def verdict_table(compared: Comparison) -> Table | None:
    """The all-or-nothing verdicts behind the reward, the base's and each method's at the end: OCR's exact match, or
    GenEval's by tag and, as published, the mean over tags. None where the reward has no such part."""
    tags = {name: name.removeprefix(BY_TAG) for name in compared.parts if name.startswith(BY_TAG)}
    columns = tags or {name: label_of(name) for name in ("exact",) if name in compared.parts}
    if not columns:
        return None
    names, header = list(columns), ["method", *(["mean over tags"] if tags else []), *columns.values()]
    cells, numbers = [], []
    for label, entry, mark in [("base", compared.reference, 0), *((e.label, e, -1) for e in compared.entries)]:
        means = np.array([entry.mean(name)[mark] for name in names])
        drawn = np.stack([entry.replicates(name, compared.prompt_weights)[:, mark] for name in names])
        verdicts = (
            {"overall": stats.estimate(float(stats.known_mean(means)), stats.known_mean(drawn, 0))} if tags else {}
        )
        verdicts |= {name: stats.estimate(float(means[i]), drawn[i]) for i, name in enumerate(names)}
        cells.append([label, *map(str, verdicts.values())])
        numbers.append({"label": label} | spreads(verdicts))
    return Table("verdict", "The verdict at the end of the budget", header, cells, pd.DataFrame(numbers))


def own_parts_table(compared: Comparison) -> Table | None:
    """The parts that the task's reward names itself, such as the cue of a planted exploit: the base's and each method's
    at the end, the change since the base, and the difference to the reference's. None where the reward names none that
    no other table shows."""
    parts = [name for name in compared.parts if name not in PARTS | OTHERS and not name.startswith(PREFIXES)]
    if not parts:
        return None
    to = compared.reference
    header = ["method", *(f"{name}{what}" for name in parts for what in ("", " - base's", f" - {to.label}'s"))]
    base = [text for part in parts for text in (str(matched.part_at(compared, to, part, 0)), "", "")]
    cells, numbers = [["base", *base]], []
    for entry in compared.entries:
        cells.append([entry.label])
        row: dict[str, object] = {"label": entry.label}
        for part in parts:
            end, change = matched.part_at(compared, entry, part, -1), matched.since_base(compared, entry, part)
            difference = matched.against(compared, entry, part)
            cells[-1] += [str(end), told(change, entry), against(compared, entry, difference)]
            row |= spread(part, end) | spread(f"{part}_change", change) | spread(f"{part}_difference", difference)
        numbers.append(row)
    title = "What the reward is made of, at the end of the budget"
    return Table("parts-of-the-reward", title, header, cells, pd.DataFrame(numbers))


def robust_table(compared: Comparison) -> Table:
    """The interquartile mean of the rewards at the end of the budget and the probability of improvement over the
    reference."""
    to, cells, numbers = compared.reference.label, [], []
    for entry in compared.entries:
        iqm = robust.iqm(entry, compared.prompt_weights)
        above = (
            None
            if entry is compared.reference
            else robust.improvement_over(entry, compared.reference, compared.prompt_weights)
        )
        cells.append([entry.label, str(iqm), "" if above is None else str(above)])
        row: dict[str, object] = {"label": entry.label, "seeds": len(entry.runs)} | spread("iqm", iqm)
        numbers.append(row | (spread("improvement", above) if above else {}))
    header = ["method", "interquartile mean", f"probability of improvement over {to}"]
    title = "At the end of the budget, as Agarwal et al. (2021) ask: a seed is a run, a prompt a task"
    return Table("robust", title, header, cells, pd.DataFrame(numbers))


def pareto_table(compared: Comparison, costs: Mapping[str, float]) -> pd.DataFrame:
    """For every entry at the end of the budget, the gain in reward as `x`, the change of gold as `y`, each with its
    _low and _high, and its cost."""
    return pd.DataFrame(
        {"label": entry.label, "cost": costs[entry.label]}
        | spread("x", matched.since_base(compared, entry, "reward"))
        | spread("y", matched.since_base(compared, entry, "gold"))
        for entry in compared.entries
    )


def prediction_table(compared: Comparison, checkpoints: int, correlations: Mapping[str, Estimate]) -> Table:
    header = ["figure", "rank correlation with gold [95 %]"]
    ordered = sorted(correlations.items(), key=lambda item: -np.nan_to_num(item[1].mean))
    names = labels(compared, [name for name, _ in ordered])
    cells = [[name, with_interval(rho, "too few runs")] for name, (_, rho) in zip(names, ordered, strict=True)]
    numbers = pd.DataFrame([{"figure": name} | spread("rank_correlation", rho) for name, rho in ordered])
    title = f"What predicts gold, over {checkpoints} checkpoints; intervals over methods and settings"
    return Table("predicts-gold", title, header, cells, numbers)
