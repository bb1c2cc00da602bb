"""A comparison -> tables, figures, grids and a page. Everything written is a function of the records and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gdro_bench import figures
from gdro_bench.compare import matched, page, prediction
from gdro_bench.compare.entries import AXES, CORRECTED, Comparison, Entry, setting_of
from gdro_bench.compare.grids import grids
from gdro_bench.compare.tables import (
    Table,
    budget_table,
    curve_table,
    drawn_parts,
    headlines,
    labels,
    prediction_table,
    reward_table,
    short_table,
    verdict_table,
)
from gdro_bench.files import write_atomically


def write(compared: Comparison, out: Path, axis: str, level: float | None) -> tuple[list[str], Table]:
    """Writes the whole report and returns its headlines and the table in short.

    Args:
        axis: a key of `AXES`, what cost is counted in. level: R*; chosen if None.
    """
    level = matched.common_level(compared) if level is None else level
    at_reward = [] if level is None else matched.at_reward(compared, level, axis)
    at_budget = matched.at_budget(compared)
    short = short_table(compared, at_reward, at_budget)
    tables = [short, *([reward_table(compared, at_reward, level, axis)] if level is not None else [])]
    tables += [budget_table(compared, at_budget), *([verdict] if (verdict := verdict_table(compared)) else [])]
    checkpoints, correlations = prediction.rank_correlations(compared)
    tables += [prediction_table(compared, checkpoints, correlations)] if correlations else []
    said = headlines(compared, at_budget, level, axis)
    curves = curve_table(compared.entries, compared.prompts)
    drawn = _draw(compared, curves, out, axis, level)
    pictures = grids(compared, at_reward)
    for grid in pictures:
        figures.sample_sheet(out / f"grid-{grid.name}", grid.columns, grid.captions, grid.prompts)
    _write_text(out, tables, curves, said)
    html = page.render(_title(compared), said, tables, drawn, pictures, _runs(compared))
    write_atomically(out / "page.html", html.encode())
    return said, short


def _title(compared: Comparison) -> str:
    run = compared.first
    return f"{run.task} on {run.profile}: {', '.join(entry.label for entry in compared.entries)}"


def _write_text(out: Path, tables: Sequence[Table], curves: pd.DataFrame, said: Sequence[str]) -> None:
    write_atomically(out / "curves.csv", _csv(curves))
    parts = ["\n".join(f"- {sentence}" for sentence in said) + "\n"]
    for table in tables:
        write_atomically(out / f"{table.name}.csv", _csv(table.numbers))
        write_atomically(out / f"{table.name}.md", table.markdown().encode())
        write_atomically(out / f"{table.name}.tex", table.latex().encode())
        parts.append(f"## {table.title}\n\n{table.markdown()}")
    write_atomically(out / "report.md", "\n".join(parts).encode())


def _csv(frame: pd.DataFrame) -> bytes:
    text: str = frame.to_csv(index=False, float_format="%.6g")
    return text.encode()


# ---------------------------------------------------------------------------------------------------------------
# Figures and grids


def _draw(compared: Comparison, curves: pd.DataFrame, out: Path, axis: str, level: float | None) -> dict[str, Path]:
    """Title -> PNG of every figure drawn."""
    out.mkdir(parents=True, exist_ok=True)
    y_label, panels = f"held-out {compared.first.instruments['reward']}", {axis: AXES[axis]}
    if (curves[axis] != curves[f"{axis}_without_pool"]).any():
        panels = {axis: f"{AXES[axis]}, pools counted", f"{axis}_without_pool": f"{AXES[axis]}, pools not counted"}
    drawn = {"Reward against cost": out / "reward", "Reward against the pictures' statistics": out / "quality"}
    figures.cost_curves(out / "reward", curves, panels, "reward", y_label, level)
    if CORRECTED in compared.parts:
        drawn["Corrected score against cost"] = out / "corrected"
        by = f"corrected score ({compared.instruments['reward']}; {compared.instruments['judge']})"
        figures.cost_curves(out / "corrected", curves, panels, CORRECTED, by, None)
    figures.trajectories(out / "quality", curves, _labelled(compared), y_label)
    for (method, name), entries in compared.ablations.items():
        title = f"{method}: {name}"
        drawn[f"Ablation, {title}"] = out / f"ablation-{method}-{name.replace('.', '-')}"
        _draw_ablation(drawn[f"Ablation, {title}"], title, entries, [setting_of(e, name) for e in entries], compared)
    return {title: path.with_suffix(".png") for title, path in drawn.items()}


def _labelled(compared: Comparison) -> dict[str, str]:
    parts = drawn_parts(compared)
    return dict(zip(parts, labels(compared, parts), strict=True))


def _draw_ablation(
    path: Path, title: str, entries: Sequence[Entry], values: Sequence[Any], compared: Comparison
) -> None:
    """Lines are named by the value that their entry has for the number."""
    curves = curve_table(entries, compared.prompts)
    named = {entry.label: str(value) for entry, value in zip(entries, values, strict=True)}
    curves["label"] = curves["label"].map(named)
    panels = {"reward": "held-out reward"} | dict(list(_labelled(compared).items())[:2])
    figures.ablation(path, curves, panels, title, AXES["updates"])
    write_atomically(path.with_suffix(".csv"), _csv(curves))


def _runs(compared: Comparison) -> list[list[str]]:
    """For every run: what it is called, its seed, and the command that repeats it."""
    rows = []
    for entry in compared.all_entries:
        for evaluated in entry.runs:
            run = evaluated.run
            flags = " ".join(f"--set '{setting}'" for setting in run.changed)
            command = (
                f"gdro-bench run {run.task} --profile {run.profile} --method {run.method} --seed {run.seed} {flags}"
            )
            rows.append([entry.label, str(run.seed), run.digests["method"], command.strip()])
    return rows
