"""What guards against reward hacking: gate, moving reference, novelty, several rewards; alone and inside methods."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gdro_bench import content
from gdro_bench.budget import Ledger, MeteredScorer
from gdro_bench.engine import plan
from gdro_bench.errors import BenchError
from gdro_bench.methods import TrainContext, gdro
from gdro_bench.methods.parts import aggregation, diversity, gate, grpo, regularise
from gdro_bench.methods.parts.aggregation import AggregationConfig
from gdro_bench.methods.parts.moving_reference import MovingReference, ReferenceConfig
from gdro_bench.methods.parts.offline import OfflineTraining
from gdro_bench.methods.parts.pool_regulariser import trusted
from gdro_bench.methods.parts.regularise import AuxiliaryConfig, PoolRegulariser, RolloutRegulariser
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.policy import Policy
from gdro_bench.pool import Pool
from gdro_bench.profile import LoraConfig, Sampler
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the gate


def planted_pool(noise: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Main rewards [20, 10] that agree, up to noise, with two auxiliary ones but for a tenth of the pool, which gets 1
    more; and which. What is planted lies in the lower half: there a higher rank can be seen."""
    true = draw(20, 10)
    lower = torch.nonzero(true.flatten() < true.median()).flatten()
    planted = torch.zeros(200, dtype=torch.bool)
    planted[lower[torch.randperm(len(lower), generator=torch.Generator().manual_seed(1))[:20]]] = True
    planted = planted.view(20, 10)
    watching = torch.stack((true + noise * draw(20, 10, seed=2), 3 * true - 7))
    return true + planted.double(), watching, planted


@pytest.mark.parametrize("ranks", ["epoch", "prompt"])
def test_the_gate_picks_only_what_was_planted(ranks):
    main, auxiliary, planted = planted_pool()
    picked = gate.gated(gate.uncertainty(main, auxiliary, ranks, "paper"), 0.1)
    assert picked.any()
    assert not picked[~planted].any()


def test_the_gate_picks_exactly_what_was_planted():
    main, auxiliary, planted = planted_pool()
    u = gate.uncertainty(main, auxiliary, "epoch", "paper")
    doubtful = int((u >= 0).sum())
    assert gate.gated(u, 20 / doubtful).equal(planted)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2])
@pytest.mark.parametrize("ranks", ["epoch", "prompt"])
def test_the_published_sign_picks_none_of_the_planted(ranks, share):
    main, auxiliary, planted = planted_pool(noise=0.05)
    u = gate.uncertainty(main, auxiliary, ranks, "published")
    assert u.equal(-gate.uncertainty(main, auxiliary, ranks, "paper"))
    assert gate.gated(u, share).any()
    assert not gate.gated(u, share)[planted].any()


def test_win_rates_are_average_ranks():
    nan = math.nan
    rates = gate.win_rates(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 1.0], [2.0, nan, 4.0], [nan, 7.0, nan]]))
    expected = [[0.0, 1.0, 0.5], [0.75, 0.75, 0.0], [0.0, nan, 1.0], [nan, 0.5, nan]]
    torch.testing.assert_close(rates, torch.tensor(expected, dtype=torch.float64), equal_nan=True)


def test_doubt_knows_no_scale_and_sums_to_nothing():
    main, auxiliary = draw(4, 6), draw(2, 4, 6, seed=1)
    u = gate.uncertainty(main, auxiliary, "epoch", "paper")
    assert u.equal(gate.uncertainty(main.exp() * 9, auxiliary.log(), "epoch", "paper"))
    assert u.sum().item() == pytest.approx(0, abs=1e-12)


def test_an_unscored_image_is_never_gated():
    main, auxiliary, planted = planted_pool()
    main[planted] = math.nan
    u = gate.uncertainty(main, auxiliary, "epoch", "paper")
    assert u.isnan().equal(planted)
    assert not gate.gated(u, 0.2)[planted].any()


def test_without_doubt_nobody_pays():
    nothing = torch.full((2, 3), -0.5)
    assert not gate.gated(nothing, 0.2).any()
    assert math.isnan(gate.mean_doubt(nothing))
    assert not regularise.payers(torch.zeros(4, dtype=torch.bool)).any()


def test_those_who_pay_pay_the_mean_over_them():
    gated, kl = torch.tensor([True, False, False, True]), torch.tensor([1.0, 5.0, 7.0, 3.0])
    assert (regularise.payers(gated) * kl).mean().item() == pytest.approx(2.0)


# -- its share


def test_growing_doubt_raises_the_share_to_a_fifth():
    controller = gate.ShareController(0.1, adaptive=True)
    shares = [controller.update(0.1 + i / 100) for i in range(12)]
    assert shares[:4] == pytest.approx([0.1, 0.11, 0.121, 0.1331])
    assert shares[-1] == 0.2


def test_shrinking_doubt_lowers_the_share_to_a_fiftieth():
    controller = gate.ShareController(0.1, adaptive=True)
    shares = [controller.update(1 - i / 100) for i in range(30)]
    assert shares[1] == pytest.approx(0.09)
    assert shares[-1] == 0.02


@pytest.mark.parametrize("values", [[0.3] * 5, [0.3, 0.4, 0.35, 0.3, 0.4][:1] + [math.nan] * 3])
def test_constant_or_unknown_doubt_keeps_the_share(values):
    controller = gate.ShareController(0.1, adaptive=True)
    assert {controller.update(m) for m in values} == {0.1}


def test_a_fixed_share_stays():
    controller = gate.ShareController(0.1, adaptive=False)
    assert {controller.update(i / 10) for i in range(5)} == {0.1}


def test_the_controller_goes_on_bit_for_bit():
    values = [0.1, 0.2, 0.15, 0.3, 0.05, 0.4, 0.41]
    whole, first, second = (gate.ShareController(0.1, True) for _ in range(3))
    expected = [whole.update(m) for m in values]
    found = [first.update(m) for m in values[:3]]
    second.load_state_dict(first.state_dict())
    assert found + [second.update(m) for m in values[3:]] == expected


# -- the reference that follows


def test_the_reference_moves_when_the_kl_was_large_or_long_ago():
    parameters = [torch.ones(2)]
    moving = MovingReference(ReferenceConfig(kl_threshold=0.1, epochs=2))
    assert [moving.begin_epoch(parameters) for _ in range(4)] == [False, False, False, True]
    moving.see(0.1)
    assert not moving.begin_epoch(parameters)  # the threshold itself is not above it
    moving.see(0.2)
    moving.see(0.0)
    assert moving.begin_epoch(parameters)
    assert moving.resets == 2
    parameters[0].zero_()
    assert moving.adapters is not None
    assert moving.adapters[0].equal(torch.ones(2))  # a copy


def test_the_reference_goes_on_bit_for_bit():
    first, second = (MovingReference(ReferenceConfig(0.1, 3)) for _ in range(2))
    first.see(0.2)
    first.begin_epoch([torch.tensor([1.5])])
    first.see(0.3)
    second.load_state_dict(first.state_dict(), [torch.zeros(1)])
    assert second.state_dict() == first.state_dict()
    assert second.begin_epoch([torch.zeros(1)])


# -- novelty


def test_identical_images_leave_advantages_alone():
    features = torch.ones(1, 4, 5)
    assert diversity.factors(draw(1, 4), diversity.novelty(features)).eq(1).all()


def test_the_outlier_counts_most_and_bad_images_are_never_rescued():
    features = torch.tensor([[[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [-1.0, 0.2]]])
    r = torch.tensor([[0.9, 0.8, 1.0, 0.0]])
    factors = diversity.factors(r, diversity.novelty(features))
    assert factors.argmax() == 2
    assert factors[0, 3] == 1
    assert factors[0, 0] < 1 < factors[0, 2]


def test_novelty_is_the_distance_to_the_nearest_other():
    features = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]])
    torch.testing.assert_close(diversity.novelty(features), torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))


def test_pixel_features_see_where_colours_are():
    images = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    images[1, :8] = 255
    features = diversity.pixel_features(images)
    assert features.shape == (2, 3 * 64)
    assert features[0].eq(-0.5).all()
    assert features[1].sum() == 0


# -- several rewards


def rewards(m: int = 3) -> Tensor:
    return draw(m, 4, 6) * torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64)[:m, None, None]


def test_decoupled_rewards_have_no_scale_and_sums_do():
    r, scaled = rewards(), rewards() * torch.tensor([1.0, 50.0, 1.0], dtype=torch.float64)[:, None, None]
    weights = (0.5, 0.25)
    decoupled, plain = (AggregationConfig(rule, weights) for rule in ("decoupled", "weighted-sum"))
    torch.testing.assert_close(aggregation.aggregated(scaled, decoupled), aggregation.aggregated(r, decoupled))
    assert not torch.allclose(aggregation.aggregated(scaled, plain), aggregation.aggregated(r, plain))
    torch.testing.assert_close(aggregation.aggregated(r, plain), r[0] + 0.5 * r[1] + 0.25 * r[2])


def test_a_reward_without_differences_says_nothing():
    r = rewards()
    r[1] = 2 / 3
    weights = (0.5, 0.25)
    expected = aggregation.aggregated(r[[0, 2]], AggregationConfig("decoupled", (0.25,)))
    torch.testing.assert_close(aggregation.aggregated(r, AggregationConfig("decoupled", weights)), expected)


def test_soft_min_lies_between_mean_and_minimum():
    z = aggregation.normalised(rewards())
    mean = aggregation.aggregated(rewards(), AggregationConfig("soft-min", None, 0.0))
    low = aggregation.aggregated(rewards(), AggregationConfig("min"))
    torch.testing.assert_close(mean, z.mean(0))
    torch.testing.assert_close(aggregation.aggregated(rewards(), AggregationConfig("soft-min", None, 1e5)), low,
                               atol=1e-4, rtol=0)  # fmt: skip
    soft = aggregation.aggregated(rewards(), AggregationConfig("soft-min", None, 1.0))
    assert (low - 1e-12 <= soft).all()
    assert (soft <= mean + 1e-12).all()


def test_disagreement_costs():
    r = torch.tensor([[[0.0, 1.0, 2.0]], [[0.0, 1.0, 2.0]]])
    c = AggregationConfig("mean-std", None, 1.0)
    torch.testing.assert_close(aggregation.aggregated(r, c), aggregation.normalised(r)[0])
    apart = torch.tensor([[[0.0, 1.0, 2.0]], [[0.0, 2.0, 1.0]]])
    assert (aggregation.aggregated(apart, c) <= aggregation.normalised(apart).mean(0)).all()


@pytest.mark.parametrize(("rule", "pessimism"), [("mean-std", 1.0), ("min", None), ("soft-min", 2.0)])
def test_what_one_reward_does_not_know_is_unknown(rule, pessimism):
    r = rewards()
    r[1, 0, 2] = math.nan
    found = aggregation.aggregated(r, AggregationConfig(rule, None, pessimism))
    assert found.isnan().nonzero().tolist() == [[0, 2]]


def test_the_pessimistic_target_lowers_only_what_is_doubted():
    r, u = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0.5, -0.5, math.nan]])
    assert aggregation.pessimistic(r, u, 0.2).tolist() == [[pytest.approx(0.9), 1.0, 1.0]]


def test_the_trusted_best_is_not_gated_unless_all_are():
    r, paying = torch.tensor([[0.9, 0.5], [0.9, 0.5]]), torch.tensor([[2.0, 0.0], [2.0, 2.0]])
    assert gdro.top1_mask(trusted(r, paying)).tolist() == [[0, 1], [1, 0]]
    assert trusted(r, None) is r


def test_novelty_moves_the_target_and_keeps_it_a_distribution():
    r = draw(3, 5)
    remaining = gdro.remaining_sets(r, "joint")
    plain = gdro.target_distribution(r, remaining, 0.3)
    assert gdro.target_distribution(r, remaining, 0.3, torch.ones_like(r)).allclose(plain)
    factors = torch.ones_like(r).index_fill(1, torch.tensor([0]), 3.0)
    for tau in (0.3, 0.0):
        q = gdro.target_distribution(r, remaining, tau, factors)
        torch.testing.assert_close(q.sum(2), torch.ones_like(r))
        assert (q[:, :, 0] >= gdro.target_distribution(r, remaining, tau)[:, :, 0] - 1e-12).all()


# -- inside methods, on the shipped model


class Brightness:
    """How bright a picture is."""

    name = "brightness"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(image.mean()) / 255) for image in images]


class Evenness:
    """How little a picture's pixels differ."""

    name = "evenness"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(1 - float(image.std()) / 255) for image in images]


PROMPTS = [Prompt(f'a red sign that reads "{word}" at the top of a blue wall', word) for word in ("CAT", "DOG", "SUN")]
GATE = gate.GateConfig("paper", "epoch", 0.2, adaptive=True)
POOL_GATE = gate.GateConfig("paper", "epoch", 0.2, adaptive=False)
WATCHED = AuxiliaryConfig(("evenness",))


def context(tmp_path: Path, ledger: Ledger | None = None, watched: bool = True) -> TrainContext:
    ledger = ledger or Ledger(0)
    policy: Policy = PocketPolicy.open("cpu", LoraConfig(4, 4.0, ("to_q", "to_v")), 0)
    watching = {"evenness": MeteredScorer(Evenness(), ledger)} if watched else {}
    return TrainContext(policy, MeteredScorer(Brightness(), ledger), PROMPTS, Sampler(4, 2.0, 1.0, 8),
                        Pool(tmp_path, ledger), 0, auxiliaries=watching)  # fmt: skip


def rollouts(tmp_path: Path, ledger: Ledger | None = None, **changed: object) -> grpo.RolloutTraining:
    small = {"prompts": 2, "k": 4, "kl_weight": 0.04}
    table = plan.read_settings(content.find("profile", "pocket") / "flow-grpo.toml", None) | small
    parts = {key: changed.pop(key) for key in ("auxiliary", "regulariser") if key in changed}
    config = content.build(grpo.Config, table | changed, "flow-grpo")
    for key, value in parts.items():
        object.__setattr__(config, key, value)
    return grpo.RolloutTraining("flow-grpo", config, context(tmp_path, ledger, "auxiliary" in parts))


GUARDS = {
    "gate": RolloutRegulariser(gate=GATE),
    "gate and reference": RolloutRegulariser(gate=GATE, reference=ReferenceConfig(1e-9, 5)),
    "decoupled": RolloutRegulariser(aggregation=AggregationConfig("decoupled", (1.0,))),
    "pixels": RolloutRegulariser(diversity="pixels"),
    "latents": RolloutRegulariser(diversity="latents"),
}


SLOW = ("gate", "pixels")  # each is part of another one, or like it


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in GUARDS]
)
def test_rollouts_under_guard_resume_bit_for_bit(tmp_path, name):
    needs = {"auxiliary": WATCHED} if GUARDS[name].gate or GUARDS[name].aggregation else {}
    whole, stopped, resumed = (rollouts(tmp_path, regulariser=GUARDS[name], **needs) for _ in range(3))
    expected = [whole.step().metrics for _ in range(5)]  # two rollouts
    found = [stopped.step().metrics for _ in range(2)]
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert found + [resumed.step().metrics for _ in range(3)] == expected
    for a, b in zip(whole.trainer.parameters, resumed.trainer.parameters, strict=True):
        assert a.equal(b)


def test_after_the_reference_moved_the_kl_begins_at_nothing(tmp_path):
    made = rollouts(tmp_path, regulariser=RolloutRegulariser(reference=ReferenceConfig(1e-9, 5)))
    steps = [made.step().metrics for _ in range(5)]
    assert [steps[i]["reference_resets"] for i in (0, 3)] == [0, 1]
    assert steps[1]["kl"] == steps[1]["kl_base"] == 0
    assert steps[2]["kl"] > 0
    assert steps[4]["kl"] == pytest.approx(0, abs=1e-9)
    assert steps[4]["kl_base"] > 1e-7


def test_only_gated_images_pay(tmp_path):
    made = rollouts(tmp_path, auxiliary=WATCHED, regulariser=RolloutRegulariser(gate=GATE))
    first = made.step().metrics
    assert made.rollout is not None
    assert made.rollout.paying is not None
    assert first["gated"] == pytest.approx((made.rollout.paying > 0).sum().item() / 8)
    assert 0 < first["gated"] < 0.5
    assert "paid_kl" in made.step().metrics


def test_an_auxiliary_rewards_calls_are_charged(tmp_path):
    plain, watched = Ledger(0), Ledger(0)
    rollouts(tmp_path, plain).step()
    rollouts(tmp_path, watched, auxiliary=WATCHED, regulariser=RolloutRegulariser(gate=GATE)).step()
    assert (plain.collection.reward_calls, watched.collection.reward_calls) == (8, 16)


def pools(tmp_path: Path, ledger: Ledger | None = None, **changed: object) -> OfflineTraining:
    table = content.read(content.find("profile", "pocket") / "gdro.toml")
    small = {"k": 3, "groups": 2, "pool": {"prompts": 3, "images": 6, "seed": 0, "shard_prompts": 2}}
    parts = {key: changed.pop(key) for key in ("auxiliary", "regulariser") if key in changed}
    config = content.build(gdro.Config, table | small | changed, "gdro")
    for key, value in parts.items():
        object.__setattr__(config, key, value)
    made = gdro.start(config, context(tmp_path, ledger, "auxiliary" in parts))
    assert isinstance(made, OfflineTraining)
    return made


def trained(made: OfflineTraining, steps: int = 4) -> list[dict[str, float]]:
    return [dict(made.step().metrics) for _ in range(steps)]


POOL_GUARDS = {
    "velocity": PoolRegulariser(velocity_kl=0.5),
    "gated": PoolRegulariser(gate=POOL_GATE, velocity_kl=0.5),
    "target": PoolRegulariser(gate=POOL_GATE, target=0.5),
    "trusted": PoolRegulariser(gate=POOL_GATE, trusted_top1=True),
    "novelty": PoolRegulariser(diversity="latents"),
    "min": PoolRegulariser(aggregation=AggregationConfig("min")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", POOL_GUARDS)
def test_gdro_under_guard_trains_and_resumes_bit_for_bit(tmp_path, name):
    guard = POOL_GUARDS[name]
    needs = {"auxiliary": WATCHED} if guard.gate or guard.aggregation else {}
    whole, stopped, resumed = (pools(tmp_path, regulariser=guard, **needs) for _ in range(3))
    expected, _ = trained(whole, 5), trained(stopped, 3)
    resumed.load_state_dict(stopped.state_dict())
    assert trained(resumed, 2) == expected[3:]


@pytest.fixture(scope="module")
def plain_pools(tmp_path_factory):
    """What GDRO without a guard measures in 5 steps, and its parameters after 4 and after 5."""
    made = pools(tmp_path_factory.mktemp("plain"))
    metrics, after = [], []
    for steps in (4, 1):
        metrics += trained(made, steps)
        after.append([parameter.detach().clone() for parameter in made.trainer.parameters])
    return metrics, *after


@pytest.mark.parametrize("name", [name for name in POOL_GUARDS if name not in ("trusted",)])
def test_each_guard_of_gdro_moves_something(tmp_path, name, plain_pools):
    guard = POOL_GUARDS[name]
    needs = {"auxiliary": WATCHED} if guard.gate or guard.aggregation else {}
    guarded = pools(tmp_path, regulariser=guard, **needs)
    trained(guarded, 4)
    assert any(not a.equal(b) for a, b in zip(plain_pools[1], guarded.trainer.parameters, strict=True))


def test_a_velocity_kl_holds_the_policy_back(tmp_path):
    loose, held = (trained(pools(tmp_path, regulariser=PoolRegulariser(velocity_kl=w)), 10)[-1] for w in (1e-9, 1e4))
    assert 0 < held["kappa"] < loose["kappa"]
    assert held["paid_kl"] == held["kappa"]


def test_a_watched_pool_is_another_and_names_who_watches(tmp_path):
    plain, watched = pools(tmp_path), pools(tmp_path, auxiliary=WATCHED, regulariser=POOL_GUARDS["gated"])
    recipes = [(made.source.context.pool.path / "recipe.json").read_text() for made in (plain, watched)]
    assert "auxiliaries" not in recipes[0]
    assert '"evenness": "evenness"' in recipes[1]
    ledger = Ledger(0)
    trained(pools(tmp_path, ledger, auxiliary=WATCHED, regulariser=POOL_GUARDS["gated"]), 2)
    assert ledger.collection.reward_calls == 2 * 18
    groups = watched.source.context.pool.groups(2)
    assert groups.auxiliary["evenness"].shape == (3, 6)
    assert not groups.auxiliary["evenness"].isnan().any()


# -- what changes nothing

NOTHING = AggregationConfig("weighted-sum", (0.0,))  # the auxiliary reward is asked and has no say


@pytest.mark.parametrize(
    ("guard", "auxiliary"),
    [
        (RolloutRegulariser(reference=ReferenceConfig(1e9, 1000)), None),
        (RolloutRegulariser(aggregation=NOTHING), WATCHED),
    ],
)
def test_rollouts_are_bit_for_bit_the_plain_ones_where_a_guard_does_nothing(tmp_path, guard, auxiliary):
    plain = rollouts(tmp_path)
    guarded = rollouts(tmp_path, regulariser=guard, **({"auxiliary": auxiliary} if auxiliary else {}))
    for _ in range(4):
        plain.step(), guarded.step()
    for a, b in zip(plain.trainer.parameters, guarded.trainer.parameters, strict=True):
        assert a.equal(b)
    assert "guard" not in plain.state_dict()


def test_gdro_is_bit_for_bit_the_plain_one_where_a_guard_does_nothing(tmp_path, plain_pools):
    plain, _, parameters = plain_pools
    guarded = pools(tmp_path, auxiliary=WATCHED, regulariser=PoolRegulariser(aggregation=NOTHING))
    assert [m["loss"] for m in trained(guarded, 5)[2:]] == [m["loss"] for m in plain[2:]]
    assert all(a.equal(b) for a, b in zip(parameters, guarded.trainer.parameters, strict=True))


# -- what does not go together


@pytest.mark.parametrize(
    ("regulariser", "auxiliary", "sentence"),
    [
        (RolloutRegulariser(), None, "names nothing to do"),
        (RolloutRegulariser(gate=GATE), None, "needs auxiliary rewards"),
        (RolloutRegulariser(diversity="pixels"), WATCHED, "Nothing uses the auxiliary"),
        (None, WATCHED, "Nothing uses the auxiliary"),
        (RolloutRegulariser(aggregation=AggregationConfig("decoupled")), WATCHED, "needs a weight for each"),
        (RolloutRegulariser(aggregation=AggregationConfig("decoupled", (1.0, 1.0))), WATCHED, "needs a weight for"),
        (RolloutRegulariser(aggregation=AggregationConfig("min", (1.0,))), WATCHED, "has no weights"),
        (RolloutRegulariser(aggregation=AggregationConfig("min", None, 1.0)), WATCHED, "has no pessimism"),
        (RolloutRegulariser(aggregation=AggregationConfig("soft-min")), WATCHED, "needs pessimism"),
        (RolloutRegulariser(aggregation=AggregationConfig("decoupled", (math.nan,))), WATCHED, "finite numbers"),
    ],
)
def test_tables_that_do_not_go_together_are_told(regulariser, auxiliary, sentence):
    with pytest.raises(BenchError, match=sentence):
        regularise.check(regulariser, auxiliary)


@pytest.mark.parametrize("part", [{"gate": GATE}, {"reference": ReferenceConfig(1.0, 1)}])
def test_a_kl_that_nobody_pays_is_not_shaped(part):
    with pytest.raises(BenchError, match="whose weight is 0"):
        regularise.check_paid(RolloutRegulariser(**part), 0.0)


@pytest.mark.parametrize(
    ("regulariser", "elite", "sentence"),
    [
        (PoolRegulariser(gate=POOL_GATE), False, "Nothing asks the gate"),
        (PoolRegulariser(target=0.1), False, "need to know"),
        (PoolRegulariser(trusted_top1=True), False, "need to know"),
        (PoolRegulariser(gate=GATE, target=0.1), False, "share cannot move"),
        (PoolRegulariser(gate=POOL_GATE, trusted_top1=True), True, "is not known"),
        (PoolRegulariser(gate=POOL_GATE, target=0.1), True, "are relative to a group"),
        (PoolRegulariser(aggregation=AggregationConfig("min")), True, "are relative to a group"),
    ],
)
def test_a_pools_tables_that_do_not_go_together_are_told(regulariser, elite, sentence):
    with pytest.raises(BenchError, match=sentence):
        regularise.check_pool(regulariser, elite)


def test_elites_may_be_chosen_by_a_sum_of_rewards():
    regularise.check_pool(PoolRegulariser(aggregation=AggregationConfig("weighted-sum", (0.5,))), True)
