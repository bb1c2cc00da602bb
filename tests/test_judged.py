"""What judges and gold say of runs, and what nobody knows."""

import math
import re
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from known_runs import FALLING, MARKS, PROMPTS, SLOWER, call, judge, make_run, rejudge

from gdro_bench import stats
from gdro_bench.comparison import entries, matched, prediction, report
from gdro_bench.comparison.tables import costs
from gdro_bench.engine import judging
from gdro_bench.errors import BenchError
from gdro_bench.score import Checked, Score
from gdro_bench.stats import Estimate
from gdro_bench.task import Prompt

# -- what judges said


def test_the_corrected_score_is_that_of_the_means(tmp_path: Path) -> None:
    run = entries.load(judge(make_run(tmp_path / "a"), FALLING))
    entry = entries.Entry("gdro", (run,))
    reward = np.array([0.4, 0.4, 0.6, 0.7, 0.8]) + np.linspace(-0.1, 0.1, PROMPTS)[:20].mean()
    assert entry.mean("corrected") == pytest.approx(reward * (np.array(FALLING) - 3) + 0.2)
    assert np.nanmean(run.parts["corrected_each"][1]) == pytest.approx(reward[1] + 0.2, abs=0.02)
    found = entry.replicates("corrected", stats.draws(PROMPTS, 0))
    assert found.mean(axis=0) == pytest.approx(entry.mean("corrected"), abs=0.01)


def with_errors(folder: Path, last: float) -> Path:
    """A judged run half of whose base's pictures have a wrong letter, and at the end a share `last` of them."""
    table = judging.read(judge(folder, (4.0,) * 5))
    shares = table["mark"].map(dict(zip(MARKS, (0.5, 0.5, 0.5, 0.5, last), strict=True)))
    table["error letter"] = (table["prompt"] < 20 * shares).astype(float)
    table["error wall"] = 0.0
    table["error colour"] = table["error letter"].where(table["prompt"] % 2 == 0)  # the others do not show it
    rejudge(folder, table)
    return folder


@pytest.mark.usefixtures("sketched")
def test_the_share_of_each_kind_of_error_that_is_gone_is_told(tmp_path: Path) -> None:
    with_errors(make_run(tmp_path / "a"), 0.1)
    with_errors(make_run(tmp_path / "b", "flow-grpo", rewards=SLOWER, pool=0), 0.6)
    assert call("--runs", tmp_path).exit_code == 0
    out = tmp_path / "compare" / "ocr-pocket"
    table = pd.read_csv(out / "errors.csv", index_col=["error", "label"])
    assert table.loc[("letter", "gdro"), "removed"] == pytest.approx(0.8)
    assert table.loc[("letter", "flow-grpo"), "removed"] == pytest.approx(-0.2)
    assert table.loc[("letter", "gdro"), ["base", "end"]].tolist() == pytest.approx([0.5, 0.1])
    text = (out / "errors.md").read_text()
    assert re.search(
        r"\| letter \| 0\.500 \[.*\] of 20 \| -0\.400 \[.*\], 80% gone \| \+0\.100 \[.*\], 20% more \|", text
    )
    assert re.search(r"\| colour \| 0\.500 \[.*\] of 10 \| -0\.400 \[[^|]*\] \|", text)  # too few for a share of them
    still = r"\+0\.000 \[0\.000, 0\.000\]"  # the base has none to remove
    assert re.search(rf"\| wall \| 0\.000 \[.*\] of 20 \| {still} \| {still} \|", text)
    apart = pd.read_csv(out / "errors-apart.csv", index_col=["error", "label"])
    assert apart.loc[("letter", "flow-grpo"), "difference"] == pytest.approx(0.5)
    assert re.search(r"\| letter \| 0\.100 \[.*\] \| \+0\.500 \[", (out / "errors-apart.md").read_text())
    for figure in ("errors", "pareto"):
        assert (out / f"{figure}.pdf").exists()
        assert (out / f"{figure}.png").exists()


def test_times_to_reward_are_told_level_by_level(written: Path) -> None:
    both = pd.read_csv(written / "time-to-reward.csv", index_col=["label", "level"])
    table, ratio, text = both["evaluations"], both["ratio"], (written / "time-to-reward.md").read_text()
    assert table.loc[("gdro", 0.8)] == pytest.approx(1000)
    assert table.loc[("gdro", 0.48)] == pytest.approx(300 + 200 * 0.08 / 0.2)  # the pool is paid for first
    assert np.isinf(table.loc[("flow-grpo", 0.8)])
    assert "not reached" in text
    assert ratio.loc["gdro"].tolist() == [1] * costs.STEPS
    spent = (table.loc["flow-grpo"] / table.loc["gdro"]).tolist()
    assert ratio.loc["flow-grpo"].tolist() == pytest.approx(spent, rel=1e-5)
    assert f"| flow-grpo, times gdro's | {ratio.loc[('flow-grpo', 0.48)]:.2f} [" in text


def test_parts_at_r_star_are_read_where_the_curve_crosses_it(compared: entries.Comparison) -> None:
    """Not at the next evaluation point, which may lie far above."""
    for entry in compared.entries:
        for run in entry.runs:
            run.parts["gold"] = np.array(MARKS)[:, None] * np.ones(PROMPTS)
    for row in matched.at_reward(compared, 0.48, "evaluations"):
        where = float(np.interp(0.48, row.entry.mean("reward"), MARKS))
        assert row.parts["gold"].mean == pytest.approx(where)
        assert row.mark is not None
        assert MARKS[row.mark - 1] < where < MARKS[row.mark]
        assert row.parts["gold"].low < row.parts["gold"].high
    _, flow = matched.at_reward(compared, 0.8, "evaluations")
    assert flow.mark is None
    assert math.isnan(flow.parts["gold"].mean)


@pytest.mark.parametrize(("high", "told"), [(1.9, "1.40 [1.00, 1.90]"), (2.1, "1.40 [1.00, 2.10], wide")])
def test_a_wide_interval_is_called_so(high: float, told: str, compared: entries.Comparison) -> None:
    row = matched.at_reward(compared, 0.6, "evaluations")[1]
    assert costs._ratio(row, Estimate(1.4, 1.0, high), "gdro") == told


@pytest.mark.usefixtures("sketched")
def test_reward_that_costs_quality_is_drawn_to_fall(tmp_path: Path) -> None:
    judge(make_run(tmp_path / "a"), FALLING)
    judge(make_run(tmp_path / "b", "flow-grpo", rewards=SLOWER, pool=0), (4.0,) * 5)
    result = call("--runs", tmp_path)
    assert result.exit_code == 0, result.output
    assert "Judge: judge (1-5). Gold: facts." in result.output
    out = tmp_path / "compare" / "ocr-pocket"
    assert (out / "corrected.pdf").exists()
    short, budget = ((out / f"{name}.md").read_text() for name in ("in-short", "matched-budget"))
    unmoved = r"\+0\.000 \[0\.000, 0\.000\]"
    assert re.search(r"gdro \| .* \| 0\.125 \[.*\] \| " + unmoved, short)
    assert re.search(r"flow-grpo \| .* \| 0\.749 \[.*\] \| " + unmoved, short)
    assert re.search(r"gdro \| 1 \| .* \| -0\.514 \[", budget)  # of one seed without a word: its luck is in no interval
    assert re.search(r"flow-grpo \| .* \| \+0\.050 \[", budget)
    table = pd.read_csv(out / "matched-budget.csv", index_col="label")
    assert table.loc["gdro", "corrected_low"] < table.loc["gdro", "corrected"] < table.loc["gdro", "corrected_high"]
    assert table.loc["gdro", "corrected"] < table.loc["flow-grpo", "corrected"]
    assert table.loc["gdro", "reward"] > table.loc["flow-grpo", "reward"]
    apart = pd.read_csv(out / "quality-apart.csv", index_col="label")
    assert apart["u_change"].tolist() == pytest.approx([FALLING[-1] - FALLING[0], 0])
    assert apart["u_difference"].tolist() == pytest.approx([0, 4.0 - FALLING[-1]])
    assert re.search(r"\| gdro \| .* \| -\d\.\d+ \[.*\] \|  \|", (out / "quality-apart.md").read_text())
    page = (out / "page.html").read_text()
    assert "gold (share of facts)" in page
    assert "where the judge&#39;s rating fell most" in page
    assert (out / "grid-judged.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_what_moves_with_gold_predicts_it(tmp_path: Path) -> None:
    runs = []
    for i, fall in enumerate((0.1, 0.2, 0.3, 0.4, 0.6)):
        method = ("gdro", "dpo", "rft", "nft", "awm")[i]
        folder = judge(make_run(tmp_path / f"{i}", method), tuple(4 - fall * 4 * m for m in MARKS))
        table = judging.read(folder)
        table["gold"] = 1 - fall * table["mark"] + np.linspace(-0.01, 0.01, 20)[table["prompt"]]
        rejudge(folder, table)
        runs.append(entries.load(folder))
    checkpoints, found = prediction.rank_correlations(entries.compare(runs, False))
    assert checkpoints == 5 * 3 + 1
    assert found["u"].mean == pytest.approx(1.0)
    assert found["u"].low > 0.9
    assert found["reward"].high < 0
    assert "gold" not in found
    _, of_few = prediction.rank_correlations(entries.compare(runs[:4], False))
    assert of_few["u"].mean == pytest.approx(1.0)
    assert math.isnan(of_few["u"].low)  # of so few runs
    twice = [*runs, entries.load(judge(make_run(tmp_path / "again", "gdro", seed=1), FALLING))]
    counts = prediction._drawn([entries.Entry("", (run,)) for run in twice], [1, 1, 1, 1, 2])
    assert counts.shape[1] == 6 * 3 + 1
    assert (counts[:, -6:] == counts[:, -1:]).all()  # the seeds of an entry are drawn together
    assert (counts[:, :1] != counts[:, -1:]).any()
    unseen = entries.load(make_run(tmp_path / "unseen", "flow-grpo"))
    with_it = prediction.rank_correlations(entries.compare([*runs, unseen], False))
    assert str(with_it) == str((checkpoints, found))  # NaN, where known of none, is no number's equal
    report.write(entries.compare(runs, False), tmp_path / "out", "evaluations", None)
    assert pd.read_csv(tmp_path / "out" / "predicts-gold.csv")["figure"].iloc[0] in ("u", "alignment", "corrected")


def test_gold_that_never_moves_is_not_predicted(tmp_path: Path) -> None:
    run = entries.load(judge(make_run(tmp_path / "a"), FALLING))
    assert prediction.rank_correlations(entries.compare([run], False)) == (0, {})


@pytest.mark.usefixtures("sketched")
def test_what_only_some_runs_have_is_not_drawn(tmp_path: Path) -> None:
    judge(make_run(tmp_path / "a"), FALLING)
    make_run(tmp_path / "b", "flow-grpo")
    assert call("--runs", tmp_path).exit_code == 0
    assert not (tmp_path / "compare" / "ocr-pocket" / "corrected.pdf").exists()


def test_runs_of_two_judges_are_refused(tmp_path: Path) -> None:
    judge(make_run(tmp_path / "a"), FALLING)
    judge(make_run(tmp_path / "b", "flow-grpo"), FALLING, "another")
    said = " ".join(call("--runs", tmp_path).output.split())
    assert "The judge of " in said
    assert "Judge them alike" in said


def test_an_instrument_that_saw_one_run_alone_tells_nothing(tmp_path: Path) -> None:
    judge(make_run(tmp_path / "a"), FALLING)
    b = judge(make_run(tmp_path / "b", "flow-grpo"), FALLING)
    rows = judging.read(b).drop(columns="gold").to_dict("records")
    judging._write(b / judging.TABLE, rows, {"judge": "judge (1-5)"})
    compared = entries.compare([entries.load(tmp_path / name) for name in ("a", "b")], False)
    assert compared.instruments == {"reward": "OCR", "judge": "judge (1-5)"}
    assert "alignment" in compared.parts
    assert "gold" not in compared.parts


# -- what is not known


def lose(folder: Path, marks: tuple[float, ...]) -> Path:
    """No picture of these evaluation points could be scored."""
    scores = pd.read_parquet(folder / "scores.parquet")
    scores.loc[scores["mark"].isin(marks), "value"] = np.nan
    scores.to_parquet(folder / "scores.parquet")
    return folder


@pytest.mark.parametrize("marks", [(1.0,), (0.0,), (0.5,), MARKS])
def test_what_is_not_known_is_no_finding(
    tmp_path: Path, marks: tuple[float, ...], request: pytest.FixtureRequest
) -> None:
    if marks != MARKS:  # nothing at all is known then, and drawn
        request.getfixturevalue("sketched")
    lose(make_run(tmp_path / "a"), marks)
    make_run(tmp_path / "b", "flow-grpo", rewards=SLOWER, pool=0)
    result = call("--runs", tmp_path)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "compare" / "ocr-pocket" / "report.md").read_text()
    assert "nan" not in text.lower()
    assert "nan" not in result.output.lower()
    assert f"{40 * len(marks)} of 400 pictures could not be scored and are in no mean." in text
    if marks != (0.5,):
        assert "not known" in text
        assert "What gdro gains over the base by 1,000 evaluations (1 seed) is not known." in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_not_judged_is_named(tmp_path: Path) -> None:
    judge(make_run(tmp_path / "a"), FALLING)
    make_run(tmp_path / "b", "flow-grpo", rewards=SLOWER, pool=0)
    result = call("--runs", tmp_path)
    assert result.exit_code == 0
    assert "1 of 2 runs (b) lack a judgement that others have" in " ".join(result.output.split())


def test_a_part_called_reward_is_not_the_reward(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    scores = pd.read_parquet(folder / "scores.parquet")
    scores.assign(reward=0.9).to_parquet(folder / "scores.parquet")
    assert entries.load(folder).parts["reward"].mean() < 0.7
    with pytest.raises(BenchError, match="a part called 'reward'"):
        Checked(Named(), "reward", "named")(np.zeros((1, 8, 8, 3), np.uint8), [Prompt("a", "a")])


class Named:
    """A reward whose part has the name of a column."""

    name = "named"

    def __call__(self, images: object, prompts: object) -> list[Score]:
        return [Score(0.5, {"reward": 0.9})]


def test_a_judge_that_gave_no_rating_is_counted(tmp_path: Path) -> None:
    folder = judge(make_run(tmp_path / "a"), FALLING)
    table = judging.read(folder)
    table.loc[table["mark"] == 1.0, ["u", "alignment"]] = np.nan
    rejudge(folder, table)
    make_run(tmp_path / "b", "flow-grpo")
    judge(tmp_path / "b", (4.0,) * 5)
    result = call("--runs", tmp_path)
    assert result.exit_code == 0, result.output
    assert "20 of 200 pictures could not be judged and are in no mean." in result.output
    assert "corrected score at the end not known" in result.output
    assert "nan" not in result.output.lower()


def test_one_gain_has_one_number_in_run_and_compare() -> None:
    """At a half, the mean of differences and the difference of means fall to either side of it."""
    of_run, of_compare = 0.3635, 0.9033333333333334 - 0.5398333333333334
    assert f"{of_run:.3f}" != f"{of_compare:.3f}"
    low, high = 0.3, 0.42
    assert str(Estimate(of_run, low, high)) == str(Estimate(of_compare, low, high)) == "0.363 [0.300, 0.420]"


def test_costs_are_compared_at_every_level_that_the_reference_reaches(compared: entries.Comparison) -> None:
    """At each as at a matched reward of that level."""
    rows = matched.at_levels(compared, "evaluations", count=5)
    assert {row.entry.label for row in rows} == {"flow-grpo"}
    top = float(compared.reference.mean("reward").max())
    base = float(compared.reference.mean("reward")[0])
    assert [row.level for row in rows] == pytest.approx(np.linspace(base, top, 6)[1:].tolist())
    for row in rows:
        (alone,) = [r for r in matched.at_reward(compared, row.level, "evaluations") if r.entry is row.entry]
        for pool, ratio in row.ratio.items():
            assert astuple(ratio) == pytest.approx(astuple(alone.ratio[pool]), nan_ok=True)
    assert rows[-1].ratio[True].mean == math.inf  # it does not get so far


def test_a_reference_that_gains_nothing_has_no_levels(tmp_path: Path) -> None:
    runs = [entries.load(make_run(tmp_path / m, m, rewards=(0.4, 0.4, 0.39, 0.38, 0.3))) for m in ("gdro", "dpo")]
    assert matched.at_levels(entries.compare(runs, variants=False), "evaluations") == []
