"""Flow-GRPO and DanceGRPO: the stochastic steps against closed forms, the advantages, and the update itself."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from gdro_bench import content
from gdro_bench.budget import Ledger
from gdro_bench.engine import plan
from gdro_bench.errors import BenchError
from gdro_bench.methods import TrainContext
from gdro_bench.methods.parts import groups, grpo
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.policy import Policy
from gdro_bench.pool import Pool
from gdro_bench.profile import LoraConfig, Sampler
from gdro_bench.sampling import SdeConfig, Transition, conditioned, euler, sde_sample, step_noise, timesteps, transition
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

KINDS = [SdeConfig("flow", 0.7), SdeConfig("constant", 0.3), SdeConfig("cps", 0.8)]
SDES = KINDS[:2]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step(noising: SdeConfig, t: float = 0.8, t_next: float = 0.6, rows: int = 4) -> tuple[Transition, Tensor, Tensor]:
    x, v = draw(rows, 5, 3), draw(rows, 5, 3, seed=1)
    made = transition(v, x, torch.full((rows,), t), torch.full((rows,), t_next), timesteps(8, 2.0), noising)
    return made, x, v


# -- the stochastic step


@pytest.mark.parametrize("kind", ["flow", "constant", "cps"])
def test_without_noise_a_step_is_eulers(kind):
    made, x, v = step(SdeConfig(kind, 0.0))
    torch.testing.assert_close(made.mean, x - 0.2 * v, atol=1e-6, rtol=0)
    assert not made.std.any()


def test_sigma_is_each_papers():
    flow, _, _ = step(SdeConfig("flow", 0.7))
    torch.testing.assert_close(flow.rate, torch.full((4,), 0.7 * math.sqrt(0.8 / 0.2)))
    torch.testing.assert_close(flow.std, flow.rate * math.sqrt(0.2))
    constant, _, _ = step(SdeConfig("constant", 0.3))
    torch.testing.assert_close(constant.std, torch.full((4,), 0.3 * math.sqrt(0.2)))
    cps, _, _ = step(SdeConfig("cps", 0.5))
    torch.testing.assert_close(cps.std, torch.full((4,), 0.6 * math.sin(math.pi / 4)))


def test_the_first_step_takes_the_second_time_where_sigma_is_infinite():
    schedule = timesteps(8, 2.0)
    made, _, _ = step(SdeConfig("flow", 0.7), 1.0, float(schedule[1]))
    torch.testing.assert_close(made.rate, torch.full((4,), 0.7 / math.sqrt(1 - float(schedule[1]))))


@pytest.mark.parametrize(("noising", "s"), [(SDES[0], 0.5), (SDES[1], 0.5), (KINDS[2], 0.0)])
def test_marginals_of_a_gaussian_are_kept(noising, s):
    """Data N(m, s^2): then v = E[eps - x0 | x_t] is linear in x, and so every marginal is known.

    CPS keeps the share of noise in a state, which is the marginal only where the data is a point.
    """
    m, schedule = 0.8, timesteps(400, 1.0)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, 1)
        variance = (1 - t).square() * s**2 + t.square()
        return (t - (1 - t) * s**2) / variance * (x - (1 - t) * m) - m

    n, generator = 20_000, torch.Generator().manual_seed(7)
    noisy = range(40, 400)  # before, where sigma grows without bound, these steps are too coarse for the SDE
    chain = sde_sample(velocity, draw(n, 1), schedule, noising, step_noise((n, 1), noisy, generator))
    for at in (200, 390, 400):
        t = float(schedule[at])
        x = chain.states[:, at]
        expected = math.sqrt((1 - t) ** 2 * s**2 + t**2)
        assert x.mean().item() == pytest.approx((1 - t) * m, abs=0.02)
        assert x.std().item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("noising", KINDS)
def test_only_the_named_steps_are_noisy(noising):
    schedule, x = timesteps(6, 2.0), draw(3, 4)
    noise = step_noise((3, 4), [2, 3], torch.Generator().manual_seed(0))
    chain = sde_sample(lambda x, t: 0.3 * x, x, schedule, noising, noise)
    assert chain.states.shape == (3, 7, 4)
    torch.testing.assert_close(chain.states[:, 0], x)
    torch.testing.assert_close(chain.states[:, 2], euler(lambda x, t: 0.3 * x, x, schedule[:3]))
    torch.testing.assert_close(chain.states[:, 6], euler(lambda x, t: 0.3 * x, chain.states[:, 4], schedule[4:]))
    assert chain.log_p.isnan().any(dim=0).tolist() == [True, True, False, False, True, True]


@pytest.mark.parametrize("noising", SDES)
def test_log_probability_is_the_mean_over_elements_of_a_normals(noising):
    made, _, _ = step(noising)
    x_next = draw(4, 5, 3, seed=2)
    normal = Normal(made.mean, made.std.view(-1, 1, 1))
    torch.testing.assert_close(made.log_p(x_next), normal.log_prob(x_next).flatten(1).mean(1))


def test_cps_log_probability_leaves_out_variance_and_constants():
    made, _, _ = step(SdeConfig("cps", 0.8))
    x_next = draw(4, 5, 3, seed=2)
    torch.testing.assert_close(made.log_p(x_next), -(x_next - made.mean).square().flatten(1).mean(1))


# -- advantages and loss


def test_advantages_by_hand():
    r = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    by_group = groups.advantages(r, "group", 5.0)
    torch.testing.assert_close(by_group, torch.tensor([[-0.5, 0.5], [0.0, 0.0]]) / (0.5 + 1e-4))
    by_all = groups.advantages(r, "global", 5.0)
    torch.testing.assert_close(by_all[0], torch.tensor([-0.5, 0.5]) / (math.sqrt(0.125) + 1e-4))


def test_the_unbiased_std_is_torchs_own():
    r = torch.rand(5, 12, generator=torch.Generator().manual_seed(0))
    by_group = groups.advantages(r, "group", 5.0, unbiased=True, epsilon=1e-8)
    torch.testing.assert_close(by_group, (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-8))
    by_all = groups.advantages(r, "global", 5.0, unbiased=True, epsilon=1e-8)
    torch.testing.assert_close(by_all, (r - r.mean(1, keepdim=True)) / (r.std() + 1e-8))
    one_missing = torch.cat([r, torch.full((5, 1), math.nan)], dim=1)
    torch.testing.assert_close(
        groups.advantages(one_missing, "group", 5.0, unbiased=True, epsilon=1e-8)[:, :-1], by_group
    )


def test_the_epsilon_tells_small_differences_from_none():
    r = torch.tensor([[0.5, 0.5 + 1e-6]])
    assert groups.advantages(r, "group", 5.0, epsilon=1e-4).abs().max() < 0.01
    assert groups.advantages(r, "group", 5.0, epsilon=1e-8).abs().max() > 0.9


def test_an_unscored_image_has_no_say():
    r = torch.tensor([[0.0, 1.0, math.nan], [0.2, 0.4, 0.9]])
    alone = groups.advantages(r[:1, :2], "group", 5.0)
    advantage = groups.advantages(r, "group", 5.0)
    torch.testing.assert_close(advantage[0, :2], alone[0])
    assert advantage[0, 2] == 0


@pytest.mark.parametrize("std", ["global", "group"])
def test_a_flat_group_has_no_advantage_whatever_its_mean_rounds_to(std):
    r = torch.tensor([[2 / 3] * 3 + [math.nan] * 3, [0.1] * 6, [0.0, 1.0] * 3, [math.nan] * 6])
    advantage = groups.advantages(r, std, 5.0)
    assert groups.flat_groups(r).tolist() == [True, True, False, True]
    assert advantage.any(dim=1).tolist() == [False, False, True, False]


def test_cps_with_a_noisy_last_step_is_refused(tmp_path):
    with pytest.raises(BenchError, match="no noise in the last step"):
        method(tmp_path, numbers(noising={"kind": "cps", "level": 0.8}, noisy_last=True))


def test_advantages_are_clipped():
    r = torch.zeros(1, 100).index_fill(1, torch.tensor([0]), 1.0)
    assert groups.advantages(r, "group", 5.0).max() == 5.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [(1.0, 2.0, -2.0), (1.5, 1.0, -1.1), (0.5, 1.0, -0.5), (1.5, -1.0, 1.5), (0.5, -1.0, 0.9)],
)
def test_the_loss_is_the_pessimistic_one(ratio, advantage, loss):
    assert grpo.clipped_loss(torch.tensor(ratio), torch.tensor(advantage), 0.1).item() == pytest.approx(loss)


# -- the methods on the shipped model


class Brightness:
    """A reward that any model can learn at once: how bright the picture is."""

    name = "brightness"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(image.mean()) / 255, {}, "") for image in images]


PROMPTS = [Prompt(f'a red sign that reads "{word}" at the top of a blue wall', word) for word in ("CAT", "DOG", "SUN")]
SMALL = {"prompts": 2, "k": 4}


def numbers(name: str = "flow-grpo", **changed: object) -> grpo.Config:
    read = plan.read_settings(content.find("profile", "pocket") / f"{name}.toml", None)
    optimiser = read["optimiser"] | {key: changed.pop(key) for key in list(changed) if key in read["optimiser"]}
    table = read | SMALL | changed | {"optimiser": optimiser}
    return content.build(grpo.Config, table, name)


def method(tmp_path: Path, config: grpo.Config, name: str = "flow-grpo") -> grpo.RolloutTraining:
    policy: Policy = PocketPolicy.open("cpu", LoraConfig(4, 4.0, ("to_q", "to_v")), 0)
    pool = Pool(tmp_path, Ledger(0))
    return grpo.RolloutTraining(
        name, config, TrainContext(policy, Brightness(), PROMPTS, Sampler(4, 2.0, 1.0, 8), pool, 0)
    )


@pytest.mark.parametrize("noising", KINDS)
def test_on_policy_the_ratio_is_exactly_one(tmp_path, noising):
    made = method(tmp_path, replace(numbers(), noising=noising, noisy_last=False))
    policy, cond = made.context.policy, made.context.policy.encode(PROMPTS)
    start = draw(3, *policy.latent_shape)
    noise = step_noise(start.shape, [0, 1, 2], torch.Generator())
    chain = sde_sample(conditioned(policy, cond, 1.0), start, made.schedule, noising, noise)
    for i in range(3):
        new = made._transition(conditioned(policy, cond, 1.0), chain.states[:, i], torch.full((3,), i))
        assert torch.equal((new.log_p(chain.states[:, i + 1]) - chain.log_p[:, i]).exp(), torch.ones(3))


@pytest.mark.parametrize("form", ["step", "rate"])
def test_kl_is_that_of_two_normals(tmp_path, form):
    made = method(tmp_path, numbers(kl_form=form))
    with torch.no_grad():
        for parameter in made.trainer.parameters:
            parameter.add_(draw(*parameter.shape), alpha=0.05)
    policy, at = made.context.policy, torch.full((3,), 1)
    cond, x = policy.encode(PROMPTS), draw(3, *policy.latent_shape)
    new, old = (made._transition(conditioned(policy, cond, 1.0, reference), x, at) for reference in (False, True))
    sigma = (new.std if form == "step" else new.rate).view(-1, 1, 1)
    expected = kl_divergence(Normal(new.mean, sigma), Normal(old.mean, sigma)).mean()
    assert expected > 0
    torch.testing.assert_close(made._kl(new, x, at, cond).mean(), expected)


def test_an_epoch_is_a_rollout_and_its_updates(tmp_path):
    made = method(tmp_path, numbers())
    steps = [made.step() for _ in range(6)]
    assert [s.kind for s in steps] == ["collect", "optimise", "optimise"] * 2
    assert steps[1].metrics["approx_kl"] < 1e-10  # on-policy, up to the shape of the batch
    assert steps[2].metrics["approx_kl"] > steps[1].metrics["approx_kl"]


def test_groups_of_one_reward_are_counted_and_left_out(tmp_path):
    made = method(tmp_path, numbers())
    flat = [Score(0.5, {}, "")] * 8

    class Flat(Brightness):
        def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
            return flat

    made.context = replace(made.context, scorer=Flat())
    step = made.step()
    assert (step.metrics["flat_groups"], step.metrics["dropped"]) == (2, 8)
    assert made.rollout is None
    assert made.step().kind == "collect"


class Halves(Brightness):
    """Every second group has one reward for all its four images."""

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(0.5 if i // 4 % 2 else float(i % 4), {}, "") for i in range(len(images))]


def first_update(tmp_path: Path, **changed: object) -> dict[str, float]:
    made = method(tmp_path, numbers("dance-grpo", updates_per_epoch=1, **changed), "dance-grpo")
    made.context = replace(made.context, scorer=Halves())
    made.step()
    return made.step().metrics


@pytest.mark.parametrize("kl_weight", [0.0, 0.01])
def test_images_without_advantage_count_in_the_mean(tmp_path, kl_weight):
    """At the start the KL has no gradient: the reference is the policy."""
    dropped = first_update(tmp_path, drop_zero=True, kl_weight=kl_weight)
    counted = first_update(tmp_path, drop_zero=False, kl_weight=kl_weight)
    assert dropped["gradient_norm"] > 0
    assert counted["gradient_norm"] == pytest.approx(dropped["gradient_norm"] / 2, rel=1e-3)


def test_an_update_without_any_advantage_leaves_the_gradient_at_zero(tmp_path):
    made = method(tmp_path, numbers("dance-grpo"), "dance-grpo")

    class Flat(Brightness):
        def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
            return [Score(0.5, {}, "")] * len(images)

    made.context = replace(made.context, scorer=Flat())
    steps = [made.step() for _ in range(4)]
    assert [s.kind for s in steps] == ["collect", "optimise", "optimise", "collect"]
    assert (steps[0].metrics["flat_groups"], steps[0].metrics["dropped"]) == (2, 0)
    assert steps[1].metrics == {"gradient_norm": 0.0}


def test_unshuffled_updates_take_whole_groups(tmp_path):
    made = method(tmp_path, numbers("dance-grpo"), "dance-grpo")
    made.step()
    assert made.rollout is not None
    first, second = (set(part.tolist()) for part in made.rollout.prompts.tensor_split(2))
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.parametrize("killed_after", [1, 2, 3])
@pytest.mark.parametrize("name", ["flow-grpo", "dance-grpo"])
def test_a_saved_state_goes_on_to_the_same_parameters(tmp_path, name, killed_after):
    whole, killed, resumed = (method(tmp_path, numbers(name), name) for _ in range(3))
    for _ in range(5):
        whole.step()
    for _ in range(killed_after):
        killed.step()
    path = tmp_path / "state.pt"
    torch.save(killed.state_dict(), path)
    resumed.load_state_dict(torch.load(path, weights_only=True))
    for _ in range(5 - killed_after):
        resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.trainer.parameters, resumed.trainer.parameters, strict=True))


def test_the_reward_rises(tmp_path):
    made = method(tmp_path, numbers(prompts=3, k=4, learning_rate=5e-3, noisy_last=False))
    rewards = [s.metrics["rollout_reward"] for s in (made.step() for _ in range(24)) if s.kind == "collect"]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.02


# -- steps


@pytest.mark.parametrize("profile", ["pocket", "flux1-dev", "sd35-medium"])
def test_dance_grpo_is_shipped_as_published(profile):
    config = content.load(content.find("profile", profile) / "dance-grpo.toml", grpo.Config)
    level = 0.32 if profile == "pocket" else 0.3  # pocket's is searched
    assert (config.noising, config.shared_noise, config.noisy_last) == (SdeConfig("constant", level), True, False)
    assert (config.std, config.std_unbiased, config.std_epsilon) == ("group", True, 1e-8)
    assert (config.timesteps, config.timestep_fraction) == ("random", 0.6)
    assert (config.drop_zero, config.shuffle, config.updates_per_epoch) == (False, False, 2)
    noisy = grpo.stochastic_steps(config, 12, torch.Generator())
    steps = grpo.trained_steps(config, noisy, 40, torch.Generator().manual_seed(0))
    assert steps.shape == (40, 6)  # 60 % of 11, rounded down
    assert set(steps.flatten().tolist()) == set(range(11))


@pytest.mark.parametrize("profile", ["pocket", "flux1-dev", "sd35-medium"])
def test_flow_grpo_keeps_its_own_advantage(profile):
    config = content.build(grpo.Config, flow_table(profile), "flow-grpo.toml")
    assert (config.std, config.std_unbiased, config.std_epsilon) == ("global", False, groups.EPSILON)
    assert (config.drop_zero, config.shuffle) == (True, True)


def flow_table(profile: str) -> dict[str, Any]:
    read = content.read(content.find("profile", profile) / "flow-grpo.toml")
    return {key: value for key, value in read.items() if key != "tasks"}


def test_a_last_step_without_noise_ends_at_the_denoised_prediction():
    """What DanceGRPO scores: x - t v of the last step, to the bit."""
    schedule, x = timesteps(8, 2.0), draw(3, 4, 5)
    noise = step_noise(x.shape, range(7), torch.Generator().manual_seed(0))
    chain = sde_sample(lambda x, t: (0.3 * x).sin(), x, schedule, KINDS[1], noise)
    before = chain.states[:, -2]
    assert torch.equal(chain.states[:, -1], before - schedule[-2] * (0.3 * before).sin())


def test_rollouts_may_have_a_shift_of_their_own(tmp_path):
    assert torch.equal(method(tmp_path, numbers()).schedule, timesteps(4, 2.0))
    made = method(tmp_path, numbers(rollout_shift=3.0, rollout_steps=12))
    assert torch.equal(made.schedule, timesteps(12, 3.0))


@pytest.mark.parametrize("changed", [
    {"window": 4, "window_range": 4}, {"window": 3, "window_range": 2}, {"window": 2, "window_range": 3,
                                                                        "timestep_fraction": 0.5}])  # fmt: skip
def test_a_window_that_cannot_be_is_refused(tmp_path, changed):
    """Of four steps the last has no noise (`noisy_last`), so three are left."""
    with pytest.raises(BenchError, match="window"):
        method(tmp_path, numbers(**changed))


def test_a_window_lies_in_its_range():
    config = numbers(window=2, window_range=4)
    seen = {tuple(grpo.stochastic_steps(config, 8, torch.Generator().manual_seed(i))) for i in range(60)}
    assert seen == {(0, 1), (1, 2), (2, 3)}
    assert grpo.trained_steps(config, [1, 2], 3, torch.Generator()).tolist() == [[1, 2]] * 3


def test_a_fraction_of_the_steps_is_trained():
    config = numbers(timestep_fraction=0.6, timesteps="first", window=0)
    assert grpo.trained_steps(config, list(range(10)), 2, torch.Generator()).tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    drawn = grpo.trained_steps(replace(config, timesteps="random"), list(range(10)), 50, torch.Generator())
    assert drawn.shape == (50, 6)
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    assert len({tuple(row) for row in drawn.tolist()}) > 40
