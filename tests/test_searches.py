"""What a comparison tells of the searches behind its methods."""

from dataclasses import replace
from pathlib import Path

import pytest
from known_runs import call, make_search

from gdro_bench.comparison import entries, report, searches
from gdro_bench.engine.tuning import tuned
from gdro_bench.errors import BenchError


@pytest.mark.usefixtures("undrawn")
def test_equal_searches_are_told_in_a_table(compared: entries.Comparison, tmp_path: Path) -> None:
    found = [make_search(tmp_path / "tuned", "gdro"), make_search(tmp_path / "tuned", "flow-grpo")]
    of = searches.of(compared, found)
    sentences, _ = report.write(compared, tmp_path / "out", "evaluations", None, "", of)
    assert sentences[0] == "The settings of all methods were searched alike: 3 x 500 evaluations."
    table = of.table(compared.entries)
    assert [row[1:] for row in table.cells] == [["3 x 500 evaluations", "1,530", "trial 1, the best"]] * 2
    assert table.numbers["evaluations"].tolist() == [1530, 1530]
    assert table.markdown() in (tmp_path / "out" / "report.md").read_text()
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## At matched reward" in text
    assert "## At matched budget" in text


def test_where_nothing_was_searched_that_is_said(compared: entries.Comparison) -> None:
    of = searches.of(compared, [])
    assert (of.matched, of.sentence) == (True, "No method's settings were searched by tune.")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("fields", [{"trials": 4}, {"budget": 600}, None])
def test_methods_whose_searches_differ_are_not_called_matched(
    fields: dict[str, int] | None, compared: entries.Comparison, tmp_path: Path
) -> None:
    make_search(tmp_path / "tuned", "gdro")
    if fields is not None:
        make_search(tmp_path / "tuned", "flow-grpo", **fields)  # type: ignore[arg-type]
    folders = [loaded.folder for entry in compared.entries for loaded in entry.runs]
    result = call(*folders, "--out", tmp_path / "out", "--tuned", tmp_path / "tuned")
    assert result.exit_code == 0, result.output
    assert "The methods are not matched, because their settings were not searched alike" in result.output
    text = next((tmp_path / "out").rglob("report.md")).read_text()
    assert "At matched" not in text
    assert "## At equal reward" in text
    assert ("| not searched by tune |" in text) == (fields is None)
    page = next((tmp_path / "out").rglob("page.html")).read_text()
    assert "At matched" not in page
    assert "The methods are not matched" in page


def test_runs_with_other_numbers_than_the_best_trial_s_are_told(compared: entries.Comparison, tmp_path: Path) -> None:
    found = [make_search(tmp_path, "gdro", best=0), replace(make_search(tmp_path, "flow-grpo"), trials=())]
    of = searches.of(compared, found)
    assert [row[-1] for row in of.table(compared.entries).cells] == ["trial 1, which is not the best", "no trial"]
    assert not of.matched
    assert "flow-grpo: settings of no trial" in of.sentence


@pytest.mark.usefixtures("undrawn")
def test_a_report_without_tune_calls_nothing_matched(compared: entries.Comparison, tmp_path: Path) -> None:
    report.write(compared, tmp_path, "evaluations", None)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("- Whether the methods' settings were searched alike is not told: give --tuned.")
    assert "matched" not in text
    assert "## At equal budget" in text


@pytest.mark.parametrize("damage", ["", "[]", '{"schema": 9}', '{"schema": 1}'])
def test_a_damaged_search_is_named(damage: str, compared: entries.Comparison, tmp_path: Path) -> None:
    (tmp_path / tuned.FILE).write_text(damage)
    result = call(*(loaded.folder for loaded in compared.reference.runs), "--tuned", tmp_path)
    assert result.exit_code == 1
    assert "tune.json" in result.output
    assert "ype its tune command again" in result.output


def test_two_searches_of_one_method_are_not_chosen_between(compared: entries.Comparison, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="two searches of gdro"):
        searches.of(compared, [make_search(tmp_path, "gdro"), make_search(tmp_path, "gdro", seed=1)])


def test_searches_of_one_budget_are_counted_together(compared: entries.Comparison, tmp_path: Path) -> None:
    one = make_search(tmp_path, "gdro", trials=4)
    other = replace(one, space={"k": {"values": [2]}}, trials=one.trials[2:], best=3)
    of = searches.of(compared, [one, other])
    assert "gdro: 6 x 500 evaluations" in of.sentence
    (row,) = [row for row in of.table(compared.entries).cells if row[0] == "gdro"]
    assert row[1:] == ["6 x 500 evaluations", "4,080", "trial 1, the best"]
    from_elsewhere = tuple(replace(trial, digest=f"{trial.digest}, falling rate") for trial in one.trials)
    assert "gdro: 8 x 500 evaluations" in searches.of(compared, [one, replace(one, trials=from_elsewhere)]).sentence
    again = searches.of(compared, [one, replace(other, trials=one.trials)])
    (row,) = [row for row in again.table(compared.entries).cells if row[0] == "gdro"]
    assert row[-1] == "trial 1, the best; trial 1, which is not the best"


def test_a_second_search_of_longer_trials_is_told_beside_the_first(
    compared: entries.Comparison, tmp_path: Path
) -> None:
    both = ("gdro", "flow-grpo")
    long = [make_search(tmp_path / "long", method, trials=4, budget=2000) for method in both]
    found = [*long, *(replace(make_search(tmp_path, method), trials=()) for method in both)]
    of = searches.of(compared, found)
    assert of.sentence.endswith("alike: 0 x 500 evaluations, then 4 x 2,000 evaluations.")
    rows = [["0 x 500 evaluations", "1,530", "no trial"], ["4 x 2,000 evaluations", "2,040", "trial 1, the best"]]
    assert [row[1:] for row in of.table(compared.entries).cells] == rows * 2
    one_only = searches.of(compared, found[1:])  # GDRO has the first search alone
    assert not one_only.matched
