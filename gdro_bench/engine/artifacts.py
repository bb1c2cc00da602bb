"""What a finished run leaves in its folder. The record is written last: a folder with it is a finished run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError

from gdro_bench import figures
from gdro_bench.engine import record, samples
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.record import Run
from gdro_bench.engine.run_state import RunState
from gdro_bench.files import not_written, sync, write_atomically
from gdro_bench.policy import Policy

SHEET_PROMPTS = 16


def record_of(plan: Plan, state: RunState, model: str, reward: str) -> Run:
    """The record of a run that has spent its budget. model, reward: names of what was trained and of what scored."""
    return Run(
        schema=record.SCHEMA,
        version=", then ".join(state.code),
        task=plan.task.name,
        profile=plan.profile_name,
        method=plan.method,
        seed=plan.seed,
        settings=plan.settings,
        changed=plan.changed,
        digests=plan.digests | {"model": model},
        instruments={"reward": reward},
        budget_kind=state.ledger.kind,
        limit=state.ledger.limit,
        points=tuple(state.points),
    )


def keep_adapters(folder: Path, save: Callable[[Path], object]) -> None:
    """Has `save` write a folder that is there whole or not at all.

    Raises:
        BenchError: it cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        for leftover in (partial, folder):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        save(partial)
        sync(partial)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own
        shutil.rmtree(partial, ignore_errors=True)
        raise not_written(folder, error) from error


def write(plan: Plan, state: RunState, run: Run, policy: Policy, machine: dict[str, object]) -> None:
    """Tables, adapters, the sheet, times, the machine and the record. The policy carries the weights that were
    evaluated."""
    folder = plan.folder
    _write_table(folder / "scores.parquet", state.scores)
    _write_table(folder / "steps.parquet", state.steps)
    keep_adapters(folder / "lora", policy.save)
    _draw_sheet(plan, state)
    write_atomically(folder / "timing.json", json.dumps(state.seconds, indent=1).encode())
    write_atomically(folder / "machine.json", json.dumps(machine, indent=1).encode())
    record.write(run, folder)


def _write_table(path: Path, rows: list[dict[str, object]]) -> None:
    write_atomically(path, pd.DataFrame(rows).to_parquet())


def _draw_sheet(plan: Plan, state: RunState) -> None:
    """The first held-out prompts before and after, from the same noise."""
    columns, captions = {}, {}
    for title, mark in (("before", 0.0), ("after", plan.profile.budget.marks[-1])):
        path = samples.path_of(plan.folder, mark)
        columns[title] = samples.read(path, samples.numbers(path)[:SHEET_PROMPTS])
        captions[title] = [row["note"] for row in state.scores if row["mark"] == mark][: len(columns[title])]
    prompts = [prompt.text for prompt in plan.held_out[: len(columns["before"])]]
    figures.sample_sheet(plan.folder / "sheet", columns, captions, prompts)
