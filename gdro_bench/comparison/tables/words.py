"""What parts are called; numbers as the text of a cell, and as the columns of the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gdro_bench import stats
from gdro_bench.comparison.entries import Comparison, Entry, same_seeds
from gdro_bench.engine.record import Run
from gdro_bench.score import AUXILIARY, BY_ERROR
from gdro_bench.stats import Estimate

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
TABLED = ("corrected", "u", "gold", "text_area", "vendi", "path_kl")  # the columns of tables
WIDE = 2  # an interval whose ends are further apart by factor is said to be wide
NOT_KNOWN = str(Estimate(math.nan, math.nan, math.nan))


def prompts_of(run: Run) -> str:
    """Whose prompts a run was evaluated on: `held-out`, `tuning` or `own`."""
    if any(setting.startswith("prompts=") for setting in run.changed):
        return "own"
    return "tuning" if "tuning" in str(run.settings["profile"].get("prompts", "")) else "held-out"


def tested_on(run: Run) -> str:
    """The same in a sentence."""
    prompts = run.settings["profile"].get("prompts", "")
    return {
        "own": "the user's own prompts",
        "tuning": f"the prompt set {prompts}, on which methods' settings are chosen: this is no test",
        "held-out": "held-out prompts",
    }[prompts_of(run)]


def labels(compared: Comparison, parts: Sequence[str]) -> list[str]:
    """What axes are called: a judge by its own name, since a figure may travel alone."""
    judge = compared.instruments.get("judge", "judge").removesuffix(" (1-5)")
    return [label_of(name).replace("judge", judge) for name in parts]


def label_of(part: str) -> str:
    if part.startswith(BY_TAG):
        return f"verdict on {part.removeprefix(BY_TAG)}"
    return (PARTS | OTHERS).get(part, part)


def drawn_parts(compared: Comparison) -> list[str]:
    """Those that are known of any picture: an empty panel tells nothing."""
    known = {name for entry in compared.entries for run in entry.runs for name, values in run.parts.items()
             if np.isfinite(values).any()}  # fmt: skip
    return [name for name in PARTS if name in compared.parts and name in known]


def tabled(compared: Comparison) -> list[str]:
    return [name for name in TABLED if name in compared.parts]


def spread(name: str, estimate: Estimate) -> dict[str, object]:
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def spreads(parts: Mapping[str, Estimate]) -> dict[str, object]:
    return {name: value for part, estimate in parts.items() for name, value in spread(part, estimate).items()}


def told(difference: Estimate, *of: Entry) -> str:
    """In words where all of these entries have several seeds: the luck of one seed is in no interval."""
    if np.isnan([difference.mean, difference.low, difference.high]).any():
        return NOT_KNOWN
    number = change_text(difference)
    several = min(len(entry.runs) for entry in of) > 1
    return f"{difference.against_zero.removesuffix(' of')}: {number}" if several else number


def against(compared: Comparison, entry: Entry, difference: Estimate) -> str:
    """A difference to the reference, and over which seeds, if not all."""
    if entry is compared.reference:
        return ""
    ours, theirs = same_seeds(entry, compared.reference)
    seeds = ", ".join(map(str, theirs.seeds))
    alone = len(ours.runs) < len(entry.runs) or len(theirs.runs) < len(compared.reference.runs)
    where = f", seed{'s'[: len(theirs.runs) > 1]} {seeds} of both" if alone else ""
    return f"{told(difference, ours, theirs)}{where}"


def with_interval(estimate: Estimate, why_not: str) -> str:
    """With its interval, or why there is none."""
    if math.isnan(estimate.mean) or not math.isnan(estimate.low):
        return str(estimate)
    return f"{stats.three_decimals(estimate.mean)}, no interval: {why_not}"


def cost_text(cost: Estimate) -> str:
    return NOT_KNOWN if math.isnan(cost.mean) else _bounded(cost, "{:,.0f}".format)


def times(ratio: Estimate, to: str, where: str = "") -> str:
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


def change_text(change: Estimate) -> str:
    if math.isnan(change.mean):
        return NOT_KNOWN
    return f"{stats.three_decimals(change.mean, '+')} {str(change).partition(' ')[2]}"
