"""Comparisons of runs whose curves are known, so that their answers are too."""

import base64
import json
import math
import re
import shlex
from dataclasses import asdict, astuple, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from markupsafe import escape

from gdro_bench import content, stats
from gdro_bench.cli import AXIS_NAMES, main
from gdro_bench.comparison import drawings, entries, grids, grouping, headlines, matched, prediction, report, searches
from gdro_bench.comparison.tables import costs, doubts, ends, table, words
from gdro_bench.engine import judging, record, samples
from gdro_bench.engine.record import Point, Run
from gdro_bench.engine.tuning import tuned
from gdro_bench.engine.tuning.tuned import Trial, Tuned
from gdro_bench.errors import BenchError
from gdro_bench.stats import Estimate

PROMPTS = 40
MARKS = (0.0, 0.25, 0.5, 0.75, 1.0)
LIMIT = 1000
EVIL = '<script>alert("x")</script>'


def make_run(
    folder: Path,
    method: str = "gdro",
    seed: int = 0,
    rewards: tuple[float, ...] = (0.4, 0.4, 0.6, 0.7, 0.8),
    pool: int = 300,
    changed: tuple[str, ...] = (),
    pictures: int = 4,
    **fields: object,
) -> Path:
    """A finished run on disk whose mean reward at each mark is known; `pool` evaluations come before any update."""
    unit = Estimate(0.0, 0.0, 0.0)
    points, rows, timing = [], [], []
    spread = np.linspace(-0.1, 0.1, PROMPTS)
    for mark, reward in zip(MARKS, rewards, strict=True):
        spent = int(mark * LIMIT)
        pooled = min(pool, spent)
        optimised = spent - pooled
        counts = {"collection_evaluations": pooled, "optimisation_evaluations": optimised}
        counts |= {"pool_images": pooled, "images_sampled": pooled, "images_trained": optimised, "reward_calls": 0}
        points.append(Point(mark, optimised // 10, pooled, **counts, reward=unit, gain=unit, unscored=0, parts={}))
        timing.append({"mark": mark, "pool": pooled / 10, "collection": pooled / 10, "optimisation": optimised / 10})
        for i in range(PROMPTS):
            row = {"mark": mark, "prompt": i, "text": f"prompt {i}", "value": reward + spread[i], "note": "W"}
            row |= {"text_area": 0.2 + mark / 10, "edge_density": 0.1, "exact": 0.0}
            rows.append(row | ({"text": f'a sign "{EVIL}"', "note": EVIL} if i == 0 else {}))
    run = Run(
        schema=record.SCHEMA, version="0", task="ocr", profile="pocket", method=method, seed=seed,
        settings={"profile": {"sampler": {"steps": 8}}, "method": {"tau": 0.05, "draw": "random"}},
        changed=changed, digests={"model": "m", "method": f"{method}{changed}", "held_out": "h"},
        instruments={"reward": "OCR"}, budget_kind="evaluations", limit=LIMIT, points=tuple(points),
    )  # fmt: skip
    for setting in changed:
        name, value = setting.removeprefix("method.").split("=")
        run.settings["method"][name] = float(value) if name == "tau" else value
    record.write(replace(run, **fields), folder)  # type: ignore[arg-type]
    pd.DataFrame(rows).to_parquet(folder / "scores.parquet")
    (folder / "timing.json").write_text(json.dumps(timing))
    for mark in MARKS:
        painted = [np.full((8, 8, 3), 20 * i, dtype=np.uint8) for i in range(pictures)]
        samples.write(samples.path_of(folder, mark), np.stack(painted))
    return folder


SLOWER = (0.4, 0.45, 0.5, 0.55, 0.6)


def six_runs(folder: Path) -> entries.Comparison:
    gdro = [entries.load(make_run(folder / f"g{s}", seed=s)) for s in range(3)]
    flow = [entries.load(make_run(folder / f"f{s}", "flow-grpo", s, SLOWER, pool=0)) for s in range(3)]
    return entries.compare([*gdro, *flow], variants=False)


@pytest.fixture
def compared(tmp_path: Path) -> entries.Comparison:
    return six_runs(tmp_path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


# -- searches for numbers


def make_search(folder: Path, method: str, trials: int = 3, budget: int = 500, **fields: object) -> Tuned:
    """A search on disk whose trial 1 is best and has the numbers of `make_run`; trial 0 has others, trial 2 failed."""
    value = Estimate(0.5, 0.4, 0.6)
    digests = ["other", f"{method}()", *["third"] * trials]
    made = tuple(
        Trial(i, {"tau": 0.05}, digests[i], value if i < 2 else None, None, "" if i < 2 else "NaN.", 5, 510, 100, 1.0)
        for i in range(trials)
    )
    search = Tuned(
        schema=tuned.SCHEMA, version="0", task="ocr", profile="pocket", method=method, seed=0,
        budget_kind="evaluations", budget=budget, space={}, trials=made, best=1, failed=trials - 2,
        evaluations=510 * trials, seconds=float(trials), importance=None, no_importance="few",
    )  # fmt: skip
    search = replace(search, **fields)  # type: ignore[arg-type]
    (folder / method).mkdir(parents=True, exist_ok=True)
    (folder / method / tuned.FILE).write_text(json.dumps(asdict(search)))
    assert tuned.read(folder / method / tuned.FILE) == search
    return search


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


# -- statistics


def test_a_curve_is_crossed_between_its_points() -> None:
    cost, rewards = np.array([0.0, 10, 20]), np.array([[0.0, 0.5, 1.0], [0.0, 0.9, 0.2]])
    assert stats.crossings(cost, rewards, 0.75).tolist() == [15, pytest.approx(25 / 3)]
    assert stats.crossings(cost, rewards, 0.0).tolist() == [0, 0]
    assert stats.crossings(cost, rewards, 0.9).tolist() == [18, 10]  # the first time counts
    assert stats.crossings(cost, rewards, 1.1).tolist() == [math.inf, math.inf]


def test_many_curves_are_crossed_as_each_alone_would_be() -> None:
    rng = np.random.default_rng(0)
    cost, rewards = np.arange(7.0) ** 2, rng.normal(0, 1, (200, 7))
    rewards[rng.random(rewards.shape) < 0.2] = np.nan
    rewards[0] = np.nan

    def alone(curve: np.ndarray, level: float) -> float:
        points = [(c, r) for c, r in zip(cost.tolist(), curve.tolist(), strict=True) if not math.isnan(r)]
        for (c0, r0), (c1, r1) in zip([(0.0, -math.inf), *points], points, strict=False):
            if r1 >= level:
                return c1 if math.isinf(r0) else c0 + (level - r0) / (r1 - r0) * (c1 - c0)
        return math.inf

    for level in (-3.0, 0.0, 0.7, 9.0):
        assert stats.crossings(cost, rewards, level).tolist() == [alone(curve, level) for curve in rewards]


def test_replicates_of_seeds_and_prompts_have_the_variance_of_both() -> None:
    rng = np.random.default_rng(0)
    seeds, prompts = rng.normal(0, 1, (20, 1, 1)), rng.normal(0, 2, (1, 1, 50))
    found = stats.replicates(seeds + prompts, stats.draws(20, 1), stats.draws(50, 2))[:, 0]
    assert found.mean() == pytest.approx(float((seeds + prompts).mean()), abs=0.03)
    assert found.var() == pytest.approx(seeds.var() / 20 + prompts.var() / 50, rel=0.1)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_replicates_of_few_seeds_have_the_variance_of_their_mean(seeds: int) -> None:
    """Of n drawn n times it would be too small by (n - 1) / n."""
    values = np.arange(seeds, dtype=float)[:, None, None] ** 2
    found = stats.replicates(values, stats.draws_of_few(seeds, 1), np.ones((stats.RESAMPLES, 1)))
    assert found.var() == pytest.approx(values.var(ddof=1) / seeds, rel=0.1)


def test_one_seed_is_drawn_as_it_is() -> None:
    assert (stats.draws_of_few(1, 0) == 1).all()


def test_two_entries_of_one_name_and_other_numbers_are_refused(tmp_path: Path) -> None:
    """As when a file of settings was changed between two runs."""
    settings = {"profile": {"sampler": {"steps": 8}}, "method": {"tau": 0.5, "draw": "random"}}
    digests = {"model": "m", "method": "edited", "held_out": "h"}
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "b", seed=1, settings=settings, digests=digests)
    result = call("--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "tau is 0.05 in one, 0.5 in the other" in " ".join(result.output.split())


def test_an_unscored_image_is_left_out_of_replicates() -> None:
    values = np.array([[[1.0, np.nan, 3.0]]])
    found = stats.replicates(values, np.ones((3, 1)), np.eye(3))
    assert found[[0, 2], 0].tolist() == [1.0, 3.0]
    assert math.isnan(found[1, 0])


@pytest.mark.usefixtures("undrawn")
def test_a_method_is_called_what_one_names_it_and_its_numbers_stay(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / "runs" / f"g{seed}", seed=seed)
        make_run(tmp_path / "runs" / f"t{seed}", seed=seed, rewards=SLOWER, changed=("method.tau=0.5",))
    plain = ["--runs", tmp_path / "runs", tmp_path / "runs"]
    assert call(*plain, "--out", tmp_path / "plain").exit_code == 0
    result = call(*plain, "--out", tmp_path / "named", "--name", "gdro (tau=0.5)", "half a tau")
    assert result.exit_code == 0, result.output
    before, after = (next((tmp_path / n).rglob("report.md")).read_text() for n in ("plain", "named"))
    assert "| half a tau |" in after
    assert after == before.replace("gdro (tau=0.5)", "half a tau")


@pytest.mark.parametrize(
    ("label", "name", "said"),
    [
        ("gdr", "x", "Did you mean 'gdro'?"),
        ("gdro", "flow-grpo", "Two methods would be called 'flow-grpo'"),
        ("gdro", " ", "name is empty"),
    ],
)
def test_a_name_that_would_confuse_is_refused(label: str, name: str, said: str, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "g")
    make_run(tmp_path / "runs" / "f", "flow-grpo")
    result = call("--runs", tmp_path / "runs", "--out", tmp_path / "out", "--name", label, name)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_differences_are_over_the_prompts_that_were_scored_at_both_ends(compared: entries.Comparison) -> None:
    """The hard half has no score at the end: that is no gain. Where the base lacks the same, nothing changes."""
    hard = np.arange(PROMPTS) >= PROMPTS // 2
    level = np.where(hard, 0.2, 0.8)
    flow = next(entry for entry in compared.entries if entry.method == "flow-grpo")
    for entry in compared.entries:
        for run in entry.runs:
            run.parts["gold"] = np.tile(level, (len(MARKS), 1))
    flow.runs[1].parts["gold"][-1, hard] = np.nan  # of one seed
    unpaired = matched.part_at(compared, flow, "gold", -1).mean - matched.part_at(compared, flow, "gold", 0).mean
    assert unpaired > 0.05
    for of in (matched.since_base, matched.against, matched.since_best, matched.removed):
        assert astuple(of(compared, flow, "gold")) == pytest.approx((0, 0, 0)), of.__name__
    for entry in compared.entries:
        for run in entry.runs:
            run.parts["exact"] = np.where(hard, np.nan, level + np.array(MARKS)[:, None])
    assert astuple(matched.since_base(compared, flow, "exact")) == pytest.approx((1, 1, 1))


def test_geneval_s_verdict_is_the_mean_over_tags_of_their_means(compared: entries.Comparison) -> None:
    few = np.arange(PROMPTS) < 10
    for entry in compared.entries:
        for run in entry.runs:
            right = np.array(MARKS)[:, None] * np.ones(PROMPTS)
            run.parts["correct counting"] = np.where(few, right, np.nan)
            run.parts["correct colors"] = np.where(few, np.nan, 0.0 * right)
    verdict = ends.verdict_table(compared)
    assert verdict is not None
    assert verdict.header == ["method", "mean over tags", "counting", "colors"]
    assert verdict.numbers["label"].tolist() == ["base", "gdro", "flow-grpo"]
    assert verdict.numbers["overall"].tolist() == [0.0, 0.5, 0.5]
    assert verdict.numbers["correct counting"].tolist() == [0.0, 1.0, 1.0]
    assert verdict.cells[1] == ["gdro", "0.500 [0.500, 0.500]", "1.000 [1.000, 1.000]", "0.000 [0.000, 0.000]"]


def test_ocr_s_verdict_is_the_exact_match(compared: entries.Comparison) -> None:
    verdict = ends.verdict_table(compared)
    assert verdict is not None
    assert verdict.header == ["method", "exact match (share)"]
    for entry in compared.entries:
        for run in entry.runs:
            del run.parts["exact"]
    assert ends.verdict_table(compared) is None


def test_what_the_reward_calls_right_and_gold_does_not_is_told(compared: entries.Comparison) -> None:
    """At the end the first 20 are right; of these gold breaks 5, of flow-grpo's one seed 15; of the base's 8 it breaks
    none. What gold cannot score counts nowhere."""
    assert doubts.doubt_table(compared) is None  # without gold
    number = np.arange(PROMPTS)
    for entry in compared.entries:
        for run in entry.runs:
            run.parts["exact"] = np.tile(np.where(number < 20, 1.0, 0.0), (len(MARKS), 1))
            run.parts["exact"][0, 8:] = 0
            gold = np.ones((len(MARKS), PROMPTS))
            gold[-1, :5], gold[-1, 30:], gold[:, 7] = 0.5, 0.5, np.nan
            run.parts["gold"] = gold
    compared.entries[1].runs[2].parts["gold"][-1, :16] = 0.9
    table = doubts.doubt_table(compared)
    assert table is not None
    assert table.header == ["method", "share of pictures called right", "against the base's"]
    assert table.numbers["label"].tolist() == ["base", "gdro", "flow-grpo"]
    assert table.numbers["pictures"].tolist() == [3 * 7, 3 * 19, 19 + 19 + 20]
    assert table.numbers["exact"].tolist() == pytest.approx([0, 15 / 57, (5 + 5 + 16) / 58])
    assert table.numbers["change"].tolist()[1:] == table.numbers["exact"].tolist()[1:]
    assert table.cells[0] == ["base", "0.000 [0.000, 0.000] of 21", ""]
    assert table.cells[1][2].startswith("above: +0.263 [")
    for entry in compared.entries:
        for run in entry.runs:
            run.parts["correct counting"] = run.parts["exact"] * np.where(number < 2, 1, np.nan)
    table = doubts.doubt_table(compared)
    assert table is not None
    assert table.cells[1][3] == "1.000 [1.000, 1.000] of 6"


def test_parts_that_a_reward_names_itself_are_tabled_beside_the_base_s(compared: entries.Comparison) -> None:
    assert ends.own_parts_table(compared) is None  # of a reward that names none
    for entry in compared.entries:
        for run in entry.runs:
            run.parts["cue"] = np.array(MARKS)[:, None] * np.ones(PROMPTS) / 2 + 0.25
            run.parts["auxiliary length"] = np.ones_like(run.parts["reward"])  # it watches the reward, and is none
    table = ends.own_parts_table(compared)
    assert table is not None
    assert table.header == ["method", "cue", "cue - base's", "cue - gdro's"]
    assert table.cells[0] == ["base", "0.250 [0.250, 0.250]", "", ""]
    assert table.cells[1] == ["gdro", "0.750 [0.750, 0.750]", "above: +0.500 [0.500, 0.500]", ""]
    assert table.cells[2][3] == "within noise: +0.000 [0.000, 0.000]"
    assert table.numbers["cue_change"].tolist() == [0.5, 0.5]


# -- matched reward and budget


def test_the_common_level_is_what_the_slowest_reaches(compared: entries.Comparison) -> None:
    assert matched.common_level(compared) == pytest.approx(0.6)


def test_the_common_level_is_reached_in_nearly_all_resamples(tmp_path: Path) -> None:
    """Where seeds differ it lies below the mean curve's top, and costs have two ends."""
    runs = []
    for seed, top in enumerate((0.5, 0.6, 0.7, 0.8)):
        rewards = (0.4, 0.45, 0.5, top - 0.05, top)
        runs += [entries.load(make_run(tmp_path / f"{m}{seed}", m, seed, rewards)) for m in ("gdro", "flow-grpo")]
    compared = entries.compare(runs, variants=False)
    level = matched.common_level(compared)
    assert level is not None
    assert 0.5 <= level < 0.65
    assert all(np.isfinite(row.cost[True].high) for row in matched.at_reward(compared, level, "evaluations"))


def test_a_method_that_gains_nothing_does_not_lower_the_level(tmp_path: Path, compared: entries.Comparison) -> None:
    flat = entries.load(make_run(tmp_path / "d", "dpo", rewards=(0.4, 0.4, 0.39, 0.38, 0.3)))
    runs = [run for entry in compared.entries for run in entry.runs]
    with_flat = entries.compare([*runs, flat], variants=False)
    assert matched.common_level(with_flat) == pytest.approx(0.6)
    row = next(r for r in matched.at_reward(with_flat, 0.6, "evaluations") if r.entry.method == "dpo")
    assert (row.mark, row.cost[True].mean, row.ratio[False].mean) == (None, math.inf, math.inf)


def test_costs_at_matched_reward_count_the_pool_or_not(compared: entries.Comparison) -> None:
    gdro, flow = matched.at_reward(compared, 0.5, "evaluations")
    assert (gdro.entry.label, flow.entry.label) == ("gdro", "flow-grpo")
    assert gdro.cost[True].mean == pytest.approx(400)  # 0.4 when the pool is full at 300, 0.6 at 500
    assert gdro.cost[False].mean == pytest.approx(100)
    assert flow.cost[True].mean == flow.cost[False].mean == pytest.approx(500)
    assert flow.ratio[True].mean == pytest.approx(1.25)
    assert flow.ratio[False].mean == pytest.approx(5.0)
    assert (flow.ratio[True].low, flow.ratio[True].high) == pytest.approx((1.25, 1.25))
    assert (gdro.mark, flow.mark) == (2, 2)


def ratio_of(
    compared: entries.Comparison, method: str, axis: str = "evaluations", label: str = ""
) -> dict[bool, Estimate]:
    entry = next(entry for entry in compared.entries if entry.method == method and label in entry.label)
    return matched.mean_ratio(compared, entry, axis)


def test_the_cost_to_equal_reward_is_a_mean_over_levels_whatever_else_is_compared(
    compared: entries.Comparison, tmp_path: Path
) -> None:
    assert [astuple(ratio) for ratio in ratio_of(compared, "gdro").values()] == [(1, 1, 1)] * 2
    levels = 0.9 * (np.arange(matched.LEVELS) + 0.5) / matched.LEVELS  # gdro climbs from 0.4 at 300 to 0.6 at 500
    flow = ratio_of(compared, "flow-grpo")
    assert flow[True].mean == pytest.approx(float(np.exp(np.log(1000 * levels / (300 + 200 * levels)).mean())))
    assert astuple(flow[False]) == pytest.approx((5, 5, 5))
    weak = entries.load(make_run(tmp_path / "d", "dpo", rewards=(0.4, 0.4, 0.4, 0.41, 0.42), pool=0))
    with_weak = entries.compare([*(run for e in compared.entries for run in e.runs), weak], variants=False)
    assert matched.common_level(with_weak) == pytest.approx(0.42)
    assert ratio_of(with_weak, "flow-grpo") == flow


@pytest.mark.usefixtures("undrawn")
def test_a_method_that_never_rises_has_no_cost_to_equal_reward(tmp_path: Path) -> None:
    flat = [entries.load(make_run(tmp_path / m, m, rewards=(0.4,) * 5)) for m in ("dpo", "rft")]
    assert math.isnan(ratio_of(entries.compare(flat, variants=False), "rft")[True].mean)
    rising = entries.load(make_run(tmp_path / "g"))
    compared = entries.compare([rising, flat[0]], variants=False)
    assert math.isnan(ratio_of(compared, "dpo")[True].mean)
    _, short = report.write(compared, tmp_path / "out", "evaluations", None)
    assert short.cells[1][3] == "no clear rise"


def test_levels_that_neither_reaches_say_nothing_and_too_many_of_them_give_no_interval() -> None:
    inf = math.inf
    costs, to = np.array([[2.0, 2, 4], [inf, 8, 4]]), np.array([[1.0, 1, 1], [inf, 2, inf]])
    ratio = matched._ratio(costs, to)
    assert ratio.mean == 2
    assert (ratio.low, ratio.high) == (0, pytest.approx(8**0.5))
    lost = np.array([2.0, *[2.0] * 38, inf, inf])
    assert math.isnan(matched._ratio(lost, lost / 2).low)
    assert astuple(matched._ratio(lost, lost)) == (1, 1, 1)  # to itself a ratio is exact


SPIKE = (0.4, 0.7, 0.5, 0.6, 0.8)  # there at 25 %, and to stay between 50 % and 75 %


def test_a_spike_is_first_there_and_does_not_stay(tmp_path: Path) -> None:
    gdro = entries.load(make_run(tmp_path / "g", rewards=SPIKE, pool=0))
    flow = entries.load(make_run(tmp_path / "f", "flow-grpo", rewards=SLOWER, pool=0))
    compared = entries.compare([gdro, flow], variants=False)
    _, row = matched.at_reward(compared, 0.55, "evaluations")
    assert row.ratio[True].mean == pytest.approx(750 / 125)
    assert row.staying.mean == pytest.approx(750 / 625)
    curves = np.array([SPIKE, (0.4, 0.7, 0.5, 0.6, 0.5), (0.4, np.nan, 0.5, np.nan, 0.8)])
    stays = matched.cost_at(compared.reference, 0.15, "evaluations", True, curves, stays=True)
    assert stays == pytest.approx([625, math.inf, 500 + 500 / 6])


def test_where_the_reference_alone_never_arrives_that_is_said(tmp_path: Path) -> None:
    gdro = entries.load(make_run(tmp_path / "g", rewards=SLOWER, pool=0))
    flow = entries.load(make_run(tmp_path / "f", "flow-grpo", pool=0))
    compared = entries.compare([gdro, flow], variants=False)
    rows = matched.at_reward(compared, 0.75, "evaluations")
    cells = costs.reward_table(compared, rows, 0.75, "evaluations").cells
    assert cells[1][4] == "gdro not there"


def test_no_band_is_drawn_where_neither_arrives_in_many_resamples(tmp_path: Path) -> None:
    made = [entries.load(make_run(tmp_path / method, method, pool=0)) for method in ("gdro", "flow-grpo")]
    luck = np.random.default_rng(0).normal(0, 0.3, PROMPTS) * np.eye(len(MARKS))[-1][:, None]
    for run in made:  # the last value hangs on the prompts drawn: at the top half of the resamples are below it
        run.parts["reward"] = run.parts["reward"] + luck
    rows = matched.at_levels(entries.compare(made, variants=False), "evaluations")
    assert math.isfinite(rows[0].ratio[True].low)
    assert math.isnan(rows[-1].ratio[True].low)


def test_a_flat_method_s_luckiest_point_is_no_rise() -> None:
    """Of twenty points within noise, the highest is often above 0 by its own interval."""
    rng = np.random.default_rng(0)
    risen = 0
    for _ in range(200):
        values = rng.normal(0, 1, (1, 20, 40))
        drawn = stats.replicates(values, np.ones((stats.RESAMPLES, 1)), stats.draws(40, 1))
        gains = np.vstack((values.mean(2), drawn)) * np.r_[0, np.ones(19)]
        risen += matched._rises(gains)
    assert risen <= 14  # 2.5 % are allowed, some more for forty values; at the point's own interval it is two fifths


def test_points_that_vary_together_are_one_chance_to_rise_and_not_many() -> None:
    noise = np.random.default_rng(0).normal(0, 1, stats.RESAMPLES)
    together = np.vstack((np.full(20, 2.2), 2.2 + np.tile(noise, (20, 1)).T)) * np.r_[0, np.ones(19)]
    assert matched._rises(together)
    assert not matched._rises(together - 0.6 * np.r_[0, np.ones(19)])
    together[:, 5] = np.nan  # a point that nobody scored
    assert matched._rises(together)


@pytest.mark.parametrize(("axis", "gdro", "flow"), [("seconds", 40, 50), ("images", 400, 500), ("updates", 10, 50)])
def test_cost_can_be_counted_otherwise(compared: entries.Comparison, axis: str, gdro: float, flow: float) -> None:
    found = matched.at_reward(compared, 0.5, axis)
    assert [row.cost[True].mean for row in found] == pytest.approx([gdro, flow])


def test_differences_at_matched_budget_are_paired_by_prompt(compared: entries.Comparison) -> None:
    gdro, flow = matched.at_budget(compared)
    assert gdro.reward.mean == pytest.approx(0.8)
    assert (gdro.difference.low, gdro.difference.high) == (0, 0)
    assert flow.difference.mean == pytest.approx(-0.2)
    # all runs differ from prompt to prompt alike, so nothing is left of that spread in the difference
    assert flow.difference.high - flow.difference.low < 1e-9 < flow.reward.high - flow.reward.low
    assert flow.gain.mean == pytest.approx(0.2)


def test_what_rises_to_the_end_has_not_fallen_and_noise_has_neither(compared: entries.Comparison) -> None:
    """The highest of many noisy points is too high: it is chosen by other prompts than it is read from."""
    gdro = compared.reference
    assert matched.since_best(compared, gdro, "reward").mean == pytest.approx(0.1)
    rng, falls, naive = np.random.default_rng(0), [], []
    for _ in range(100):
        noise = rng.normal(0, 1, (len(MARKS), PROMPTS))
        for run in gdro.runs:
            run.parts["gold"] = noise
        fall = matched.since_best(compared, gdro, "gold")
        falls.append(fall.mean)
        naive.append(noise[-1].mean() - noise.mean(1).max())
    assert abs(np.mean(falls)) < 3 * np.std(falls) / 10
    assert np.mean(naive) < -6 * np.std(naive) / 10


# -- what judges said


def judge(folder: Path, u: tuple[float, ...], name: str = "judge (1-5)") -> Path:
    """A run that was judged: u at each mark, a fifth of a point apart from picture to picture, on the first 20."""
    spread = np.linspace(-0.1, 0.1, 20)
    rows = [
        {"mark": mark, "prompt": i, "u": value + spread[i], "alignment": value, "gold": 0.5, "judge_note": ""}
        for mark, value in zip(MARKS, u, strict=True)
        for i in range(20)
    ]
    judging._write(folder / judging.TABLE, rows, {"judge": name, "gold": "gold: facts"})
    return folder


def rejudge(folder: Path, table: pd.DataFrame) -> None:
    """Puts other judgements, by the same instruments, in the place of a run's."""
    judging._write(folder / judging.TABLE, table.to_dict("records"), judging.instruments(folder))


FALLING = (4.0, 4.0, 3.8, 3.4, 2.9)


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


# -- which runs share a figure


def test_variants_are_ablations_and_stay_out_of_the_main_figure(tmp_path: Path) -> None:
    runs = [entries.load(make_run(tmp_path / "a"))]
    runs += [entries.load(make_run(tmp_path / f"{t}", changed=(f"method.tau={t}",))) for t in (0.5, 0.025)]
    plain, all_ = (entries.compare(runs, variants) for variants in (False, True))
    assert [entry.label for entry in plain.entries] == ["gdro"]
    assert [entry.label for entry in all_.entries] == ["gdro", "gdro (tau=0.025)", "gdro (tau=0.5)"]
    labels = ["gdro (tau=0.05)", "gdro (k=10, tau=0.5)", "gdro (k=10)", "gdro (k=2)", "gdro (tau=0)"]
    ordered = ["gdro (k=2)", "gdro (k=10)", "gdro (k=10, tau=0.5)", "gdro (tau=0)", "gdro (tau=0.05)"]
    assert sorted(labels, key=entries._natural) == ordered
    assert report._title(all_) == "ocr on pocket: gdro (3 variants)"
    assert list(plain.ablations) == [("gdro", "tau")]
    values = [entries.setting_of(entry, "tau") for entry in plain.ablations["gdro", "tau"]]
    assert values == [0.025, 0.05, 0.5]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"limit": 500}, "budget is 1000 in one, 500 in the other"),
        ({"task": "geneval"}, "task is ocr in one, geneval in the other"),
        ({"settings": {"profile": {"sampler": {"steps": 4}}, "method": {}}}, "profile.sampler.steps is 8 in one, 4"),
        ({"digests": {"model": "n", "method": "x", "held_out": "h"}}, "digest of model is m in one, n in the other"),
        ({"instruments": {"reward": "another"}}, "reward is OCR in one, another in the other"),
    ],
)
def test_runs_that_cannot_share_a_figure_are_refused(tmp_path: Path, fields: dict[str, object], said: str) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "dpo", **fields)
    result = call(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1
    assert said in result.output
    assert "Name the folders that belong together" in result.output


def test_two_runs_of_one_seed_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    assert "are both seed 0 of gdro" in call(tmp_path).output


@pytest.mark.usefixtures("undrawn")
def test_tasks_are_reported_apart_when_no_folder_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", task="geneval")
    result = call("--runs", tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "compare").iterdir()} == {"ocr-pocket", "geneval-pocket"}


OTHER_PROMPTS = {"model": "m", "method": "gdro()", "held_out": "other"}


@pytest.mark.usefixtures("undrawn")
def test_runs_of_other_budgets_and_prompts_are_reported_apart(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"main{seed}", seed=seed)
    make_run(tmp_path / "a-budget", limit=500)
    make_run(tmp_path / "b-prompts", digests=OTHER_PROMPTS, changed=("prompts=other",))
    result = call("--runs", tmp_path)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "compare").iterdir()}
    assert names == {"ocr-pocket", "ocr-pocket-budget-500", "ocr-pocket-held_out-other"}
    remark = "Apart from ocr-pocket: 1 run with budget 500, where the others have 1000."
    assert remark in result.output
    assert remark in (tmp_path / "compare" / "ocr-pocket-budget-500" / "report.md").read_text()
    assert "2 seeds" in (tmp_path / "compare" / "ocr-pocket" / "report.md").read_text()


def test_the_main_group_leaves_the_profile_as_it_is_and_a_copied_record_counts_once(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / "a-tuning" / f"g{seed}", seed=seed, limit=400, changed=("profile.budget.limit=400",))
    for folder in ("b-main", "c-again"):
        make_run(tmp_path / folder / "g0")
    main, tuning = grouping.groups([], tmp_path)[0]
    assert (main.name, len(main.runs), tuning.name) == ("ocr-pocket", 1, "ocr-pocket-budget-400")


def test_groups_with_the_same_first_difference_have_folders_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    make_run(tmp_path / "c", limit=500)
    make_run(tmp_path / "d", limit=500, digests=OTHER_PROMPTS)
    groups, _ = grouping.groups([], tmp_path)
    assert len({group.name for group in groups}) == 3
    assert groups[0].name == "ocr-pocket"


@pytest.mark.parametrize("value", ["../../etc", "a b/c", "x" * 300])
def test_a_group_s_folder_is_a_safe_name(tmp_path: Path, value: str) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", instruments={"reward": value})
    name = grouping.groups([], tmp_path)[0][1].name
    assert re.fullmatch(r"ocr-pocket-[A-Za-z0-9._=-]{1,80}", name)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: folder.mkdir(), "There is no finished run in"),
        (lambda folder: (folder.mkdir(), (folder / "plan.json").write_text("{}")), "is not finished"),
        (lambda folder: make_run(folder, schema=1), "has schema 1, not 3"),
        (lambda folder: (make_run(folder) / "scores.parquet").unlink(), "scores.parquet cannot be read"),
    ],
)
def test_a_folder_that_is_of_no_use_is_named(tmp_path: Path, prepare, said: str) -> None:
    prepare(tmp_path / "run")
    result = call(tmp_path / "run")
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_folder_that_is_not_there_is_a_slip_and_no_missing_run(tmp_path: Path) -> None:
    result = call(tmp_path / "rnus")
    assert result.exit_code == 2
    assert "There is no folder" in result.output


def test_a_level_that_nobody_reaches_is_refused(compared: entries.Comparison, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"No method reaches a reward of 1.5: the highest is 0.800"):
        report.write(compared, tmp_path / "out", "evaluations", 1.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_report_takes_the_place_of_the_one_before_and_of_nothing_else(
    compared: entries.Comparison, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = [make_search(tmp_path / "tuned", method) for method in ("gdro", "flow-grpo")]
    report.write(compared, out, "evaluations", None, searched=searches.of(compared, found))
    (out / "notes.tex").write_text("mine")
    before = {path.name for path in out.iterdir()}
    report.write(compared, out, "evaluations", None)
    assert before - {path.name for path in out.iterdir()} == {f"searches.{kind}" for kind in ("csv", "md", "tex")}
    assert (out / "notes.tex").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_curve_stays_at_the_base_until_its_pool_is_paid_for(compared: entries.Comparison, tmp_path: Path) -> None:
    curves = costs.curve_table(compared.entries, compared.prompt_weights)
    drawn = drawings.Drawing(compared, curves, tmp_path, "evaluations", None).with_flat_starts
    flat = drawn[~drawn["measured"]]
    assert set(flat["label"]) == {"gdro"}
    assert flat["evaluations"].tolist() == [300.0] * len(flat)
    assert flat["evaluations_without_pool"].tolist() == [0.0] * len(flat)
    for (_, _), rows in drawn.groupby(["label", "seed"]):
        assert rows["evaluations"].is_monotonic_increasing
        assert (rows.loc[~rows["measured"], "reward"] == rows["reward"].iloc[0]).all()
    pd.testing.assert_frame_equal(drawn[drawn["measured"]].drop(columns="measured").reset_index(drop=True), curves)


def test_every_column_of_the_curves_is_told(written: Path) -> None:
    curves, told = pd.read_csv(written / "curves.csv"), pd.read_csv(written / "columns.csv", index_col="column")
    assert list(told.index) == list(curves)
    assert told.loc["evaluations_without_pool", "meaning"] == "velocity evaluations, pools not counted"
    assert told.loc["reward_low", "meaning"] == "lower end of the 95 % interval of reward"
    assert told.loc["text_area", "meaning"] == "text area (share)"
    assert told["meaning"].ne(told.index).all()


def test_a_method_looks_the_same_whatever_it_is_called(compared: entries.Comparison, tmp_path: Path) -> None:
    called = entries.named(compared, {"gdro": "GDRO (ours)"})
    own, given = (
        drawings.Drawing(one, pd.DataFrame(), tmp_path, "evaluations", None).styles for one in (compared, called)
    )
    assert given["GDRO (ours)"] == own["gdro"]
    assert given["flow-grpo"] == own["flow-grpo"]


def test_latex_takes_names_and_numbers_as_they_are() -> None:
    made = table.Table("t", "T", ["|v|", "x"], [["[28] a", "-0.5 [-1.0, 0.2]"], ["dance-grpo", "1e-3"]], pd.DataFrame())
    body = made.latex().splitlines()
    assert body[3] == r"\textbar{}v\textbar{} & x \\"
    assert body[5:7] == [r"{}[28] a & $-$0.5 [$-$1.0, 0.2] \\", r"dance-grpo & 1e-3 \\"]


def test_a_wide_table_is_shrunk_to_the_page() -> None:
    for columns in (6, 7):
        made = table.Table("t", "T", ["a"] * columns, [["1"] * columns], pd.DataFrame()).latex().splitlines()
        shrunk = made[1] == r"\resizebox{\linewidth}{!}{%" and made[-1] == "}"
        assert shrunk == (columns == 7), made
        assert made[0] == "% T"


def cut(path: Path) -> None:
    """As a full disk or a killed copy leaves it."""
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "problem", "remedy"),
    [
        (lambda run: cut(run / "scores.parquet"), "scores.parquet cannot be read", "run it again"),
        (lambda run: cut(judge(run, FALLING) / "judged.parquet"), "judged.parquet cannot be read", "gdro-bench judge"),
        (lambda run: (run / "timing.json").write_text("[]"), "0 rows for 5 evaluation points", "Delete that file"),
        (lambda run: (run / "timing.json").write_text("[1"), "timing.json cannot be read", "Delete that file"),
        (lambda run: (run / "timing.json").write_text("3"), "timing.json cannot be read", "Delete that file"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, damage, problem: str, remedy: str) -> None:
    damage(make_run(tmp_path / "run"))
    result = call(tmp_path / "run")
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    assert problem in result.output
    assert remedy in result.output


@pytest.mark.usefixtures("undrawn")
def test_a_record_without_timing_is_compared_on_all_axes_but_seconds(tmp_path: Path) -> None:
    (make_run(tmp_path / "a") / "timing.json").unlink()
    make_run(tmp_path / "b", "flow-grpo", rewards=SLOWER, pool=0)
    assert call("--runs", tmp_path, "--x", "images").exit_code == 0
    result = call("--runs", tmp_path, "--x", "seconds")
    assert result.exit_code == 1
    assert f"{tmp_path / 'a'} does not say how many seconds it took" in result.output


@pytest.mark.parametrize("level", ["nan", "inf"])
def test_a_level_that_is_no_number_is_refused(tmp_path: Path, level: str) -> None:
    make_run(tmp_path / "a")
    result = call(tmp_path / "a", "--level", level)
    assert result.exit_code == 2
    assert f"--level is {level}." in result.output


def test_without_runs_it_says_what_to_type(tmp_path: Path) -> None:
    result = call("--runs", tmp_path)
    assert result.exit_code == 1
    assert "gdro-bench sweep ocr --method gdro --method flow-grpo" in result.output


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_run_is_passed_over_and_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "plan.json").write_text("{}")
    result = call("--runs", tmp_path)
    assert result.exit_code == 0
    assert f"Left out, unfinished: {tmp_path / 'b'}" in result.output


def test_a_method_with_one_entry_may_be_named_without_its_settings(tmp_path: Path) -> None:
    make_run(tmp_path / "a", changed=("method.tau=0.1",))
    make_run(tmp_path / "b", "flow-grpo")
    compared = entries.compare([entries.load(tmp_path / name) for name in ("a", "b")], True)
    named = entries.named(compared, {"gdro": "ours", "flow-grpo": "theirs"})
    assert [entry.label for entry in named.entries] == ["ours", "theirs"]


def test_an_unknown_reference_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    assert "Did you mean 'gdro'?" in call(tmp_path, "--reference", "gdr0").output


def test_the_axes_of_the_command_line_are_those_of_the_report() -> None:
    assert tuple(entries.AXES) == AXIS_NAMES


# -- what is written


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that tests read and do not change."""
    folder = tmp_path_factory.mktemp("written")
    report.write(six_runs(folder / "runs"), folder / "out", "evaluations", None)
    return folder / "out"


def test_everything_is_written(written: Path) -> None:
    names = {path.name for path in written.iterdir()}
    assert {"page.html", "report.md", "curves.csv", "reward.pdf", "reward.png", "quality.pdf", "quality.png"} <= names
    assert {"cost-ratio.pdf", "cost-ratio.png", "cost-ratio.csv"} <= names
    assert {f"matched-{what}.{kind}" for what in ("reward", "budget") for kind in ("csv", "md", "tex")} <= names
    assert {"grid-first.pdf", "grid-first.png", "grid-rises.png"} <= names


def test_the_same_records_give_the_same_bytes(written: Path, compared: entries.Comparison, tmp_path: Path) -> None:
    report.write(compared, tmp_path / "again", "evaluations", None)
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_tables_say_what_the_numbers_say(written: Path) -> None:
    table = pd.read_csv(written / "matched-reward.csv", index_col="label")
    assert table.loc["flow-grpo", "ratio"] == pytest.approx(1000 / 500)
    assert table.loc["flow-grpo", "ratio_without_pool"] == pytest.approx(1000 / 200)
    assert "| flow-grpo |" in (written / "matched-reward.md").read_text()
    assert r"\toprule" in (written / "matched-reward.tex").read_text()
    short = (written / "in-short.md").read_text()
    assert re.search(r"flow-grpo \| 0\.600 .* \| below: -0\.200 .* \| 0\.87 \[", short)  # gdro's pool is dear at first
    assert max(line.count("|") for line in short.splitlines()) <= 7  # six columns
    assert short in (written / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_difference_within_noise_is_called_so(tmp_path: Path) -> None:
    """Where there are several seeds: the luck of one is in no interval."""
    rng, runs = np.random.default_rng(0), []
    for name, seed in (("gdro", 0), ("gdro", 1), ("dpo", 0), ("dpo", 1), ("rft", 0)):
        folder = make_run(tmp_path / f"{name}{seed}", name, seed)
        scores = pd.read_parquet(folder / "scores.parquet")
        scores["value"] += rng.normal(0, 0.3, len(scores)) * (scores["mark"] == 1.0)
        scores.to_parquet(folder / "scores.parquet")
        runs.append(entries.load(folder))
    said, short = report.write(entries.compare(runs, False), tmp_path / "out", "evaluations", None)
    assert [line[0] for line in short.cells] == ["gdro", "dpo", "rft (1 seed)"]
    assert short.cells[1][2].startswith("within noise: ")
    assert re.match(r"[+-]0\.\d{3} \[", short.cells[2][2])
    assert any("they are too narrow; over prompts alone where there is one seed" in sentence for sentence in said)
    _, alone = report.write(entries.compare(runs[::2], False), tmp_path / "alone", "evaluations", None)
    assert [line[0] for line in alone.cells] == ["gdro", "dpo", "rft"]


def test_variants_of_a_method_are_held_against_the_same_seeds(tmp_path: Path) -> None:
    """Seed 0 ends 0.1 above seed 1: against both the variant, of seed 0 alone, would seem to gain what is seed 0's."""
    lower = tuple(reward - 0.1 for reward in (0.5, 0.5, 0.7, 0.8, 0.9))
    own = [
        make_run(tmp_path / "a", seed=0, rewards=(0.4, 0.5, 0.7, 0.8, 0.9)),
        make_run(tmp_path / "b", "gdro", 1, lower),
    ]
    variant = make_run(tmp_path / "c", seed=0, rewards=(0.4, 0.5, 0.7, 0.8, 0.9), changed=("method.tau=0.5",))
    other = make_run(tmp_path / "d", "dpo", rewards=(0.4, 0.5, 0.7, 0.8, 0.9))
    compared = entries.compare([entries.load(folder) for folder in (*own, variant, other)], variants=True)
    end = {row.entry.label: row.difference for row in matched.at_budget(compared)}
    assert astuple(end["gdro (tau=0.5)"]) == pytest.approx((0, 0, 0), abs=1e-9)
    assert end["dpo"].mean == pytest.approx(0.05)
    assert ratio_of(compared, "gdro", label="gdro (tau=0.5)")[True] == Estimate(1.0, 1.0, 1.0)
    short = ends.short_table(compared, [], matched.at_budget(compared))
    assert short.cells[1][2].endswith(", seed 0 of both")
    again = make_run(tmp_path / "e", seed=1, rewards=lower, changed=("method.tau=0.5",))
    both = entries.compare([entries.load(folder) for folder in (*own, variant, again)], variants=True)
    one, other = (entry.seed_weights for entry in both.entries)
    assert (one == other).all()  # whatever their settings: seeds are drawn together


def test_what_too_few_resamples_reach_has_no_interval() -> None:
    values = np.array([0.5, *[0.4] * 95, *[np.nan] * 5])
    assert not matched.fair(values)
    assert str(matched._where_there(values)) == "0.500 [nan, nan]"
    assert (
        words.with_interval(matched._where_there(values), "too often not there")
        == "0.500, no interval: too often not there"
    )
    assert matched.fair(values[:-4])


def test_another_cut_of_the_levels_is_told(compared: entries.Comparison) -> None:
    table = costs.cut_table(compared, matched.at_reward(compared, 0.5, "evaluations"), "evaluations")
    assert table is not None
    assert table.header == ["method", *(f"up to {cut:.0%}" for cut in costs.CUTS)]
    levels = (np.arange(matched.LEVELS) + 0.5) / matched.LEVELS  # gdro climbs from 0.4 at 300 to 0.6 at 500
    whole = float(np.exp(np.log(1000 * levels / (300 + 200 * levels)).mean()))
    assert table.numbers["ratio"].iloc[-1] == pytest.approx(whole)
    assert table.cells[0][0] == "flow-grpo"


@pytest.mark.usefixtures("undrawn")
def test_a_record_from_anybody_writes_nowhere_but_under_out(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", profile="../../../escaped")
    assert call("--runs", tmp_path / "runs", "--out", tmp_path / "out" / "deep").exit_code == 0
    assert [path.name for path in (tmp_path / "out" / "deep").iterdir()] == ["ocr-.._.._.._escaped"]
    assert not (tmp_path / "escaped").exists()
    assert content.safe_name("..") == "_.."


def test_what_was_tested_on_is_told(tmp_path: Path) -> None:
    """Numbers of the prompts that methods' settings are chosen on are no test."""
    run = record.read(make_run(tmp_path / "a"))
    assert words.tested_on(run) == "held-out prompts"
    assert words.tested_on(replace(run, changed=("prompts=abc",))) == "the user's own prompts"
    tuned_on = {"profile": {"prompts": "pocket-tuning"}, "method": {}}
    assert "pocket-tuning, on which methods' settings are chosen" in words.tested_on(replace(run, settings=tuned_on))


def test_seeds_that_share_a_pool_are_told(tmp_path: Path) -> None:
    """Those of a method that draws prompts anew with every seed have more in their interval."""
    shared = "method.pool.shared=true"
    changes = {"gdro": (shared,), "flow-grpo": (), "nft": (shared, "method.mode=online"), "dpo": ()}
    runs = [
        entries.load(make_run(tmp_path / f"{method}{seed}", method, seed, changed=changed))
        for method, changed in changes.items()
        for seed in (0, 1)
    ]
    for run in runs:
        method = run.run.settings["method"]
        method["pool"] = {"seed": 0} | ({"shared": True} if method.pop("pool.shared", None) else {})
    compared = entries.compare(runs, True)
    told = headlines.headlines(compared, matched.at_budget(compared), None, "evaluations")
    assert [line.split(":")[0] for line in told if "one pool" in line] == [
        f"All seeds of {compared.entries[0].label} train on the prompts of one pool"
    ]
    assert "gdro" in compared.entries[0].label


def test_prompts_and_readings_stay_text(written: Path) -> None:
    page = (written / "page.html").read_text()
    assert EVIL not in page
    assert "&lt;script&gt;alert(" in page
    assert page.count("<script>") == 1  # its own


@pytest.mark.usefixtures("sketched")
def test_names_and_instruments_stay_text(tmp_path: Path) -> None:
    """A record may come from elsewhere: nothing in it is markup, on any place of the page."""
    make_run(tmp_path / "a", instruments={"reward": EVIL})
    make_run(tmp_path / "b", instruments={"reward": EVIL}, changed=(f"method.draw={EVIL}",))
    loaded = [entries.load(tmp_path / name) for name in "ab"]
    report.write(entries.compare(loaded, True), tmp_path / "out", "evaluations", None, EVIL)
    page = (tmp_path / "out" / "page.html").read_text()
    assert EVIL not in page
    assert page.count("<script>") == 1


def test_a_verdict_that_is_not_known_is_no_finding(compared: entries.Comparison) -> None:
    for run in compared.entries[0].runs:
        run.parts["correct counting"] = np.full_like(run.parts["reward"], np.nan)
    for run in compared.entries[1].runs:
        run.parts["correct counting"] = np.ones_like(run.parts["reward"])
    verdict = ends.verdict_table(compared)
    assert verdict is not None
    assert verdict.cells[1] == ["gdro", "not known", "not known"]


def test_the_page_holds_its_pictures_and_needs_nothing_else(written: Path) -> None:
    page = (written / "page.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) >= 2 + 3 * 4
    assert all(base64.b64decode(picture)[:4] == b"\x89PNG" for picture in pictures)
    assert not re.search(r'(src|href)="(?!data:|#)', page)


@pytest.mark.usefixtures("sketched")
def test_ablations_are_drawn_by_the_number(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", changed=("method.tau=0.5",), rewards=SLOWER)
    assert call("--runs", tmp_path).exit_code == 0
    data = pd.read_csv(tmp_path / "compare" / "ocr-pocket" / "ablation-gdro-tau.csv")
    assert sorted(set(data["label"])) == [0.05, 0.5]
    assert (tmp_path / "compare" / "ocr-pocket" / "ablation-gdro-tau.pdf").exists()


@pytest.mark.usefixtures("sketched")
def test_an_ablation_is_drawn_though_a_run_of_it_was_not_judged(tmp_path: Path) -> None:
    judge(make_run(tmp_path / "a"), FALLING)
    make_run(tmp_path / "b", changed=("method.tau=0.5",), rewards=SLOWER)
    assert call("--runs", tmp_path).exit_code == 0
    assert (tmp_path / "compare" / "ocr-pocket" / "page.html").exists()


def test_what_moves_no_number_is_no_change_of_a_run(tmp_path: Path) -> None:
    changed = ("profile.reader.workers=1", "profile.judge.url=http://there", "method.tau=0.5", "profile.budget.limit=5")
    run = entries.load(make_run(tmp_path, changed=changed))
    assert grouping.changes([run]) == {"profile.budget.limit"}


def test_a_mark_before_the_first_update_lets_no_cost_run_backwards(tmp_path: Path) -> None:
    """Rollouts that no pool keeps have cost something by then."""
    run = entries.load(make_run(tmp_path, "flow-grpo", pool=300))
    points = tuple(replace(point, pool_evaluations=0, pool_images=0) for point in run.run.points)
    entry = entries.Entry("flow-grpo", (replace(run, run=replace(run.run, points=points)),))
    cost, _ = matched.with_pool_point(entry, "evaluations", True, entry.mean("reward"))
    assert entry.first_update == 2
    assert list(cost) == sorted(cost)


@pytest.mark.usefixtures("sketched")
def test_an_ablation_of_a_word_is_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", changed=("method.draw=spread",))
    assert call("--runs", tmp_path).exit_code == 0
    data = pd.read_csv(tmp_path / "compare" / "ocr-pocket" / "ablation-gdro-draw.csv")
    assert list(dict.fromkeys(data["label"])) == ["random", "spread"]


@pytest.mark.usefixtures("undrawn")
def test_the_page_gives_the_command_of_every_run(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", changed=("method.tau=0.5",), rewards=SLOWER)
    assert call("--runs", tmp_path).exit_code == 0
    page = (tmp_path / "compare" / "ocr-pocket" / "page.html").read_text()
    assert "--method gdro --seed 0</code>" in page
    assert "--set method.tau=0.5</code>" in page


def test_a_command_with_own_prompts_can_be_typed(tmp_path: Path) -> None:
    changed = ("profile.budget.limit=1000", "method.tau=0.5", "prompts=f2dc63b0")
    typed = record.command(entries.load(make_run(tmp_path / "a", changed=changed[1:2])).run)
    assert typed.endswith("--set method.tau=0.5")
    run = replace(entries.load(tmp_path / "a").run, changed=changed)
    words = shlex.split(record.command(run), comments=True)
    options = ["--set", "profile.budget.limit=1000", "--set", "method.tau=0.5", "--prompts", "FILE"]
    assert words[-6:] == options
    assert "f2dc63b0" in record.command(run)
    (tmp_path / "prompts.txt").write_text('a sign "HI"\n')
    typed = [str(tmp_path / "prompts.txt") if word == "FILE" else word for word in words[2:]]
    parsed = main.commands["run"].make_context("run", typed)  # type: ignore[attr-defined]
    assert parsed.params["prompts"] == tmp_path / "prompts.txt"


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


# -- figures


@pytest.mark.usefixtures("sketched")
def test_a_figure_carries_its_own_caption(tmp_path: Path) -> None:
    """The corrected score's is made of the task's own settings."""
    run = entries.load(judge(make_run(tmp_path / "a"), FALLING))
    bent = replace(run, correction=replace(run.correction, pivot=2.5, shift=0.7))
    compared = entries.compare([bent], False)
    curves = costs.curve_table(compared.entries, compared.prompt_weights)
    drawn = {figure.name: figure for figure in drawings.draw(compared, curves, tmp_path / "out", "evaluations", None)}
    assert list(drawn) == ["reward", "quality", "corrected", "performance-profile"]
    assert "r (u - 2.5) + 0.7" in drawn["corrected"].caption
    assert all(figure.path.exists() and figure.path.with_suffix(".pdf").exists() for figure in drawn.values())


@pytest.mark.usefixtures("sketched")
def test_every_figure_is_on_the_page_with_its_caption(
    written: Path, compared: entries.Comparison, tmp_path: Path
) -> None:
    page = (written / "page.html").read_text()
    curves = costs.curve_table(compared.entries, compared.prompt_weights)
    for figure in drawings.draw(compared, curves, tmp_path / "again", "evaluations", None):
        assert str(escape(figure.title)) in page
        assert str(escape(figure.caption)) in page


@pytest.mark.usefixtures("sketched")
def test_one_method_alone_is_not_matched_but_shown_at_its_end(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    result = call(tmp_path / "a", "--out", tmp_path / "out")
    assert "gdro ends at 0.8" in result.output
    assert "nothing to match" not in result.output
    written = {path.name for path in (tmp_path / "out" / "ocr-pocket").iterdir()}
    assert "matched-reward.csv" not in written
    assert {"grid-first.png", "grid-rises.png"} <= written


def test_grids_show_the_prompts_whose_pictures_all_have(tmp_path: Path, compared: entries.Comparison) -> None:
    path = samples.path_of(compared.entries[1].runs[0].folder, 1.0)
    kept = [number for number in samples.numbers(path) if number != 1]
    samples.write(path, samples.read(path, kept), kept)
    first = grids.grids(compared, matched.at_reward(compared, 0.6, "evaluations"))[0]
    assert compared.entries[1].runs[0].prompts[1] not in first.prompts
    assert first.prompts[0] == compared.entries[0].runs[0].prompts[0]


def test_a_grid_shows_what_the_reward_likes_better_and_gold_worse(compared: entries.Comparison) -> None:
    for entry in compared.entries:
        for run in entry.runs:
            run.parts["gold"] = np.ones((len(MARKS), PROMPTS))
        run = entry.runs[0]
        run.parts["gold"][-1, [1, 2, 3]] = 0.5
        run.parts["reward"] = np.zeros((len(MARKS), PROMPTS))
        run.parts["reward"][-1, :4] = 0.9, 0.2, -0.4, 0.8  # gold holds; it falls with the reward up, down and up
    shown = next(grid for grid in grids.grids(compared, []) if grid.name == "doubted")
    assert shown.numbers == [3, 1]
    assert "where the reward rose most while gold fell" in shown.title
    for entry in compared.entries:
        entry.runs[0].parts["gold"][:] = 1.0
    assert all(grid.name != "doubted" for grid in grids.grids(compared, []))


@pytest.mark.usefixtures("undrawn")
def test_without_any_gain_there_is_nothing_to_match(tmp_path: Path) -> None:
    make_run(tmp_path / "a", rewards=(0.4,) * 5)
    make_run(tmp_path / "b", "dpo", rewards=(0.4,) * 5)
    result = call("--runs", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "nothing to match" in result.output
