"""The search for each method's numbers: on prompts that are not held out, by one rule a task, every trial told."""

from pathlib import Path

import pandas as pd
import pytest

from gdro_bench import content, task
from gdro_bench.engine import plan, record
from gdro_bench.engine.record import Point, Run
from gdro_bench.engine.tuning import tuned
from gdro_bench.engine.tuning.tuned import Trial, Tuned
from gdro_bench.stats import Estimate, paired_gain

ROOT = Path(__file__).parents[1]
BUDGETS = {
    "ocr": {"gdro": 80_000, "dpo": 80_000, "rft": 80_000, "flow-grpo": 72_000, "dance-grpo": 72_000},
    "geneval": dict.fromkeys(("gdro", "dpo", "rft", "flow-grpo", "dance-grpo"), 48_000),
}
# What the trials did before these numbers had names.
UNNAMED = {
    "optimiser.epsilon": 1e-8, "std_unbiased": False, "std_epsilon": 1e-4, "drop_zero": True, "shuffle": True,
}  # fmt: skip
# What DanceGRPO has from its published code since.
PUBLISHED = {"noisy_last", "std_unbiased", "std_epsilon", "drop_zero", "shuffle"}
# The second edition's budget is half as large, and so are its pools; its own searches will take the place of these.
POOLED = {"gdro": {"pool.prompts"}, "dpo": {"pool.prompts"}, "rft": {"pool.prompts"}, "dance-grpo": PUBLISHED}
FILES = [path for name in BUDGETS for path in sorted((ROOT / "reports" / f"search-{name}-pocket").glob("*.json"))]
TRIALS = {path: record.read_file(path) for path in FILES}
SCORES = pd.read_parquet(ROOT / "reports" / "search-geneval-pocket" / "scores.parquet")


def of(name: str, method: str) -> dict[Path, Run]:
    return {path: run for path, run in TRIALS.items() if (run.task, run.method) == (name, method)}


def at_budget(run: Run) -> Point:
    """Two trials went on to the profile's whole budget; what counts is what they had at that of the others."""
    return next(point for point in run.points if round(point.mark * run.limit) == BUDGETS[run.task][run.method])


def over_first_numbers(path: Path) -> Estimate:
    """Gain of a GenEval trial over the method's first one, paired by prompt and noise."""
    ends = SCORES[SCORES["mark"] == 1.0]
    before, after = (ends[ends["trial"] == trial] for trial in (f"{TRIALS[path].method}-1", path.stem))
    assert before["text"].tolist() == after["text"].tolist()
    return paired_gain(before["value"].to_numpy(), after["value"].to_numpy(), prompts=after["text"].tolist())


def row(path: Path) -> str:
    run = TRIALS[path]
    changed = ", ".join(setting.removeprefix("method.") for setting in run.changed if setting.startswith("method."))
    point = at_budget(run)
    start = f"| {run.method} | {changed or 'first numbers'} | {point.updates} | {point.reward} |"
    if run.task == "ocr":
        return start
    return f"{start}  |" if path.stem.endswith("-1") else f"{start} {over_first_numbers(path)} |"


def differences(run: Run) -> set[str]:
    """Numbers in which the method's file is not the trial's."""
    path = content.find("profile", "pocket") / f"{run.method}.toml"
    tables = plan.read_numbers(path, run.task)
    if "online" in tables and (tables.pop("online")["rounds"], tables.pop("adaptive_beta")["rule"]) != (1, "fixed"):
        return {"online", "adaptive_beta"}
    numbers = content.flatten(tables)
    tried = {name: value for name, value in UNNAMED.items() if name in numbers} | content.flatten(
        run.settings["method"]
    )
    return {name for name in numbers | tried if numbers.get(name) != tried.get(name)}


def gives_the_numbers(run: Run) -> bool:
    return differences(run) == POOLED.get(run.method, set())


@pytest.mark.parametrize("name", BUDGETS)
def test_every_method_had_as_many_trials(name: str) -> None:
    assert {method: len(of(name, method)) for method in BUDGETS[name]} == dict.fromkeys(BUDGETS[name], 3)


@pytest.mark.parametrize("name", BUDGETS)
def test_no_held_out_prompt_was_looked_at(name: str) -> None:
    whole = ("profile.prompts=pocket-tuning", "profile.held_out_prompts=200")
    tuning = plan.make_plan(name, "gdro", "pocket", 0, Path("runs"), whole)
    seen = task.repeat_draws(tuning.held_out, 4 if name == "geneval" else 1)  # as the first edition painted them
    assert {run.digests["held_out"] for run in TRIALS.values() if run.task == name} == {task.digest(seen)}
    held_out = plan.make_plan(name, "gdro", "pocket", 0, Path("runs")).held_out
    assert not {prompt.text for prompt in tuning.held_out} & {prompt.text for prompt in held_out}


@pytest.mark.parametrize("method", BUDGETS["ocr"])
def test_the_best_trial_gives_the_numbers(method: str) -> None:
    assert gives_the_numbers(max(of("ocr", method).values(), key=lambda run: at_budget(run).reward.mean))


@pytest.mark.parametrize("method", BUDGETS["geneval"])
def test_ocr_s_numbers_stay_on_geneval_unless_a_trial_is_better_beyond_noise(method: str) -> None:
    gains = {path: over_first_numbers(path) for path in of("geneval", method)}
    better = {path: gain.mean for path, gain in gains.items() if gain.low > 0}
    assert gives_the_numbers(TRIALS[max(better, key=lambda path: better[path]) if better else min(gains)])


@pytest.mark.parametrize("path", TRIALS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_reports_quote_the_trial(path: Path) -> None:
    assert row(path) in (ROOT / "reports" / "README.md").read_text(encoding="utf-8")


# -- the same search for every method

TUNE = ROOT / "reports" / "tune-ocr-pocket"
SEARCHES = [tuned.read(path) for path in sorted(TUNE.glob("*/tune.json"))]


def tuned_row(search: Tuned, trial: Trial) -> str:
    drawn = [format(value, "g") if isinstance(value, float) else str(value) for value in trial.settings.values()]
    best = ", best" if trial.number == search.best else ""
    numbers = f"{', '.join(drawn[:3])}; {', '.join(drawn[3:])}"
    return f"| {search.method} | {trial.number}{best} | {numbers} | {trial.updates} | {trial.value} |"


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.method)
def test_the_reports_tell_every_tuned_trial(search: Tuned) -> None:
    text = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    assert [trial.number for trial in search.trials if tuned_row(search, trial) not in text] == []
    values = {trial.number: trial.value.mean for trial in search.trials if trial.value is not None}
    assert search.best == max(values, key=lambda number: values[number])


def test_methods_of_one_report_are_searched_alike() -> None:
    assert len({(search.task, search.budget, search.seed, len(search.trials)) for search in SEARCHES}) == 1
