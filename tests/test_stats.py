import numpy as np
import pytest

from gdro_bench.stats import RESAMPLES, Estimate, bootstrap_mean, crossings, draws, draws_of, paired_gain, replicates


def test_interval_covers_the_true_mean_about_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    estimates = [bootstrap_mean(rng.normal(2.0, 1.0, 60), seed) for seed in range(200)]
    covered = np.mean([estimate.low <= 2.0 <= estimate.high for estimate in estimates])
    assert 0.90 <= covered <= 0.98


def test_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(1).normal(0.0, 1.0, 2000)
    estimate = bootstrap_mean(values)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.1)


def test_estimate_is_the_seeds_and_equivariant():
    values = np.random.default_rng(2).random(50)
    first, turned = bootstrap_mean(values, 3), bootstrap_mean(1 + 2 * values, 3)
    assert bootstrap_mean(values, 3) == first != bootstrap_mean(values, 4)
    assert (turned.mean, turned.low, turned.high) == pytest.approx(
        [1 + 2 * x for x in (first.mean, first.low, first.high)]
    )


def test_unscored_values_are_left_out():
    values = np.random.default_rng(4).random(30)
    assert bootstrap_mean(np.insert(values, [0, 7, 30], np.nan)) == bootstrap_mean(values)


@pytest.mark.parametrize("values", [np.array([]), np.array([np.nan, np.nan])])
def test_nothing_scored_gives_nan(values):
    estimate = bootstrap_mean(values)
    assert np.isnan([estimate.mean, estimate.low, estimate.high]).all()


def test_pairing_removes_what_both_share():
    before = np.random.default_rng(5).normal(0.0, 10.0, 40)
    gain = paired_gain(before, before + 0.25)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.25, 0.25, 0.25))


def test_gain_uses_prompts_scored_both_times():
    gain = paired_gain(np.array([np.nan, 0.0, 0.5]), np.array([1.0, np.nan, 0.75]))
    assert gain.mean == 0.25


def test_gain_of_other_prompts_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        paired_gain(np.zeros(3), np.zeros(2))


def test_pictures_of_one_prompt_are_drawn_together():
    """Four pictures of a prompt that all fare alike tell no more than one."""
    each = np.random.default_rng(0).normal(size=40)
    texts = [f"prompt {i}" for i in range(40)]
    alone = bootstrap_mean(each, prompts=texts)
    assert alone == bootstrap_mean(each)
    fourfold = bootstrap_mean(np.tile(each, 4), prompts=texts * 4)
    assert (fourfold.low, fourfold.high) == pytest.approx((alone.low, alone.high))
    apart = bootstrap_mean(np.tile(each, 4))
    assert apart.high - apart.low < 0.6 * (fourfold.high - fourfold.low)


def test_pictures_that_were_not_scored_leave_their_prompt_s_others():
    values = np.array([1.0, np.nan, 0.0, 0.5])
    assert bootstrap_mean(values, prompts=["a", "a", "b", "b"]).mean == 0.5
    assert np.isnan(bootstrap_mean(np.array([np.nan, np.nan]), prompts=["a", "a"]).mean)


def test_weights_of_one_prompt_s_pictures_are_equal():
    weights = draws_of(["b", "a", "b", "c"], seed=1)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] != weights[:, 1]).any()
    assert (draws_of(["b", "a", "c"], seed=1) == draws(3, seed=1)).all()


def test_what_is_not_known_is_said_and_no_finding():
    unknown = Estimate(np.nan, np.nan, np.nan)
    assert str(unknown) == "not known"
    assert unknown.against_zero == "not known to differ from"
    assert Estimate(0.1, -0.1, 0.2).against_zero == "within noise of"


def test_a_curve_is_crossed_past_points_that_are_not_known():
    cost, rewards = np.array([0.0, 10, 20]), np.array([[0.0, np.nan, 1.0], [np.nan] * 3])
    assert crossings(cost, rewards, 0.5).tolist() == [10, np.inf]


@pytest.mark.parametrize("missing", [False, True])
def test_a_prompt_s_pictures_are_drawn_together_and_their_mean_is_a_mean(missing: bool) -> None:
    """Uneven numbers of pictures a prompt, too: weights do not sum to 1 then."""
    prompts = ["a"] * 4 + ["b"] * 4 + ["c"]
    values = np.array([[[0.1] * 4 + [0.5] * 4 + [0.9]]])
    if missing:
        values[..., 0] = np.nan
    drawn = draws_of(prompts, seed=0)
    found = replicates(values, np.ones((RESAMPLES, 1)), drawn)[:, 0]
    known = ~np.isnan(values[0, 0])
    assert found == pytest.approx(drawn[:, known] @ values[0, 0, known] / drawn[:, known].sum(axis=1))
    assert (found.min(), found.max()) == pytest.approx((0.1, 0.9))
