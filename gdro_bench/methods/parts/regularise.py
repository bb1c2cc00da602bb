"""The optional tables against reward hacking in a method's TOML: `[auxiliary]` and `[regulariser]`.

Without them a method is exactly what it was. The parts are modules of their own: `gate`, `moving_reference`,
`diversity`, `aggregation`. Here they meet a method's rewards.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from gdro_bench.content import NonNegative, Positive
from gdro_bench.errors import BenchError
from gdro_bench.methods.parts import aggregation, diversity, gate
from gdro_bench.methods.parts.aggregation import AggregationConfig
from gdro_bench.methods.parts.gate import GateConfig
from gdro_bench.methods.parts.moving_reference import ReferenceConfig


@dataclass(frozen=True, slots=True)
class AuxiliaryConfig:
    """`[auxiliary]`: rewards of the registry that watch a training. Their calls are charged to its ledger."""

    rewards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RolloutRegulariser:
    """`[regulariser]` of a method that samples while it trains."""

    gate: GateConfig | None = None  # only gated images pay the KL
    reference: ReferenceConfig | None = None  # the KL is taken to a copy of the policy that follows it
    diversity: diversity.Features | None = None  # advantages of good images grow with their novelty
    aggregation: AggregationConfig | None = None  # of the task's reward and the auxiliary ones


@dataclass(frozen=True, slots=True)
class PoolRegulariser:
    """`[regulariser]` of GDRO."""

    gate: GateConfig | None = None  # only gated images of the pool pay the velocity KL
    velocity_kl: Positive | None = None  # weight of the mean of (v_theta - v_ref)^2
    target: NonNegative | None = None  # c of the pessimistic r - c [U]_+
    trusted_top1: bool | None = None  # the image that is stabilised is the best that is not gated
    diversity: Literal["latents"] | None = None  # q grows with the novelty of good images
    aggregation: AggregationConfig | None = None


Regulariser = RolloutRegulariser | PoolRegulariser


def check(regulariser: Regulariser | None, auxiliary: AuxiliaryConfig | None) -> None:
    """Raises:
    BenchError: tables that do not go together."""
    parts = regulariser or RolloutRegulariser()
    doubting = parts.gate is not None
    if regulariser is not None and not any(getattr(parts, f.name) for f in fields(parts)):
        raise BenchError("method.regulariser names nothing to do.", "Give it a part, or leave the table out.", 2)
    if (doubting or parts.aggregation) and not (auxiliary and auxiliary.rewards):
        raise BenchError("A gate or an aggregation needs auxiliary rewards.",
                         'Set method.auxiliary.rewards, such as ["compressibility"].', 2)  # fmt: skip
    if auxiliary and not (doubting or parts.aggregation):
        raise BenchError("Nothing uses the auxiliary rewards.",
                         "Add method.regulariser.gate or .aggregation, or leave method.auxiliary out.", 2)  # fmt: skip
    if parts.aggregation:
        aggregation.check(parts.aggregation, len(auxiliary.rewards) if auxiliary else 0)


def check_paid(regulariser: RolloutRegulariser | None, kl_weight: float) -> None:
    """Raises:
    BenchError: a part of the regulariser shapes a KL that nobody pays."""
    if regulariser and not kl_weight and (regulariser.gate or regulariser.reference):
        raise BenchError("A gate or a moving reference shapes a KL whose weight is 0.",
                         "Raise method.kl_weight, such as to 0.04.", 2)  # fmt: skip


def check_pool(regulariser: PoolRegulariser | None, elite: bool) -> None:
    """elite: whether the image that is stabilised is the best of several rounds.

    Raises:
        BenchError: a gate that nothing asks, something that asks a gate that is not there, or a gate that cannot be.
    """
    if regulariser is None:
        return
    r, asking = regulariser, regulariser.target is not None or bool(regulariser.trusted_top1)
    if r.gate and not (asking or r.velocity_kl):
        raise BenchError("Nothing asks the gate.", "Set method.regulariser.velocity_kl, target or trusted_top1.", 2)
    if asking and not r.gate:
        raise BenchError("method.regulariser.target and trusted_top1 need to know which images are doubtful.",
                         "Add method.regulariser.gate.", 2)  # fmt: skip
    if r.gate and r.gate.adaptive:
        raise BenchError(
            "A pool is gated once, so its share cannot move.", "Set method.regulariser.gate.adaptive=false.", 2
        )
    relative = r.target is not None or (r.aggregation is not None and r.aggregation.rule != "weighted-sum")
    if relative and elite:
        raise BenchError("Elites are chosen between rounds, but these rewards are relative to a group or a round.",
                         "Set method.online.elite=false, or aggregation.rule=weighted-sum, no target.", 2)  # fmt: skip
    if r.trusted_top1 and elite:
        raise BenchError("Which elites of several rounds can be trusted is not known.",
                         "Set method.online.elite=false, or leave method.regulariser.trusted_top1 out.", 2)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# What the tables make of rewards


@dataclass(frozen=True, slots=True)
class Doubt:
    """Of an epoch or a pool: U [G, k], which images are gated, bool [G, k], and the share rho they were chosen by."""

    u: Tensor
    gated: Tensor
    share: float

    def measured(self) -> dict[str, float]:
        return {
            "gate_share": self.share,
            "gated": self.gated.double().mean().item(),
            "mean_doubt": gate.mean_doubt(self.u),
            "undoubtable": float(self.u.isnan().sum()),
        }


def doubt(config: GateConfig, controller: gate.ShareController, main: Tensor, auxiliary: Tensor) -> Doubt:
    """Moves the controller by what main [G, k] and auxiliary rewards [M, G, k] say, and gates by it."""
    u = gate.uncertainty(main, auxiliary, config.ranks, config.sign)
    share = controller.update(gate.mean_doubt(u))
    return Doubt(u, gate.gated(u, share), share)


def total(config: AggregationConfig | None, main: Tensor, auxiliary: Tensor) -> Tensor:
    """The reward [G, k] that is trained on, of main [G, k] and auxiliary rewards [M, G, k]."""
    return main if config is None else aggregation.aggregated(torch.cat((main[None], auxiliary)), config)


def payers(gated: Tensor) -> Tensor:
    """Weights of what images [N] pay, so that a mean over all is the mean over those gated; 0 if none is."""
    share = gated.float().mean()
    return gated.float() / share if share > 0 else torch.zeros_like(gated, dtype=torch.float32)
