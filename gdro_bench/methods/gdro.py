"""GDRO: group-level direct reward optimisation (arXiv 2601.02036).

For each prompt a group of images is sampled from the reference model once and scored (the pool). Training draws k of
them and fits the implicit rewards s to the ranking that the scores define:

    s_i    = -beta * (|v - v_theta(x_t, t, c)|^2 - |v - v_ref(x_t, t, c)|^2)                            eq. 5
    q_i(j) = softmax over the remaining items j of r_j / tau
    L_GDRO = sum_i [ log sum_{m remaining at i} exp(s_m) - sum_j q_i(j) s_j ]                           eq. 7
    L      = L_GDRO + gamma * |v - v_theta|^2 of the image with the highest reward                      section 3.3

Left open by the paper, hence options (the settings are in baselines/<profile>/gdro.toml):
1. `reduction`: whether both |.|^2 sum or average over latent elements; beta and gamma are on its scale.
2. `share_t`, `share_noise`: whether a group's images share t and eps. `t_distribution`: uniform, logit-normal, or the
   times where the sampler asks the model; none below `t_min`. `draws` of (t, eps) an image.
3. `ties`: `joint` lets images of equal reward share one remaining set (Breslow's rule), so that the loss cannot
   depend on their order; `order` ranks them as drawn. Where rewards differ both are the paper's loss. With tau = 0
   the target is the limit: one-hot, shared by ties.
4. `drop_flat`: leaves out the terms whose remaining images all have one reward: they carry no preference.
5. `draw`: `random`; `unequal`, which always takes two images of different rewards; or `spread`, which always takes a
   best and a worst image of the 16.
6. The reward that decides which image is stabilised may tie: ties share the term.
7. `[online]`: the pool is sampled in rounds, later ones from the policy: see `gdro_bench/methods/parts/online.py`.
8. `[adaptive_beta]`: beta is moved while training: see `gdro_bench/methods/parts/adaptive_beta.py`.
9. `[auxiliary]`, `[regulariser]`: against reward hacking: see `gdro_bench/methods/parts/pool_regulariser.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gdro_bench.budget import GRADIENT_COST, Cost
from gdro_bench.content import Count, NonNegative
from gdro_bench.errors import BenchError
from gdro_bench.methods import CostModel, Method, TrainContext, Training
from gdro_bench.methods.parts import regularise
from gdro_bench.methods.parts.adaptive_beta import (
    AdaptiveBetaConfig,
    Controller,
    covariance,
    draw_variance,
    error_slope,
)
from gdro_bench.methods.parts.offline import (
    Draw,
    Drawn,
    LeastTime,
    OfflineTraining,
    PoolConfig,
    Source,
    Times,
    draw_groups,
    draw_noise,
    pool_cost,
    residual,
)
from gdro_bench.methods.parts.online import ONCE, OnlineConfig, OnlineTraining, Rounds, check_online, online_costs
from gdro_bench.methods.parts.pool_regulariser import PoolGuard, trusted
from gdro_bench.methods.parts.regularise import AuxiliaryConfig, PoolRegulariser
from gdro_bench.methods.parts.trainer import OptimiserConfig
from gdro_bench.policy import Policy
from gdro_bench.profile import Sampler
from gdro_bench.sampling import ConditionalVelocity
from gdro_bench.task import Prompt

Ties = Literal["joint", "order"]
SATURATED = 0.99  # a group's largest softmax of s, above which it hardly teaches


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/gdro.toml`."""

    pool: PoolConfig
    optimiser: OptimiserConfig
    k: Count
    groups: Count  # an optimiser step
    beta: NonNegative
    tau: NonNegative
    gamma: NonNegative
    reduction: Literal["sum", "mean"]
    share_t: bool
    share_noise: bool
    t_distribution: Times
    draws: Count
    ties: Ties
    drop_flat: bool
    draw: Draw
    t_min: LeastTime | None = None
    online: OnlineConfig | None = None
    adaptive_beta: AdaptiveBetaConfig | None = None
    auxiliary: AuxiliaryConfig | None = None
    regulariser: PoolRegulariser | None = None


# ---------------------------------------------------------------------------------------------------------------
# The mathematics, as functions of tensors


def remaining_sets(r: Tensor, ties: Ties) -> Tensor:
    """Whether item m remains when item i is ranked: bool [G, k (i), k (m)], for rewards r [G, k]."""
    if ties == "joint":
        return r[:, None, :] <= r[:, :, None]
    rank = torch.argsort(torch.argsort(r, dim=1, descending=True, stable=True), dim=1)
    return rank[:, None, :] >= rank[:, :, None]


def target_distribution(r: Tensor, remaining: Tensor, tau: float, factors: Tensor | None = None) -> Tensor:
    """q_i(j): softmax of r / tau over what remains, [G, k, k]; tau = 0 is its limit, uniform over the best. Positive
    `factors` [G, k] multiply q before it is normalised."""
    rewards = r[:, None, :].expand_as(remaining).masked_fill(~remaining, -math.inf)
    if tau > 0:
        return torch.softmax(rewards / tau if factors is None else rewards / tau + factors.log()[:, None, :], dim=2)
    best = (rewards == rewards.amax(dim=2, keepdim=True)).to(r.dtype)
    best = best if factors is None else best * factors[:, None, :]
    return best / best.sum(dim=2, keepdim=True)


def gdro_loss(s: Tensor, r: Tensor, tau: float, ties: Ties, drop_flat: bool, factors: Tensor | None = None) -> Tensor:
    """L_GDRO of each group, [G], from implicit rewards s [G, k] and explicit rewards r [G, k] (eq. 7), with `factors`
    of the target [G, k] if there are any."""
    remaining = remaining_sets(r, ties)
    q = target_distribution(r, remaining, tau, factors)
    log_z = torch.logsumexp(s[:, None, :].expand_as(remaining).masked_fill(~remaining, -math.inf), dim=2)
    terms = log_z - (q * s[:, None, :]).sum(dim=2)  # [G, k]; the last rank's term is 0 by itself
    if drop_flat:
        lowest = r[:, None, :].expand_as(remaining).masked_fill(~remaining, math.inf).amin(dim=2)
        terms = terms * (lowest < r)
    return terms.sum(dim=1)


def implicit_reward(error: Tensor, reference_error: Tensor, beta: float | Tensor) -> Tensor:
    """s = -beta * (policy error - reference error), for squared errors already reduced over latent elements (eq. 5).
    beta: one, or one a group [G, 1]."""
    return -beta * (error - reference_error)


def top1_mask(r: Tensor) -> Tensor:
    """M: one-hot over each group at its highest reward, shared by ties; [G, k]."""
    best = (r == r.amax(dim=1, keepdim=True)).to(r.dtype)
    return best / best.sum(dim=1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------
# The method


def group_costs(pool: PoolConfig, optimiser: OptimiserConfig, sampler: Sampler, images: int, draws: int) -> CostModel:
    """Each image of an update goes through the policy, with its gradient, and through the reference."""
    update = Cost((GRADIENT_COST + 1) * images * draws, images * draws)
    batch = (optimiser.batch or images) * draws
    return CostModel(pool_cost(pool, sampler), Cost(), update, updates=1, batch=batch)


def start(config: Config, context: TrainContext) -> Training:
    """Raises:
    BenchError: settings that do not go together."""
    check(config, context.prompts, context.sampler)
    controller = Controller(config.adaptive_beta, config.beta, config.tau, context.seed)
    online = config.online or ONCE
    guard = PoolGuard(config.regulariser, config.auxiliary)
    if controller.rule == "fixed" and online.rounds == 1 and not online.held_back:
        source = Source(config.pool, context, guard=guard)
        objective = Objective(config, source, context.policy, controller)
        return OfflineTraining("gdro", objective, source, config.optimiser, context)
    _check_whole(config, context)
    return begin_rounds(config, online, controller, context, guard)


def begin_rounds(
    config: Config,
    online: OnlineConfig,
    controller: Controller,
    context: TrainContext,
    guard: PoolGuard | None = None,
) -> OnlineTraining:
    """With rounds, with groups held back or with a beta that moves."""
    rounds = Rounds(config.pool, online, context, guard)
    objective = Objective(config, rounds, context.policy, controller)
    return OnlineTraining(objective, rounds, config.optimiser, context, config.draws)


def check(config: Config, prompts: Sequence[Prompt], sampler: Sampler) -> None:
    """Raises:
    BenchError: settings that do not go together."""
    if config.k > config.pool.images or config.k < 2:
        raise BenchError(f"k is {config.k}.", f"It must lie between 2 and pool.images ({config.pool.images}).", 2)
    online = config.online or ONCE
    Controller(config.adaptive_beta, config.beta, config.tau, 0)
    regularise.check(config.regulariser, config.auxiliary)
    regularise.check_pool(config.regulariser, online.elite and online.rounds > 1)
    check_online(online, config.pool, prompts)


def _check_whole(config: Config, context: TrainContext) -> None:
    """Raises:
    BenchError: the rule batch, whose groups are compared with each other, would see them in parts."""
    rule = config.adaptive_beta.rule if config.adaptive_beta else "fixed"
    together = config.optimiser.batch or config.groups * config.k
    if rule == "batch" and (together < config.groups * config.k or context.processes.size > 1):
        raise BenchError(
            "The rule batch needs all groups of an update in one pass of one process.",
            f"Set method.optimiser.batch={config.groups * config.k} and start one process, or choose another rule.",
            2,
        )


def costs(config: Config, sampler: Sampler) -> CostModel:
    model = group_costs(config.pool, config.optimiser, sampler, config.groups * config.k, config.draws)
    auxiliaries = len(config.auxiliary.rewards) if config.auxiliary else 0
    model = replace(model, pool=pool_cost(config.pool, sampler, auxiliaries))
    adaptive = config.adaptive_beta
    every = adaptive.every if adaptive and adaptive.rule == "snr" else None
    return online_costs(model, config.pool, config.online or ONCE, sampler, config.groups, config.draws, every)


METHOD = Method(Config, start, costs, check)


class Errors(NamedTuple):
    """Of a group's images, [G, k] each: mean or sum over elements, as `reduction` says, of the squared residuals of
    policy and reference, and of the policy's slope; the mean of (v_theta - v_ref)^2; and the stabilised error [G]."""

    policy: Tensor
    reference: Tensor
    slope: Tensor
    kappa: Tensor
    stabilised: Tensor


@dataclass(frozen=True, slots=True)
class Objective:
    """What GDRO draws of the pool, and L."""

    config: Config
    source: Source | Rounds
    policy: Policy
    controller: Controller

    def draw(self, generator: torch.Generator) -> Drawn:
        drawn = draw_groups(self.source, self.config, self.policy.latent_shape, generator, self.controller.wants_draw)
        elites = self.source.elites(drawn.prompts) if isinstance(self.source, Rounds) else None
        return replace(drawn, elite=elites)

    def draw_noise(self, groups: int, n: int, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`draws` of t [G, D, n] and eps [G, D, n, *latent_shape]."""
        return draw_noise(self.config, (groups, n), draws, self.policy.latent_shape, self.source.times, generator)

    @property
    def reference(self) -> ConditionalVelocity:
        """Of the base, or of what sampled the last round."""
        adapters = self.source.reference if isinstance(self.source, Rounds) else None
        if adapters is None:
            return self.policy.reference_velocity
        return lambda x, t, cond: self.policy.lagged_velocity(adapters, x, t, cond)

    def errors(self, drawn: Drawn, draws: slice) -> Errors:
        """Averaged over these draws."""
        policy, device, n = self.policy, next(self.policy.parameters()).device, drawn.r.shape[1]
        x0, single = drawn.x0.flatten(0, 1).to(device), policy.encode(drawn.prompts)
        cond, elite = single.repeat_each(n), None if drawn.elite is None else drawn.elite.to(device)
        own, reference, slope, kappa, stabilised = [], [], [], [], []
        for t, eps in zip(drawn.t[:, draws].unbind(1), drawn.eps[:, draws].unbind(1), strict=True):
            given = (x0, t.flatten().to(device), eps.flatten(0, 1).to(device), cond)
            d, d_ref = residual(policy.velocity, *given), residual(self.reference, *given)
            own.append(d.square())
            reference.append(d_ref.square())
            slope.append(error_slope(d.detach(), d_ref))
            kappa.append((d_ref - (d if self._held else d.detach())).square())
            if elite is not None:
                d = residual(policy.velocity, elite, t[:, 0].to(device), eps[:, 0].to(device), single)
                stabilised.append(d.square())
        elements = x0[0].numel() if self.config.reduction == "mean" else 1

        def reduced(each: list[Tensor], per: int) -> Tensor:
            return torch.stack(each).mean(0).flatten(1).sum(1) / per

        policy_error, reference_error, slopes = (
            reduced(each, elements).view(len(drawn), n) for each in (own, reference, slope)
        )
        moved = reduced(kappa, x0[0].numel()).view(len(drawn), n)
        top1 = reduced(stabilised, elements) if stabilised else (self._top1(drawn).to(device) * policy_error).sum(1)
        return Errors(policy_error, reference_error, slopes, moved, top1)

    @property
    def _held(self) -> float:
        """The weight of the velocity KL."""
        return (self.config.regulariser and self.config.regulariser.velocity_kl) or 0.0

    def _top1(self, drawn: Drawn) -> Tensor:
        trusting = self.config.regulariser and self.config.regulariser.trusted_top1
        return top1_mask(trusted(drawn.r, drawn.paying) if trusting else drawn.r)

    @torch.no_grad()
    def implicit(self, drawn: Drawn) -> Tensor:
        """s [G, n] at beta 1, for what only measures: NaN rewards are no matter."""
        errors = self.errors(drawn, slice(None))
        return implicit_reward(errors.policy, errors.reference, 1.0)

    def loss(self, drawn: Drawn) -> tuple[Tensor, dict[str, float]]:
        c, r = self.config, drawn.r.to(next(self.policy.parameters()).device)
        errors = self.errors(drawn, slice(c.draws))
        margins, slopes = self._margins(errors, r), covariance(errors.slope, r).where(r.amax(1) > r.amin(1), 0.0)
        beta, kept = self.controller.decide(margins, slopes)
        s = implicit_reward(errors.policy, errors.reference, beta)
        rows = slice(None) if kept is None else kept
        factors = None if drawn.factors is None else drawn.factors.to(r.device)
        ranking = gdro_loss(s, r, c.tau, c.ties, c.drop_flat, factors)[rows].mean()
        stabilising = errors.stabilised[rows].mean()
        seen = self._measure(s.detach(), r, ranking.item(), stabilising.item())
        seen |= self._measure_beta(beta, errors, margins, slopes) | self._measure_draws(drawn, errors, r)
        loss = ranking + c.gamma * stabilising
        if not self._held:
            return loss, seen
        paid = (errors.kappa if drawn.paying is None else errors.kappa * drawn.paying.to(r.device)).mean()
        return loss + self._held * paid, seen | {"paid_kl": paid.item()}

    def _margins(self, errors: Errors, r: Tensor) -> Tensor:
        """s_best - s_worst at the method's own beta, [G]; NaN where all rewards are one."""
        s = implicit_reward(errors.policy.detach(), errors.reference, self.config.beta)
        best, worst = (s.gather(1, i).squeeze(1) for i in (r.argmax(1, keepdim=True), r.argmin(1, keepdim=True)))
        return (best - worst).masked_fill(r.amax(1) == r.amin(1), math.nan)

    def _measure(self, s: Tensor, r: Tensor, ranking: float, stabilising: float) -> dict[str, float]:
        """What shows saturation and collapse coming: the spread of s, and how the ends of the ranking move."""
        best, worst = (s.gather(1, i).mean().item() for i in (r.argmax(1, keepdim=True), r.argmin(1, keepdim=True)))
        return {
            "ranking_loss": ranking,
            "stabilising_loss": stabilising,
            "s_spread": s.std(dim=1).mean().item(),
            "s_top1": best,
            "s_worst": worst,
            "margin": best - worst,
            "saturated": (torch.softmax(s, dim=1).amax(1) > SATURATED).float().mean().item(),
        }

    def _measure_beta(self, beta: float | Tensor, errors: Errors, margins: Tensor, slopes: Tensor) -> dict[str, float]:
        """What controllers of beta go by, and beta."""
        seen = {
            "beta": beta if isinstance(beta, float) else beta.mean().item(),
            "kappa": errors.kappa.mean().item(),
            "slope": slopes.mean().item(),
            "slope_step": -slopes.sign().mean().item(),
        }
        if self.controller.rule != "batch":  # which alone sees all groups at once
            return seen
        known = margins[~margins.isnan()]
        spread = known.std().item() if len(known) > 1 else math.nan
        return seen | {"margin_at_first": known.mean().item(), "margin_at_first_std": spread}

    def _measure_draws(self, drawn: Drawn, errors: Errors, r: Tensor) -> dict[str, float]:
        """With one draw more than the loss takes: the variance of s at beta 1 over draws, and that of r / tau."""
        draws = self.config.draws
        if drawn.t.shape[1] == draws:
            return {}
        with torch.no_grad():
            other = self.errors(replace(drawn, elite=None), slice(draws, None))
        apart = draw_variance((errors.policy - errors.reference).detach(), other.policy - other.reference).mean().item()
        single = 2 * apart / (1 + 1 / draws)  # the loss's own is a mean over draws already
        return {
            "draw_variance": single / draws,
            "target_variance": (r / self.config.tau).var(dim=1).mean().item(),
        }
