"""What a group of images says of each: rewards relative to those of the others, as functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gdro_bench.errors import BenchError
from gdro_bench.task import Prompt

Std = Literal["global", "group", "none"]  # what differences to a group's mean are divided by
EPSILON = 1e-4  # Flow-GRPO's `std_epsilon`


def epoch_prompts(prompts: Sequence[Prompt], count: int, generator: torch.Generator) -> Tensor:
    """The numbers of `count` lines drawn without repetition, none with a text that an earlier one has: in an epoch a
    text is one group, as in the published code, whose statistics are by text.

    Raises:
        BenchError: there are not so many texts; a method's `check` says so earlier, before a model is open."""
    drawn: dict[str, int] = {}
    for line in torch.randperm(len(prompts), generator=generator).tolist():
        drawn.setdefault(prompts[line].text, line)
        if len(drawn) == count:
            return torch.tensor(list(drawn.values()))
    raise BenchError(f"An epoch takes {count} prompts of {len(drawn)}.", "Lower the method's prompts of an epoch.", 2)


def flat_groups(r: Tensor) -> Tensor:
    """Which groups of rewards r [..., k] have no two scored images of different reward: bool [...]."""
    return r.nan_to_num(-math.inf).amax(-1) <= r.nan_to_num(math.inf).amin(-1)


def advantages(r: Tensor, std: Std, limit: float, unbiased: bool = False, epsilon: float = EPSILON) -> Tensor:
    """Group-relative advantages [G, k] of rewards r [G, k]; unscored (NaN) images get 0 and count nowhere.

    A flat group gets exactly 0, where the rounding of its mean would leave something.
    """
    centred = r - r.nanmean(dim=1, keepdim=True)
    if std == "none":
        return centred.clamp(-limit, limit).nan_to_num(0.0).masked_fill(flat_groups(r)[:, None], 0.0)
    if std == "global":
        spread = _spread((r - r.nanmean()).flatten()[None], unbiased).expand_as(centred)
    else:
        spread = _spread(centred, unbiased)
    scaled = (centred / (spread + epsilon)).clamp(-limit, limit).nan_to_num(0.0)
    return scaled.masked_fill(flat_groups(r)[:, None], 0.0)


def _spread(centred: Tensor, unbiased: bool) -> Tensor:
    """The std of each row of centred rewards [G, k], its NaN left out: [G, 1]."""
    variance = centred.square().nanmean(dim=1, keepdim=True)
    if unbiased:
        n = centred.isfinite().sum(dim=1, keepdim=True)
        variance = variance * n / (n - 1)
    return variance.sqrt()
