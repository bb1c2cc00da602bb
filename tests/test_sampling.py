"""Euler's method on fields whose solution is known, the schedule, and noise that is a function of its key."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gdro_bench.policy import Cond
from gdro_bench.profile import Sampler
from gdro_bench.sampling import SdeConfig, euler, noise_for, sample, timesteps, transition, with_exact_ends
from gdro_bench.task import Prompt

SHAPE = (4, 3)
KEYS = [("ocr", "held out", f"prompt {i}", i) for i in range(5)]


def start(rows: int = 3) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# -- the schedule


@pytest.mark.parametrize("steps", [1, 4, 40])
@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0, 3.0])
def test_schedule_falls_from_exactly_one_to_exactly_zero(steps, shift):
    t = timesteps(steps, shift)
    assert len(t) == steps + 1
    assert (t[0].item(), t[-1].item()) == (1.0, 0.0)
    assert t.diff().lt(0).all()


SHIFTS = [0.1, 0.15, 0.5, 1.0, 1.18, 1.32, 1.877, 2.0, 3.0, 6.0, 12.0, *(i / 100 for i in range(11, 1000, 13))]


@pytest.mark.parametrize("steps", [1, 2, 6, 8, 10, 28, 40, 200])
def test_the_ends_are_exact_whatever_the_shift(steps):
    for shift in SHIFTS:
        t = timesteps(steps, shift)
        assert (t[0].item(), t[-1].item()) == (1.0, 0.0), shift
        assert t.diff().lt(0).all(), shift


def test_only_the_ends_of_a_schedule_are_mended():
    bent = torch.tensor([1.0000001, 0.7, 0.2, 1e-9])
    mended = with_exact_ends(bent)
    assert mended.tolist() == [1.0, bent[1].item(), bent[2].item(), 0.0]
    assert mended.dtype == bent.dtype


@pytest.mark.parametrize("shift", [1.18, 1.32])
def test_a_shift_that_rounds_beside_one_gives_flow_grpo_a_finite_first_step(shift):
    """1.18 * 1 / (1 + 0.18 * 1) is not 1 in float32."""
    u = torch.linspace(1, 0, 9)
    assert (shift * u / (1 + (shift - 1) * u))[0] != 1
    schedule, x = timesteps(8, shift), torch.ones(2, 3)
    made = transition(x, x, *schedule[:2].expand(2, 2).T, schedule, SdeConfig("flow", 0.7))
    torch.testing.assert_close(made.rate, torch.full((2,), 0.7 / math.sqrt(1 - float(schedule[1]))))


@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("steps", range(1, 60))
def test_shifts_of_kept_records_have_not_moved(steps, shift):
    u = torch.linspace(1, 0, steps + 1)
    assert torch.equal(timesteps(steps, shift), shift * u / (1 + (shift - 1) * u))


def test_schedule_without_shift_is_even():
    torch.testing.assert_close(timesteps(4, 1.0), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_shift_bends_the_schedule_by_sd3s_formula():
    torch.testing.assert_close(timesteps(4, 3.0), torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))


def test_two_shifts_in_a_row_are_the_shift_of_their_product():
    u = timesteps(10, 2.0)
    torch.testing.assert_close(3.0 * u / (1 + 2.0 * u), timesteps(10, 6.0))


# -- Euler's method


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_a_linear_field_is_its_exact_product(shift):
    c, schedule = 0.7, timesteps(7, shift)
    factor = math.prod(1 + c * step for step in schedule.double().diff().tolist())
    torch.testing.assert_close(euler(lambda x, t: c * x, start(), schedule), factor * start(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 5, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_straight_flow_is_exact_in_any_number_of_steps(steps, shift):
    eps, x0 = start().split((1, 2))[0], torch.full((1, *SHAPE), 0.3, dtype=torch.float64)
    torch.testing.assert_close(euler(lambda x, t: eps - x0, eps, timesteps(steps, shift)), x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("field", [lambda x, t: 0.7 * x, lambda x, t: x * t[:, None, None].cos()])
def test_euler_converges_with_order_one(field):
    exact = euler(field, start(), timesteps(2**13, 1.0))
    coarse, fine = ((euler(field, start(), timesteps(n, 1.0)) - exact).abs().max() for n in (32, 64))
    assert math.log2(coarse / fine) == pytest.approx(1.0, abs=0.05)


def test_euler_asks_for_velocities_at_the_start_of_each_step():
    asked = []
    euler(lambda x, t: asked.append(t) or x, start(2), timesteps(4, 1.0))
    assert [t.tolist() for t in asked] == [[1.0] * 2, [0.75] * 2, [0.5] * 2, [0.25] * 2]


def test_sampling_keeps_no_gradient():
    weight = torch.ones((), requires_grad=True)
    assert not euler(lambda x, t: weight * x, start(), timesteps(2, 1.0)).requires_grad


NUMBERED = [Prompt(str(i), "") for i in range(5)]


@dataclass
class Straight:
    """A policy that flows from any noise by minus its condition, and keeps the sizes of its batches."""

    conditions: dict[str, Tensor]
    sizes: list[int]

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        return Cond((torch.stack([self.conditions[p.text] for p in prompts]),))

    def timesteps(self, steps: int, shift: float) -> Tensor:
        return timesteps(steps, shift)

    def merged(self) -> AbstractContextManager[None]:
        return nullcontext()

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.sizes.append(len(x))
        return cond.tensors[0]


def test_sampling_in_chunks_gives_every_image_its_own_condition():
    noise, target = start(5), start(5).flip(0)
    policy = Straight({str(i): row for i, row in enumerate(noise - target)}, [])
    found = sample(policy, noise, NUMBERED, Sampler(steps=1, shift=3.0, guidance=1.0, batch=2), reference=False)
    torch.testing.assert_close(found, target)
    assert policy.sizes == [2, 2, 1]


def test_guidance_moves_away_from_the_empty_prompt():
    noise, null = start(5), torch.full(SHAPE, 0.25, dtype=torch.float64)
    policy = Straight({str(i): row for i, row in enumerate(noise)} | {"": null}, [])
    found = sample(policy, noise, NUMBERED, Sampler(steps=1, shift=3.0, guidance=2.0, batch=5), reference=False)
    torch.testing.assert_close(found, noise - (null + 2 * (noise - null)))


# -- noise


def test_noise_is_a_function_of_its_key_alone():
    together = noise_for(KEYS, SHAPE)
    assert torch.equal(noise_for(KEYS[::-1], SHAPE), together.flip(0))
    for key, row in zip(KEYS, together, strict=True):
        assert torch.equal(noise_for([key], SHAPE)[0], row)


def test_noise_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(1)
    first, state = noise_for(KEYS, SHAPE), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(noise_for(KEYS, SHAPE), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("other", [("pool", 1, "x"), ("pool", 0, "y"), ("pool", "0", "x"), ("pool", 0, "x", 0)])
def test_every_part_of_a_key_matters(other):
    assert not torch.equal(noise_for([("pool", 0, "x")], SHAPE), noise_for([other], SHAPE))


def test_noise_is_standard_normal():
    noise = noise_for(KEYS, (10_000,))
    assert noise.mean().abs() < 0.02
    assert (noise.std() - 1).abs() < 0.02
    assert noise.corrcoef().fill_diagonal_(0).abs().max() < 0.05
