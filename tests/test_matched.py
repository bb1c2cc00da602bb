"""Curves that are known, at matched reward and matched budget: costs, differences, verdicts and their intervals."""

import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from known_runs import MARKS, PROMPTS, SLOWER, call, make_run, ratio_of

from gdro_bench import stats
from gdro_bench.comparison import entries, matched, report
from gdro_bench.comparison.tables import costs, doubts, ends

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


def test_what_is_of_one_seed_and_prompt_counts_twice_in_replicates_and_not_three_times() -> None:
    values = np.random.default_rng(0).normal(0, 1, (20, 1, 50))
    found = stats.replicates(values, stats.draws(20, 1), stats.draws(50, 2))[:, 0]
    assert found.var() == pytest.approx(2 * values.var() / 1000, rel=0.2)


def test_replicates_of_shares_are_shares() -> None:
    values = np.zeros((2, 1, 8))
    values[0, 0, 0] = 1.0  # one picture of one seed alone
    found = stats.replicates(values, stats.draws(2, 1), stats.draws(8, 2))
    assert (found.min(), found.max() <= 1) == (0, True)


def test_replicates_leave_out_what_was_not_scored() -> None:
    values = np.arange(24, dtype=float).reshape(2, 3, 4)
    values[0, :, 0] = np.nan
    found = stats.replicates(values, stats.draws(2, 1), stats.draws(4, 2))
    assert found.mean(axis=0) == pytest.approx(np.nanmean(values, axis=(0, 2)), abs=0.5)
    assert np.isfinite(found).all()


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
    assert table.header == ["method", "a fact is broken, of those called right", "against the base's"]
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
