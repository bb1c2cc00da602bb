"""GDRO: group-level direct reward optimisation (arXiv 2601.02036).

For each prompt a group of images is sampled from the reference model once and scored (the pool). Training draws k of
them and fits the implicit rewards s to the ranking that the scores define:

    s_i    = -beta * (|v - v_theta(x_t, t, c)|^2 - |v - v_ref(x_t, t, c)|^2)                            eq. 5
    q_i(j) = softmax over the remaining items j of r_j / tau
    L_GDRO = sum_i [ log sum_{m remaining at i} exp(s_m) - sum_j q_i(j) s_j ]                           eq. 7
    L      = L_GDRO + gamma * |v - v_theta|^2 of the image with the highest reward                      section 3.3

Left open by the paper, hence options (the numbers are in baselines/<profile>/gdro.toml):
1. `reduction`: whether both |.|^2 sum or average over latent elements; beta and gamma are on its scale.
2. `share_t`, `share_noise`: whether a group's images share t and eps. `t_distribution`; `draws` of (t, eps) an image.
3. `ties`: `joint` lets images of equal reward share one remaining set (Breslow's rule), so that the loss cannot
   depend on their order; `order` ranks them as drawn. Where rewards differ both are the paper's loss. With tau = 0
   the target is the limit: one-hot, shared by ties.
4. `drop_flat`: leaves out the terms whose remaining images all have one reward: they carry no preference.
5. `draw`: `random`, or `spread`, which always takes a best and a worst image of the 16.
6. The reward that decides which image is stabilised may tie: ties share the term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gdro_bench import content, sampling, task
from gdro_bench.errors import BenchError
from gdro_bench.methods import Step, Workbench
from gdro_bench.methods.ema import Ema
from gdro_bench.policy import Cond
from gdro_bench.pool import Groups, Sampled

Ties = Literal["joint", "order"]


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/gdro.toml`."""

    pool_prompts: int
    pool_images: int  # a prompt; the paper's 16
    pool_seed: int
    shard_prompts: int
    k: int
    groups: int  # an optimiser step
    beta: float
    tau: float
    gamma: float
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip: float
    ema_slope: float
    ema_ceiling: float
    reduction: Literal["sum", "mean"]
    share_t: bool
    share_noise: bool
    t_distribution: Literal["uniform", "logit-normal"]
    draws: int
    ties: Ties
    drop_flat: bool
    draw: Literal["random", "spread"]


# ---------------------------------------------------------------------------------------------------------------
# The mathematics, as functions of tensors


def remaining_sets(r: Tensor, ties: Ties) -> Tensor:
    """Whether item m remains when item i is ranked: bool [G, k (i), k (m)], for rewards r [G, k]."""
    if ties == "joint":
        return r[:, None, :] <= r[:, :, None]
    rank = torch.argsort(torch.argsort(r, dim=1, descending=True, stable=True), dim=1)
    return rank[:, None, :] >= rank[:, :, None]


def target_distribution(r: Tensor, remaining: Tensor, tau: float) -> Tensor:
    """q_i(j): softmax of r / tau over what remains, [G, k, k]; tau = 0 is its limit, uniform over the best."""
    rewards = r[:, None, :].expand_as(remaining).masked_fill(~remaining, -math.inf)
    if tau > 0:
        return torch.softmax(rewards / tau, dim=2)
    best = (rewards == rewards.amax(dim=2, keepdim=True)).to(r.dtype)
    return best / best.sum(dim=2, keepdim=True)


def gdro_loss(s: Tensor, r: Tensor, tau: float, ties: Ties, drop_flat: bool) -> Tensor:
    """L_GDRO of each group, [G], from implicit rewards s [G, k] and explicit rewards r [G, k] (eq. 7)."""
    remaining = remaining_sets(r, ties)
    q = target_distribution(r, remaining, tau)
    log_z = torch.logsumexp(s[:, None, :].expand_as(remaining).masked_fill(~remaining, -math.inf), dim=2)
    terms = log_z - (q * s[:, None, :]).sum(dim=2)  # [G, k]; the last rank's term is 0 by itself
    if drop_flat:
        lowest = r[:, None, :].expand_as(remaining).masked_fill(~remaining, math.inf).amin(dim=2)
        terms = terms * (lowest < r)
    return terms.sum(dim=1)


def implicit_reward(error: Tensor, reference_error: Tensor, beta: float) -> Tensor:
    """s = -beta * (policy error - reference error), for squared errors already reduced over latent elements (eq. 5)."""
    return -beta * (error - reference_error)


def top1_mask(r: Tensor) -> Tensor:
    """M: one-hot over each group at its highest reward, shared by ties; [G, k]."""
    best = (r == r.amax(dim=1, keepdim=True)).to(r.dtype)
    return best / best.sum(dim=1, keepdim=True)


def draw_members(r: Tensor, k: int, spread: bool, generator: torch.Generator) -> Tensor:
    """Indices [k] of k scored images of one group's rewards r [n]; NaN ones are never drawn."""
    scored = torch.nonzero(~r.isnan()).flatten()
    order = scored[torch.randperm(len(scored), generator=generator)]
    if not spread:
        return order[:k]
    best, worst = order[r[order].argmax()], order[len(order) - 1 - r[order].flip(0).argmin()]  # two, even in a tie
    others = order[(order != best) & (order != worst)][: k - 2]
    return torch.cat((best[None], others, worst[None]))


# ---------------------------------------------------------------------------------------------------------------
# The method


class GDRO:
    """Fills the pool, a shard a step, then trains, an optimiser update a step."""

    config_type = Config

    def __init__(self, config: Config, bench: Workbench) -> None:
        self.config, self.bench = config, bench
        if config.k > config.pool_images or config.k < 2:
            raise BenchError(f"k is {config.k}.", f"It must lie between 2 and pool_images ({config.pool_images}).", 2)
        self.prompts = bench.prompts[: config.pool_prompts]
        self.shards = math.ceil(len(self.prompts) / config.shard_prompts)
        self.parameters = list(bench.policy.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.ema = Ema(self.parameters, config.ema_slope, config.ema_ceiling)
        self.shard = 0
        self.updates = 0
        self._groups: Groups | None = None
        self._usable: Tensor = torch.empty(0, dtype=torch.long)
        self._open_pool()

    def _open_pool(self) -> None:
        c = self.config
        recipe = {
            "model": self.bench.policy.name,
            "reward": self.bench.scorer.name,
            "sampler": asdict(self.bench.sampler),
            "prompts": task.digest(self.prompts),
            "pool": [len(self.prompts), c.pool_images, c.pool_seed, c.shard_prompts],
        }
        self.bench.pool.open(content.digest(recipe), recipe)

    def step(self) -> Step:
        return self._collect() if self.shard < self.shards else self._optimise()

    # -- the pool

    def _collect(self) -> Step:
        first = self.shard * self.config.shard_prompts
        prompts = self.prompts[first : first + self.config.shard_prompts]
        shard = self.bench.pool.shard(self.shard, lambda: self._sample(prompts))
        self.shard += 1
        values = torch.tensor([score.value for group in shard.scores for score in group])
        measured = {"pool_reward": values.nanmean().item(), "unscored": float(values.isnan().sum())}
        return Step("collect", measured, f"pool: {first + len(prompts)} of {len(self.prompts)} prompts")

    @torch.no_grad()
    def _sample(self, prompts: list[task.Prompt]) -> Sampled:
        """Groups from the reference model, whatever the adapters are."""
        c, bench = self.config, self.bench
        keys = [("pool", c.pool_seed, p.text, i) for p in prompts for i in range(c.pool_images)]
        noise = sampling.noise_for(keys, bench.policy.latent_shape)
        each = [p for p in prompts for _ in range(c.pool_images)]
        latents = sampling.sample(bench.policy, noise, each, bench.sampler, reference=True)
        scores = iter(bench.scorer(bench.policy.decode(latents), each))
        grouped = [[next(scores) for _ in range(c.pool_images)] for _ in prompts]
        return latents.cpu().view(len(prompts), c.pool_images, *latents.shape[1:]), grouped

    def _load_groups(self) -> Groups:
        """The whole pool, and which of its groups can teach: k scored images, and not all of one reward."""
        if self._groups is None:
            self._groups = self.bench.pool.groups(self.shards)
            r = self._groups.rewards
            spread = r.nan_to_num(-math.inf).amax(1) > r.nan_to_num(math.inf).amin(1)
            usable = ((~r.isnan()).sum(1) >= self.config.k) & (spread | (not self.config.drop_flat))
            self._usable = torch.nonzero(usable).flatten()
            if not len(self._usable):
                raise BenchError(
                    f"None of the pool's {len(r)} groups has {self.config.k} scored images with different rewards.",
                    "Raise method.pool_prompts or method.pool_images, or set method.drop_flat=false.",
                )
        return self._groups

    # -- training

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, list[task.Prompt]]:
        """The groups of this update: latents [G, k, *latent_shape], rewards [G, k] and the G prompts."""
        pool, c = self._load_groups(), self.config
        chosen = self._usable[torch.randint(len(self._usable), (c.groups,), generator=generator)]
        members = [draw_members(pool.rewards[g], c.k, c.draw == "spread", generator) for g in chosen]
        latents = torch.stack([pool.latents[g][m] for g, m in zip(chosen, members, strict=True)])
        rewards = torch.stack([pool.rewards[g][m] for g, m in zip(chosen, members, strict=True)])
        return latents, rewards, [self.prompts[int(g)] for g in chosen]

    def _draw_t(self, generator: torch.Generator) -> Tensor:
        c = self.config
        t = torch.randn if c.t_distribution == "logit-normal" else torch.rand
        drawn = t((c.groups, 1 if c.share_t else c.k), generator=generator)
        return (drawn.sigmoid() if c.t_distribution == "logit-normal" else drawn).expand(-1, c.k)

    def _errors(self, x0: Tensor, cond: Cond, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Squared errors of policy and reference at one draw of (t, eps), each [G * k, *latent_shape]."""
        c, shape = self.config, self.bench.policy.latent_shape
        t = self._draw_t(generator).flatten().to(x0.device)
        eps = torch.randn((c.groups, 1 if c.share_noise else c.k, *shape), generator=generator)
        eps = eps.expand(-1, c.k, *shape).flatten(0, 1).to(x0.device)
        across = t.view(-1, *[1] * len(shape))
        x_t, v = (1 - across) * x0 + across * eps, eps - x0
        error = (v - self.bench.policy.velocity(x_t, t, cond)).square()
        return error, (v - self.bench.policy.reference_velocity(x_t, t, cond)).square()

    def _loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        c = self.config
        latents, rewards, prompts = self._draw(generator)
        device = self.parameters[0].device
        x0, r = latents.flatten(0, 1).to(device), rewards.to(device)
        cond = self.bench.policy.encode(prompts).repeat_each(c.k)
        drawn = [self._errors(x0, cond, generator) for _ in range(c.draws)]
        error, reference_error = (torch.stack(part).mean(0).flatten(1) for part in zip(*drawn, strict=True))
        elements = error.shape[1] if c.reduction == "mean" else 1
        reduced = error.sum(1).view(c.groups, c.k) / elements
        s = implicit_reward(reduced, reference_error.sum(1).view(c.groups, c.k) / elements, c.beta)
        ranking = gdro_loss(s, r, c.tau, c.ties, c.drop_flat).mean()
        stabilising = (top1_mask(r) * reduced).sum(1).mean()
        return ranking + c.gamma * stabilising, self._measure(s.detach(), r, ranking.item(), stabilising.item())

    def _measure(self, s: Tensor, r: Tensor, ranking: float, stabilising: float) -> dict[str, float]:
        """What shows saturation and collapse coming: the spread of s, and how the ends of the ranking move."""
        return {
            "ranking_loss": ranking,
            "stabilising_loss": stabilising,
            "s_spread": s.std(dim=1).mean().item(),
            "s_top1": s.gather(1, r.argmax(1, keepdim=True)).mean().item(),
            "s_worst": s.gather(1, r.argmin(1, keepdim=True)).mean().item(),
        }

    def _optimise(self) -> Step:
        generator = torch.Generator().manual_seed(content.seed("gdro", self.bench.seed, self.updates))
        warm = min(1.0, (self.updates + 1) / max(1, self.config.warmup_steps))
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * warm
        self.optimiser.zero_grad()
        loss, measured = self._loss(generator)
        if not torch.isfinite(loss):
            raise BenchError(
                f"The GDRO loss is {loss.item()} at update {self.updates + 1}.",
                "Lower method.beta or method.learning_rate; the last checkpoint is kept.",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimiser.step()
        self.updates += 1
        self.ema.update(self.updates)
        measured["gradient_norm"] = norm.item()
        return Step("optimise", measured, f"update {self.updates}: ranking loss {measured['ranking_loss']:.2f}")

    # -- what the runner needs

    def evaluated(self) -> AbstractContextManager[None]:
        return self.ema.applied()

    def state_dict(self) -> dict[str, Any]:
        return {
            "shard": self.shard,
            "updates": self.updates,
            "parameters": [p.detach() for p in self.parameters],
            "averages": self.ema.averages,
            "optimiser": self.optimiser.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.shard, self.updates = state["shard"], state["updates"]
        for own, saved in zip(self.parameters, state["parameters"], strict=True):
            own.copy_(saved)
        for average, saved in zip(self.ema.averages, state["averages"], strict=True):
            average.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
