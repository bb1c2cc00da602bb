"""What `[auxiliary]` and `[regulariser]` do to GDRO: its pool is scored once, so all of it is decided once.

    r <- the rewards' aggregate,   then r - c [U]_+                             the target's rewards
    q_i(j) ~ exp(r_j / tau) * (D_j / mean D where r_j >= mean r, else 1)        novelty in the target
    L  <- L + velocity_kl * mean of (v_theta - v_ref)^2                         over all images, or the gated ones

What gated images pay has mean 1 over the whole pool. Flat groups are never drawn (`drop_flat`), so where gated images
lie in flat groups the images that are drawn pay less than `velocity_kl` on average.

Novelty is measured on the latents that the pool keeps, in the whole group of a prompt, whichever k are drawn of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gdro_bench.methods.parts import aggregation, diversity, regularise
from gdro_bench.methods.parts.gate import ShareController
from gdro_bench.methods.parts.regularise import AuxiliaryConfig, PoolRegulariser
from gdro_bench.pool import Groups

LEAST = 1e-6  # of a novelty factor: a target needs its logarithm


@dataclass(frozen=True, slots=True)
class PoolGuard:
    """The tables at work. Without them it changes nothing."""

    config: PoolRegulariser | None = None
    auxiliary: AuxiliaryConfig | None = None

    def seen(self, groups: Groups) -> tuple[Groups, dict[str, float]]:
        """The pool with the rewards to train on, what its images pay and their novelty; and what was measured."""
        c = self.config
        if c is None:
            return groups, {}
        names = self.auxiliary.rewards if self.auxiliary else ()
        main, watching = groups.rewards, stacked(groups, names)
        measured = {f"auxiliary_{name}": values.nanmean().item() for name, values in zip(names, watching, strict=True)}
        rewards = regularise.total(c.aggregation, main, watching)
        found, paying = regularise.Doubt(torch.zeros_like(main), torch.zeros_like(main).bool(), 0.0), None
        if c.gate:
            found = regularise.doubt(c.gate, ShareController(c.gate.share, c.gate.adaptive), main, watching)
            paying = regularise.payers(found.gated.flatten()).view_as(main)
            measured |= found.measured()
        rewards = rewards if c.target is None else aggregation.pessimistic(rewards, found.u, c.target)
        factors = novelty_factors(groups, rewards) if c.diversity else None
        return replace(groups, rewards=rewards, paying=paying, factors=factors), measured


def stacked(groups: Groups, names: tuple[str, ...]) -> Tensor:
    """The pool's auxiliary rewards, [M, P, n]."""
    shape = groups.rewards.shape
    return torch.stack([groups.auxiliary[name] for name in names]) if names else torch.empty(0, *shape)


def novelty_factors(groups: Groups, rewards: Tensor) -> Tensor:
    """Of each image within its prompt's group, [P, n]; a group at a time, for latents stay in their files."""
    rows = zip(groups.latents, rewards, strict=True)
    each = [diversity.factors(r[None], diversity.novelty(latents[None].float()))[0] for latents, r in rows]
    return torch.stack(each).clamp(min=LEAST)


def trusted(r: Tensor, paying: Tensor | None) -> Tensor:
    """Rewards [G, k] among which the best is looked for: gated images are out of it, unless all of a group are."""
    if paying is None:
        return r
    gated = paying > 0
    return r.masked_fill(gated & ~gated.all(1, keepdim=True), -torch.inf)
