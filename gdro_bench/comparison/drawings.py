"""A comparison's figures. One more is one function that draws it and one line in `FIGURES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gdro_bench import content, figures
from gdro_bench.comparison import matched, robust
from gdro_bench.comparison.entries import AXES, CORRECTED, Comparison, Entry, label_of, setting_of
from gdro_bench.comparison.tables.costs import curve_table, ratio_table
from gdro_bench.comparison.tables.ends import pareto_table
from gdro_bench.comparison.tables.table import Table, csv_bytes
from gdro_bench.comparison.tables.words import drawn_parts, labels, prompts_of
from gdro_bench.files import write_atomically


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that was drawn: `path` is its PNG file, with a PDF file beside it."""

    name: str
    title: str
    caption: str
    path: Path


@dataclass(frozen=True, slots=True)
class Drawing:
    """What figures are drawn from: the comparison, its curves (`costs.curve_table`), the folder they go to, what cost
    is counted in (a key of `AXES`), R* or None, the entries there, and the table of errors if there is one."""

    compared: Comparison
    curves: pd.DataFrame
    out: Path
    axis: str
    level: float | None
    at_reward: Sequence[matched.AtReward] = ()
    errors: Table | None = None

    def figure(self, name: str, title: str, caption: str) -> Figure:
        return Figure(name, title, caption, self.out / f"{name}.png")

    @property
    def styles(self) -> figures.Styles:
        """A method looks the same whatever it is called here."""
        own = {entry.label: label_of(entry.runs[0].run) for entry in self.compared.entries}
        styles = figures.styles_of(own.values())
        return {label: styles[name] for label, name in own.items()}

    @property
    def with_flat_starts(self) -> pd.DataFrame:
        """The curves with the point put in at which a pool was full and nothing learnt yet."""
        by_label, parts = {entry.label: entry for entry in self.compared.entries}, []
        for (label, seed), rows in self.curves.groupby(["label", "seed"], sort=False):
            entry = by_label[label]
            one = entry if seed == "mean" else Entry(label, tuple(r for r in entry.runs if str(r.run.seed) == seed))
            parts.append(_flat_start(rows, one, self.axis))
        return pd.concat(parts, ignore_index=True)

    @property
    def reward_label(self) -> str:
        run = self.compared.first
        return f"{run.instruments['reward']}, {prompts_of(run)} prompts"

    @property
    def panels(self) -> dict[str, str]:
        """Column of a cost -> its label: with and without pools, if a run has one."""
        axis, label = self.axis, AXES[self.axis]
        if not (self.curves[axis] != self.curves[f"{axis}_without_pool"]).any():
            return {axis: label}
        return {axis: f"{label}, pools counted", f"{axis}_without_pool": f"{label}, pools not counted"}

    @property
    def statistics(self) -> dict[str, str]:
        """Statistic of the pictures -> its label."""
        parts = drawn_parts(self.compared)
        return dict(zip(parts, labels(self.compared, parts), strict=True))


def _flat_start(rows: pd.DataFrame, entry: Entry, axis: str) -> pd.DataFrame:
    """An entry's rows with one more, the base's at the cost of the pool, if there is one; that is no evaluation."""
    measured = rows.assign(measured=True)
    counted, without = (matched.pool_point(entry, axis, pool) for pool in (True, False))
    if counted is None or without is None or counted == without:
        return measured
    at, paid = counted
    flat = measured.iloc[:1].assign(measured=False, **{axis: paid, f"{axis}_without_pool": without[1]})
    return pd.concat([measured.iloc[:at], flat, measured.iloc[at:]])


def draw(
    compared: Comparison,
    curves: pd.DataFrame,
    out: Path,
    axis: str,
    level: float | None,
    at_reward: Sequence[matched.AtReward] = (),
    errors: Table | None = None,
) -> list[Figure]:
    """Draws every figure that the comparison has the data for, in the page's order."""
    out.mkdir(parents=True, exist_ok=True)
    drawing = Drawing(compared, curves, out, axis, level, at_reward, errors)
    return [figure for draw_one in FIGURES for figure in draw_one(drawing)]


def _reward(drawing: Drawing) -> Iterator[Figure]:
    entries = drawing.compared.entries
    lines = "mean over seeds" if max(len(entry.runs) for entry in entries) > 1 else "the one seed"
    bands = "Thin: each seed; band: 95 % interval."
    if len(entries) > figures.MANY:
        bands += f" Grey, in every panel: {drawing.compared.reference.label}."
    elif len(entries) > figures.CROWD:
        bands = "A bar right of the axis: 95 % interval of the last point."
    level = "" if drawing.level is None else " Dashed: R*, the level of the tables."
    figure = drawing.figure(
        "reward",
        "Reward against cost",
        f"Lines: {lines}. {bands} A pool is paid for before the first update: the flat start of a curve. Dotted: the "
        f"base.{level}",
    )
    _against_cost(drawing, figure.path, "reward", drawing.reward_label, drawing.level)
    yield figure


def _against_cost(drawing: Drawing, path: Path, score: str, label: str, level: float | None) -> None:
    """Of many entries the curves have a panel each, and one way of counting cost."""
    curves, panels, styles = drawing.with_flat_starts, drawing.panels, drawing.styles
    if len(drawing.compared.entries) > figures.MANY:
        x, x_label = next(iter(panels.items()))
        reference = drawing.compared.reference.label
        figures.cost_panels(path, curves, x, x_label, score, label, level, styles, reference)
    else:
        figures.cost_curves(path, curves, panels, score, label, level, styles)


def _cost_ratio(drawing: Drawing) -> Iterator[Figure]:
    """And its curves as CSV."""
    rows = matched.at_levels(drawing.compared, drawing.axis)
    if not rows:
        return
    to = drawing.compared.reference.label
    figure = drawing.figure(
        "cost-ratio",
        f"Cost of every level of reward, against {to}",
        f"How many times the cost of {to} a method takes to each level of reward, from the base's to the highest of "
        f"{to}; below 1 it is cheaper. Band: 95 % interval, paired over prompts; none where in more than "
        "2.5 % of resamples neither gets there (thin line); hatched where it has no end, since one of the two does not "
        "get there. Where it holds 1, the two are not told apart. A line ends at the highest level that the method "
        "reaches. A tick: up to there costs are averaged. Dashed: R*.",
    )
    curves = ratio_table(rows)
    columns = dict(zip(("ratio", "ratio_without_pool"), drawing.panels.values(), strict=False))
    panels = {column: f"times the cost of {to} ({label})" for column, label in columns.items()}
    upto = {row.entry.label: row.upto for row in drawing.at_reward}
    figures.ratio_curves(figure.path, curves, panels, drawing.styles, drawing.reward_label, drawing.level, upto)
    write_atomically(figure.path.with_suffix(".csv"), csv_bytes(curves))
    yield figure


def _statistics(drawing: Drawing) -> Iterator[Figure]:
    figure = drawing.figure(
        "quality",
        "Reward against the pictures' statistics",
        "From the base (dot) to the end of the budget (marker, with 95 % intervals). A method whose "
        "reward rises while a statistic leaves the base's value changes more than it was asked to.",
    )
    figures.trajectories(figure.path, drawing.curves, drawing.statistics, drawing.reward_label, drawing.styles)
    yield figure


def _corrected(drawing: Drawing) -> Iterator[Figure]:
    if CORRECTED not in drawing.compared.parts:
        return
    correction = drawing.compared.reference.runs[0].correction
    figure = drawing.figure(
        "corrected",
        "Corrected score against cost",
        f"The reward bent by a judge that no method sees: r (u - {correction.pivot:g}) + {correction.shift:g}, with r "
        "the mean reward and u the mean of the judge's axes (arXiv 2601.02036, section 4.1). Reward that costs quality "
        "lowers it.",
    )
    instruments = drawing.compared.instruments
    label = f"corrected score ({instruments['reward']}; {instruments['judge']})"
    _against_cost(drawing, figure.path, CORRECTED, label, None)
    yield figure


def _pareto(drawing: Drawing) -> Iterator[Figure]:
    """What a gain was paid with, in gold and in cost."""
    compared = drawing.compared
    if "gold" not in compared.parts or drawing.level is None or not drawing.at_reward:
        return
    costs = {row.entry.label: row.cost[True].mean for row in drawing.at_reward}
    ends = pareto_table(compared, costs)
    figure = drawing.figure(
        "pareto",
        "Gain against gold",
        "At the end of the budget: what the reward gained over the base, and what the share of the prompt's facts that "
        f"hold gained or lost. Area: cost of R* = {drawing.level:.3f}, pools counted. Right, up and small is better. "
        "Bars: 95 % intervals.",
    )
    size = f"area: {AXES[drawing.axis]} to R*, pools counted"
    gain = f"gain over the base: {drawing.reward_label}"
    figures.pareto(figure.path, ends, gain, "gold (share of facts), less the base's", size, drawing.styles)
    yield figure


def _profile(drawing: Drawing) -> Iterator[Figure]:
    """How the rewards at the end are spread, which a mean does not tell."""
    figure = drawing.figure(
        "performance-profile",
        "Performance profile",
        "At the end of the budget: the share of scores, of all held-out prompts and seeds, above each reward (Agarwal "
        "et al. 2021). A curve that lies above another everywhere is better for prompts of any difficulty. Band: 95 % "
        "interval.",
    )
    shares = robust.profiles(drawing.compared)
    figures.profiles(figure.path, shares, drawing.reward_label, drawing.styles)
    write_atomically(figure.path.with_suffix(".csv"), csv_bytes(shares))
    yield figure


def _errors(drawing: Drawing) -> Iterator[Figure]:
    if drawing.errors is None:
        return
    figure = drawing.figure(
        "errors",
        "Errors by kind",
        "Share of held-out pictures with each kind of error, of those on which it can be seen, as the known world "
        "tells it: the base's, and each method's at the end of the budget. Bars: 95 % intervals.",
    )
    figures.errors_by_kind(figure.path, drawing.errors.numbers, drawing.styles)
    yield figure


def _ablations(drawing: Drawing) -> Iterator[Figure]:
    """One for each setting that runs differ in alone, and its curves as CSV; lines are named by the setting's value."""
    for (method, number), entries in drawing.compared.ablations.items():
        title, caption = (
            f"Ablation, {method}: {number}",
            "Runs that differ in this setting alone. Bars: 95 % intervals of the last points. Dotted: the base.",
        )
        name = content.safe_name(f"ablation-{method}-{number.replace('.', '-')}")
        figure = drawing.figure(name, title, caption)
        curves = _named_by_value(curve_table(entries, drawing.compared.prompt_weights), entries, number)
        known = [(part, label) for part, label in drawing.statistics.items() if part in curves]  # of all of them
        panels = {"reward": "held-out reward"} | dict(known[:2])
        drawn = curves.assign(measured=True)
        figures.ablation(figure.path, drawn, panels, f"{method}: {number}", drawing.axis, AXES[drawing.axis])
        write_atomically(figure.path.with_suffix(".csv"), csv_bytes(curves))
        yield figure


def _named_by_value(curves: pd.DataFrame, entries: tuple[Entry, ...], number: str) -> pd.DataFrame:
    values = {entry.label: str(setting_of(entry, number)) for entry in entries}
    return curves.assign(label=curves["label"].map(values))


FIGURES: tuple[Callable[[Drawing], Iterator[Figure]], ...] = (
    _reward,
    _cost_ratio,
    _statistics,
    _corrected,
    _pareto,
    _errors,
    _profile,
    _ablations,
)
