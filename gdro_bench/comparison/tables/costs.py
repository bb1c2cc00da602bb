"""How much a reward costs: curves, costs to one level and over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from gdro_bench import stats
from gdro_bench.comparison import matched
from gdro_bench.comparison.entries import AXES, Comparison, Entry, parts_of
from gdro_bench.comparison.tables.table import Table
from gdro_bench.comparison.tables.words import (
    NOT_KNOWN,
    cost_text,
    label_of,
    spread,
    spreads,
    tabled,
    times,
    with_interval,
)
from gdro_bench.score import BY_ERROR
from gdro_bench.stats import Estimate, Weights

STEPS = 5  # levels of reward in the table of times to reward
CUTS = (0.3, 0.5, 0.7, 0.9, 1.0)  # of the way to the highest shared reward, in the table of costs by cut
ONE = Estimate(1.0, 1.0, 1.0)  # of the reference to itself


def curve_table(entries: Sequence[Entry], prompts: Weights) -> pd.DataFrame:
    """A row for every evaluation point of each seed and of their mean: costs, reward and parts, the mean's with 95 %
    intervals."""
    rows: list[dict[str, object]] = []
    for entry in entries:
        names = ["reward", *parts_of(entries)]
        intervals = {name: entry.replicates(name, prompts) for name in names}
        costs = _costs(entry)
        for i, point in enumerate(entry.points):
            row: dict[str, object] = {"label": entry.label, "seed": "mean", "mark": point.mark} | costs[i]
            for name in names:
                estimate = stats.estimate(float(entry.mean(name)[i]), intervals[name][:, i])
                row |= spread(name, estimate)
            rows.append(row)
        for run in entry.runs if len(entry.runs) > 1 else ():
            alone = Entry(entry.label, (run,))
            costs = _costs(alone)
            for i, point in enumerate(alone.points):
                row = {"label": entry.label, "seed": str(run.run.seed), "mark": point.mark} | costs[i]
                rows.append(row | {name: float(alone.mean(name)[i]) for name in names})
    return pd.DataFrame(rows)


def columns_of(curves: pd.DataFrame) -> pd.DataFrame:
    """What the columns of the curves are, in words: a row a column."""
    meanings = {
        "label": "the method, as the report calls it",
        "seed": "a seed; mean: over all seeds",
        "mark": "the evaluation point, as a share of the budget",
        "reward": "what was trained on, mean over prompts",
    }
    meanings |= {axis: f"{label}, pools counted" for axis, label in AXES.items()}
    meanings |= {f"{axis}_without_pool": f"{label}, pools not counted" for axis, label in AXES.items()}
    for name in curves:
        of, _, end = str(name).rpartition("_")
        bound = {"low": "lower", "high": "upper"}.get(end)
        told = f"{bound} end of the 95 % interval of {of}" if bound and of in curves else _meaning(str(name))
        meanings.setdefault(str(name), told)
    return pd.DataFrame([{"column": name, "meaning": meanings[name]} for name in curves])


def _meaning(part: str) -> str:
    if part.startswith(BY_ERROR):
        return f"pictures, or their letters, with this error: {part.removeprefix(BY_ERROR)} (share)"
    return label_of(part)


def _costs(entry: Entry) -> list[dict[str, object]]:
    """On every axis, until each evaluation point."""
    costs = {axis: entry.cost(axis, True) for axis in AXES}
    costs |= {f"{axis}_without_pool": entry.cost(axis, False) for axis in AXES}
    return [{axis: float(spent[i]) for axis, spent in costs.items()} for i in range(len(entry.points))]


def reward_table(compared: Comparison, rows: Sequence[matched.AtReward], level: float, axis: str) -> Table:
    to, parts = compared.reference.label, tabled(compared)
    header = ["method", "first point at R* or above", "reward there", f"{AXES[axis]} to R*", f"ratio to {to}"]
    header += ["without pools", f"ratio to {to}, without pools", f"ratio to {to}, until it stays at R*"]
    header += [f"mean ratio to {to} over levels", f"mean ratio to {to}, without pools"]
    header += [f"{label_of(name)} at R*" for name in parts]
    cells, numbers = [], []
    for row in rows:
        mark = _first_mark(row)
        costs = [
            text for pool in (True, False) for text in (cost_text(row.cost[pool]), _ratio(row, row.ratio[pool], to))
        ]
        costs.append(_ratio(row, row.staying, to))
        costs += [mean_ratio_text(row, row.mean[pool], to) for pool in (True, False)]
        at_level = [
            "not reached" if mark == "not reached" else with_interval(row.parts[name], "too often not there")
            for name in parts
        ]
        cells.append([row.entry.label, mark, str(row.reward), *costs, *at_level])
        number: dict[str, object] = {
            "label": row.entry.label,
            "seeds": len(row.entry.runs),
            "level": level,
            "mark": mark,
        }
        number |= spread("reward", row.reward) | spreads(row.parts)
        for pool, suffix in ((True, ""), (False, "_without_pool")):
            number |= spread(f"{axis}{suffix}", row.cost[pool]) | spread(f"ratio{suffix}", row.ratio[pool])
            number |= spread(f"mean_ratio{suffix}", row.mean[pool])
        numbers.append(number | spread("ratio_until_it_stays", row.staying))
    title = f"At equal reward, R* = {level:.3f}"
    return Table("matched-reward", title, header, cells, pd.DataFrame(numbers))


def _first_mark(row: matched.AtReward) -> str:
    if row.mark is None:
        return NOT_KNOWN if math.isnan(row.cost[True].mean) else "not reached"
    return f"{row.entry.points[row.mark].mark:.0%} of the budget"


def time_table(compared: Comparison, axis: str) -> Table | None:
    """Time to reward: what each method has spent, pools counted, where it is first so far from the base to the highest
    reward of the reference, and how many times the reference's that is. None if the reference does not rise."""
    levels = matched.spent_at_levels(compared, axis, STEPS)
    if not levels:
        return None
    to = compared.reference.label
    rows: dict[str, list[Estimate]] = {}
    for row in matched.at_levels(compared, axis, STEPS):
        rows.setdefault(row.entry.label, []).append(row.ratio[True])
    header = ["method", *(f"{level:.3f} ({(i + 1) / STEPS:.0%} of the gain)" for i, (level, _) in enumerate(levels))]
    cells = [[entry.label, *(cost_text(spent[entry.label]) for _, spent in levels)] for entry in compared.entries]
    cells += [[f"{label}, times {to}'s", *(times(ratio, to) for ratio in ratios)] for label, ratios in rows.items()]
    numbers = [
        {"label": label, "level": level} | spread(axis, cost) | spread("ratio", rows[label][i] if label != to else ONE)
        for i, (level, spent) in enumerate(levels)
        for label, cost in spent.items()
    ]
    title = f"Time to reward: {AXES[axis]} to levels on the way from the base to the highest of {to}"
    return Table("time-to-reward", title, header, cells, pd.DataFrame(numbers))


def cut_table(compared: Comparison, rows: Sequence[matched.AtReward], axis: str) -> Table | None:
    """What the cost to equal reward would be if levels went up to another share of the way, or began where both methods
    had been tested once: whether it hangs on that choice. None where no method has one."""
    others = [row for row in rows if row.entry is not compared.reference]
    if not any(math.isfinite(row.upto) for row in others):
        return None
    to, cells, numbers = compared.reference.label, [], []
    for row in others:
        ratios = {
            cut: (row.mean if cut == matched.UPTO else matched.mean_ratio(compared, row.entry, axis, cut))[True]
            for cut in CUTS
        }
        seen = matched.mean_ratio(compared, row.entry, axis, measured=True)[True]
        none = math.isfinite(row.upto) and math.isnan(seen.mean)
        told = "no such level" if none else _told_or_small(seen, to)
        cells.append([row.entry.label, *(_told_or_small(ratio, to) for ratio in ratios.values()), told])
        numbers += [
            {"label": row.entry.label, "cut": cut, "measured": alone} | spread("ratio", ratio)
            for cut, alone, ratio in (
                *((cut, False, ratio) for cut, ratio in ratios.items()),
                (matched.UPTO, True, seen),
            )
        ]
    header = ["method", *(f"up to {cut:.0%}" for cut in CUTS), f"up to {matched.UPTO:.0%}, above both first points"]
    title = (
        f"Cost to equal reward, times {to}'s, over levels up to a share of the way to the highest that both methods "
        f"surely reach ({matched.UPTO:.0%} elsewhere)"
    )
    return Table("cost-to-equal-reward", title, header, cells, pd.DataFrame(numbers))


def ratio_table(rows: Sequence[matched.AtLevel]) -> pd.DataFrame:
    """Ratios of cost against the level of reward, a row an entry and level, with the columns ratio and
    ratio_without_pool, each with its _low and _high."""
    return pd.DataFrame(
        {"label": row.entry.label, "level": row.level}
        | spread("ratio", row.ratio[True])
        | spread("ratio_without_pool", row.ratio[False])
        for row in rows
    )


def _ratio(row: matched.AtReward, ratio: Estimate, to: str) -> str:
    """One of the row's ratios. Where neither method arrives it is NaN, though both costs are known: infinite; where
    only `to` does not, it is 0."""
    return NOT_KNOWN if math.isnan(row.cost[True].mean) else times(ratio, to)


def mean_ratio_text(row: matched.AtReward, ratio: Estimate, to: str) -> str:
    if math.isnan(row.cost[True].mean):  # a reward that nobody knows is no small one
        return NOT_KNOWN
    return _told_or_small(ratio, to, f" up to {row.upto:.3f}")


def _told_or_small(ratio: Estimate, to: str, where: str = "") -> str:
    return "no clear rise" if math.isnan(ratio.mean) else times(ratio, to, where)
