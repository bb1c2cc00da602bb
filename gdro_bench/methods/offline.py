"""What the methods that learn from a fixed pool of scored groups share: filling the pool, drawing from it, and the
errors of policy and reference on what was drawn."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Literal, Protocol

import torch
from torch import Tensor

from gdro_bench import content, sampling, task
from gdro_bench.errors import BenchError
from gdro_bench.methods import Step, Workbench
from gdro_bench.policy import Cond
from gdro_bench.pool import Groups, Sampled
from gdro_bench.sampling import ConditionalVelocity


class Numbers(Protocol):
    """The part of a method's TOML that decides its pool. Methods with the same numbers share one."""

    @property
    def pool_prompts(self) -> int: ...
    @property
    def pool_images(self) -> int: ...
    @property
    def pool_seed(self) -> int: ...
    @property
    def shard_prompts(self) -> int: ...


class Source:
    """The groups of the first `pool_prompts` training prompts, sampled from the reference model and scored once."""

    def __init__(self, numbers: Numbers, bench: Workbench) -> None:
        self.numbers, self.bench = numbers, bench
        self.prompts = bench.prompts[: numbers.pool_prompts]
        self.shards = math.ceil(len(self.prompts) / numbers.shard_prompts)
        self.collected = 0
        self._groups: Groups | None = None
        recipe = {
            "model": bench.policy.name,
            "reward": bench.scorer.name,
            "sampler": asdict(bench.sampler),
            "prompts": task.digest(self.prompts),
            "pool": [len(self.prompts), numbers.pool_images, numbers.pool_seed, numbers.shard_prompts],
        }
        bench.pool.open(content.digest(recipe), recipe)

    @property
    def complete(self) -> bool:
        return self.collected == self.shards

    def collect(self) -> Step:
        """One more shard, made or found."""
        first = self.collected * self.numbers.shard_prompts
        prompts = self.prompts[first : first + self.numbers.shard_prompts]
        shard = self.bench.pool.shard(self.collected, lambda: self._sample(prompts))
        self.collected += 1
        values = torch.tensor([score.value for group in shard.scores for score in group])
        measured = {"pool_reward": values.nanmean().item(), "unscored": float(values.isnan().sum())}
        return Step("collect", measured, f"pool: {first + len(prompts)} of {len(self.prompts)} prompts")

    @torch.no_grad()
    def _sample(self, prompts: list[task.Prompt]) -> Sampled:
        """Groups from the reference model, whatever the adapters are."""
        n, bench = self.numbers.pool_images, self.bench
        keys = [("pool", self.numbers.pool_seed, p.text, i) for p in prompts for i in range(n)]
        noise = sampling.noise_for(keys, bench.policy.latent_shape)
        each = [p for p in prompts for _ in range(n)]
        latents = sampling.sample(bench.policy, noise, each, bench.sampler, reference=True)
        scores = iter(bench.scorer(bench.policy.decode(latents), each))
        grouped = [[next(scores) for _ in range(n)] for _ in prompts]
        return latents.cpu().view(len(prompts), n, *latents.shape[1:]), grouped

    @property
    def groups(self) -> Groups:
        """The whole pool."""
        if self._groups is None:
            self._groups = self.bench.pool.groups(self.shards)
        return self._groups

    def usable(self, images: int, drop_flat: bool) -> Tensor:
        """Indices of the groups that can teach: `images` of them scored and, with `drop_flat`, not all alike.

        Raises:
            BenchError: there is none.
        """
        r = self.groups.rewards
        spread = r.nan_to_num(-math.inf).amax(1) > r.nan_to_num(math.inf).amin(1)
        usable = torch.nonzero(((~r.isnan()).sum(1) >= images) & (spread | (not drop_flat))).flatten()
        if not len(usable):
            raise BenchError(
                f"None of the pool's {len(r)} groups has {images} scored images with different rewards.",
                "Raise method.pool_prompts or method.pool_images, or set method.drop_flat=false.",
            )
        return usable


def draw_members(r: Tensor, k: int, spread: bool, generator: torch.Generator) -> Tensor:
    """Indices [k] of k scored images of one group's rewards r [n]; NaN ones are never drawn.

    With `spread` a best and a worst are always among them, first and last.
    """
    scored = torch.nonzero(~r.isnan()).flatten()
    order = scored[torch.randperm(len(scored), generator=generator)]
    if not spread:
        return order[:k]
    best, worst = order[r[order].argmax()], order[len(order) - 1 - r[order].flip(0).argmin()]  # two, even in a tie
    others = order[(order != best) & (order != worst)][: k - 2]
    return torch.cat((best[None], others, worst[None]))


def draw_t(
    shape: tuple[int, ...], distribution: Literal["uniform", "logit-normal"], generator: torch.Generator
) -> Tensor:
    """Times in (0, 1) of this shape."""
    if distribution == "logit-normal":
        return torch.randn(shape, generator=generator).sigmoid()
    return torch.rand(shape, generator=generator)


def squared_error(velocity: ConditionalVelocity, x0: Tensor, t: Tensor, eps: Tensor, cond: Cond) -> Tensor:
    """|v - velocity(x_t, t)|^2 elementwise, [B, *latent_shape], with x_t = (1 - t) x0 + t eps and v = eps - x0."""
    across = t.view(-1, *[1] * (x0.ndim - 1))
    return (eps - x0 - velocity((1 - across) * x0 + across * eps, t, cond)).square()
