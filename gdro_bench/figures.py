"""Records and images -> figures. Knows nothing of torch."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray
from PIL import Image

from gdro_bench.files import write_atomically
from gdro_bench.stats import Estimate

Style = tuple[Any, str, Any]  # colour, marker, line
Styles = Mapping[str, Style]  # of every label


def _subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """As of pyplot, whose state and backend are the user's own."""
    figure = Figure(figsize=figsize)
    return figure, figure.subplots(rows, columns, **options)


def _wrapped(label: str, width: int) -> str:
    return textwrap.fill(label, width, break_on_hyphens=False)  # names of instruments have hyphens


def sample_sheet(
    path: Path, columns: dict[str, NDArray[np.uint8]], captions: dict[str, list[str]], prompts: list[str]
) -> None:
    """Rows of a prompt and one image a column, each captioned with what was read or detected, if anything was; written
    as PNG and PDF.

    Args:
        path: without ending. columns: title -> images [N, H, W, 3]. captions: title -> N captions, or
            not there. prompts: N.
    """
    width = len(columns) + 1
    beside = max(1, 6 // width)  # prompts beside each other
    rows = -(-len(prompts) // beside)
    told = any(itertools.chain(*captions.values()))  # a reward that reads nothing has none
    wrapped = {
        title: [_wrapped(_plain(text or "(nothing read)"), 34) for text in texts]
        for title, texts in captions.items()
        if told
    }
    lines = max((_wrapped(title, 34).count("\n") + 1 for title in columns), default=0)
    lines += max((text.count("\n") + 1 for texts in wrapped.values() for text in texts), default=0)
    size = (2.0 * beside * width, (2.0 + 0.15 * lines) * rows)
    figure, axes = _subplots(rows, beside * width, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
        axis.xaxis.set_visible(False)  # or titles are placed by ticks that nobody sees
        axis.yaxis.set_visible(False)
    for i, prompt in enumerate(prompts):
        row, first = i // beside, (i % beside) * width
        axes[row, first].text(
            0.98, 0.5, "\n".join(textwrap.wrap(_plain(prompt), 24)), ha="right", va="center", fontsize=8
        )
        for j, (title, images) in enumerate(columns.items(), first + 1):
            axes[row, j].imshow(images[i], interpolation="nearest")
            axes[row, j].set_title(
                "\n".join([_wrapped(_plain(title), 34), *wrapped.get(title, [])[i : i + 1]]), fontsize=8
            )
    figure.tight_layout()  # once more than `save`: squares that it made smaller leave other room to their titles
    save(figure, path)


LONGEST = 160  # characters of a prompt or caption on a sheet; the records hold all of them


def _plain(text: str) -> str:
    """As matplotlib's own font can draw it: not too long, no mathematics, a box for characters of other scripts."""
    short = text if len(text) <= LONGEST else text[: LONGEST - 1] + "\u2026"
    return "".join("\u25a1" if ord(c) >= 0x2E80 else c for c in short).replace("$", r"\$")


def loss_curve(path: Path, losses: pd.DataFrame) -> None:
    """Training loss against images seen, a panel a stage; `losses` has columns stage, images, loss."""
    stages = list(dict.fromkeys(losses["stage"]))
    figure, axes = _subplots(1, len(stages), figsize=(4.2 * len(stages), 2.8), squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        of_stage = losses[losses["stage"] == stage]
        axis.plot(of_stage["images"] / 1000, of_stage["loss"], color="#0072B2")
        axis.set(title=stage, xlabel="images seen (thousands)", ylabel="training loss", ylim=(0, None))
        axis.grid(alpha=0.3)
    save(figure, path)


def cost_curves(
    path: Path,
    curves: pd.DataFrame,
    panels: dict[str, str],
    y: str,
    y_label: str,
    level: float | None,
    styles: Styles,
) -> None:
    """A score against cost, a panel a way of counting it: mean, 95 % band and every seed. Of more than four labels the
    bands would hide each other: there the last point alone has its interval, as a bar right of the axis.

    Args:
        curves: rows (label, seed) in order of cost, `seed` "mean" or a number; columns of costs, of the score `y`,
            `y`_low and `y`_high, and `measured`, whether a point is one of evaluation, which has a marker. panels:
            column of a cost -> its label. level: a reward to draw a line at, R*. styles: of every label.
    """
    figure, axes = _subplots(1, len(panels), figsize=(4.6 * len(panels) + 0.6, 4.0), sharey=True, squeeze=False)
    crowded = curves["label"].nunique() > CROWD
    for axis, (column, x_label) in zip(axes[0], panels.items(), strict=True):
        for i, (label, rows) in enumerate(curves.groupby("label", sort=False)):
            _band(axis, rows, column, y, str(label), styles[str(label)], crowded)
            if crowded:
                _end_bar(axis, rows[rows["seed"] == "mean"].iloc[-1], column, y, styles[str(label)], i)
        _heights(axis, curves[y].iloc[0], level)
        _cost_axis(axis, x_label)
    _name_heights(axes[0, -1], curves[y].iloc[0], level, 7 + (END_BAR * curves["label"].nunique() if crowded else 0))
    axes[0, 0].set_ylabel(_wrapped(y_label, 48))
    _legend(figure, axes[0, 0])
    save(figure, path)


def cost_panels(
    path: Path,
    curves: pd.DataFrame,
    x: str,
    x_label: str,
    y: str,
    y_label: str,
    level: float | None,
    styles: Styles,
    reference: str,
) -> None:
    """A score against cost, a panel a label, in each of which the reference is drawn, too, in grey: mean, 95 % band and
    every seed. For more labels than one panel can tell apart.

    Args:
        curves: as for `cost_curves`, in whose order the panels are. x: column of the cost. reference: a label.
    """
    of_label = {str(label): rows for label, rows in curves.groupby("label", sort=False)}
    held_against = of_label.pop(reference)
    columns = min(4, len(of_label))
    rows_of_panels = -(-len(of_label) // columns)
    size = (2.7 * columns + 0.8, 2.3 * rows_of_panels + 0.5)
    figure, axes = _subplots(rows_of_panels, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis, (label, rows) in zip(axes.flat, of_label.items(), strict=False):
        _band(axis, held_against, x, y, reference, ("0.45", styles[reference][1], styles[reference][2]))
        _band(axis, rows, x, y, label, styles[label])
        _heights(axis, curves[y].iloc[0], level)
        _cost_axis(axis, "")
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.set_title(_wrapped(label, 34), fontsize=9)
    for axis in axes.flat[len(of_label) :]:
        axis.set_axis_off()
    for lowest in axes.flat[max(0, len(of_label) - columns) : len(of_label)]:
        lowest.tick_params(labelbottom=True)
    figure.supxlabel(x_label, fontsize=10)
    _name_heights(axes[0, -1], curves[y].iloc[0], level, 7)
    figure.supylabel(_wrapped(y_label, 25 * len(axes)), fontsize=10, multialignment="center")
    save(figure, path)


def ratio_curves(
    path: Path,
    curves: pd.DataFrame,
    panels: dict[str, str],
    styles: Styles,
    x_label: str,
    level: float | None,
    upto: Mapping[str, float],
) -> None:
    """Ratios of cost against the level of reward: a line with its 95 % band a label, on an axis of powers of 2; a panel
    a label beside each other, where there are several, and a row a way of counting cost. Where a ratio is not finite,
    nothing is drawn; where it has no interval its line is thin, and where its interval has no end the band is hatched.
    A tick on a line is the level up to which costs are averaged.

    Args:
        curves: rows (label, level) in order of level; columns of ratios, each with its _low and _high. panels: column
            of a ratio -> its label. styles: of every label. level: a reward to draw a line at, R*. upto: label ->
            where its tick is.
    """
    of_label = {str(label): rows for label, rows in curves.groupby("label", sort=False)}
    folds = -(-len(of_label) // BESIDE)  # rows of panels a way of counting
    columns = -(-len(of_label) // folds)
    size = (max(4.6, 2.9 * columns + 0.8), 0.6 + 3.0 * folds * len(panels))
    figure, axes = _subplots(folds * len(panels), columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    drawn = curves[list(panels)].to_numpy()
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    limits = min([0.5, *drawn.tolist()]) / 1.4, max([2.0, *drawn.tolist()]) * 1.4
    for way, (column, y_label) in enumerate(panels.items()):
        own = axes[way * folds : (way + 1) * folds]
        for axis, (label, rows) in zip(own.flat, of_label.items(), strict=False):
            _ratio_band(axis, rows, column, label, styles[label], limits)
            _tick(axis, rows["level"].to_numpy(float), rows[column].to_numpy(float), upto.get(label, math.nan),
                  styles[label])  # fmt: skip
            _ratio_axis(axis, level, limits)
            axis.set_title(_wrapped(label, 30), fontsize=10)
        for axis in own.flat[len(of_label) :]:
            axis.set_axis_off()
        for lowest in own.flat[max(0, len(of_label) - columns) : len(of_label)]:
            lowest.tick_params(labelbottom=True)
        for first in own[:, 0]:
            first.set_ylabel(_wrapped(y_label, 34))
    figure.supxlabel(x_label, fontsize=10)
    save(figure, path)


def _ratio_axis(axis: Axes, level: float | None, limits: tuple[float, float]) -> None:
    """Powers of 2, a line at 1, and one at R*."""
    axis.axhline(1, color="0.35", linewidth=1, linestyle=BASE_LINE)
    if level is not None:
        axis.axvline(level, color="0.35", linewidth=1, linestyle=LEVEL_LINE)
        axis.annotate(
            f"R* {level:.3f}", (level, 0), (3, 4), ("data", "axes fraction"), "offset points", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    axis.set_yscale("log", base=2)
    axis.set_ylim(limits)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.grid(alpha=0.3)


def profiles(path: Path, shares: pd.DataFrame, x_label: str, styles: Styles) -> None:
    """The share of scores above each threshold: a line with its 95 % band a label.

    Args:
        shares: rows (label, threshold) in order of threshold; column share, with its _low and _high.
    """
    figure, axis = _subplots(figsize=(5.2, 4.0))
    for label, rows in shares.groupby("label", sort=False):
        colour, _, line = styles[str(label)]
        axis.plot(rows["threshold"], rows["share"], color=colour, linestyle=line, label=str(label))
        axis.fill_between(rows["threshold"], rows["share_low"], rows["share_high"], color=colour, alpha=0.15, lw=0)
    axis.set(xlabel=_wrapped(f"{x_label}, threshold", 44), ylabel="share of scores above the threshold", ylim=(0, 1))
    axis.grid(alpha=0.3)
    _legend(figure, axis)
    save(figure, path)


def trajectories(path: Path, curves: pd.DataFrame, qualities: dict[str, str], y_label: str, styles: Styles) -> None:
    """Reward against statistics of the pictures, a panel a statistic: from the base (o) to the last evaluation
    point, with the 95 % intervals of both.

    Args:
        curves: as for `cost_curves`, with each statistic, its _low and its _high. qualities: statistic -> its label.
    """
    columns = min(4, len(qualities))
    rows = -(-len(qualities) // columns)
    figure, axes = _subplots(rows, columns, figsize=(3.4 * columns, 3.3 * rows), sharey=True, squeeze=False)
    for axis in axes.flat[len(qualities) :]:
        axis.set_axis_off()
    for axis, (column, x_label) in zip(axes.flat, qualities.items(), strict=False):
        for label, rows_of_it in curves.groupby("label", sort=False):
            _trajectory(axis, rows_of_it, column, str(label), styles[str(label)])
        axis.plot(curves[column].iloc[0], curves["reward"].iloc[0], marker="o", color="0.2", markersize=7, zorder=5)
        axis.set(xlabel=_wrapped(x_label, 36))
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.grid(alpha=0.3)
    for first in axes[:, 0]:
        first.set_ylabel(_wrapped(y_label, 36))
    _legend(figure, axes[0, 0])
    save(figure, path)


def pareto(path: Path, ends: pd.DataFrame, x_label: str, y_label: str, size_label: str, styles: Styles) -> None:
    """Gain against what became of a score that nobody trained on, a marker a label; its area is a cost.

    Args:
        ends: a row a label, with columns `label`, `x` and `y`, each with its _low and _high, and `cost`, NaN where it
            is not known (a cross, in the size of the smallest).
    """
    figure, axis = _subplots(figsize=(6.2, 4.6))
    known = ends["cost"].where(np.isfinite(ends["cost"]))
    largest, smallest = (float(known.max()), float(known.min())) if known.notna().any() else (1.0, 1.0)
    for _, end in ends.iterrows():
        colour = styles[end["label"]][0]
        across, up = ([[max(0.0, end[c] - end[f"{c}_low"])], [max(0.0, end[f"{c}_high"] - end[c])]] for c in ("x", "y"))
        axis.errorbar([end["x"]], [end["y"]], xerr=across, yerr=up, fmt="none", ecolor=colour, elinewidth=1.0)
        paid = math.isfinite(end["cost"])
        area = 600 * (end["cost"] if paid else smallest) / largest
        told = f"{end['label']}: {end['cost']:,.0f}" if paid else f"{end['label']}: not reached"
        axis.scatter([end["x"]], [end["y"]], s=area, color=colour, marker="o" if paid else "x", alpha=0.6)
        axis.plot([], [], color=colour, marker="o" if paid else "x", linestyle="", label=told)
    for line in (axis.axhline, axis.axvline):
        line(0, color="0.35", linewidth=1, linestyle=(0, (1, 2)))
    axis.set(xlabel=_wrapped(x_label, 60))
    axis.set_ylabel(_wrapped(y_label, 48))
    axis.grid(alpha=0.3)
    figure.text(0.5, 0.0, size_label, ha="center", va="top", fontsize=9)
    _legend(figure, axis, -0.03)
    save(figure, path)


def errors_by_kind(path: Path, errors: pd.DataFrame, styles: Styles) -> None:
    """Share of pictures with each kind of error: the base's as an open diamond, every label's with its 95 % interval.

    Args:
        errors: rows (error, label) with columns `base` and `end`, each with its _low and _high.
    """
    kinds, labels = (list(dict.fromkeys(errors[column])) for column in ("error", "label"))
    figure, axis = _subplots(figsize=(6.4, 0.9 + (0.30 + 0.13 * len(labels)) * len(kinds)))
    places = np.linspace(-0.3, 0.3, len(labels) + 1)
    for i, label in enumerate(labels, 1):
        colour, marker, _ = styles[label]
        rows = errors[errors["label"] == label]
        _dots(axis, rows, "end", np.arange(len(kinds)) + places[i], {"color": colour, "marker": marker, "label": label})
    first = errors[errors["label"] == labels[0]]
    base = {"color": "0.2", "marker": "D", "markerfacecolor": "white", "label": "base"}
    _dots(axis, first, "base", np.arange(len(kinds)) + places[0], base)
    axis.set_yticks(np.arange(len(kinds)), kinds)
    axis.invert_yaxis()
    axis.set(xlabel="share of letters, or of pictures on which it can be seen, with this error", xlim=(0, None))
    axis.grid(alpha=0.3, axis="x")
    _legend(figure, axis)
    save(figure, path)


def _dots(axis: Axes, rows: pd.DataFrame, column: str, heights: NDArray[np.float64], style: dict[str, Any]) -> None:
    values, low, high = (rows[name].to_numpy(float) for name in (column, f"{column}_low", f"{column}_high"))
    spread = np.maximum(0.0, np.stack([values - low, high - values]))
    axis.errorbar(values, heights, xerr=spread, linestyle="", markersize=5, elinewidth=1.1, **style)


VERDICT_COLOURS = {
    "reproduced": "#009E73", "partly": "#56B4E9", "at most partly": "#E69F00", "not reproduced": "#D55E00"
}  # fmt: skip


VERDICT_UNITS = {  # group of tests -> how their axis is labelled
    "ratio": "ratio of costs",
    "difference": "difference, or share by which it changes",
    "correlation": "rank correlation",
}


def verdicts(path: Path, tests: pd.DataFrame) -> None:
    """The interval of every test against its bound, a row a test and a panel a unit; the claimed side is shaded. An
    interval without an end ends in an arrow; a number that is not known is said to be so.

    Args:
        tests: rows with columns number (of the claim), task, measured, unit (a key of `VERDICT_UNITS`), value,
            value_low, value_high, bound, weakly, side, seeds and verdict.
    """
    groups = [tests[tests["unit"] == unit] for unit in VERDICT_UNITS if (tests["unit"] == unit).any()]
    figure, axes = _subplots(
        len(groups),
        1,
        figsize=(11.0, 0.33 * len(tests) + 0.6 * len(groups)),
        squeeze=False,
        height_ratios=[len(group) + 1.5 for group in groups],
    )
    axes[0, 0].set_title("Grey: where the test holds. Dashed: its bound; dotted: the weaker one.", fontsize=9)
    for axis, group in zip(axes[:, 0], groups, strict=True):
        _tests(axis, group)
    save(figure, path)


def _tests(axis: Axes, tests: pd.DataFrame) -> None:
    """A row each, on one axis; of ratios it has powers of 2."""
    unit, places = tests["unit"].iloc[0], np.arange(len(tests))
    shown = tests[["value", "value_low", "value_high", "bound", "weakly"]].to_numpy(float)
    shown = shown[np.isfinite(shown) & ((shown > 0) | (unit != "ratio"))]
    low, high = float(shown.min()), float(shown.max())
    if unit == "ratio":
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        low, high = low / 1.3, high * 1.3
    else:
        margin = 0.05 * (high - low) or 1.0
        low, high = low - margin, high + margin
    axis.set(xlim=(low, high), ylim=(len(tests) - 0.4, -0.6))
    for place, (_, test) in zip(places, tests.iterrows(), strict=True):
        _one_test(axis, test, float(place), low, high)
    names = [f"{row['number']}. {row['task']}: {row['measured']}" for _, row in tests.iterrows()]
    axis.set_yticks(places, [_wrapped(_plain(name), 66) for name in names])
    axis.tick_params(axis="y", length=0, labelsize=7)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel(VERDICT_UNITS[unit], fontsize=9)
    for edge in ("left", "right", "top"):
        axis.spines[edge].set_visible(False)


def _one_test(axis: Axes, test: pd.Series, place: float, low: float, high: float) -> None:
    span, colour = [place - 0.38, place + 0.38], VERDICT_COLOURS.get(test["verdict"], "0.35")
    side = [low, test["bound"]] if test["side"] == "at most" else [test["bound"], high]
    axis.fill_between(side, span[0], span[1], color="0.92", lw=0)
    axis.plot([test["bound"]] * 2, span, color="0.35", linewidth=1, linestyle=(0, (3, 2)))
    if np.isfinite(test["weakly"]):
        axis.plot([test["weakly"]] * 2, span, color="0.35", linewidth=1, linestyle=(0, (1, 1.5)))
    known = np.isfinite(test["value"])
    if known and not np.isnan(test["value_low"]):
        axis.plot(
            [max(test["value_low"], low), min(test["value_high"], high)], [place] * 2, color=colour, linewidth=2.2
        )
    if test["value_high"] > high:
        axis.plot(high, place, marker=">", color=colour, markersize=6, clip_on=False)
    if known:
        axis.plot(test["value"], place, marker="o", color=colour, markersize=5)
    seeds = f"{test['seeds']} seed{'s'[: test['seeds'] != 1]}" if test["seeds"] else "no runs"
    told = f"{test['verdict']}, {seeds}" if test["seeds"] else seeds
    told += "" if known or not test["seeds"] else " (not known)"
    axis.annotate(told, (1, place), (6, 0), ("axes fraction", "data"), "offset points", va="center", color=colour,
                  fontsize=8)  # fmt: skip


def ablation(path: Path, curves: pd.DataFrame, panels: dict[str, str], name: str, x: str, x_label: str) -> None:
    """What one setting does: reward and statistics against a cost `x`, a line a value (`label`), dark to light; right
    of the axis the 95 % interval of its last point. Dotted: the base."""
    labels = list(dict.fromkeys(curves["label"]))
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(labels)))
    figure, axes = _subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False)
    for axis, (column, y_label) in zip(axes[0], panels.items(), strict=True):
        for i, label in enumerate(labels):
            style = (colours[i], _MARKERS[i % len(_MARKERS)], "-")
            rows = curves[curves["label"] == label]
            _band(axis, rows, x, column, label, style, without=True)
            _end_bar(axis, rows[rows["seed"] == "mean"].iloc[-1], x, column, style, i)
        axis.axhline(curves[column].iloc[0], color="0.35", linewidth=1, linestyle=BASE_LINE)
        _cost_axis(axis, x_label)
        axis.set_ylabel(_wrapped(y_label, 40))
    figure.suptitle(name)
    _legend(figure, axes[0, 0])
    save(figure, path)


def frontier(path: Path, scales: list[float], curves: dict[str, list[Estimate]], title: str) -> None:
    """Scores against the scale of adapters' updates, a panel a score, with 95 % intervals.

    Args:
        path: without ending. scales: of the points, rising. curves: label of a score -> its values there.
    """
    figure, axes = _subplots(1, len(curves), figsize=(4.2 * len(curves), 3.8), squeeze=False)
    for axis, (label, values), colour, marker in zip(axes[0], curves.items(), _COLOURS, _MARKERS, strict=False):
        mean, low, high = np.array([(one.mean, one.low, one.high) for one in values]).T
        # resampled means are rounded, the mean is not: a distance may come out a hair below 0
        spread = np.maximum(0.0, np.stack([mean - low, high - mean]))
        axis.errorbar(scales, mean, yerr=spread, color=colour, marker=marker, markersize=5, elinewidth=1.2, capsize=3)
        axis.set(xlabel="scale of the adapters' updates\n(0: base, 1: as trained)")
        axis.set_ylabel(_wrapped(label, 40))
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.yaxis.set_major_locator(MaxNLocator(6))
        axis.grid(alpha=0.3)
    figure.suptitle(f"{title}: adapters turned down")
    save(figure, path)


BASE_LINE, LEVEL_LINE = (0, (1, 2)), (0, (5, 3))  # dotted and dashed
END_BAR = 6  # points from one bar right of an axis to the next
BESIDE = 5  # panels in a row, at most
CROWD = 4  # labels: of more, curves have no bands
MANY = 9  # labels: more have a panel each
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),  # Okabe and Ito's
    *("#882255", "#999933"),  # Paul Tol's muted wine and olive: nine methods have a colour each
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)))
_METHODS = ("gdro", "flow-grpo", "dance-grpo", "dpo", "rft", "nft", "awm", "dgpo", "crd")  # whose places are their own


def styles_of(labels: Iterable[str]) -> Styles:
    """Label -> its style. A method's own is the same in every figure; others have those that no method here needs."""
    names = list(dict.fromkeys(labels))
    places = {name: _METHODS.index(name) for name in names if name in _METHODS}
    order = itertools.chain(reversed(range(len(_METHODS))), itertools.count(len(_METHODS)))
    spare = (place for place in order if place not in places.values())
    return {name: _style(places[name] if name in places else next(spare)) for name in names}


def _style(place: int) -> Style:
    again = place // len(_COLOURS)  # colours are used once more: with other markers
    return _COLOURS[place % len(_COLOURS)], _MARKERS[(place + again) % len(_MARKERS)], _LINES[place % len(_LINES)]


def _end_bar(axis: Axes, end: pd.Series, x: str, y: str, style: Style, number: int) -> None:
    """The interval of a curve's last point, right of the axis and beside those of the others."""
    beside = offset_copy(axis.get_yaxis_transform(), axis.get_figure(root=True), 7 + END_BAR * number, units="points")
    ends = [end[f"{y}_low"], end[f"{y}_high"]]
    if np.isfinite(ends).all():
        axis.update_datalim([(end[x], bound) for bound in ends])  # the axis must reach as far
    axis.plot([1, 1], ends, color=style[0], linewidth=1.3, transform=beside, clip_on=False)
    axis.plot([1], [end[y]], color=style[0], marker=style[1], markersize=3.5, transform=beside, clip_on=False)


def _band(axis: Axes, rows: pd.DataFrame, x: str, y: str, label: str, style: Style, without: bool = False) -> None:
    colour, marker, line = style
    for seed, of_seed in rows.groupby("seed", sort=False):
        if seed == "mean":
            shown: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linestyle": line}
            axis.plot(of_seed[x], of_seed[y], markevery=np.flatnonzero(of_seed["measured"]), label=label, **shown)
            if not without:
                axis.fill_between(of_seed[x], of_seed[f"{y}_low"], of_seed[f"{y}_high"], color=colour, alpha=0.15, lw=0)
        elif not without:
            axis.plot(of_seed[x], of_seed[y], color=colour, linewidth=0.7, alpha=0.4)


def _ratio_band(axis: Axes, rows: pd.DataFrame, y: str, label: str, style: Style, limits: tuple[float, float]) -> None:
    """Thin where there is no interval; hatched where it has no end."""
    colour, _, line = style
    known = rows[np.isfinite(rows[y]) & (rows[y] > 0)]
    levels, ratios, low, high = (known[column].to_numpy(float) for column in ("level", y, f"{y}_low", f"{y}_high"))
    sure = ~np.isnan(low)
    ended = sure & (low > 0) & np.isfinite(high)
    axis.plot(levels, np.where(sure, ratios, np.nan), color=colour, linestyle=line, label=label)
    axis.plot(levels, np.where(_and_before(~sure), ratios, np.nan), color=colour, linestyle=line, linewidth=0.7)
    band: dict[str, Any] = {"x": levels, "y1": low.clip(*limits), "y2": high.clip(*limits)}
    axis.fill_between(**band, where=ended, color=colour, alpha=0.15, lw=0)
    hatched: dict[str, Any] = {"hatch": "////", "facecolor": "none", "edgecolor": (*to_rgb(colour), 0.3), "lw": 0}
    axis.fill_between(**band, where=_and_before(sure & ~ended) & sure, **hatched)


def _tick(axis: Axes, levels: NDArray[np.float64], ratios: NDArray[np.float64], at: float, style: Style) -> None:
    """Across a line at a level, if it is drawn there."""
    known = np.isfinite(ratios) & (ratios > 0)
    if known.any() and levels[known].min() <= at <= levels[known].max():
        height = float(np.exp(np.interp(at, levels[known], np.log(ratios[known]))))
        axis.plot([at], [height], color=style[0], marker="|", markersize=16, markeredgewidth=2.5, linestyle="")


def _and_before(here: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Those points and the one before each run of them: where a line goes on."""
    before: NDArray[np.bool_] = here | np.append(here[1:], False)
    return before


def _heights(axis: Axes, base: float, level: float | None) -> None:
    """Lines at the base's score and at R*, where there are such."""
    for height, line in ((base, BASE_LINE), (level, LEVEL_LINE)):
        if height is not None and np.isfinite(height):
            axis.axhline(height, color="0.35", linewidth=1, linestyle=line)


def _name_heights(axis: Axes, base: float, level: float | None, beside: float) -> None:
    """So many points right of the axis, where no curve is."""
    for height, name in ((base, "base"), (level, "R*")):
        if height is not None and np.isfinite(height):
            place = ("axes fraction", "data")
            axis.annotate(f"{name} {height:.3f}", (1, height), (beside, 0), place, "offset points", va="center")


def _cost_axis(axis: Axes, label: str) -> None:
    axis.set(xlabel=label, xlim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.grid(alpha=0.3)


def _trajectory(axis: Axes, rows: pd.DataFrame, x: str, label: str, style: Style) -> None:
    colour, marker, line = style
    for seed, of_seed in rows.groupby("seed", sort=False):
        width, alpha = (1.8, 1.0) if seed == "mean" else (0.7, 0.35)
        axis.plot(of_seed[x], of_seed["reward"], color=colour, linestyle=line, linewidth=width, alpha=alpha)
    end = rows[rows["seed"] == "mean"].iloc[-1]
    # resampled means are rounded, the mean is not: a distance may come out a hair below 0
    across, up = ([[max(0.0, end[c] - end[f"{c}_low"])], [max(0.0, end[f"{c}_high"] - end[c])]] for c in (x, "reward"))
    axis.errorbar([end[x]], [end["reward"]], yerr=up, xerr=across, fmt="none", ecolor=colour, elinewidth=0.9)
    axis.plot(end[x], end["reward"], color=colour, marker=marker, linestyle=line, label=label)


def _legend(figure: Figure, axis: Axes, top: float = 0.0) -> None:
    """Below the figure, in as many columns as its width holds. top: where it begins, as a share of the height."""
    handles, labels = axis.get_legend_handles_labels()
    inches = 0.6 + 0.08 * max(map(len, labels), default=0)  # of a line's sample and a label, about
    columns = max(1, min(len(labels), 5, int(figure.get_figwidth() / inches)))
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, top), ncols=columns, frameon=False)


def save(figure: Figure, path: Path) -> None:
    """PNG and PDF without a date, so that the same data give the same file; each is whole or not there."""
    figure.tight_layout()
    for kind, options in (("png", {"dpi": 110}), ("pdf", {"metadata": {"CreationDate": None}})):
        drawn = io.BytesIO()
        with rc_context({"pdf.fonttype": 42}):  # TrueType: journals refuse Type 3 fonts
            figure.savefig(drawn, format=kind, bbox_inches="tight", **options)
        write_atomically(path.with_suffix(f".{kind}"), drawn.getvalue())


def copy_in_few_colours(old: Path, new: Path) -> None:
    """A PNG in 256 colours: a third of the bytes, and by eye nearly the same."""
    drawn, colours = io.BytesIO(), Image.open(old).convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE)
    colours.save(drawn, "PNG", optimize=True)
    write_atomically(new, drawn.getvalue())
