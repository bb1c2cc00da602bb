"""The search for each method's numbers: on prompts that are not held out, the best trial kept, every trial told."""

from pathlib import Path

import pytest

from gdro_bench import content, plan, record, task
from gdro_bench.record import Point, Run

ROOT = Path(__file__).parents[1]
BUDGETS = {
    "ocr": {"gdro": 80_000, "dpo": 80_000, "rft": 80_000, "flow-grpo": 72_000, "dance-grpo": 72_000},
}
TRIALS = [path.parent for name in BUDGETS for path in sorted((ROOT / "reports").glob(f"tuning-{name}-*/*/run.json"))]
RUNS = [record.read(folder) for folder in TRIALS]
SEARCHES = [(name, method) for name, budgets in BUDGETS.items() for method in budgets]


def at_budget(run: Run) -> Point:
    """Two trials went on to the profile's whole budget; what counts is what they had at that of the others."""
    return next(point for point in run.points if round(point.mark * run.limit) == BUDGETS[run.task][run.method])


def row(run: Run) -> str:
    said = ", ".join(setting.removeprefix("method.") for setting in run.changed if setting.startswith("method."))
    point = at_budget(run)
    return f"| {run.method} | {said or 'first numbers'} | {point.updates} | {point.reward} |"


@pytest.mark.parametrize("name", BUDGETS)
def test_every_method_had_as_many_trials(name: str) -> None:
    methods = [run.method for run in RUNS if run.task == name]
    assert {method: methods.count(method) for method in methods} == dict.fromkeys(BUDGETS[name], 3)


@pytest.mark.parametrize("name", BUDGETS)
def test_no_held_out_prompt_was_looked_at(name: str) -> None:
    tuning = plan.make(name, "gdro", "pocket", 0, Path("runs"), ("profile.prompts=pocket-tuning",))
    assert {run.digests["held_out"] for run in RUNS if run.task == name} == {task.digest(tuning.held_out)}
    held_out = plan.make(name, "gdro", "pocket", 0, Path("runs")).held_out
    assert not {prompt.text for prompt in tuning.held_out} & {prompt.text for prompt in held_out}


@pytest.mark.parametrize(("name", "method"), SEARCHES)
def test_the_best_trial_gives_the_numbers(name: str, method: str) -> None:
    trials = [run for run in RUNS if (run.task, run.method) == (name, method)]
    best = max(trials, key=lambda run: at_budget(run).reward.mean)
    numbers = plan.numbers(content.find("profile", "pocket") / f"{method}.toml", name)
    assert content.flat(best.settings["method"]) == content.flat(numbers)


@pytest.mark.parametrize("run", RUNS, ids=[f"{folder.parent.name}/{folder.name}" for folder in TRIALS])
def test_the_readme_quotes_the_trial(run: Run) -> None:
    assert row(run) in (ROOT / "baselines" / "README.md").read_text(encoding="utf-8")
