"""A comparison in numbers and words: curves, tables and headlines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gdro_bench import stats
from gdro_bench.comparison import matched, robust
from gdro_bench.comparison.entries import AXES, CORRECTED, Comparison, Entry, parts_of, same_seeds
from gdro_bench.engine.record import Run
from gdro_bench.score import AUXILIARY, BY_ERROR
from gdro_bench.stats import Estimate, Weights

PARTS = {  # what no method is trained on: small multiples
    "corrected": "corrected score",
    "u": "judge, mean of its axes (1-5)",
    "alignment": "judge's alignment (1-5)",
    "coherence": "judge's coherence (1-5)",
    "style": "judge's style (1-5)",
    "gold": "gold (share of facts)",
    "agreement": "agreement with a second reader",
    "text_area": "text area (share)",
    "edge_density": "edge density (1/px)",
    "colour_entropy": "colour entropy (bits)",
    "saturation": "saturation (share)",
    "dark_share": "dark pixels (share)",
    "jpeg_bytes": "JPEG length (bytes)",
    "diversity": "diversity (RMS)",
    "vendi": "Vendi score of a prompt",
    "velocity_ratio": "|v| / |v of the base|",
    "path_kl": "KL of the path (nats)",
}
OTHERS = {  # of interest in one table only
    "exact": "exact match (share)",
    "correct": "verdict (share)",
    "strict": "strict verdict (share)",
    "extra_characters": "extra characters",
    "corrected_each": "corrected score, picture by picture",
    "second_reader": "reward by a second reader",
}
BY_TAG = "correct "  # what the parts of GenEval's verdict begin with, one a tag
PREFIXES = (BY_TAG, BY_ERROR, AUXILIARY)  # of parts that come in kinds
STEPS = 5  # levels of reward in the table of times to reward
CUTS = (0.3, 0.5, 0.7, 0.9, 1.0)  # of the way to the highest shared reward, in the table of costs by cut
ENOUGH = 10  # seeds: where they alone differ, a bootstrap over five holds the truth in 9 cases of 10, over three in 8
FEW = 10  # pictures: of fewer no share that is gone is told
WIDE = 2  # an interval whose ends are further apart by factor is said to be wide
NOT_KNOWN = str(Estimate(math.nan, math.nan, math.nan))
TEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
ONE = Estimate(1.0, 1.0, 1.0)  # of the reference to itself
TABLED = ("corrected", "u", "gold", "text_area", "vendi", "path_kl")  # the columns of tables


@dataclass(frozen=True, slots=True)
class Table:
    """A table for people, cells as text, and the numbers behind it."""

    name: str
    title: str
    header: list[str]
    cells: list[list[str]]
    numbers: pd.DataFrame

    def markdown(self) -> str:
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.cells]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"

    def latex(self) -> str:
        body = [" & ".join(map(_tex, line)) + r" \\" for line in [self.header, *self.cells]]
        columns = "l" + "r" * (len(self.header) - 1)
        top = [f"% {self.title}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule"]
        return "\n".join([*top, *body[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_bytes(frame: pd.DataFrame) -> bytes:
    text: str = frame.to_csv(index=False, float_format="%.6g")
    return text.encode()


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
                row |= _spread(name, estimate)
            rows.append(row)
        for run in entry.runs if len(entry.runs) > 1 else ():
            alone = Entry(entry.label, (run,))
            costs = _costs(alone)
            for i, point in enumerate(alone.points):
                row = {"label": entry.label, "seed": str(run.run.seed), "mark": point.mark} | costs[i]
                rows.append(row | {name: float(alone.mean(name)[i]) for name in names})
    return pd.DataFrame(rows)


def _costs(entry: Entry) -> list[dict[str, object]]:
    """On every axis, until each evaluation point."""
    costs = {axis: entry.cost(axis, True) for axis in AXES}
    costs |= {f"{axis}_without_pool": entry.cost(axis, False) for axis in AXES}
    return [{axis: float(spent[i]) for axis, spent in costs.items()} for i in range(len(entry.points))]


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
        spreads = [_spread(name, estimate) for _, _, (name, estimate) in line]
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
    to, apart = compared.reference.label, _against(compared, end.entry, end.difference)
    line = [
        ("reward at the end", str(end.reward), ("reward", end.reward)),
        (f"against {to}'s", apart, ("difference", end.difference)),
    ]
    if row is not None:
        heading, cheaper = f"cost to equal reward, times {to}'s", row.mean[True]
        line.append((heading, _mean_ratio(row, cheaper, to), ("mean_ratio", cheaper)))
    if CORRECTED in compared.parts:
        score = end.parts[CORRECTED]
        line.append(("corrected score at the end", str(score), ("corrected", score)))
    if "gold" in compared.parts:
        change = matched.since_base(compared, end.entry, "gold")
        line.append(("gold, against the base's", _told(change, end.entry), ("gold_change", change)))
    return line


def reward_table(compared: Comparison, rows: Sequence[matched.AtReward], level: float, axis: str) -> Table:
    to, parts = compared.reference.label, _tabled(compared)
    header = ["method", "first point at R* or above", "reward there", f"{AXES[axis]} to R*", f"ratio to {to}"]
    header += ["without pools", f"ratio to {to}, without pools", f"ratio to {to}, until it stays at R*"]
    header += [f"mean ratio to {to} over levels", f"mean ratio to {to}, without pools"]
    header += [f"{_label_of(name)} at R*" for name in parts]
    cells, numbers = [], []
    for row in rows:
        mark = _first_mark(row)
        costs = [text for pool in (True, False) for text in (_cost(row.cost[pool]), _ratio(row, row.ratio[pool], to))]
        costs.append(_ratio(row, row.staying, to))
        costs += [_mean_ratio(row, row.mean[pool], to) for pool in (True, False)]
        at_level = [
            "not reached" if mark == "not reached" else _with_interval(row.parts[name], "too often not there")
            for name in parts
        ]
        cells.append([row.entry.label, mark, str(row.reward), *costs, *at_level])
        number: dict[str, object] = {
            "label": row.entry.label,
            "seeds": len(row.entry.runs),
            "level": level,
            "mark": mark,
        }
        number |= _spread("reward", row.reward) | _spreads(row.parts)
        for pool, suffix in ((True, ""), (False, "_without_pool")):
            number |= _spread(f"{axis}{suffix}", row.cost[pool]) | _spread(f"ratio{suffix}", row.ratio[pool])
            number |= _spread(f"mean_ratio{suffix}", row.mean[pool])
        numbers.append(number | _spread("ratio_until_it_stays", row.staying))
    title = f"At matched reward, R* = {level:.3f}"
    return Table("matched-reward", title, header, cells, pd.DataFrame(numbers))


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
    cells = [[entry.label, *(_cost(spent[entry.label]) for _, spent in levels)] for entry in compared.entries]
    cells += [[f"{label}, times {to}'s", *(_times(ratio, to) for ratio in ratios)] for label, ratios in rows.items()]
    numbers = [
        {"label": label, "level": level}
        | _spread(axis, cost)
        | _spread("ratio", rows[label][i] if label != to else ONE)
        for i, (level, spent) in enumerate(levels)
        for label, cost in spent.items()
    ]
    title = f"Time to reward: {AXES[axis]} to levels on the way from the base to the highest of {to}"
    return Table("time-to-reward", title, header, cells, pd.DataFrame(numbers))


def cut_table(compared: Comparison, rows: Sequence[matched.AtReward], axis: str) -> Table | None:
    """What the cost to equal reward would be if levels went up to another share of the way: whether it hangs on where
    they are cut off. None where no method has one."""
    told = [row for row in rows if row.entry is not compared.reference and math.isfinite(row.upto)]
    if not told:
        return None
    to, cells, numbers = compared.reference.label, [], []
    for row in told:
        ratios = {
            cut: (row.mean if cut == matched.UPTO else matched.mean_ratio(compared, row.entry, axis, cut))[True]
            for cut in CUTS
        }
        cells.append([row.entry.label, *(_times(ratio, to) for ratio in ratios.values())])
        numbers += [{"label": row.entry.label, "cut": cut} | _spread("ratio", ratio) for cut, ratio in ratios.items()]
    header = ["method", *(f"up to {cut:.0%}" for cut in CUTS)]
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
        | _spread("ratio", row.ratio[True])
        | _spread("ratio_without_pool", row.ratio[False])
        for row in rows
    )


def _first_mark(row: matched.AtReward) -> str:
    if row.mark is None:
        return NOT_KNOWN if math.isnan(row.cost[True].mean) else "not reached"
    return f"{row.entry.points[row.mark].mark:.0%} of the budget"


def budget_table(compared: Comparison, rows: Sequence[matched.AtBudget]) -> Table:
    parts, run = _tabled(compared), compared.first
    falls = {CORRECTED: "corrected score against its highest before"} if CORRECTED in compared.parts else {}
    header = ["method", "seeds", "reward", "gain over base", *falls.values()]
    header += map(_label_of, parts)
    cells, numbers = [], []
    for row in rows:
        texts = [row.entry.label, str(len(row.entry.runs)), str(row.reward), str(row.gain)]
        fallen = {name: matched.since_best(compared, row.entry, name) for name in falls}
        texts += [_told(fall, row.entry) for fall in fallen.values()]
        cells.append([*texts, *(str(row.parts[name]) for name in parts)])
        number: dict[str, object] = {"label": row.entry.label, "seeds": len(row.entry.runs)}
        number |= _spread("reward", row.reward) | _spread("gain", row.gain) | _spread("difference", row.difference)
        numbers.append(number | _spreads({f"{name}_fall": fall for name, fall in fallen.items()}) | _spreads(row.parts))
    title = f"At matched budget, {run.limit:,} {run.budget_kind}"
    return Table("matched-budget", title, header, cells, pd.DataFrame(numbers))


def verdict_table(compared: Comparison) -> Table | None:
    """The all-or-nothing verdicts behind the reward, the base's and each method's at the end: OCR's exact match, or
    GenEval's by tag and, as published, the mean over tags. None where the reward has no such part."""
    tags = {name: name.removeprefix(BY_TAG) for name in compared.parts if name.startswith(BY_TAG)}
    columns = tags or {name: _label_of(name) for name in ("exact",) if name in compared.parts}
    if not columns:
        return None
    names, header = list(columns), ["method", *(["mean over tags"] if tags else []), *columns.values()]
    cells, numbers = [], []
    for label, entry, mark in [("base", compared.reference, 0), *((e.label, e, -1) for e in compared.entries)]:
        means = np.array([entry.mean(name)[mark] for name in names])
        drawn = np.stack([entry.replicates(name, compared.prompts)[:, mark] for name in names])
        verdicts = (
            {"overall": stats.estimate(float(stats.known_mean(means)), stats.known_mean(drawn, 0))} if tags else {}
        )
        verdicts |= {name: stats.estimate(float(means[i]), drawn[i]) for i, name in enumerate(names)}
        cells.append([label, *map(str, verdicts.values())])
        numbers.append({"label": label} | _spreads(verdicts))
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
            cells[-1] += [str(end), _told(change, entry), _against(compared, entry, difference)]
            row |= _spread(part, end) | _spread(f"{part}_change", change) | _spread(f"{part}_difference", difference)
        numbers.append(row)
    title = "What the reward is made of, at the end of the budget"
    return Table("parts-of-the-reward", title, header, cells, pd.DataFrame(numbers))


def robust_table(compared: Comparison) -> Table:
    """The interquartile mean of the rewards at the end of the budget and the probability of improvement over the
    reference."""
    to, cells, numbers = compared.reference.label, [], []
    for entry in compared.entries:
        iqm = robust.iqm(entry, compared.prompts)
        above = (
            None
            if entry is compared.reference
            else robust.improvement_over(entry, compared.reference, compared.prompts)
        )
        cells.append([entry.label, str(iqm), "" if above is None else str(above)])
        row: dict[str, object] = {"label": entry.label, "seeds": len(entry.runs)} | _spread("iqm", iqm)
        numbers.append(row | (_spread("improvement", above) if above else {}))
    header = ["method", "interquartile mean", f"probability of improvement over {to}"]
    title = "At the end of the budget, as Agarwal et al. (2021) ask: a seed is a run, a prompt a task"
    return Table("robust", title, header, cells, pd.DataFrame(numbers))


def error_table(compared: Comparison) -> Table | None:
    """For each kind of error that gold names: how often the base makes it, of the pictures on which it can be seen, or
    of their letters, and how much of that each method has removed at the end, of the prompts where it can be seen then,
    too; of an error that the base makes on too few pictures for a share, how much more often the method makes it. None
    where gold names none."""
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
            gone, more = (of(compared, entry, part) for of in (matched.removed, matched.since_base))
            both = matched.seen_at_both(entry, part)
            cells[-1].append((_more(more) if few else _share(gone)) + (f" of {both}" if both != seen else ""))
            row: dict[str, object] = {"error": kind, "label": entry.label} | _spread("base", before)
            row |= _spread("end", matched.part_at(compared, entry, part, -1))
            numbers.append(row | _spread("removed", gone) | _spread("change", more))
    header = [
        "error",
        "base: share of pictures or their letters",
        *(f"gone with {entry.label}" for entry in compared.entries),
    ]
    title = (
        "Errors by kind: how often the base makes them, and how much of that is gone at the end of the budget "
        f"(of fewer than {FEW} pictures: the share's change)"
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
            *(_against(compared, entry, apart) for entry, apart in row),
        ]
        for part, row in rows.items()
    ]
    numbers = [
        {"error": part.removeprefix(BY_ERROR), "label": entry.label} | _spread("difference", apart)
        for part, row in rows.items()
        for entry, apart in row
    ]
    title = f"Errors by kind: shares at the end of the budget, against {to.label}'s"
    return Table("errors-apart", title, header, cells, pd.DataFrame(numbers))


def _pictures(compared: Comparison, part: str) -> float:
    """Of how many of the base's pictures an error is; of letters, the sum of shares."""
    return float(np.nansum(compared.reference.runs[0].parts[part][0]))


def pareto_table(compared: Comparison, costs: Mapping[str, float]) -> pd.DataFrame:
    """For every entry at the end of the budget, the gain in reward as `x`, the change of gold as `y`, each with its
    _low and _high, and its cost."""
    return pd.DataFrame(
        {"label": entry.label, "cost": costs[entry.label]}
        | _spread("x", matched.since_base(compared, entry, "reward"))
        | _spread("y", matched.since_base(compared, entry, "gold"))
        for entry in compared.entries
    )


def prediction_table(compared: Comparison, checkpoints: int, correlations: Mapping[str, Estimate]) -> Table:
    header = ["figure", "rank correlation with gold [95 %]"]
    ordered = sorted(correlations.items(), key=lambda item: -np.nan_to_num(item[1].mean))
    names = labels(compared, [name for name, _ in ordered])
    cells = [[name, _with_interval(rho, "too few runs")] for name, (_, rho) in zip(names, ordered, strict=True)]
    numbers = pd.DataFrame([{"figure": name} | _spread("rank_correlation", rho) for name, rho in ordered])
    title = f"What predicts gold, over {checkpoints} checkpoints"
    return Table("predicts-gold", title, header, cells, numbers)


def labels(compared: Comparison, parts: Sequence[str]) -> list[str]:
    """What axes are called: a judge by its own name, since a figure may travel alone."""
    judge = compared.instruments.get("judge", "judge").removesuffix(" (1-5)")
    return [_label_of(name).replace("judge", judge) for name in parts]


def _label_of(part: str) -> str:
    if part.startswith(BY_TAG):
        return f"verdict on {part.removeprefix(BY_TAG)}"
    return (PARTS | OTHERS).get(part, part)


def drawn_parts(compared: Comparison) -> list[str]:
    """Those that are known of any picture: an empty panel tells nothing."""
    known = {name for entry in compared.entries for run in entry.runs for name, values in run.parts.items()
             if np.isfinite(values).any()}  # fmt: skip
    return [name for name in PARTS if name in compared.parts and name in known]


def _tabled(compared: Comparison) -> list[str]:
    return [name for name in TABLED if name in compared.parts]


def _spread(name: str, estimate: Estimate) -> dict[str, object]:
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _spreads(parts: Mapping[str, Estimate]) -> dict[str, object]:
    return {name: value for part, estimate in parts.items() for name, value in _spread(part, estimate).items()}


def _told(difference: Estimate, *of: Entry) -> str:
    """In words where all of these entries have several seeds: the luck of one seed is in no interval."""
    if np.isnan([difference.mean, difference.low, difference.high]).any():
        return NOT_KNOWN
    number = f"{stats.three_decimals(difference.mean, '+')} {str(difference).partition(' ')[2]}"
    several = min(len(entry.runs) for entry in of) > 1
    return f"{difference.against_zero.removesuffix(' of')}: {number}" if several else number


def _against(compared: Comparison, entry: Entry, difference: Estimate) -> str:
    """A difference to the reference, and over which seeds, if not all."""
    if entry is compared.reference:
        return ""
    ours, theirs = same_seeds(entry, compared.reference)
    seeds = ", ".join(map(str, theirs.seeds))
    alone = len(ours.runs) < len(entry.runs) or len(theirs.runs) < len(compared.reference.runs)
    where = f", seed{'s'[: len(theirs.runs) > 1]} {seeds} of both" if alone else ""
    return f"{_told(difference, ours, theirs)}{where}"


def _with_interval(estimate: Estimate, why_not: str) -> str:
    """With its interval, or why there is none."""
    if math.isnan(estimate.mean) or not math.isnan(estimate.low):
        return str(estimate)
    return f"{stats.three_decimals(estimate.mean)}, no interval: {why_not}"


def _cost(cost: Estimate) -> str:
    return NOT_KNOWN if math.isnan(cost.mean) else _bounded(cost, "{:,.0f}".format)


def _ratio(row: matched.AtReward, ratio: Estimate, to: str) -> str:
    """One of the row's ratios. Where neither method arrives it is NaN, though both costs are known: infinite; where
    only `to` does not, it is 0."""
    return NOT_KNOWN if math.isnan(row.cost[True].mean) else _times(ratio, to)


def _mean_ratio(row: matched.AtReward, ratio: Estimate, to: str) -> str:
    if math.isnan(row.cost[True].mean):  # a reward that nobody knows is no small one
        return NOT_KNOWN
    return "rises too little to tell" if math.isnan(ratio.mean) else _times(ratio, to, f" up to {row.upto:.3f}")


def _times(ratio: Estimate, to: str, where: str = "") -> str:
    if ratio.mean == 0:
        return f"{to} not there"
    if ratio.low == ratio.high == 1:
        return "1"
    if math.isfinite(ratio.mean) and math.isnan(ratio.low):
        return f"{ratio.mean:.2f}{where}, no interval: too often neither is there"
    wide = ", wide" if math.isfinite(ratio.mean) and ratio.high > WIDE * ratio.low else ""
    return _bounded(ratio, lambda value: f"{value:.2f}" if value else f"{to} not there") + where + wide


def _bounded(estimate: Estimate, text_of: Callable[[float], str]) -> str:
    if not math.isfinite(estimate.mean):
        return "not reached"
    high = text_of(estimate.high) if math.isfinite(estimate.high) else "not reached"
    return f"{text_of(estimate.mean)} [{text_of(estimate.low)}, {high}]"


def _share(estimate: Estimate) -> str:
    if math.isnan(estimate.mean):
        return NOT_KNOWN
    return f"{estimate.mean:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"


def _more(change: Estimate) -> str:
    if math.isnan(change.mean):
        return NOT_KNOWN
    return f"share {stats.three_decimals(change.mean, '+')} {str(change).partition(' ')[2]}"


def _tex(text: str) -> str:
    return text.translate(TEX).replace("R*", "$R^*$")


def _instruments(compared: Comparison) -> str:
    return " ".join(
        f"{what.capitalize()}: {name.removeprefix(f'{what}: ')}." for what, name in compared.instruments.items()
    )


def _end(end: matched.AtBudget, run: Run) -> str:
    seeds = len(end.entry.runs)
    over = "1 seed" if seeds == 1 else f"{seeds} seeds"
    if math.isnan(end.gain.mean):
        return f"What {end.entry.label} gains over the base by {run.limit:,} {run.budget_kind} ({over}) is not known."
    return (
        f"{end.entry.label} ends at {end.reward}, {end.gain.against_zero} the base by {end.gain}, "
        f"after {run.limit:,} {run.budget_kind} ({over})."
    )


def _missing(compared: Comparison) -> list[str]:
    """How many pictures have no score, if any; in how many judgements the judge gave none."""
    runs = [run for entry in compared.entries for run in entry.runs]
    unscored = sum(int(np.isnan(run.parts["reward"]).sum()) for run in runs)
    pictures = sum(run.parts["reward"].size for run in runs)
    unjudged, judged = sum(run.unjudged for run in runs), sum(run.to_judge for run in runs)
    lines = [f"{unscored:,} of {pictures:,} pictures could not be scored and are in no mean."] if unscored else []
    return lines + (
        [f"{unjudged:,} of {judged:,} pictures could not be judged and are in no mean."] if unjudged else []
    )


def headlines(compared: Comparison, at_budget: Sequence[matched.AtBudget], level: float | None, axis: str) -> list[str]:
    """What the table in short leaves out, in sentences."""
    sentences = [_end(at_budget[compared.entries.index(compared.reference)], compared.first)]
    if level is not None:
        sentences.append(
            f"Costs to equal reward, in {AXES[axis]}, are geometric means over levels of reward: from the base's up to "
            f"the one that stands with them, {matched.UPTO:.0%} of the way to the highest that both methods surely "
            f"reach. Another cut gives another number (below); of one level alone, R* = {level:.3f}, they are known "
            f"worse. Wide: an interval whose ends are more than a factor {WIDE} apart, which tells little."
        )
    elif len(compared.entries) > 1:
        sentences.append("No method's reward rises above the base's beyond noise: nothing to match.")
    sentences.append(
        f"{_instruments(compared)} Brackets are 95 % bootstrap intervals over {_drawn_anew(compared)}; "
        f"{len(set(compared.reference.runs[0].prompts))} prompts."
    )
    return [*sentences, *_of_variants(compared), *_of_one_pool(compared), *_missing(compared)]


def _drawn_anew(compared: Comparison) -> str:
    """What intervals are over, in words."""
    seeds = [len(entry.runs) for entry in compared.entries]
    alone = "prompts alone where there is one seed (its luck is not in them)"
    few = "" if min(seeds) >= ENOUGH else "; of so few seeds they are too narrow"
    several = f"seeds and prompts{few}"
    return alone if max(seeds) == 1 else several if min(seeds) > 1 else f"{several}; over {alone}"


def _of_variants(compared: Comparison) -> list[str]:
    """How variants of the reference's method are held against it, if there are any."""
    to = compared.reference
    variants = any(entry.method == to.method and entry is not to for entry in compared.entries)
    return [f"Other numbers of {to.label} are held against its runs of the same seeds alone."] if variants else []


def _of_one_pool(compared: Comparison) -> list[str]:
    """Whose interval over seeds is narrower than that of methods that draw prompts anew with every seed."""
    several = [entry for entry in compared.entries if len(entry.runs) > 1]
    methods = {entry.label: entry.runs[0].run.settings["method"] for entry in several}
    names = [
        label
        for label, of in methods.items()
        if of.get("pool", {}).get("shared") and of.get("mode", "offline") != "online"
    ]
    told = "All seeds of {} train on the prompts of one pool: their intervals do not hold the luck of another."
    return [told.format(", ".join(names))] if names else []
