"""The search for each method's numbers: on training words, the best trial kept, every trial told."""

from pathlib import Path

import pytest

from gdro_bench import content, plan, record, task
from gdro_bench.record import Point, Run

ROOT = Path(__file__).parents[1]
TRIALS = sorted(path.parent for path in (ROOT / "reports" / "tuning-ocr-pocket").rglob("run.json"))
RUNS = [record.read(folder) for folder in TRIALS]
METHODS = sorted({run.method for run in RUNS})
BUDGETS = {"gdro": 80_000, "dpo": 80_000, "rft": 80_000, "flow-grpo": 72_000, "dance-grpo": 72_000}


def at_budget(run: Run) -> Point:
    """Two trials went on to the profile's whole budget; what counts is what they had at that of the others."""
    return next(point for point in run.points if round(point.mark * run.limit) == BUDGETS[run.method])


def row(run: Run) -> str:
    said = ", ".join(setting.removeprefix("method.") for setting in run.changed if setting.startswith("method."))
    point = at_budget(run)
    return f"| {run.method} | {said or 'first numbers'} | {point.updates} | {point.reward} |"


def test_every_method_had_as_many_trials() -> None:
    assert set(METHODS) == set(BUDGETS)
    assert {method: sum(run.method == method for run in RUNS) for method in METHODS} == dict.fromkeys(METHODS, 3)


def test_no_held_out_prompt_was_looked_at() -> None:
    tuning = plan.make("ocr", "gdro", "pocket", 0, Path("runs"), ("profile.prompts=pocket-tuning",))
    assert {run.digests["held_out"] for run in RUNS} == {task.digest(tuning.held_out)}
    held_out = plan.make("ocr", "gdro", "pocket", 0, Path("runs")).held_out
    assert not {prompt.text for prompt in tuning.held_out} & {prompt.text for prompt in held_out}


@pytest.mark.parametrize("method", METHODS)
def test_the_best_trial_gives_the_numbers(method: str) -> None:
    best = max((run for run in RUNS if run.method == method), key=lambda run: at_budget(run).reward.mean)
    numbers = content.read(content.find("profile", "pocket") / f"{method}.toml")
    assert content.flat(best.settings["method"]) == content.flat(numbers)


@pytest.mark.parametrize("run", RUNS, ids=[folder.name for folder in TRIALS])
def test_the_readme_quotes_the_trial(run: Run) -> None:
    assert row(run) in (ROOT / "baselines" / "README.md").read_text(encoding="utf-8")
