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


def named(search: Tuned) -> str:
    return f"{search.task}-{search.method}"


def planned(name: str, method: str, *settings: str) -> Plan:
    return plan.make_plan(name, method, "pocket", 0, Path("runs"), settings)


def best(search: Tuned) -> Trial:
    return next(trial for trial in search.trials if trial.number == search.best)


def row(search: Tuned) -> str:
    """A line of the reports: the first trial, the best one, and what it drew."""
    found, first = best(search), search.trials[0]
    drawn = ", ".join(f"{name.split('.')[-1]} {value}" for name, value in found.settings.items())
    return f"| {search.method} | {first.value} | {found.value} | {found.gain} | {found.number}: {drawn} |"


def test_all_searches_are_alike() -> None:
    assert {(one.seed, one.budget_kind, one.budget, len(one.trials), one.failed) for one in SEARCHES} == {
        (0, "evaluations", 12_000, 8, 0)
    }


@pytest.mark.parametrize("search", SEARCHES, ids=named)
def test_a_search_was_made_in_the_space_that_is_here(search: Tuned) -> None:
    numbers = plan.read_numbers(PROFILE / f"{search.method}.toml", search.task)
    domains = space.read(PROFILE / f"{search.method}{content.SPACE_SUFFIX}", search.task, numbers)
    drawn = [space.draw(domains, search.seed, trial.number) for trial in search.trials]
    assert [trial.settings for trial in search.trials[1:]] == drawn[1:]  # the first one has the method's own numbers


@pytest.mark.parametrize("search", SEARCHES, ids=named)
def test_the_best_trial_gives_the_numbers(search: Tuned) -> None:
    values = {trial.number: trial.value.mean for trial in search.trials if trial.value is not None}
    assert search.best == max(values, key=lambda number: values[number])
    assert content.digest(planned(search.task, search.method).settings["method"]) == best(search).digest


@pytest.mark.parametrize("name", TASKS)
def test_no_held_out_prompt_was_looked_at(name: str) -> None:
    tuning = planned(name, "gdro", "profile.prompts=pocket-tuning", "profile.held_out_prompts=100")
    assert not {prompt.text for prompt in tuning.held_out} & {prompt.text for prompt in planned(name, "gdro").held_out}
    assert len({task.digest([prompt]) for prompt in tuning.held_out}) == 100


@pytest.mark.parametrize("search", SEARCHES, ids=named)
def test_the_reports_quote_the_search(search: Tuned) -> None:
    assert row(search) in README.split(f"### {search.task}\n")[1]


@pytest.mark.parametrize("name", TASKS)
def test_the_reports_name_the_methods_that_were_not_searched(name: str) -> None:
    missing = sorted(set(TABLES["method"]) - {search.method for search in SEARCHES if search.task == name})
    sentence = f"Not searched on this base yet: {', '.join(missing)}." if missing else ""
    assert sentence in README.split(f"### {name}\n")[1].split("\n### ")[0]
