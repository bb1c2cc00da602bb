"""How well implicit rewards rank images as their rewards do: Kendall's tau-b (Biometrika 33, 1945), by group."""

from __future__ import annotations

import torch
from torch import Tensor


def kendall_tau(a: Tensor, b: Tensor) -> Tensor:
    """tau-b of each group, float64 [G], of a and b [G, n]: the share of pairs in the same order less that in opposite
    ones, ties accounted for. Items that are NaN in either count nowhere; NaN where either is all ties."""
    known = ~(a.isnan() | b.isnan())
    pairs = known[:, :, None] & known[:, None, :]
    one, other = (
        torch.where(pairs, (part[:, :, None] - part[:, None, :]).sign(), 0).double().flatten(1) for part in (a, b)
    )
    return (one * other).sum(1) / (one.square().sum(1) * other.square().sum(1)).sqrt()
