"""Proposes GDRO's beta: the one whose implicit rewards s spread by about 1 within a group after some updates.

    python -m benchmarks.calibrate_beta PROFILE TASK [--beta 12] [--updates 50] [--prompts 24] [--set GROUP.KEY=VALUE]

Trains on a small pool with each beta and reads `s_spread` from its steps.parquet. s is linear in beta as long as the
updates are small, so the proposal is beta / spread; a second call with it confirms. The runs are kept under --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from gdro_bench import progress, registry
from gdro_bench.cli import _console
from gdro_bench.distributed import process_group
from gdro_bench.engine import runner
from gdro_bench.engine.plan import Plan, make_plan
from gdro_bench.models import pick_device

QUICK = ("profile.held_out_prompts=2", "profile.kept_images=2", "profile.drift.prompts=0", "profile.judge.name=none",
         "profile.judge.gold=none", "profile.budget.marks=[1.0]")  # fmt: skip


def planned(chosen: argparse.Namespace, beta: float) -> Plan:
    """A run of so many updates; its budget is the pool and they."""
    settings = (*QUICK, f"method.pool.prompts={chosen.prompts}", f"method.beta={beta}", *chosen.settings)
    draft = make_plan(chosen.task, "gdro", chosen.profile, 0, chosen.out, settings)
    costs = registry.lookup("method", "gdro").costs(draft.config, draft.profile.sampler)
    budget = costs.pool.evaluations + chosen.updates * costs.update.evaluations
    settings = (*settings, "profile.budget.kind=evaluations")
    return make_plan(chosen.task, "gdro", chosen.profile, 0, chosen.out, settings, budget)


def spread(folder: Path, updates: int) -> float:
    """The mean `s_spread` of the last fifth of the updates."""
    steps = pd.read_parquet(folder / "steps.parquet")
    return float(steps[steps["kind"] == "optimise"]["s_spread"].tail(max(1, updates // 5)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("task")
    parser.add_argument("--beta", type=float, action="append")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/calibrate"))
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    print("| beta | s_spread | proposed beta |\n| ---: | ---: | ---: |")
    for beta in chosen.beta or [12.0]:
        plan = planned(chosen, beta)
        with process_group(pick_device(chosen.device)) as processes, progress.RunBars(_console(True)) as bars:
            runner.execute(plan, bars, processes)
        seen = spread(plan.folder, chosen.updates)
        print(f"| {beta:g} | {seen:.3g} | {beta / seen:.3g} |", flush=True)


if __name__ == "__main__":
    main()
