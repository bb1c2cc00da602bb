"""Best-of-n: which images it trains on."""

import math

import pytest
import torch

from gdro_bench.methods.rft import draw_best


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_are_drawn_and_unscored_ones_never(seed):
    r = torch.tensor([0.2, math.nan, 0.9, 0.0, 0.5])
    assert draw_best(r, 2, generator(seed)).tolist() == [2, 4]
    assert set(draw_best(r, 4, generator(seed)).tolist()) == {0, 2, 3, 4}


def test_rewards_below_minus_one_come_before_unscored_images():
    r = torch.tensor([-5.0, math.nan, -2.0, math.nan, -9.0])
    for seed in range(5):
        assert draw_best(r, 3, generator(seed)).tolist() == [2, 0, 4]


def test_ties_are_broken_at_random():
    r = torch.tensor([1.0, 0.5, 1.0, 1.0])
    drawn = [draw_best(r, 1, generator(seed)).item() for seed in range(60)]
    assert set(drawn) == {0, 2, 3}
