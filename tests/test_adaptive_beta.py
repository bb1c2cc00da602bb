"""Controllers of beta against identities, and Kendall's tau against scipy."""

import math

import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor

from gdro_bench import content
from gdro_bench.errors import BenchError
from gdro_bench.methods.gdro import gdro_loss
from gdro_bench.methods.parts.adaptive_beta import (
    CLIP,
    AdaptiveBetaConfig,
    Controller,
    Rule,
    batch_factor,
    covariance,
    draw_variance,
    error_slope,
    keep_groups,
    kl_correction,
    running,
    snr_beta,
)
from gdro_bench.methods.parts.agreement import kendall_tau

RULES: tuple[Rule, ...] = ("kl-target", "batch", "slope", "snr")
SEEN = {"kappa": 2e-3, "slope_step": 0.5, "margin_at_first": 0.3, "margin_at_first_std": 0.2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def config(rule: Rule, **changed: float) -> AdaptiveBetaConfig:
    table = content.read(content.find("profile", "pocket") / "gdro.toml")["adaptive_beta"]
    return content.build(AdaptiveBetaConfig, table | {"rule": rule} | changed, "gdro.toml")


def controller(rule: Rule, **changed: float) -> Controller:
    return Controller(config(rule, **changed), 5.0, 0.05, 0)


# -- kl-target


def test_a_kappa_on_target_leaves_beta_alone() -> None:
    made = controller("kl-target", kl_target=2e-3)
    for _ in range(100):
        made.learn(SEEN)
    assert made.beta == 5.0


def test_twice_the_target_raises_beta_by_the_clip_at_every_correction() -> None:
    made = controller("kl-target", kl_target=1e-3, every=3, rate=0.5)
    for update in range(1, 13):
        made.learn(SEEN)
        assert made.beta == pytest.approx(5.0 * math.exp(0.5 * CLIP * (update // 3)), rel=1e-12)


def test_below_the_clip_the_correction_is_the_relative_error() -> None:
    assert kl_correction(1.1e-3, 1e-3, 0.5) == pytest.approx(0.05)
    assert kl_correction(0.0, 1e-3, 0.5) == -0.5 * CLIP


@pytest.mark.parametrize(("kappa", "end"), [(1.0, 40.0), (0.0, 0.625)])
def test_beta_stays_within_its_bounds(kappa: float, end: float) -> None:
    made = controller("kl-target", every=1, rate=1.0)
    for _ in range(50):
        made.learn(SEEN | {"kappa": kappa})
    assert made.beta == pytest.approx(end)


def test_a_running_mean_starts_with_the_first_value_and_skips_what_is_missing() -> None:
    assert running(math.nan, 2.0) == 2.0
    assert running(2.0, math.nan) == 2.0
    assert running(2.0, 3.0) == pytest.approx(2.1)


# -- slope


def test_the_slope_is_that_of_finite_differences() -> None:
    v, v_theta, v_ref = (draw(6, 40, seed=seed) for seed in range(3))
    step = 1e-3

    def error(a: float) -> Tensor:
        return (v - v_ref - (1 + a) * (v_theta - v_ref)).square().sum(1)

    exact = error_slope(v - v_theta, v - v_ref).sum(1)  # e is a quadratic in a: central differences are exact
    torch.testing.assert_close((error(step) - error(-step)) / (2 * step), exact, rtol=0, atol=1e-10)


def test_margins_that_pushing_raises_lower_beta() -> None:
    """s = -beta e: it rises with r along the push where e's slope falls with r."""
    r, slopes = torch.tensor([[0.0, 0.5, 1.0]] * 3), torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0], [2.0, 2.0, 2.0]])
    made = controller("slope", epsilon=0.01)
    beta, kept = made.decide(torch.zeros(3), covariance(slopes, r))
    assert isinstance(beta, Tensor)
    torch.testing.assert_close(beta, torch.tensor([[5 / 1.01], [5 / 0.99], [5.0]]))
    assert kept is None


def test_a_group_s_beta_stays_within_the_bound() -> None:
    made = controller("slope", epsilon=0.5, bound=2.0)
    for _ in range(20):
        made.learn(SEEN | {"slope_step": -1.0})
    assert made.beta == pytest.approx(10.0)
    beta, _ = made.decide(torch.zeros(2), torch.tensor([-1.0, 1.0]))
    assert isinstance(beta, Tensor)
    assert beta.min() >= 2.5
    assert beta.max() == 10.0


def test_beta_follows_the_mean_step() -> None:
    made = controller("slope", epsilon=0.01)
    made.learn(SEEN)
    assert made.beta == pytest.approx(5 / 1.005, rel=1e-12)


def test_without_epsilon_slope_is_fixed() -> None:
    made = controller("slope", epsilon=0.0)
    for _ in range(20):
        made.learn(SEEN)
    beta, _ = made.decide(torch.zeros(4), torch.tensor([-1.0, 1.0, 0.0, 2.0]))
    assert isinstance(beta, Tensor)
    assert beta.eq(5.0).all()


# -- batch


def test_without_strength_and_filter_batch_is_fixed() -> None:
    made = controller("batch", strength=0.0, keep=1.0)
    for seed in range(20):
        made.learn(SEEN)
        beta, kept = made.decide(draw(16, seed=seed), torch.zeros(16))
        assert beta == 5.0
        assert kept is not None
        assert kept.tolist() == list(range(16))


def test_larger_margins_raise_an_update_s_beta() -> None:
    made = controller("batch", strength=0.6, keep=1.0)
    made.learn(SEEN)  # mean 0.3, std 0.2
    beta, _ = made.decide(torch.full((8,), 0.4), torch.zeros(8))
    assert beta == pytest.approx(5.0 * (1 + 0.6 * 0.5))
    assert made.decide(torch.full((8,), -100.0), torch.zeros(8)).beta == 5.0 / 8
    assert made.beta == 5.0  # the base is what it was


def test_nothing_known_changes_nothing() -> None:
    assert batch_factor(torch.ones(4), math.nan, math.nan, 0.6) == 1.0
    assert batch_factor(torch.full((4,), math.nan), 0.3, 0.2, 0.6) == 1.0
    assert len(keep_groups(torch.full((10,), math.nan), math.nan, math.nan, 0.8, generator())) == 8


def test_outliers_on_both_sides_are_left_out() -> None:
    margins = torch.tensor([-40.0, *[0.0] * 8, 40.0])
    for seed in range(30):
        assert keep_groups(margins, 0.0, 1.0, 0.8, generator(seed)).tolist() == list(range(1, 9))


def test_groups_are_kept_by_their_weights() -> None:
    """Of two, one is kept: in proportion to exp(-z^2 / 2)."""
    margins, kept = torch.tensor([0.0, 1.5]), 0
    for seed in range(4000):
        kept += keep_groups(margins, 0.0, 1.0, 0.5, generator(seed)).tolist() == [0]
    expected = 1 / (1 + math.exp(-(1.5**2) / 2))
    assert kept / 4000 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))


# -- snr


def test_the_variance_over_draws_is_recovered_from_two() -> None:
    one, other = (3.0 * draw(4000, 6, seed=seed) + 10 * draw(4000, 1, seed=seed + 9) for seed in (1, 2))
    assert draw_variance(one, other).mean().item() == pytest.approx(9.0, rel=0.05)  # what all share is no noise


def test_snr_sets_the_ratio() -> None:
    beta = snr_beta(noise=0.02, spread=4.0, ratio=0.5)
    assert beta * 0.02 == pytest.approx(0.5 * 4.0)
    assert math.isnan(snr_beta(0.0, 4.0, 0.5))
    made = controller("snr")
    made.learn(SEEN | {"draw_variance": 0.25, "target_variance": 36.0})
    assert made.beta == pytest.approx(6.0)
    made.learn(SEEN | {"draw_variance": 0.0, "target_variance": 36.0})
    assert made.beta == pytest.approx(6.0)


def test_snr_asks_for_a_draw_every_so_often_but_not_at_the_start() -> None:
    made, asked = controller("snr", every=3), []
    for _ in range(8):
        asked.append(made.wants_draw)
        made.learn(SEEN)
    assert asked == [False, False, False, True, False, False, True, False]


# -- all


def test_doubled_rewards_double_the_target_margins() -> None:
    """The optimum is s = r / tau, where the loss is flat."""
    r, tau = torch.rand(5, 6, generator=generator(), dtype=torch.float64), 0.05
    for factor in (1.0, 2.0):
        s = (factor * r / tau).requires_grad_()
        gdro_loss(s, factor * r, tau, "joint", True).sum().backward()
        assert s.grad is not None
        torch.testing.assert_close(s.grad, torch.zeros_like(s), rtol=0, atol=1e-12)


def test_doubled_rewards_leave_a_beta_by_slopes_alone() -> None:
    """The other rules see no rewards."""
    r = torch.rand(5, 6, generator=generator(), dtype=torch.float64)
    margins, slopes = draw(5, seed=4), draw(5, 6, seed=5)
    betas = []
    for factor in (1.0, 2.0):
        made = controller("slope")
        made.learn(SEEN)
        betas.append(torch.as_tensor(made.decide(margins, covariance(slopes, factor * r)).beta))
    assert torch.equal(*betas)


@pytest.mark.parametrize("rule", RULES)
def test_a_restored_controller_goes_on_bit_for_bit(rule: Rule) -> None:
    whole, killed, resumed = (controller(rule, every=2) for _ in range(3))
    for made in (whole, killed):
        for update in range(5):
            made.learn(SEEN | {"kappa": 1e-3 * update, "draw_variance": 0.1, "target_variance": 1.0 + update})
    resumed.load_state_dict(killed.state_dict())
    for made in (whole, resumed):
        made.learn(SEEN | {"kappa": 7e-4})
    assert resumed.state == whole.state
    assert resumed.beta == whole.beta
    margins, slopes = draw(8), draw(8, seed=1)
    one, other = (made.decide(margins, slopes) for made in (whole, resumed))
    assert torch.equal(torch.as_tensor(one.beta), torch.as_tensor(other.beta))


def test_a_beta_that_cannot_be_moved_is_refused() -> None:
    with pytest.raises(BenchError, match="beta is 0"):
        Controller(config("slope"), 0.0, 0.05, 0)
    with pytest.raises(BenchError, match="tau 0"):
        Controller(config("snr"), 5.0, 0.0, 0)


# -- rank agreement


def test_kendall_s_tau_is_scipy_s_with_ties() -> None:
    a = torch.randint(5, (50, 9), generator=generator(1)).double()
    b = torch.randint(4, (50, 9), generator=generator(2)).double()
    found = kendall_tau(a, b)
    expected = [kendalltau(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12, equal_nan=True)


def test_unscored_images_count_nowhere_and_ties_have_no_tau() -> None:
    a, b = draw(1, 6), draw(1, 6, seed=1)
    with_gap = torch.cat((b, torch.tensor([[math.nan]])), 1)
    assert kendall_tau(torch.cat((a, torch.ones(1, 1)), 1), with_gap).item() == kendall_tau(a, b).item()
    assert kendall_tau(a, torch.ones(1, 6)).isnan().all()
    assert kendall_tau(a, 3 * a + 1).item() == 1.0
    assert kendall_tau(a, -a).item() == -1.0


def test_margins_count_from_the_first_update_whose_policy_has_left_the_reference() -> None:
    made = controller("batch")
    made.learn(SEEN | {"margin_at_first": 0.0, "margin_at_first_std": 0.0})
    assert math.isnan(made.state.margin_std)
    made.learn(SEEN)
    assert (made.state.margin_mean, made.state.margin_std) == (0.3, 0.2)


def test_a_reference_that_moves_is_measured_anew() -> None:
    made = controller("batch")
    made.learn(SEEN)
    made.forget()
    assert made.decide(torch.tensor([0.1, 0.5]), torch.zeros(2)).beta == made.first
    made.learn(SEEN | {"kappa": 5e-3, "margin_at_first": 0.7})
    assert (made.state.kappa, made.state.margin_mean) == (5e-3, 0.7)
