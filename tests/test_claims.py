"""Verdicts on claims: rules as they are written, numbers of runs whose curves are known."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from known_runs import SLOWER, judge, make_run, make_search

from gdro_bench.cli import main
from gdro_bench.comparison import entries, page
from gdro_bench.comparison.claims import rules, verdicts
from gdro_bench.comparison.claims.rules import Test as Rule
from gdro_bench.comparison.claims.rules import Who
from gdro_bench.errors import BenchError
from gdro_bench.stats import Estimate

GDRO = Who("gdro", None, None, None, None, None)


def rule(**fields: object) -> Rule:
    given = {"task": "ocr", "measure": "gain", "of": GDRO, "against": None, "part": "reward", "at_most": None}
    return Rule(**(given | {"at_least": None, "weakly": None, "budget": "main", "condition": None} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.2, 0.4, "reproduced"),
        (0.5, 0.9, "partly"),
        (0.4, 0.9, "partly"),
        (0.5, 1.2, "undecided"),
        (0.6, 1.0, "at most partly"),
        (0.9, 1.2, "at most partly"),
        (1.0, 3.0, "not reproduced"),
        (1.1, 3.0, "not reproduced"),
        (1.1, float("inf"), "not reproduced"),
        (float("nan"), float("nan"), "undecided"),
    ],
)
def test_a_whole_interval_decides(low: float, high: float, word: str) -> None:
    at_most = rule(at_most=0.5, weakly=1.0)
    assert verdicts.verdict(at_most, Estimate((low + high) / 2, low, high)) == word
    at_least = rule(at_least=-0.5, weakly=-1.0)
    assert verdicts.verdict(at_least, Estimate(-(low + high) / 2, -high, -low)) == word


def test_what_does_not_move_neither_rises_nor_falls() -> None:
    still = Estimate(0.0, 0.0, 0.0)
    assert verdicts.verdict(rule(at_most=-0.05, weakly=0.0), still) == "not reproduced"
    assert verdicts.verdict(rule(at_most=0.0), still) == "undecided"
    assert verdicts.verdict(rule(at_least=0.0), still) == "undecided"


@pytest.mark.parametrize(
    ("of_tests", "word"),
    [
        (["reproduced"], "reproduced"),
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "not reproduced"], "partly"),
        (["partly", "undecided"], "partly"),
        (["not reproduced", "undecided"], "at most partly"),
        (["at most partly", "undecided"], "at most partly"),
        (["at most partly", "not reproduced"], "at most partly"),
        (["at most partly", "reproduced"], "partly"),
        (["not reproduced", "not reproduced"], "not reproduced"),
        (["reproduced", "no runs"], "incomplete"),
        (["no runs", "no runs"], "no runs"),
    ],
)
def test_a_claim_s_verdict_is_that_of_its_tests(of_tests: list[str], word: str) -> None:
    assert verdicts.combined(of_tests) == word


@pytest.mark.parametrize(
    ("of_test", "conditions", "word"),
    [
        ("reproduced", [], "reproduced"),
        ("reproduced", ["reproduced"], "reproduced"),
        ("reproduced", ["partly"], "partly"),
        ("partly", ["reproduced"], "partly"),
        ("reproduced", ["undecided"], "undecided"),
        ("undecided", ["reproduced"], "undecided"),  # a condition alone is no part of what is claimed
        ("not reproduced", ["undecided"], "not reproduced"),
        ("not reproduced", ["reproduced"], "not reproduced"),
        ("reproduced", ["reproduced", "not reproduced"], "undecided"),
        ("not reproduced", ["at most partly"], "undecided"),
        ("undecided", ["no runs"], "no runs"),
    ],
)
def test_a_test_shows_nothing_where_its_condition_fails(of_test: str, conditions: list[str], word: str) -> None:
    assert verdicts.conditioned(of_test, conditions) == word


def finding(task: str, word: str, condition: bool | None = None) -> verdicts.Finding:
    unknown = Estimate(float("nan"), float("nan"), float("nan"))
    return verdicts.Finding(rule(task=task, at_most=1.0, condition=condition), unknown, word, 3, "", "", ())


def test_a_condition_holds_for_its_own_task() -> None:
    claim = rules.Claim("peak", "says", "source", "claim", None, ())
    ocr = [finding("ocr", "reproduced"), finding("ocr", "not reproduced", True)]
    geneval = [finding("geneval", "reproduced"), finding("geneval", "reproduced", True)]
    assert verdicts._combined(claim, ocr) == "undecided"
    assert verdicts._combined(claim, [*ocr, *geneval]) == "partly"


def test_of_alternatives_one_on_each_task_is_enough() -> None:
    claim = rules.Claim("once or in rounds", "says", "source", "question", True, ())

    def told(*found: tuple[str, str]) -> str:
        return verdicts._combined(claim, [finding(task, word) for task, word in found])

    assert told(("ocr", "reproduced"), ("ocr", "not reproduced"), ("geneval", "reproduced")) == "reproduced"
    assert told(("ocr", "reproduced"), ("ocr", "no runs"), ("geneval", "undecided")) == "partly"
    assert told(("ocr", "not reproduced"), ("ocr", "no runs"), ("geneval", "not reproduced")) == "incomplete"


# -- rules


def test_the_package_s_rules_hold_all_nine_claims_of_the_paper() -> None:
    read, digest = rules.load(rules.OWN)
    assert [claim.kind for claim in read.claims].count("claim") == 9
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert {test.task for claim in read.claims for test in claim.tests} == {"ocr", "geneval"}


RULES = """
seeds = 2

[[claims]]
name = "cheap"
says = "GDRO is cheaper."
source = "a <b>paper</b>"
kind = "claim"

[[claims.tests]]
task = "ocr"
measure = "cost-ratio"
of = { method = "gdro" }
against = { method = "flow-grpo" }
at_most = 1.0
budget = "main"
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("at_most = 1.0\n", "", "one bound"),
        ("at_most = 1.0\n", "at_most = 1.0\nat_least = 0.0\n", "one bound"),
        ('against = { method = "flow-grpo" }\n', "", "needs `against`"),
        ('"cost-ratio"', '"cost"', "no measure"),
        ("at_most = 1.0\n", 'at_most = 1.0\npart = "gold"\n', "no use for `part`"),
        ('{ method = "gdro" }', '{ method = "gdro", number = "k" }', "one of value, times, above and named"),
        ('budget = "main"', 'budget = "small"', "small"),
    ],
)
def test_a_rule_of_no_use_is_named(old: str, new: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES.replace(old, new))
    with pytest.raises(BenchError, match=told):
        rules.load(tmp_path / "rules.toml")


def test_two_claims_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES + RULES.split("seeds = 2\n")[1])
    with pytest.raises(BenchError, match="2 claims called 'cheap'"):
        rules.load(tmp_path / "rules.toml")


# -- which runs are meant


def entry(tmp_path: Path, name: str, *changed: str, method: str = "gdro") -> entries.Entry:
    run = entries.load(make_run(tmp_path / name, method, changed=changed))
    return entries.Entry(entries.label_of(run.run), (run,))


def test_entries_are_found_by_the_number_that_was_changed(tmp_path: Path) -> None:
    among = [
        entry(tmp_path, "own"),
        entry(tmp_path, "half", "method.tau=0.025"),
        entry(tmp_path, "none", "method.tau=0.0"),
        entry(tmp_path, "drawn", "method.draw=ordered"),
        entry(tmp_path, "both", "method.tau=0.1", "method.draw=ordered"),
    ]

    def found(**fields: object) -> str | None:
        who = Who(**({"number": None, "value": None, "times": None, "above": None, "named": None} | fields))  # type: ignore[arg-type]
        one = verdicts.find(who, among)
        return one and one.label

    assert found(method="gdro") == "gdro"
    assert found(method="dpo") is None
    assert found(method="gdro", number="tau", value=0.0) == "gdro (tau=0.0)"
    assert found(method="gdro", number="tau", times=0.5) == "gdro (tau=0.025)"
    assert found(method="gdro", number="tau", value=0.1) is None
    assert found(method="gdro", number="tau", above=0.02) == "gdro (tau=0.025)"
    assert found(method="gdro", number="draw", named="ordered") == "gdro (draw=ordered)"
    assert found(method="gdro", number="tau", above=0.05) == "gdro (tau=0.1, draw=ordered)"


def test_of_several_entries_the_one_that_a_search_chose_is_meant(tmp_path: Path) -> None:
    """`make_search` has run's digests: trial 1, the best, is the method's own. Here it is that of the second entry."""
    low, high = entry(tmp_path, "low", "method.tau=0.1"), entry(tmp_path, "high", "method.tau=0.2")
    who = Who("gdro", "tau", None, None, 0.05, None)
    assert verdicts.find(who, [low, high]) is low
    search = make_search(tmp_path / "tuned", "gdro")
    assert verdicts.find(who, [low, high], [search]) is low  # it chose neither
    first, best, third = search.trials
    second = replace(search, trials=(first, replace(best, digest=high.runs[0].run.digests["method"]), third))
    assert verdicts.find(who, [low, high], [second]) is high
    worse = replace(second, trials=(replace(first, value=Estimate(0.7, 0.6, 0.8)), *second.trials[1:]))
    assert verdicts.find(who, [low, high], [worse]) is low  # it tried it and did not choose it
    assert verdicts.find(who, [low, high], [replace(second, task="geneval")]) is low
    better = replace(search, trials=(replace(best, value=Estimate(0.7, 0.6, 0.8), digest="elsewhere"),), best=0)
    assert verdicts.find(who, [low, high], [second, better]) is low  # another search of that budget did better
    assert verdicts.find(who, [low, high], [second, replace(better, budget=9000)]) is high


# -- end to end


def test_a_word_is_neither_above_a_number_nor_equal_to_one(tmp_path: Path) -> None:
    among = [entry(tmp_path, "a", "method.online.sampler=old")]
    for fields in ((None, None, 1.0, None), (2.0, None, None, None)):
        assert verdicts.find(Who("gdro", "online.sampler", *fields), among) is None
    assert verdicts.find(Who("gdro", "online.sampler", None, None, None, "old"), among) is among[0]


def test_numbers_are_told_in_spans() -> None:
    assert page.told_numbers([9, 1, 2, 3, 7, 8, 7]) == "1 to 3, 7 to 9"
    assert page.told_numbers([1, 2, 5]) == "1, 2, 5"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["claims", *map(str, arguments)])


def test_the_page_has_every_verdict_with_its_numbers_and_commands(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / "runs" / f"g{seed}", seed=seed)
        make_run(tmp_path / "runs" / f"f{seed}", "flow-grpo", seed, SLOWER, pool=0)
    (tmp_path / "rules.toml").write_text(RULES)
    result = call("--runs", tmp_path / "runs", "--rules", tmp_path / "rules.toml")
    assert result.exit_code == 0, result.output
    assert "- reproduced: GDRO is cheaper." in result.output
    folder = tmp_path / "runs" / "claims" / "pocket"
    row = pd.read_csv(folder / "claims.csv").iloc[0]
    assert row["value"] == pytest.approx(0.5)  # 500 evaluations against 1000
    assert (row["seeds"], row["verdict"]) == (2, "reproduced")
    text, html = (folder / "claims.md").read_text(), (folder / "claims.html").read_text()
    for command in ("--method gdro --seed 1", "--method flow-grpo --seed 0"):
        assert command in text
        assert command in html
    assert "a &lt;b&gt;paper&lt;/b&gt;" in html
    assert html.index('href="#claim-1"') < html.index('id="claim-1"')  # a line of the table leads to its section
    assert "<b>" not in html
    assert (folder / "claims.pdf").exists()
    assert "Runs: 1 to 4." in text
    assert "Runs: 1 to 4." in html
    assert text.count("--method gdro --seed 1") == 1  # each once, at the end


@pytest.mark.usefixtures("sketched")
def test_fewer_seeds_are_provisional_and_absent_runs_are_said(tmp_path: Path) -> None:
    judge(make_run(tmp_path / "runs" / "g"), (4.0, 4.0, 4.0, 4.0, 3.0))
    judge(make_run(tmp_path / "runs" / "f", "flow-grpo", 0, SLOWER, pool=0), (4.0,) * 5)
    result = call("--runs", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    assert "- no runs: Without the top-1 term" in result.output
    assert "- incomplete: " in result.output
    text = (tmp_path / "runs" / "claims" / "pocket" / "claims.md").read_text()
    assert "no runs of geneval: gdro and flow-grpo" in text
    assert "reproduced (provisional)" not in text.split("## 2. On GenEval")[1].split("##")[0]
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", text.lower())


TUNING = ("profile.prompts=tuning", "profile.budget.limit=400")


PEAK = RULES.replace('"cost-ratio"', '"fall"').replace('against = { method = "flow-grpo" }\n', 'part = "corrected"\n')


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize(
    ("u", "word"),
    [
        ((4.0, 4.0, 4.0, 4.0, 4.0), "not reproduced"),  # the score rises with the reward, to the end
        ((4.0, 4.0, 4.0, 4.0, 3.0), "reproduced"),
        ((4.0, 4.0, 4.0, 4.0, 3 + 0.65 / 0.75), "undecided"),  # the judged prompts: 0.65 to 0.75
    ],
)
def test_that_a_score_falls_after_its_peak_can_be_refuted(u: tuple[float, ...], word: str, tmp_path: Path) -> None:
    for seed in range(2):
        judge(make_run(tmp_path / "runs" / f"g{seed}", seed=seed), u)
    (tmp_path / "rules.toml").write_text(PEAK.replace("at_most = 1.0", "at_most = 0.0"))
    result = call("--runs", tmp_path / "runs", "--rules", tmp_path / "rules.toml")
    assert result.exit_code == 0, result.output
    assert f"- {word}: GDRO is cheaper." in result.output


def make_pair(folder: Path, seeds: int = 1, rewards: tuple[float, ...] = SLOWER, **fields: object) -> None:
    for seed in range(seeds):
        make_run(folder / f"g{seed}", seed=seed, **fields)  # type: ignore[arg-type]
        make_run(folder / f"f{seed}", "flow-grpo", seed, rewards, pool=0, **fields)  # type: ignore[arg-type]


@pytest.mark.usefixtures("sketched")
def test_more_runs_on_tuning_prompts_or_of_another_budget_judge_nothing_beside_the_profile_s_own(
    tmp_path: Path,
) -> None:
    runs, faster = tmp_path / "runs", (0.4, 0.8, 0.8, 0.8, 0.8)
    make_pair(runs / "a-tuning", 3, faster, changed=TUNING, limit=400)
    make_pair(runs / "b-long", 2, faster, changed=("profile.budget.limit=9000",), limit=9000)
    (tmp_path / "rules.toml").write_text(RULES)
    given = ("--runs", runs, "--rules", tmp_path / "rules.toml", "--out", tmp_path / "out")

    def judged() -> pd.Series:
        assert call(*given).exit_code == 0
        return pd.read_csv(tmp_path / "out" / "pocket" / "claims.csv").iloc[0]

    assert judged()["verdict"] == "not reproduced"  # by the long ones: the profile's prompts come first
    make_pair(runs / "c-main")
    assert (judged()["verdict"], judged()["seeds"]) == ("reproduced", 1)
    assert "gdro, flow-grpo; 1,000 evaluations; R* = 0.600" in (tmp_path / "out" / "pocket" / "claims.md").read_text()
    long = RULES.replace('budget = "main"', 'budget = "long"')
    (tmp_path / "rules.toml").write_text(long)
    assert (judged()["verdict"], judged()["seeds"]) == ("not reproduced", 2)


def test_the_lowest_number_above_a_bound_is_meant(tmp_path: Path) -> None:
    among = [entry(tmp_path, "a", "method.tau=16.0"), entry(tmp_path, "b", "method.tau=4.0")]
    found = verdicts.find(Who("gdro", "tau", None, None, 1.0, None), among)
    assert found is not None
    assert found.label == "gdro (tau=4.0)"


@pytest.mark.usefixtures("sketched")
def test_runs_of_several_folders_are_judged_together(tmp_path: Path) -> None:
    make_run(tmp_path / "one" / "g")
    make_run(tmp_path / "two" / "f", "flow-grpo", 0, SLOWER, pool=0)
    (tmp_path / "rules.toml").write_text(RULES)
    given = ("--rules", tmp_path / "rules.toml", "--out", tmp_path / "out")
    result = call(tmp_path / "one", tmp_path / "two", *given)
    assert result.exit_code == 0, result.output
    assert "- reproduced (provisional): GDRO is cheaper." in result.output


def test_searches_that_are_not_there_are_told(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "g")
    result = call("--runs", tmp_path / "runs", "--tuned", tmp_path)
    assert result.exit_code == 1
    assert f"There is no tune.json in {tmp_path}." in result.output.replace("\n", "")
    make_search(tmp_path / "tuned", "gdro")
    assert call("--runs", tmp_path / "runs", "--tuned", tmp_path / "tuned").exit_code == 0
