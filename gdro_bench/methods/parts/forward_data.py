"""What the forward-process methods train on: rollouts of their own, epoch by epoch, or GDRO's fixed pool.

Either way an update sees groups of clean latents x0 with their advantages, and draws of (t, eps) for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gdro_bench import content, sampling
from gdro_bench.content import Count, Natural, NonNegative
from gdro_bench.errors import BenchError
from gdro_bench.methods import Step, TrainContext
from gdro_bench.methods.parts.groups import advantages, epoch_prompts, flat_groups
from gdro_bench.methods.parts.offline import Draw, LeastTime, PoolConfig, Source, Times, draw_groups, sample_and_score
from gdro_bench.profile import Sampler
from gdro_bench.task import Prompt

OFFLINE_STREAM = "gdro"  # the key of GDRO's random numbers: offline, all of its kin draw the same images, t and eps
Std = Literal["global", "group"]


@dataclass(frozen=True, slots=True)
class OnlineConfig:
    """`[online]`: an epoch's rollouts, along the grid of the sampler's times t_0 = 1 > t_1 > ..., and which of these
    times they are trained at."""

    prompts: Count  # an epoch
    k: Count  # images a prompt
    rollout_steps: Natural  # of the sampler; 0 is the profile's
    guidance: NonNegative  # of the sampler, never of the trained velocity; 0 is the profile's
    updates_per_epoch: Count  # each on its share of the groups
    move_copies: Literal["update", "epoch"]  # when the lagged copies follow
    drop_flat: bool  # whether groups of one reward are left out, which feel only the pull to older policies
    draws: Count  # of (t, eps) an image
    first: Natural  # steps of the grid that may be drawn, both ends included
    last: Natural
    stratified: bool  # one of each of `draws` equal parts of the grid, or any without repetition
    share_t: Literal["image", "group", "epoch"]  # who has draws of t of its own
    share_noise: bool  # whether a group's images share eps


@dataclass(frozen=True, slots=True)
class OfflineConfig:
    """`[offline]`: what an update draws from the pool, as GDRO does; see `gdro_bench.methods.gdro`."""

    k: Count
    groups: Count
    draws: Count
    share_t: bool
    share_noise: bool
    t_distribution: Times
    draw: Draw
    drop_flat: bool
    t_min: LeastTime | None = None


@dataclass(frozen=True, slots=True)
class Lesson:
    """What an update trains on: clean latents x0 [G, k, *latent_shape], advantages [G, k], the groups' prompts, times
    t [G, D, k], and `noise(g, d)`: eps [k, *latent_shape]."""

    x0: Tensor
    advantage: Tensor
    prompts: list[Prompt]
    t: Tensor
    noise: Callable[[int, int], Tensor]

    def pairs(self) -> list[tuple[int, int]]:
        """All (group, draw)."""
        groups, draws, _ = self.t.shape
        return [(g, d) for d in range(draws) for g in range(groups)]


def grid_steps(config: OnlineConfig, groups: int, generator: torch.Generator) -> Tensor:
    """Which steps of the grid each image of each group is trained at: int64 [G, D, k]."""
    c, width = config, config.last - config.first + 1
    own = {"image": (groups, c.k), "group": (groups, 1), "epoch": (1, 1)}[c.share_t]
    if c.stratified:
        edges = torch.arange(c.draws + 1) * width // c.draws
        drawn = edges[:-1] + (torch.rand((*own, c.draws), generator=generator) * edges.diff()).long()
    else:
        drawn = torch.rand((*own, width), generator=generator).argsort(dim=2)[..., : c.draws]
    return (c.first + drawn).expand(groups, c.k, c.draws).transpose(1, 2)


def rollout_sampler(config: OnlineConfig, sampler: Sampler) -> Sampler:
    """The profile's, with this config's steps and guidance."""
    steps, guidance = config.rollout_steps or sampler.steps, config.guidance or sampler.guidance
    return replace(sampler, steps=steps, guidance=guidance)


@dataclass(slots=True)
class Epoch:
    """An epoch's groups: clean latents [G, k, *latent_shape], advantages [G, k], the number of each group's prompt [G],
    and the steps of the grid that each image is trained at, [G, D, k]."""

    x0: Tensor
    advantage: Tensor
    prompts: Tensor
    steps: Tensor

    def state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.__slots__}


class Rollouts:
    """Groups that the policy, or a copy of it, samples anew in every epoch; `name` is the key of their random numbers.

    `acting` gives a context inside which the policy is whoever samples.
    """

    def __init__(
        self,
        name: str,
        config: OnlineConfig,
        std: Std,
        limit: float,
        context: TrainContext,
        acting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.name, self.config, self.std, self.limit = name, config, std, limit
        self.context, self.acting = context, acting
        self.sampler = rollout_sampler(config, context.sampler)
        self.schedule = context.policy.timesteps(self.sampler.steps, self.sampler.shift)
        self.number = 0  # of epochs so far
        self.epoch: Epoch | None = None

    @property
    def ready(self) -> bool:
        return self.epoch is not None

    def collect(self) -> Step:
        c, context = self.config, self.context
        generator = torch.Generator().manual_seed(content.seed(self.name, "rollout", context.seed, self.number))
        ids = epoch_prompts(context.prompts, c.prompts, generator)
        prompts = [context.prompts[int(p)] for p in ids for _ in range(c.k)]
        keys: list[tuple[str | int, ...]] = [
            (self.name, "rollout", context.seed, self.number, int(p), i) for p in ids for i in range(c.k)
        ]
        with self.acting():
            x0, scores = sample_and_score(context, keys, prompts, self.sampler, reference=False)
        r = torch.tensor([score.value for score in scores]).view(-1, c.k)
        advantage, steps = advantages(r, self.std, self.limit), grid_steps(c, len(ids), generator)
        flat = flat_groups(r)
        kept = torch.nonzero(~flat | (not c.drop_flat)).flatten()
        self.number += 1
        if len(kept) >= c.updates_per_epoch:
            whole = x0.view(-1, c.k, *x0.shape[1:])
            self.epoch = Epoch(whole[kept], advantage[kept], ids[kept], steps[kept])
        metrics = {
            "rollout_reward": r.nanmean().item(),
            "unscored": float(r.isnan().sum()),
            "flat_groups": float(flat.sum()),
            "dropped": float((len(ids) - len(kept)) * c.k),
        }
        said = f"epoch {self.number}: rollout reward {metrics['rollout_reward']:.3f}"
        return Step("collect", metrics, said)

    def lesson(self, updates: int) -> Lesson:
        """The share of the next update, after `updates`: whole groups."""
        epoch, c = self.epoch, self.config
        assert epoch is not None
        part = updates % c.updates_per_epoch
        rows = torch.tensor_split(torch.arange(len(epoch.prompts)), c.updates_per_epoch)[part]
        ids = [int(p) for p in epoch.prompts[rows]]
        key, shape = (self.name, "eps", self.context.seed, self.number), self.context.policy.latent_shape

        def noise(g: int, d: int) -> Tensor:
            images = 1 if c.share_noise else c.k
            drawn = sampling.noise_for([(*key, ids[g], d, i) for i in range(images)], shape)
            return drawn.expand(c.k, *shape)

        prompts = [self.context.prompts[p] for p in ids]
        return Lesson(epoch.x0[rows], epoch.advantage[rows], prompts, self.schedule[epoch.steps[rows]], noise)

    def learned(self, updates: int) -> bool:
        """After `updates`: whether that was the epoch's last. If so, it is forgotten."""
        if updates % self.config.updates_per_epoch:
            return False
        self.epoch = None
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "epoch": None if self.epoch is None else self.epoch.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.number = state["number"]
        self.epoch = None if state["epoch"] is None else Epoch(**state["epoch"])


class FixedPool:
    """GDRO's pool of the reference model's images, with advantages among the k that are drawn of a group."""

    def __init__(self, config: OfflineConfig, pool: PoolConfig, std: Std, limit: float, context: TrainContext) -> None:
        self.config, self.std, self.limit, self.context = config, std, limit, context
        self.source = Source(pool, context)

    @property
    def ready(self) -> bool:
        return self.source.complete

    def collect(self) -> Step:
        return self.source.collect()

    def lesson(self, updates: int) -> Lesson:
        seed = content.seed(OFFLINE_STREAM, self.context.seed, updates)
        generator, shape = torch.Generator().manual_seed(seed), self.context.policy.latent_shape
        drawn = draw_groups(self.source, self.config, shape, generator)
        advantage = advantages(drawn.r, self.std, self.limit)
        return Lesson(drawn.x0, advantage, drawn.prompts, drawn.t, lambda g, d: drawn.eps[g, d])

    def learned(self, updates: int) -> bool:
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"collected": self.source.collected}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.collected = state["collected"]


def check_offline(config: OfflineConfig, pool: PoolConfig) -> None:
    """Raises:
    BenchError: k does not fit the pool's groups."""
    if not 2 <= config.k <= pool.images:
        raise BenchError(f"offline.k is {config.k}.", f"It must lie between 2 and pool.images ({pool.images}).", 2)


def check_online(config: OnlineConfig, steps: int, prompts: int) -> None:
    """Raises:
    BenchError: settings that do not go together, or that a grid of so many steps or so few prompts does not allow."""
    c = config
    if c.k < 2:
        raise BenchError(f"online.k is {c.k}.", "A group needs at least 2 images.", 2)
    if c.prompts > prompts:
        raise BenchError(f"An epoch takes {c.prompts} prompts of {prompts}.", "Lower method.online.prompts.", 2)
    if c.updates_per_epoch > c.prompts:
        raise BenchError(
            f"{c.updates_per_epoch} updates share {c.prompts} groups.", "Lower method.online.updates_per_epoch.", 2
        )
    check_grid(c, steps)


def check_grid(config: OnlineConfig, steps: int) -> None:
    """Raises:
    BenchError: a grid of so many steps does not have those that are to be trained."""
    c = config
    if not c.first <= c.last < steps:
        raise BenchError(
            f"Steps {c.first} to {c.last} do not lie in a grid of {steps}.",
            f"Set method.online.first and last between 0 and {steps - 1}.",
            2,
        )
    if c.draws > c.last - c.first + 1:
        raise BenchError(
            f"{c.draws} draws of {c.last - c.first + 1} steps.", "Lower method.online.draws, or raise its last.", 2
        )
