"""The gate of GARDO (arXiv 2512.24138): which images pay the KL, because their reward is not to be trusted.

An image whose main reward is high while cheap auxiliary rewards are low was probably over-scored. With w the share of
the other images that an image beats, ties by half (its rank, counted from the bottom),

    U = w_main - mean of w over the auxiliary rewards               in -1..1, main high and auxiliaries low: U > 0
    gate = U > T,   T = the (1 - rho) quantile of the U >= 0

Only ranks enter, so no reward needs to be calibrated. The published code counts ranks from the top and takes the same
difference, so that its U is the negative of this one: images that the auxiliary rewards like better than the main one
pay there. `sign` says which is meant; `paper` is what the article's text asks for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gdro_bench.content import Range

Sign = Literal["paper", "published"]
LOWEST, HIGHEST = 0.02, 0.2  # of rho, as the published code has them, like the three numbers below
RISE, FALL = 1.1, 0.9
WINDOW = 20  # values of m that the next one is compared with


@dataclass(frozen=True, slots=True)
class GateConfig:
    """`[regulariser.gate]` of a method's TOML."""

    sign: Sign
    ranks: Literal["epoch", "prompt"]  # among all images of an epoch or pool, or among those of one prompt
    share: Annotated[float, Range(LOWEST, HIGHEST)]  # rho at first
    adaptive: bool  # whether rho moves: see `ShareController`


def win_rates(values: Tensor) -> Tensor:
    """For each of values [..., n], the share of the others in its row that it beats, a tie counting half: [..., n].

    NaN stays NaN and counts nowhere; a value without others gets 1/2.
    """
    rows = values.double().reshape(-1, values.shape[-1])
    return torch.stack([_row_win_rates(row) for row in rows]).view(values.shape)


def _row_win_rates(row: Tensor) -> Tensor:
    known = row[~row.isnan()].sort().values.contiguous()
    below, upto = (torch.searchsorted(known, row.contiguous(), right=right) for right in (False, True))
    rates = (below + upto - 1).double() / (2 * (len(known) - 1)) if len(known) > 1 else torch.full_like(row, 0.5)
    return rates.masked_fill(row.isnan(), math.nan)


def uncertainty(main: Tensor, auxiliary: Tensor, ranks: Literal["epoch", "prompt"], sign: Sign) -> Tensor:
    """U [G, k] of main rewards [G, k] and auxiliary ones [M, G, k], float64; NaN where any of them is."""
    if ranks == "epoch":
        shape = main.shape
        return uncertainty(main.reshape(1, -1), auxiliary.reshape(len(auxiliary), 1, -1), "prompt", sign).view(shape)
    unknown = main.isnan() | auxiliary.isnan().any(0)
    main, auxiliary = main.masked_fill(unknown, math.nan), auxiliary.masked_fill(unknown, math.nan)
    u = win_rates(main) - win_rates(auxiliary).mean(0)
    return u if sign == "paper" else -u


def gated(u: Tensor, share: float) -> Tensor:
    """Which images pay, bool of u's shape: those above the (1 - share) quantile of the U >= 0; NaN never."""
    doubtful = u[u >= 0]
    if not len(doubtful):
        return torch.zeros_like(u, dtype=torch.bool)
    return u > torch.quantile(doubtful, 1 - share)


def mean_doubt(u: Tensor) -> float:
    """m: the mean of the U >= 0; NaN if there is none."""
    return u[u >= 0].mean().item()


class ShareController:
    """rho: it rises by a tenth when m exceeds all of the last `WINDOW` values of m, falls by a tenth when it is below
    them all, within `LOWEST` and `HIGHEST`; the first call leaves it."""

    def __init__(self, share: float, adaptive: bool) -> None:
        self.share, self.adaptive = share, adaptive
        self.window: deque[float] = deque(maxlen=WINDOW)

    def update(self, m: float) -> float:
        """The share for images whose mean doubt is m; a NaN m says nothing."""
        if self.adaptive and self.window and not math.isnan(m):
            factor = RISE if m > max(self.window) else FALL if m < min(self.window) else 1.0
            self.share = min(max(self.share * factor, LOWEST), HIGHEST)
        if not math.isnan(m):
            self.window.append(m)
        return self.share

    def state_dict(self) -> dict[str, Any]:
        return {"share": self.share, "window": list(self.window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.share = state["share"]
        self.window = deque(state["window"], maxlen=WINDOW)
