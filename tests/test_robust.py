"""Interquartile mean, probability of improvement and performance profile, held against scipy and plain loops."""

from pathlib import Path

import numpy as np
import pytest
from known_runs import SLOWER, make_run
from scipy import stats as scipy_stats

from gdro_bench import stats
from gdro_bench.comparison import drawings, entries, report, robust
from gdro_bench.comparison.tables import ends

RNG = np.random.default_rng(0)


def once(n: int) -> np.ndarray:
    return np.ones((1, n))


@pytest.mark.parametrize("n", [4, 8, 120, 360])
def test_the_interquartile_mean_is_scipy_s_trimmed_mean(n: int) -> None:
    scores = RNG.random(n)
    assert robust.interquartile_mean(scores, once(n))[0] == pytest.approx(scipy_stats.trim_mean(scores, 0.25))


def test_weights_count_scores_as_often_as_they_were_drawn() -> None:
    scores, counts = RNG.random(40), RNG.integers(0, 4, 40)
    counts[0] += -counts.sum() % 4  # of a number of scores that quarters
    drawn = np.repeat(scores, counts)
    assert robust.interquartile_mean(scores, counts[None].astype(float))[0] == pytest.approx(
        scipy_stats.trim_mean(drawn, 0.25)
    )
    shares = robust.profile(scores, counts[None].astype(float))[0]
    assert shares == pytest.approx([(drawn > threshold).mean() for threshold in robust.THRESHOLDS])


def test_scores_across_the_edge_count_in_part() -> None:
    # of five scores the middle half is 2.5 scores: the third whole, the second and the fourth for three quarters
    assert robust.interquartile_mean(np.array([9.0, 1.0, 0.0, 2.0, 4.0]), once(5))[0] == pytest.approx(
        (0.75 * 1 + 2 + 0.75 * 4) / 2.5
    )


def test_the_probability_of_improvement_is_mann_whitney_s() -> None:
    ours, theirs = RNG.integers(0, 5, (3, 20)).astype(float), RNG.integers(0, 5, (4, 20)).astype(float)
    found = robust.improvement(ours, theirs, (once(3), once(4), once(20)))[0]
    by_prompt = [scipy_stats.mannwhitneyu(ours[:, i], theirs[:, i]).statistic / 12 for i in range(20)]
    assert found == pytest.approx(np.mean(by_prompt))
    assert found + robust.improvement(theirs, ours, (once(4), once(3), once(20)))[0] == pytest.approx(1)


def test_unknown_scores_are_left_out_of_all_three() -> None:
    scores = RNG.random(41)
    scores[7] = np.nan
    known = scores[~np.isnan(scores)]
    assert robust.interquartile_mean(scores, once(41))[0] == pytest.approx(scipy_stats.trim_mean(known, 0.25))
    assert robust.profile(scores, once(41))[0] == pytest.approx(robust.profile(known, once(40))[0])
    ours, theirs = np.array([[1.0, np.nan]]), np.array([[0.0, 0.0]])
    assert robust.improvement(ours, theirs, (once(1), once(1), once(2)))[0] == 1.0
    nothing = np.full((1, 2), np.nan)
    assert np.isnan(robust.improvement(nothing, theirs, (once(1), once(1), once(2)))).all()
    assert np.isnan(robust.interquartile_mean(nothing[0], once(2))).all()


@pytest.fixture
def compared(tmp_path: Path) -> entries.Comparison:
    for seed in (0, 1):
        make_run(tmp_path / f"gdro-s{seed}", seed=seed)
        make_run(tmp_path / f"dpo-s{seed}", "dpo", seed=seed, rewards=SLOWER)
    return entries.compare([entries.load(folder) for folder in sorted(tmp_path.iterdir())], variants=False)


def test_of_runs_whose_scores_are_known(compared: entries.Comparison) -> None:
    ours, theirs = compared.entries
    scores = ours.values("reward")[:, -1]
    assert robust.iqm(ours, compared.prompt_weights).mean == pytest.approx(scipy_stats.trim_mean(scores.ravel(), 0.25))
    above = robust.improvement_over(ours, theirs, compared.prompt_weights)
    assert (above.mean, above.low, above.high) == (1.0, 1.0, 1.0)  # 0.8 against 0.6, spread by 0.1 each way
    under = robust.improvement_over(theirs, ours, compared.prompt_weights)
    assert under.mean == 0.0
    shares = robust.profiles(compared)
    assert (shares["share_low"] <= shares["share"]).all()
    assert (shares["share"] <= shares["share_high"]).all()
    assert shares.groupby("label")["share"].apply(lambda share: share.is_monotonic_decreasing).all()


def test_intervals_resample_as_all_others_do(compared: entries.Comparison) -> None:
    """The share above a threshold is a mean, whose interval is known."""
    entry = compared.entries[0]
    shares = robust.profiles(compared).query("label == 'gdro'").set_index("threshold")
    above = (entry.values("reward")[:, -1:] > 0.8).astype(float)
    drawn = stats.replicates(above, entry.seed_weights, compared.prompt_weights)[:, 0]
    expected = stats.estimate(float(above.mean()), drawn)
    row = shares.loc[robust.THRESHOLDS[np.isclose(robust.THRESHOLDS, 0.8)][0]]
    assert (row["share"], row["share_low"], row["share_high"]) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )


def test_the_report_has_the_table_and_the_figure(
    compared: entries.Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawings, "FIGURES", [one for one in drawings.FIGURES if one is drawings._profile])
    report.write(compared, tmp_path / "report", "evaluations", None)
    table = ends.robust_table(compared)
    assert table.markdown() in (tmp_path / "report" / "report.md").read_text()
    assert "| dpo | 0.600 [" in table.markdown()
    for ending in ("png", "pdf", "csv"):
        assert (tmp_path / "report" / f"performance-profile.{ending}").stat().st_size > 1000
