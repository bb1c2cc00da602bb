"""DGPO, direct group preference optimisation (ICLR 2026; code of Luo-Yihong/DGPO): DPO between halves of a group.

The images of a group with A > 0 are to be preferred to those with A < 0, each weighted by |A|:

    S  = beta / G sum_j A_j (e_j - e_ref,j)         e = mean (v - v*)^2
    L' = -log sigmoid(-S)
    L  = mean of sigmoid(S) A e,   S without gradient: its gradient is that of L' / beta
         + kl_weight mean (v - v_ref)^2

With G = 2 this is Diffusion-DPO, and so GDRO at k = 2, tau = 0, with half the beta. An image teaches no more once
exp(e_old - e) has left 1 +- clip_range on the side that its advantage pulls to (0: no such limit).

Where this differs from the published code:
1. Rollouts are made by Euler's method; published are 10 steps of DPM-Solver++ with a shift of 3.
2. They are guided as the profile samples, and the trained velocity is not, as published: guidance is distilled.
3. Groups are complete on one process, so S needs no communication.
4. Steps of the grid are drawn for an epoch and shared by all of it, as published; noise is a group's own. The grid is
   the profile's: the same steps 0 to 6 reach down to t = 0.60 on SD3's, to 0.67 on the published one.
5. The moving average that is evaluated follows `min(slope * update, ceiling)`, every update.
6. Adapters are the profile's, groups 24 x 24; its files have rank 64, alpha 128 and 8 x 16, and advise 24 x 24.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gdro_bench.content import Natural, NonNegative, Positive
from gdro_bench.methods.parts import forward_process
from gdro_bench.methods.parts.ema import Decay
from gdro_bench.methods.parts.forward_data import OfflineConfig, OnlineConfig, Std
from gdro_bench.methods.parts.forward_process import Mode, Role, Rule, Seen, error, kl, kl_roles
from gdro_bench.methods.parts.offline import PoolConfig
from gdro_bench.methods.parts.trainer import OptimiserConfig


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/dgpo.toml`."""

    mode: Mode
    beta: Positive
    anchor: Literal["reference", "old"]  # whose e is e_ref; "old" moves
    clip_range: NonNegative  # 0 is none
    kl_weight: NonNegative
    teacher_guidance: Positive  # of the reference in the KL; 1 is none
    old_samples_after: Natural  # updates; before, the policy makes the rollouts
    std: Std
    advantage_clip: Positive
    old: Decay
    online: OnlineConfig
    offline: OfflineConfig
    pool: PoolConfig
    optimiser: OptimiserConfig


def group_preference(e: Tensor, e_anchor: Tensor, advantage: Tensor, beta: float) -> Tensor:
    """S of each group, [U], from errors and advantages [U, k]."""
    return beta * (advantage * (e - e_anchor)).mean(1)


def moved_enough(e: Tensor, e_old: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Whether an image has left the range of 1 +- clip_range where its advantage pulls it: bool [U, k]."""
    ratio = (e_old - e).exp()
    return torch.where(advantage > 0, ratio > 1 + clip_range, ratio < 1 - clip_range)


def dgpo_loss(e: Tensor, e_anchor: Tensor, advantage: Tensor, beta: float, moved: Tensor | None) -> Tensor:
    """L without its KL, [U, k], from errors and advantages [U, k]; those that have `moved` enough get no gradient."""
    s = group_preference(e.detach(), e_anchor, advantage, beta)
    if moved is not None:
        e = torch.where(moved, e.detach(), e)
    return s.sigmoid()[:, None] * advantage * e


def rule(config: Config) -> Rule:
    c = config

    def loss(seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        anchor = seen.reference if c.anchor == "reference" else seen.old
        assert anchor is not None
        advantage, e, e_anchor = seen.advantage.double(), error(seen.theta, seen.target), error(anchor, seen.target)
        measured = {"d_size": (e.detach() - e_anchor).abs().mean()}
        moved = None
        if c.clip_range:
            assert seen.old is not None
            moved = moved_enough(e.detach(), error(seen.old, seen.target), advantage, c.clip_range)
            measured |= {"clipped": moved.double().mean()}
        fitted = dgpo_loss(e, e_anchor, advantage, c.beta, moved).mean().to(seen.theta.dtype)
        total, of_kl = kl(fitted, seen, c.kl_weight)
        return total, measured | of_kl

    reads: set[Role] = {"reference" if c.anchor == "reference" else "old", *kl_roles(c)}
    reads |= {"old"} if c.clip_range else set()
    acts = c.old_samples_after
    return Rule("dgpo", loss, frozenset(reads), {"old": c.old}, lambda updates: None if updates < acts else "old")


METHOD = forward_process.method(Config, rule)
