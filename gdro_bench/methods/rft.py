"""Rejection-sampling fine-tuning (RAFT, arXiv 2304.06767; best-of-n): flow matching on the pool's best images.

    L = |eps - x0 - v_theta(x_t, t, c)|^2   over the `best` images of highest reward of each group

The plainest offline method: no reference model, no negative examples. Ties are broken at random at every draw.
Differences from the published method: one round only (the pool is not sampled anew from the trained model).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gdro_bench import content
from gdro_bench.errors import BenchError
from gdro_bench.methods import Step, Workbench
from gdro_bench.methods.offline import Source, draw_t, squared_error
from gdro_bench.methods.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/rft.toml`."""

    pool_prompts: int
    pool_images: int
    pool_seed: int
    shard_prompts: int
    best: int  # images of a group that are trained on
    groups: int  # an optimiser step
    drop_flat: bool
    t_distribution: Literal["uniform", "logit-normal"]
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip: float
    ema_slope: float
    ema_ceiling: float


def draw_best(r: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Indices [n] of the n highest of one group's rewards r [G], ties at random; NaN ones are never drawn."""
    order = torch.randperm(len(r), generator=generator)
    return order[r[order].nan_to_num(-1.0).argsort(descending=True, stable=True)[:n]]


class RFT:
    """Fills the pool, a shard a step, then trains, an optimiser update a step."""

    config_type = Config

    def __init__(self, config: Config, bench: Workbench) -> None:
        if not 1 <= config.best <= config.pool_images:
            raise BenchError(
                f"best is {config.best}.", f"It must lie between 1 and pool_images ({config.pool_images}).", 2
            )
        self.config, self.bench = config, bench
        self.source = Source(config, bench)
        self.trainer = Trainer(bench.policy, config)
        self._usable: Tensor | None = None

    def step(self) -> Step:
        return self._optimise() if self.source.complete else self.source.collect()

    def _optimise(self) -> Step:
        c, pool = self.config, self.source.groups
        if self._usable is None:
            self._usable = self.source.usable(c.best, c.drop_flat)
        generator = torch.Generator().manual_seed(content.seed("rft", self.bench.seed, self.trainer.updates))
        chosen = self._usable[torch.randint(len(self._usable), (c.groups,), generator=generator)]
        x0 = torch.cat([pool.latents[g][draw_best(pool.rewards[g], c.best, generator)] for g in chosen])
        t = draw_t((len(x0),), c.t_distribution, generator)
        eps = torch.randn(x0.shape, generator=generator)
        cond = self.bench.policy.encode([self.source.prompts[int(g)] for g in chosen]).repeat_each(c.best)
        x0, t, eps = (part.to(self.trainer.device) for part in (x0, t, eps))
        loss = squared_error(self.bench.policy.velocity, x0, t, eps, cond).mean()
        self.trainer.backward(loss)
        measured = {"loss": loss.item(), "gradient_norm": self.trainer.update()}
        return Step("optimise", measured, f"update {self.trainer.updates}: loss {measured['loss']:.3f}")

    def evaluated(self) -> AbstractContextManager[None]:
        return self.trainer.evaluated()

    def state_dict(self) -> dict[str, Any]:
        return {"collected": self.source.collected, "trainer": self.trainer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.collected = state["collected"]
        self.trainer.load_state_dict(state["trainer"])
