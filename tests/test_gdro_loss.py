"""The loss of GDRO against identities that hold for any implementation of it."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from gdro_bench.methods.gdro import gdro_loss, implicit_reward, target_distribution, top1_mask
from gdro_bench.methods.gdro import remaining_sets as remaining_sets_of
from gdro_bench.methods.parts.offline import draw_members

GROUPS, K = 32, 6
TAUS = pytest.mark.parametrize("tau", [0.0, 0.05, 1.0])
TIES = pytest.mark.parametrize("ties", ["joint", "order"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def implicit(k: int = K, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(GROUPS, k, generator=generator(1), dtype=torch.float64)


def distinct_rewards(k: int = K) -> Tensor:
    """Rewards a tenth apart, in an order of each group's own."""
    return torch.stack([torch.randperm(k, generator=generator(g)) for g in range(GROUPS)]).double() / 10


def tied_rewards(k: int = K) -> Tensor:
    return torch.randint(3, (GROUPS, k), generator=generator(2)).double() / 2


def paper_loss(s: Tensor, r: Tensor, tau: float) -> Tensor:
    """Equation 7 for one group, ranked by sorting; tau = 0 puts all weight on the best that remains."""
    ranked = torch.argsort(r, descending=True).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(ranked)):
        remaining = ranked[i:]
        weights = [math.exp((r[j] - r[ranked[i]]) / tau) if tau else float(j == ranked[i]) for j in remaining]
        total += torch.log(sum(torch.exp(s[m]) for m in remaining))
        for j, weight in zip(remaining, weights, strict=True):
            total -= weight / sum(weights) * s[j]
    return total


def slope_at_zero(r: Tensor, tau: float, ties: str) -> Tensor:
    s = torch.zeros_like(r, requires_grad=True)
    gdro_loss(s, r, tau, ties, drop_flat=False).sum().backward()
    return s.grad


# -- the loss


@TAUS
@TIES
@pytest.mark.parametrize("drop_flat", [False, True])
def test_loss_is_the_papers_where_rewards_differ(tau, ties, drop_flat):
    s, r = implicit(), distinct_rewards()
    expected = torch.stack([paper_loss(s[g], r[g], tau) for g in range(GROUPS)])
    torch.testing.assert_close(gdro_loss(s, r, tau, ties, drop_flat), expected, rtol=0, atol=1e-10)


@TAUS
@pytest.mark.parametrize("rewards", [distinct_rewards, tied_rewards])
@pytest.mark.parametrize("drop_flat", [False, True])
def test_joint_loss_is_blind_to_the_order_of_a_group(tau, rewards, drop_flat):
    s, r, turned = implicit(), rewards(), torch.randperm(K, generator=generator(3))
    expected = gdro_loss(s, r, tau, "joint", drop_flat)
    found = gdro_loss(s[:, turned], r[:, turned], tau, "joint", drop_flat)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_order_loss_is_blind_only_without_ties():
    s, turned = implicit(), torch.arange(K).flip(0)
    for rewards, blind in ((distinct_rewards(), True), (tied_rewards(), False)):
        before = gdro_loss(s, rewards, 0.05, "order", False)
        assert torch.allclose(before, gdro_loss(s[:, turned], rewards[:, turned], 0.05, "order", False)) == blind


@TIES
@pytest.mark.parametrize("tau", [0.0, 1e-3])
def test_two_images_and_a_sharp_target_give_dpo(tau, ties):
    s, r = implicit(2), distinct_rewards(2)
    best, worst = s.gather(1, r.argmax(1, keepdim=True)), s.gather(1, r.argmin(1, keepdim=True))
    dpo = -torch.nn.functional.logsigmoid(best - worst).squeeze(1)
    torch.testing.assert_close(gdro_loss(s, r, tau, ties, True), dpo, rtol=0, atol=1e-6)


@TIES
@pytest.mark.parametrize("k", [2, 3, 6, 16])
def test_an_untrained_policy_has_loss_log_k_factorial(k, ties):
    r = distinct_rewards(k)
    expected = torch.full((GROUPS,), math.lgamma(k + 1), dtype=torch.float64)
    torch.testing.assert_close(gdro_loss(torch.zeros_like(r), r, 0.0, ties, True), expected)


@TIES
@TAUS
def test_loss_does_not_see_a_shift_of_s(tau, ties):
    s, r = implicit(), tied_rewards()
    torch.testing.assert_close(gdro_loss(s + 7.5, r, tau, ties, False), gdro_loss(s, r, tau, ties, False))


@TIES
@pytest.mark.parametrize("rewards", [distinct_rewards, tied_rewards])
@pytest.mark.parametrize("drop_flat", [False, True])
def test_tau_zero_is_the_limit(rewards, ties, drop_flat):
    s, r = implicit(), rewards()
    limit = gdro_loss(s, r, 1e-4, ties, drop_flat)
    torch.testing.assert_close(gdro_loss(s, r, 0.0, ties, drop_flat), limit, rtol=0, atol=1e-12)


@TIES
def test_a_flat_group_teaches_only_when_it_is_kept(ties):
    s, r = implicit().requires_grad_(), torch.full((GROUPS, K), 0.5, dtype=torch.float64)
    dropped = gdro_loss(s, r, 0.05, ties, True)
    dropped.sum().backward()
    assert dropped.eq(0).all()
    assert s.grad.eq(0).all()
    assert gdro_loss(s, r, 0.05, ties, False).gt(0).all()


def test_drop_flat_leaves_out_the_tied_bottom_alone():
    """Of rewards (1, 0, 0) the first stage stays; the two stages among the zeros are log 2 each at s = 0."""
    s, r = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    kept, dropped = gdro_loss(s, r, 0.0, "joint", False), gdro_loss(s, r, 0.0, "joint", True)
    assert dropped.item() == pytest.approx(math.log(3))
    assert (kept - dropped).item() == pytest.approx(2 * math.log(2))


# -- its gradient


@TAUS
@TIES
@pytest.mark.parametrize("rewards", [distinct_rewards, tied_rewards])
def test_gradient_at_zero_has_its_closed_form(tau, ties, rewards):
    r = rewards()
    remaining = remaining_sets_of(r, ties)
    q = target_distribution(r, remaining, tau)
    expected = torch.zeros_like(r)
    for g, i, j in torch.nonzero(remaining).tolist():
        expected[g, j] += 1 / remaining[g, i].sum().item() - q[g, i, j]
    torch.testing.assert_close(slope_at_zero(r, tau, ties), expected, rtol=0, atol=1e-12)


def test_descent_raises_the_best_and_lowers_the_worst():
    r = distinct_rewards()
    slope = slope_at_zero(r, 0.05, "joint")
    assert slope.gather(1, r.argmax(1, keepdim=True)).lt(0).all()
    assert slope.gather(1, r.argmin(1, keepdim=True)).gt(0).all()


@TIES
def test_gradient_is_right_away_from_zero(ties):
    s, r = implicit(4)[:3].requires_grad_(), tied_rewards(4)[:3]
    assert torch.autograd.gradcheck(lambda s: gdro_loss(s, r, 0.05, ties, True), (s,))


@TIES
def test_extreme_implicit_rewards_stay_finite_in_float32(ties):
    s = (1e4 * implicit()).float().requires_grad_()
    loss = gdro_loss(s, tied_rewards().float(), 0.05, ties, True).sum()
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


# -- what goes into it


@TAUS
@TIES
def test_target_is_a_distribution_over_what_remains(tau, ties):
    r = tied_rewards()
    remaining = remaining_sets_of(r, ties)
    q = target_distribution(r, remaining, tau)
    torch.testing.assert_close(q.sum(2), torch.ones_like(r))
    assert q[~remaining].eq(0).all()


def test_ties_share_one_remaining_set_only_when_joint():
    r = torch.tensor([[0.5, 0.5, 0.0]])
    joint, order = remaining_sets_of(r, "joint")[0], remaining_sets_of(r, "order")[0]
    assert joint.tolist() == [[True, True, True], [True, True, True], [False, False, True]]
    assert order.tolist() == [[True, True, True], [False, True, True], [False, False, True]]


def test_a_policy_better_than_the_reference_has_positive_implicit_reward():
    s = implicit_reward(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.5]), beta=0.1)
    torch.testing.assert_close(s, torch.tensor([0.1, 0.0, -0.05]))


def test_top1_mask_shares_the_best_among_ties():
    r = torch.tensor([[0.1, 0.9, 0.3], [0.7, 0.2, 0.7], [0.5, 0.5, 0.5]])
    expected = torch.tensor([[0, 1, 0], [0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(top1_mask(r), expected)


# -- which images are drawn

SCORED = torch.tensor([0.2, math.nan, 0.9, 0.2, math.nan, 0.0, 0.9, 0.4, 0.0])


DRAWS = ["random", "unequal", "spread"]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("k", [2, 3, 7])
def test_drawn_images_are_distinct_and_scored(draw, k):
    for seed in range(50):
        drawn = draw_members(SCORED, k, draw, generator(seed))
        assert len(set(drawn.tolist())) == len(drawn) == k
        assert not SCORED[drawn].isnan().any()


@pytest.mark.parametrize("k", [2, 3, 7])
def test_spread_always_draws_a_best_and_a_worst(k):
    for seed in range(50):
        drawn = SCORED[draw_members(SCORED, k, "spread", generator(seed))]
        assert drawn.max() == SCORED.nan_to_num(-1).max()
        assert drawn.min() == SCORED.nan_to_num(9).min()


@pytest.mark.parametrize("k", [2, 3])
def test_unequal_draws_every_pair_of_different_rewards_alike(k):
    drawn = [draw_members(SCORED, k, "unequal", generator(seed)) for seed in range(4000)]
    pairs = Counter(frozenset((int(members[0]), int(members[-1]))) for members in drawn)
    there = torch.nonzero(~SCORED.isnan()).flatten().tolist()
    assert set(pairs) == {frozenset((i, j)) for i in there for j in there if SCORED[i] != SCORED[j]}
    assert min(pairs.values()) > 4000 / len(pairs) * 0.75  # 18 pairs; 4 standard deviations


@pytest.mark.parametrize("draw", DRAWS)
def test_every_scored_image_has_its_turn(draw):
    drawn = [draw_members(SCORED, 3, draw, generator(seed)) for seed in range(200)]
    assert set(torch.cat(drawn).tolist()) == set(torch.nonzero(~SCORED.isnan()).flatten().tolist())


@pytest.mark.parametrize("draw", DRAWS)
def test_images_of_one_reward_are_drawn_distinct(draw):
    """With drop_flat = false such groups are trained on."""
    for seed in range(20):
        drawn = draw_members(torch.full((5,), 0.5), 3, draw, generator(seed))
        assert len(set(drawn.tolist())) == 3
