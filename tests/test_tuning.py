"""The search for each method's settings: on prompts that are not held out, alike for all; the best trial gives them."""

from pathlib import Path

import pytest

from gdro_bench import content, task
from gdro_bench.engine import plan, record
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.tuning import space, tuned
from gdro_bench.engine.tuning.tuned import Trial, Tuned
from gdro_bench.registry import TABLES

ROOT = Path(__file__).parents[1]
PROFILE = content.find("profile", "pocket")
TASKS = ("ocr", "geneval")
SEARCH = ROOT / "reports" / "search"
ROUNDS = tuned.find(SEARCH / "rounds")  # of GDRO in rounds, which is off as shipped
BEYOND = tuned.find(SEARCH / "beyond")  # one step further, of one setting of two methods
LEADS = tuned.find(SEARCH / "leads")  # of GDRO's settings on OCR that are off as shipped
SEARCHES = [one for one in tuned.find(SEARCH) if one not in (*ROUNDS, *BEYOND, *LEADS)]
README = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")


SHORT, LONG = 12_000, 60_000  # evaluations of a trial: of all settings together, and then of one alone
RATE, POOL, LEVEL = "optimiser.learning_rate", "pool.prompts", "noising.level"
# whose search of all settings was made anew, last of all
AGAIN = {("geneval", "gdro"), ("geneval", "flow-grpo"), ("geneval", "dance-grpo"), ("geneval", "dpo")}
RATES, POOLS, LEVELS = [4e-4, 1e-3, 2.66e-3], [24, 48, 96], [0.5, 0.7, 0.815]


def named(search: Tuned) -> str:
    return f"{search.task}-{search.method}-{'all' if search.budget == SHORT else alone(search)}"


def alone(search: Tuned) -> str:
    """The one number that a long search is of."""
    (name,) = search.space
    return name


def tried(search: Tuned) -> list[Trial]:
    """The trials of a long search, the lowest number first."""
    return sorted(search.trials, key=lambda trial: float(trial.settings[alone(search)]))


def planned(name: str, method: str, *settings: str) -> Plan:
    return plan.make_plan(name, method, "pocket", 0, Path("runs"), settings)


def best(search: Tuned) -> Trial:
    return next(trial for trial in search.trials if trial.number == search.best)


def of_budget(budget: int) -> list[Tuned]:
    return [search for search in SEARCHES if search.budget == budget]


def values(search: Tuned) -> list[float]:
    return [trial.settings[alone(search)] for trial in tried(search)]


def section(search: Tuned) -> str:
    """Where the reports tell of a search."""
    if search.budget == SHORT:
        return f"### {search.task}\n"
    return "### rates\n" if alone(search) == RATE else "### pool and level\n"


def row(search: Tuned) -> str:
    """A line of the reports: the first trial, the best one, and what it drew; or every trial of a long search."""
    if search.budget == LONG:
        what = "" if alone(search) == RATE else f", {alone(search)} {', '.join(map(str, values(search)))}"
        return f"| {search.method}, {search.task}{what} | " + " | ".join(str(one.value) for one in tried(search)) + " |"
    found, first = best(search), search.trials[0]
    drawn = ", ".join(f"{name.split('.')[-1]} {value}" for name, value in found.settings.items())
    return f"| {search.method} | {first.value} | {found.value} | {found.gain} | {found.number}: {drawn} |"


def test_all_searches_are_alike() -> None:
    assert {(one.seed, one.budget_kind, one.budget, len(one.trials), one.failed) for one in SEARCHES} == {
        (0, "evaluations", SHORT, 8, 0),
        (0, "evaluations", LONG, len(RATES), 0),
    }


def test_the_same_was_searched_at_the_shipped_budget_on_both_tasks() -> None:
    found = {(one.task, one.method, alone(one), *values(one)) for one in of_budget(LONG)}
    assert len(found) == len(of_budget(LONG))
    assert found == {
        (name, *search)
        for name in TASKS
        for search in (
            ("gdro", RATE, *RATES),
            ("flow-grpo", RATE, *RATES),
            ("gdro", POOL, *POOLS),
            ("flow-grpo", LEVEL, *LEVELS),
        )
    }


@pytest.mark.parametrize("search", of_budget(SHORT), ids=named)
def test_a_search_was_made_in_the_space_that_is_here(search: Tuned) -> None:
    numbers = plan.read_settings(PROFILE / f"{search.method}.toml", search.task)
    domains = space.read(PROFILE / f"{search.method}{content.SPACE_SUFFIX}", search.task, numbers)
    own, *drawn = [trial.settings for trial in search.trials]
    points = [space.draw(domains, search.seed, number) for number in range(1, len(search.trials) + 1)]
    others = [point for point in points if point != own][: len(drawn)]
    assert drawn in (others, points[:-1])  # before 2026-11-30 a search drew its first trial once more


def chosen(search: Tuned, first: bool) -> Trial:
    """The best trial of the first search of a method; of a later one only if it is above the settings at hand beyond
    noise."""
    means = {trial.number: trial.value.mean for trial in search.trials if trial.value is not None}
    assert search.best == max(means, key=lambda number: means[number])
    found = best(search)
    assert found.gain is not None
    return found if first or found.gain.low > 0 else search.trials[0]


@pytest.mark.parametrize(
    ("name", "method"), sorted({(search.task, search.method) for search in SEARCHES}), ids="-".join
)
def test_the_best_trial_gives_the_numbers(name: str, method: str) -> None:
    """Each search begins with the numbers that the one before has chosen, and the last one chooses those that are
    shipped."""
    own = [search for search in SEARCHES if (search.task, search.method) == (name, method)]
    again = (name, method) in AGAIN
    first, *later = sorted(own, key=lambda search: ((search.budget == SHORT) == again, RATE not in search.space))
    digest = chosen(first, first=not again).digest  # again: its first search is in the history
    for search in later:
        assert search.trials[0].digest == digest, named(search)
        digest = chosen(search, first=False).digest
    assert content.digest(planned(name, method).settings["method"]) == digest


def test_rounds_were_searched_on_tuning_prompts_and_the_best_ran_on_held_out_ones() -> None:
    (search,) = ROUNDS
    told = README.split("### rounds\n")[1]
    for trial in search.trials:
        where = f"| {trial.settings['online.reference']} | {trial.settings['online.sampler']} |"
        assert f"{where} {trial.value} | {'' if trial.number == 0 else trial.gain} |".replace("  ", " ") in told
    assert (search.budget, search.failed) == (LONG, 0)
    assert chosen(search, first=False) is best(search)
    runs = [record.read(path.parent) for path in (ROOT / "reports" / "geneval-pocket").rglob("run.json")]
    assert sum(run.digests["method"] == best(search).digest for run in runs) >= 3


@pytest.mark.parametrize("search", BEYOND, ids=named)
def test_a_step_beyond_is_told_with_every_trial(search: Tuned) -> None:
    told = README.split("### beyond\n")[1].split("\n## ")[0]
    for trial in search.trials:
        row = f"| {search.method}, {search.task} | {alone(search)} {trial.settings[alone(search)]:g} | {trial.value} |"
        assert f"{row} {'' if trial.number == 0 else trial.gain} |".replace("  ", " ") in told
    assert (search.budget, search.failed) == (LONG, 0)
    digest = content.digest(planned(search.task, search.method).settings["method"])
    assert search.trials[0].digest == chosen(search, first=False).digest == digest


MOVES = ("pool.prompts=120", "online.rounds=10", "online.updates=11", "online.reference=sampler")
BRAKE = (*MOVES, "gamma=0")
BOTH = (*MOVES, "regulariser.velocity_kl=25")
OF_LEAD = {  # how the reports name a trial, and its settings
    "one pool, t from 0.7": ("t_min=0.7",),
    "one pool, t from 0.5": ("t_min=0.5",),
    "rounds, brake 25": (*BRAKE, "regulariser.velocity_kl=25"),
    "rounds, brake 8": (*BRAKE, "regulariser.velocity_kl=8"),
    "rounds, brake 3": (*BRAKE, "regulariser.velocity_kl=3"),
    "rounds, brake 8, trained on the last four": (*BRAKE, "regulariser.velocity_kl=8", "online.window=4"),
    "rounds, brake 25, t from 0.7": (*BRAKE, "regulariser.velocity_kl=25", "t_min=0.7"),
    "rounds, brake 8, falling rate": (*BRAKE, "regulariser.velocity_kl=8", "optimiser.steady_steps=28"),
    "rounds, gamma 3.2, falling rate": (*MOVES, "gamma=3.2", "optimiser.steady_steps=28"),
    "rounds, brake 8, falling rate, 24 prompts with 8 images a round": (
        *(*BRAKE[1:], "pool.prompts=240", "pool.images=8", "regulariser.velocity_kl=8", "optimiser.steady_steps=28"),
    ),
    "rounds, top-1 term and brake 25": (*MOVES, "regulariser.velocity_kl=25"),
    "rounds, top-1 term and brake 25, falling rate": (
        *MOVES,
        "regulariser.velocity_kl=25",
        "optimiser.steady_steps=28",
    ),
}


def test_leads_are_told_with_every_trial() -> None:
    told = README.split("### leads\n")[1].split("\n## ")[0]
    values = {trial.digest: trial.value for search in LEADS for trial in search.trials}
    assert all((search.budget, search.failed) == (LONG, 0) for search in LEADS)
    for name, settings in OF_LEAD.items():
        made = planned("ocr", "gdro", *(f"method.{one}" for one in settings))
        assert f"| {name} | {values.pop(content.digest(made.settings['method']))} |" in told
    assert not values


@pytest.mark.parametrize("name", TASKS)
def test_no_held_out_prompt_was_looked_at(name: str) -> None:
    tuning = planned(name, "gdro", "profile.prompts=pocket-tuning", "profile.held_out_prompts=100")
    assert not {prompt.text for prompt in tuning.held_out} & {prompt.text for prompt in planned(name, "gdro").held_out}
    assert len({task.digest([prompt]) for prompt in tuning.held_out}) == 100


@pytest.mark.parametrize("search", SEARCHES, ids=named)
def test_the_reports_quote_the_search(search: Tuned) -> None:
    assert row(search) in README.split(section(search))[1].split("\n### ")[0]


@pytest.mark.parametrize("name", TASKS)
def test_the_reports_name_the_methods_that_were_not_searched(name: str) -> None:
    missing = sorted(set(TABLES["method"]) - {search.method for search in SEARCHES if search.task == name})
    sentence = f"Not searched on this base yet: {', '.join(missing)}." if missing else ""
    assert sentence in README.split(f"### {name}\n")[1].split("\n### ")[0]
