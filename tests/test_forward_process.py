"""DiffusionNFT, AWM, DGPO and CRD: their losses against identities and each other, on tensors alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gdro_bench import content
from gdro_bench.engine import plan
from gdro_bench.methods import awm, crd, dgpo, gdro, nft
from gdro_bench.methods.parts.ema import Decay
from gdro_bench.methods.parts.forward_process import Rule, Seen, absolute_error, error
from gdro_bench.methods.parts.groups import advantages

U, K, SHAPE = 3, 4, (5, 2)
CLIP = 5.0
MODULES = {"nft": nft, "awm": awm, "dgpo": dgpo, "crd": crd}
METHODS = pytest.mark.parametrize("method", list(MODULES))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or (U, K, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times() -> Tensor:
    return torch.rand((U, K), generator=torch.Generator().manual_seed(9), dtype=torch.float64).clamp(0.05)


def rewards() -> Tensor:
    return torch.rand((U, K), generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def rule(method: str, **changed: object) -> Rule:
    """A method's rule with pocket's numbers and no KL to reference or old policy."""
    table = plan.read_settings(content.find("profile", "pocket") / f"{method}.toml", None) | {
        "kl_weight": 0.0,
        "clip_range": 1.0,
    }
    table |= {"old_weight": 0.0}
    module = MODULES[method]
    names = module.Config.__dataclass_fields__
    config = content.build(module.Config, {k: v for k, v in (table | changed).items() if k in names}, method)
    made: Rule = module.rule(config)
    return made


def seen(theta: Tensor, old: Tensor, reference: Tensor, advantage: Tensor, target: Tensor) -> Seen:
    return Seen(theta, target, times(), advantage, old=old, sampler=old, reference=reference)


def gradient(method: str, theta: Tensor, old: Tensor, advantage: Tensor, **changed: object) -> Tensor:
    """Of the loss for each velocity, times the number of images: [U, k, *shape]."""
    theta = theta.clone().requires_grad_()
    loss, _ = rule(method, **changed).loss(seen(theta, old, old, advantage, draw(1)))
    (slope,) = torch.autograd.grad(loss, theta)
    return slope * U * K


def error_gradient(v: Tensor) -> Tensor:
    v = v.clone().requires_grad_()
    (slope,) = torch.autograd.grad(error(v, draw(1)).sum(), v)
    return slope


def across(weight: Tensor) -> Tensor:
    return weight.view(U, K, 1, 1)


# -- DiffusionNFT


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_nft_without_its_weights_is_a_linear_step_and_a_pull_to_old(beta: float) -> None:
    v, old, target, r = draw(0), draw(2), draw(1), rewards()
    plus, minus = nft.mixtures(v, old, beta)
    found = (r * error(plus, target) + (1 - r) * error(minus, target)) / beta
    d = v - old
    expected = error(old, target) / beta + beta * d.square().flatten(2).mean(2)
    expected += 2 * (2 * r - 1) * ((old - target) * d).flatten(2).mean(2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_nft_is_the_papers_in_clean_latents(beta: float) -> None:
    v, old, x0, eps, t = draw(0), draw(2), draw(3), draw(4), times()
    advantage, wide = 3 * draw(5, U, K), across(t)
    x_t, r = (1 - wide) * x0 + wide * eps, (advantage / 10 + 0.5).clamp(0, 1)

    def fit(mixture: Tensor) -> Tensor:
        off = x_t - wide * mixture - x0
        return off.square().flatten(2).mean(2) / off.abs().flatten(2).mean(2).clamp(min=1e-5)

    plus, minus = beta * v + (1 - beta) * old, (1 + beta) * old - beta * v
    expected = CLIP * (r * fit(plus) + (1 - r) * fit(minus)) / beta
    found = nft.nft_loss(v, old, eps - x0, t, advantage, beta, CLIP)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    ratio = across(1 / absolute_error(plus, eps - x0))
    by_velocity = t * (ratio * (plus - (eps - x0)).square()).flatten(2).mean(2)
    torch.testing.assert_close(fit(plus), by_velocity, rtol=0, atol=1e-10)


# -- every method's gradient, where the policy is its older copies


def weights(method: str, v: Tensor, advantage: Tensor) -> Tensor:
    """What multiplies the gradient of an image's e: [U, k]."""
    e, a, t = error(v, draw(1)), absolute_error(v, draw(1)), times()
    y = advantage / (2 * CLIP)
    return {
        "nft": advantage * t / a,
        "awm": advantage / CLIP * t * (e + awm.TINY).pow(0.25 - 1),
        "dgpo": advantage / 2,
        "crd": 2 * CLIP * (y - y.mean(1, keepdim=True)) / a,
    }[method]


@METHODS
def test_gradient_on_policy_is_a_weighted_sum_of_those_of_e(method: str) -> None:
    v, advantage = draw(0), advantages(rewards(), "group", CLIP)
    expected = across(weights(method, v, advantage)) * error_gradient(v)
    torch.testing.assert_close(gradient(method, v, v, advantage), expected, rtol=1e-9, atol=1e-12)


def test_crd_s_gradient_away_from_old_is_the_residual() -> None:
    v, old, target, advantage = draw(0), draw(2), draw(1), advantages(rewards(), "group", CLIP)
    implicit = crd.implicit_reward(v, old, target, adaptive=True)
    y = nft.optimality(advantage, CLIP)
    residual = (y - y.mean(1, keepdim=True)) - 0.7 * (implicit - implicit.mean(1, keepdim=True))
    expected = across(2 * CLIP * residual / absolute_error(v, target)) * error_gradient(v)
    torch.testing.assert_close(gradient("crd", v, old, advantage, beta=0.7), expected, rtol=1e-9, atol=1e-12)


@METHODS
def test_a_step_pulls_the_best_closer_and_pushes_the_worst_away(method: str) -> None:
    v, r = draw(0), rewards()
    slope = gradient(method, v, v, advantages(r, "group", CLIP))
    along = (slope * error_gradient(v)).flatten(2).sum(2)  # > 0: descent lowers this image's e
    assert along.gather(1, r.argmax(1, keepdim=True)).gt(0).all()
    assert along.gather(1, r.argmin(1, keepdim=True)).lt(0).all()


# -- DGPO, DPO and GDRO


@pytest.mark.parametrize("beta", [0.5, 10.0])
def test_dgpo_of_two_images_is_dpo_and_gdro(beta: float) -> None:
    e, anchor = error(draw(0)[:, :2], draw(1)[:, :2]), error(draw(2)[:, :2], draw(1)[:, :2])
    advantage = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(U, 2)
    loss = -logsigmoid(-dgpo.group_preference(e, anchor, advantage, beta))
    d = e - anchor
    torch.testing.assert_close(loss, -logsigmoid(beta / 2 * (d[:, 1] - d[:, 0])), rtol=0, atol=1e-12)
    s = gdro.implicit_reward(e, anchor, beta / 2)
    by_gdro = gdro.gdro_loss(s, advantage, 0.0, "joint", True)
    torch.testing.assert_close(loss, by_gdro, rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 10.0, 100.0])
def test_dgpo_s_surrogate_has_the_gradient_of_its_loss(beta: float) -> None:
    e = error(draw(0), draw(1)).requires_grad_()
    anchor, advantage = error(draw(2), draw(1)), advantages(rewards(), "group", CLIP)
    true = -logsigmoid(-dgpo.group_preference(e, anchor, advantage, beta))
    (expected,) = torch.autograd.grad(true.sum(), e)
    (found,) = torch.autograd.grad(dgpo.dgpo_loss(e, anchor, advantage, beta, None).mean(1).sum(), e)
    torch.testing.assert_close(beta * found, expected, rtol=1e-9, atol=1e-15)


def test_an_image_that_has_moved_enough_teaches_dgpo_no_more() -> None:
    e_old, advantage = torch.full((1, 4), 1.0, dtype=torch.float64), torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    e = (e_old - torch.tensor([[0.2, -0.2, 0.2, -0.2]])).requires_grad_()  # nearer, farther, nearer, farther
    moved = dgpo.moved_enough(e.detach(), e_old, advantage.double(), 0.1)
    assert moved.tolist() == [[True, False, False, True]]
    dgpo.dgpo_loss(e, e_old, advantage.double(), 1.0, moved).sum().backward()
    assert e.grad is not None
    assert e.grad.eq(0).tolist() == moved.tolist()


# -- AWM


@pytest.mark.parametrize("likelihood", ["ghuber", "huber", "uniform", "t", "t2"])
def test_awm_s_ratio_on_policy_is_one_to_the_last_bit(likelihood: awm.Likelihood) -> None:
    v = draw(0).float()
    ratio = awm.awm_ratio(v, v.clone(), draw(1).float(), times().float(), likelihood, 0.25)
    assert torch.equal(ratio, torch.ones_like(ratio))


def test_awm_s_likelihoods_by_hand() -> None:
    e, t = torch.tensor([0.16], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    by_hand = {"uniform": -0.16, "t": -0.08, "t2": -0.04, "huber": -0.2, "ghuber": -0.5 * 0.16**0.25 / 0.25}
    for name, value in by_hand.items():
        offset = {"ghuber": 0.5 * awm.TINY**0.25 / 0.25, "huber": 0.5 * awm.TINY**0.5}.get(name, 0.0)
        found = awm.log_likelihood(e, t, name, 0.25)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(value + offset, abs=1e-8)


# -- rewards


@METHODS
def test_a_constant_on_a_group_s_rewards_changes_nothing(method: str) -> None:
    v, old, r = draw(0), draw(2), rewards()
    shift = torch.tensor([[0.25], [-3.0], [7.0]], dtype=torch.float64)
    slopes = [gradient(method, v, old, advantages(x, "group", CLIP)) for x in (r, r + shift)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-12)
    slopes = [gradient(method, v, old, advantages(x, "global", CLIP)) for x in (r, r + 2.0)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("std", ["global", "group"])
@pytest.mark.parametrize("method", ["awm", "dgpo"])
def test_equal_rewards_teach_awm_and_dgpo_nothing(method: str, std: str) -> None:
    advantage = advantages(torch.full((U, K), 0.3, dtype=torch.float64), std, CLIP)  # type: ignore[arg-type]
    assert gradient(method, draw(0), draw(2), advantage).eq(0).all()


def test_equal_rewards_only_pull_nft_to_old() -> None:
    """At old there is no step; away from it, descent leads back."""
    v, old, none = draw(0), draw(2), torch.zeros(U, K, dtype=torch.float64)
    assert gradient("nft", old, old, none).abs().max() < 1e-12
    back = (gradient("nft", old + 0.01 * (v - old), old, none) * (v - old)).flatten(2).sum(2)
    assert back.gt(0).all()


def test_equal_rewards_pull_crd_s_implicit_rewards_together() -> None:
    implicit = draw(3, U, K).requires_grad_()
    crd.crd_loss(implicit, torch.full((U, K), 0.5, dtype=torch.float64), 1.0, CLIP).sum().backward()
    assert implicit.grad is not None
    centred = implicit.detach() - implicit.detach().mean(1, keepdim=True)
    torch.testing.assert_close(implicit.grad, 2 * CLIP * centred)


def test_crd_does_not_see_what_all_of_a_group_share() -> None:
    implicit, y = draw(3, U, K), rewards()
    torch.testing.assert_close(crd.crd_loss(implicit + 4.0, y, 1.0, CLIP), crd.crd_loss(implicit, y, 1.0, CLIP))


@METHODS
def test_losses_stay_finite_in_float32_at_a_perfect_fit(method: str) -> None:
    target = draw(1).float()
    theta = target.clone().requires_grad_()
    at = Seen(theta, target, times().float(), torch.ones(U, K), target, target, target)
    loss, _ = rule(method).loss(at)
    loss.backward()
    assert loss.dtype == torch.float32
    assert theta.grad is not None
    assert theta.grad.isfinite().all()


@METHODS
def test_the_kl_is_added_with_its_weight(method: str) -> None:
    v, old, reference, target, advantage = draw(0), draw(2), draw(6), draw(1), advantages(rewards(), "group", CLIP)
    without, _ = rule(method).loss(seen(v, old, reference, advantage, target))
    some, measured = rule(method, kl_weight=0.5, kl_floor=0.5).loss(seen(v, old, reference, advantage, target))
    expected = (v - reference).square().mean()
    torch.testing.assert_close(some - without, 0.5 * expected)
    torch.testing.assert_close(measured["kl"], expected)


# -- older copies

SCHEDULES = {
    "nft 0": (Decay(0, 0.0, 0.0, 0.0), [0, 0, 0, 0, 0]),
    "nft 1": (Decay(0, 0.0, 0.001, 0.5), [0, 0.075, 0.076, 0.208, 0.5]),
    "nft 2": (Decay(75, 0.0, 0.0075, 0.999), [0, 0, 0.0075, 0.9975, 0.999]),
    "awm, dgpo": (Decay(0, 0.0, 0.001, 0.3), [0, 0.075, 0.076, 0.208, 0.3]),
    "awm constant": (Decay(0, 0.3, 0.0, 0.3), [0.3] * 5),
    "crd old": (Decay(0, 0.25, 0.005, 0.999), [0.25, 0.625, 0.63, 0.999, 0.999]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_decays_are_the_published_ones(name: str) -> None:
    decay, expected = SCHEDULES[name]
    assert [decay.at(n) for n in (0, 75, 76, 208, 500)] == pytest.approx(expected)


SHIPPED: dict[str, Callable[[Decay], bool]] = {
    "nft": lambda d: d == SCHEDULES["nft 2"][0],
    "awm": lambda d: d == SCHEDULES["awm, dgpo"][0],
    "dgpo": lambda d: d == SCHEDULES["awm, dgpo"][0],
    "crd": lambda d: d == SCHEDULES["crd old"][0],
}


@METHODS
@pytest.mark.parametrize("profile", ["sd35-medium", "flux1-dev"])
def test_the_shipped_decay_is_the_published_one(method: str, profile: str) -> None:
    table = plan.read_settings(content.find("profile", profile) / f"{method}.toml", None)
    assert SHIPPED[method](content.build(Decay, table["old"], method))


def test_e_is_a_mean_over_elements() -> None:
    v = torch.zeros(1, 2, *SHAPE)
    target = torch.stack([torch.full(SHAPE, 2.0), torch.full(SHAPE, -3.0)])[None]
    assert error(v, target).tolist() == [[4.0, 9.0]]
    assert absolute_error(v, target).tolist() == [[2.0, 3.0]]
