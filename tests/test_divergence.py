"""How far a policy has moved, where it is known in closed form."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gdro_bench import sampling
from gdro_bench.engine import divergence
from gdro_bench.policy import Cond
from gdro_bench.profile import DivergenceConfig, Sampler
from gdro_bench.score import Images
from gdro_bench.task import Prompt

SAMPLER = Sampler(steps=6, shift=2.0, guidance=1.0, batch=8)
PROMPTS = [Prompt(f"prompt {i}", "") for i in range(5)]
LEVEL = 0.7


@dataclass
class Moved:
    """The reference flows by (x, t) -> -x; the policy by `scale` times that plus `shift`. Pictures are flat greys."""

    scale: float = 1.0
    shift: float = 0.0
    latent_shape = (3, 2, 2)

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        return Cond((torch.zeros(len(prompts), 1),))

    def timesteps(self, steps: int, shift: float) -> Tensor:
        return sampling.timesteps(steps, shift)

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return -self.scale * x + self.shift

    def merged(self) -> AbstractContextManager[None]:
        return nullcontext()

    def reference_velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return -x

    def decode(self, x: Tensor) -> Images:
        grey = (x.flatten(1).mean(1).tanh() * 127 + 128).numpy().astype(np.uint8)
        return np.broadcast_to(grey[:, None, None, None], (len(x), 8, 8, 3)).copy()


def closed_form_kl(shift: float, elements: int) -> float:
    """Of a constant difference of velocities, by Girsanov's theorem on the discrete SDE."""
    t = sampling.timesteps(SAMPLER.steps, SAMPLER.shift).double()
    here, dt = t[:-2], t[:-2] - t[1:-1]
    squared = LEVEL**2 * here / (1 - torch.where(here == 1, t[1], here))
    across = 1 + squared * (1 - here) / (2 * here)
    return float(elements * shift**2 * (across.square() * dt / (2 * squared)).sum())


def test_the_kl_of_a_path_is_its_closed_form():
    found = divergence.paths(Moved(shift=0.1), PROMPTS, "ocr", SAMPLER, LEVEL)
    assert found.kl.tolist() == pytest.approx([closed_form_kl(0.1, 12)] * 5, rel=1e-4)


def test_what_has_not_moved_has_no_kl_and_keeps_its_speed():
    found = divergence.paths(Moved(), PROMPTS, "ocr", SAMPLER, LEVEL)
    assert found.kl.tolist() == [0.0] * 5
    assert found.velocity_ratio.tolist() == pytest.approx([1.0] * 5)


def test_speed_is_held_against_the_reference():
    found = divergence.paths(Moved(scale=1.25), PROMPTS, "ocr", SAMPLER, LEVEL)
    assert found.velocity_ratio.tolist() == pytest.approx([1.25] * 5)


def test_the_first_prompts_are_measured_and_the_others_are_nan():
    rows = divergence.measure(Moved(shift=0.1), PROMPTS, "ocr", SAMPLER, DivergenceConfig(2, 3, LEVEL))
    assert [tuple(row) for row in rows] == [divergence.NAMES] * 5
    assert all(1 <= row["vendi"] <= 3 and row["path_kl"] > 0 for row in rows[:2])
    assert all(np.isnan(list(row.values())).all() for row in rows[2:])
    assert rows[:2] == divergence.measure(Moved(shift=0.1), PROMPTS, "ocr", SAMPLER, DivergenceConfig(2, 3, LEVEL))[:2]


def test_memory_is_that_of_a_batch_and_numbers_are_the_same():
    """Nothing that the model is asked for is larger than the sampler's batch."""

    class Counts(Moved):
        largest = 0

        def velocity(self, x, t, cond):
            self.largest = max(self.largest, len(x))
            return super().velocity(x, t, cond)

        def decode(self, x):
            self.largest = max(self.largest, len(x))
            return super().decode(x)

    alone, together = Counts(shift=0.1), Counts(shift=0.1)
    config = DivergenceConfig(5, 3, LEVEL)
    rows = divergence.measure(alone, PROMPTS, "ocr", replace(SAMPLER, batch=2), config)
    assert rows == divergence.measure(together, PROMPTS, "ocr", replace(SAMPLER, batch=100), config)
    assert (alone.largest, together.largest) == (2, 15)
    pictures = sampling.held_out_images(alone, PROMPTS, "ocr", replace(SAMPLER, batch=2))
    assert (pictures == sampling.held_out_images(together, PROMPTS, "ocr", SAMPLER)).all()
    assert alone.largest == 2


def test_it_can_be_left_out():
    assert divergence.measure(Moved(), PROMPTS, "ocr", SAMPLER, DivergenceConfig(0, 3, LEVEL)) == [{}] * 5
