"""The search for each method's numbers: on prompts that are not held out, alike for all; the best trial gives them."""

from pathlib import Path

import pytest

from gdro_bench import content, task
from gdro_bench.engine import plan
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.tuning import space, tuned
from gdro_bench.engine.tuning.tuned import Trial, Tuned
from gdro_bench.registry import TABLES

ROOT = Path(__file__).parents[1]
PROFILE = content.find("profile", "pocket")
TASKS = ("ocr", "geneval")
SEARCHES = tuned.find(ROOT / "reports" / "search")
README = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")


SHORT, LONG = 12_000, 60_000  # evaluations of a trial: of all numbers, and then of the rate alone
RATES = [4e-4, 1e-3, 2.66e-3]


def named(search: Tuned) -> str:
    return f"{search.task}-{search.method}-{search.budget}"


def planned(name: str, method: str, *settings: str) -> Plan:
    return plan.make_plan(name, method, "pocket", 0, Path("runs"), settings)


def best(search: Tuned) -> Trial:
    return next(trial for trial in search.trials if trial.number == search.best)


def of_budget(budget: int) -> list[Tuned]:
    return [search for search in SEARCHES if search.budget == budget]


def row(search: Tuned) -> str:
    """A line of the reports: the first trial, the best one, and what it drew; or every trial's rate."""
    if search.budget == LONG:
        trials = sorted(search.trials, key=lambda trial: float(trial.settings["optimiser.learning_rate"]))
        return f"| {search.method}, {search.task} | " + " | ".join(str(trial.value) for trial in trials) + " |"
    found, first = best(search), search.trials[0]
    drawn = ", ".join(f"{name.split('.')[-1]} {value}" for name, value in found.settings.items())
    return f"| {search.method} | {first.value} | {found.value} | {found.gain} | {found.number}: {drawn} |"


def test_all_searches_are_alike() -> None:
    assert {(one.seed, one.budget_kind, one.budget, len(one.trials), one.failed) for one in SEARCHES} == {
        (0, "evaluations", SHORT, 8, 0),
        (0, "evaluations", LONG, len(RATES), 0),
    }


def test_the_rate_was_searched_of_both_methods_on_both_tasks_alike() -> None:
    assert {(one.task, one.method) for one in of_budget(LONG)} == {
        (name, method) for name in TASKS for method in ("gdro", "flow-grpo")
    }
    for search in of_budget(LONG):
        assert list(search.space) == ["optimiser.learning_rate"]
        assert sorted(trial.settings["optimiser.learning_rate"] for trial in search.trials) == RATES


@pytest.mark.parametrize("search", of_budget(SHORT), ids=named)
def test_a_search_was_made_in_the_space_that_is_here(search: Tuned) -> None:
    numbers = plan.read_numbers(PROFILE / f"{search.method}.toml", search.task)
    domains = space.read(PROFILE / f"{search.method}{content.SPACE_SUFFIX}", search.task, numbers)
    drawn = [space.draw(domains, search.seed, trial.number) for trial in search.trials]
    assert [trial.settings for trial in search.trials[1:]] == drawn[1:]  # the first one has the method's own numbers


@pytest.mark.parametrize("search", SEARCHES, ids=named)
def test_the_best_trial_gives_the_numbers(search: Tuned) -> None:
    """Of a second search, only if it is above the numbers that the first has found beyond noise."""
    values = {trial.number: trial.value.mean for trial in search.trials if trial.value is not None}
    assert search.best == max(values, key=lambda number: values[number])
    found = best(search)
    assert found.gain is not None
    chosen = found if search.budget == SHORT or found.gain.low > 0 else search.trials[0]
    assert content.digest(planned(search.task, search.method).settings["method"]) == chosen.digest


@pytest.mark.parametrize("name", TASKS)
def test_no_held_out_prompt_was_looked_at(name: str) -> None:
    tuning = planned(name, "gdro", "profile.prompts=pocket-tuning", "profile.held_out_prompts=100")
    assert not {prompt.text for prompt in tuning.held_out} & {prompt.text for prompt in planned(name, "gdro").held_out}
    assert len({task.digest([prompt]) for prompt in tuning.held_out}) == 100


@pytest.mark.parametrize("search", SEARCHES, ids=named)
def test_the_reports_quote_the_search(search: Tuned) -> None:
    assert row(search) in README.split("### rates\n" if search.budget == LONG else f"### {search.task}\n")[1]


@pytest.mark.parametrize("name", TASKS)
def test_the_reports_name_the_methods_that_were_not_searched(name: str) -> None:
    missing = sorted(set(TABLES["method"]) - {search.method for search in SEARCHES if search.task == name})
    sentence = f"Not searched on this base yet: {', '.join(missing)}." if missing else ""
    assert sentence in README.split(f"### {name}\n")[1].split("\n### ")[0]
