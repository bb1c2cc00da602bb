"""The meter against what a forward hook on the real transformer sees."""

import numpy as np
import pytest
import torch

from gdro_bench import sampling
from gdro_bench.budget import GRADIENT_COST, Cost, Ledger, MeteredPolicy, MeteredScorer
from gdro_bench.engine import plan
from gdro_bench.models.lora import add_lora
from gdro_bench.models.pocket import network
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.models.pocket.text import Tokenizer
from gdro_bench.profile import Sampler
from gdro_bench.score import Score
from gdro_bench.task import Prompt

PROMPTS = [Prompt('a red sign that reads "FOLD"', "FOLD"), Prompt('a blue wall with a sign saying "CAT"', "CAT")]


@pytest.fixture(scope="module")
def policy() -> PocketPolicy:
    torch.manual_seed(0)
    tokenizer = Tokenizer.of_the_world()
    transformer = network.new_transformer(tokenizer)
    add_lora(transformer, plan.read_profile("pocket").lora, seed=0)
    return PocketPolicy("pocket-random", transformer, network.Autoencoder(8, 8), tokenizer, "cpu")


@pytest.fixture
def metered(policy) -> MeteredPolicy:
    return MeteredPolicy(policy, Ledger(limit=100))


@pytest.fixture
def passed(policy):
    """Sizes of the batches that really went through the transformer."""
    sizes: list[int] = []
    hook = policy.transformer.register_forward_hook(
        lambda module, args, kwargs, out: sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    yield sizes
    hook.remove()


def inputs(policy: MeteredPolicy):
    x = sampling.noise_for([("test", i) for i in range(len(PROMPTS))], policy.latent_shape)
    return x, torch.tensor([0.3, 0.9]), policy.encode(PROMPTS)


def test_velocity_without_gradient_is_collection_at_one_an_image(metered, passed):
    with torch.no_grad():
        metered.velocity(*inputs(metered))
    assert passed == [2]
    assert (metered.ledger.collection, metered.ledger.optimisation) == (Cost(evaluations=2), Cost())


def test_velocity_with_gradient_is_optimisation_at_three_an_image(metered, passed):
    metered.velocity(*inputs(metered)).sum().backward()
    assert passed == [2]
    assert (metered.ledger.collection, metered.ledger.optimisation) == (Cost(), Cost(2 * GRADIENT_COST, images=2))
    assert GRADIENT_COST == 3


def test_the_reference_costs_one_an_image_in_training_and_in_collecting(metered, passed):
    assert not metered.reference_velocity(*inputs(metered)).requires_grad
    assert (metered.ledger.collection, metered.ledger.optimisation) == (Cost(), Cost(evaluations=2))
    with torch.no_grad():
        metered.reference_velocity(*inputs(metered))
    assert passed == [2, 2]
    assert (metered.ledger.collection, metered.ledger.optimisation) == (Cost(evaluations=2), Cost(evaluations=2))


def test_a_lagged_copy_costs_one_an_image_and_has_an_account_of_its_own(metered, passed):
    copy = [parameter.detach().clone() for parameter in metered.parameters()]
    metered.velocity(*inputs(metered)).sum().backward()
    metered.reference_velocity(*inputs(metered))
    assert not metered.lagged_velocity(copy, *inputs(metered)).requires_grad
    with torch.no_grad():
        metered.lagged_velocity(copy, *inputs(metered))
    assert passed == [2] * 4
    assert metered.ledger.optimisation == Cost(2 * GRADIENT_COST + 2 + 2, images=2)
    assert metered.ledger.lagged == Cost(evaluations=2)
    uses = {"rollout": 2, "policy": 2, "backward": 4, "lagged": 2, "reference": 2}
    assert metered.ledger.evaluations_by_use() == uses
    assert sum(uses.values()) == metered.ledger.total.evaluations


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(("guidance", "passes"), [(1.0, 1), (2.0, 2)])
def test_sampling_is_charged_for_every_step_of_every_image(metered, passed, reference, guidance, passes):
    sampler = Sampler(steps=4, shift=2.0, guidance=guidance, batch=1)
    with torch.no_grad():
        sampling.sample(metered, inputs(metered)[0], PROMPTS, sampler, reference)
    assert passed == [1] * 8 * passes
    assert metered.ledger.collection == Cost(evaluations=8 * passes)


def test_decoding_and_scoring_are_counted(metered):
    class Blank:
        name = "blank"

        def __call__(self, images, prompts):
            return [Score(0.0) for _ in images]

    images = metered.decode(inputs(metered)[0])
    scores = MeteredScorer(Blank(), metered.ledger)(images, PROMPTS)
    assert images.shape == (2, 64, 64, 3)
    assert images.dtype == np.uint8
    assert len(scores) == 2
    assert metered.ledger.collection == Cost(images=2, reward_calls=2)


@pytest.mark.parametrize(("kind", "spent"), [("evaluations", 11), ("images", 22), ("seconds", 44.0)])
def test_a_budget_is_of_one_kind(kind, spent):
    assert Ledger(100, kind, Cost(1, 2, 3, 4.0), Cost(10, 20, 30, 40.0)).spent == spent


def test_spending_adds_and_subtracts():
    a, b = Cost(1, 2, 3, 4.0), Cost(10, 20, 30, 40.0)
    assert a + b == Cost(11, 22, 33, 44.0)
    assert a + b - b == a


# -- the policy that is metered


def test_fresh_adapters_are_the_identity_and_changed_ones_are_not(metered):
    x, t, cond = inputs(metered)
    with torch.no_grad():
        assert torch.equal(metered.velocity(x, t, cond), metered.reference_velocity(x, t, cond))
        kept = [p.clone() for p in metered.parameters()]
        before = metered.reference_velocity(x, t, cond)
        for p in metered.parameters():
            p.add_(0.01)
        assert not torch.allclose(metered.velocity(x, t, cond), before)
        assert torch.equal(metered.reference_velocity(x, t, cond), before)
        for p, value in zip(metered.parameters(), kept, strict=True):
            p.copy_(value)


def test_only_adapters_are_trained(metered, policy):
    trained = {name for name, p in policy.transformer.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert len(trained) == len(list(metered.parameters()))
