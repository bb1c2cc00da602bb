"""What moves GDRO's beta while it trains, a correction an update. beta and tau fix only the ratio of drift to reward
(at the optimum s_i - s_j = (r_i - r_j) / tau, whatever beta), so tau stays and beta alone is moved.

With beta_0 the method's `beta`, e the squared error of the policy, and r the rewards of a group:

    kl-target   log beta += rate clip(kappa / kl_target - 1, -0.2, 0.2), every so many updates; kappa is a running mean
                of (v_theta - v_ref)^2 over batch and elements (arXiv 1909.08593, section 2.2, for a velocity)
    batch       beta = beta_0 (1 + strength / sigma (mean kept M - M_0)) of one update, with margins M of s at beta_0
                between a group's best and worst, their running mean M_0 and std sigma; a share `keep` of the groups is
                kept, drawn without replacement with weights exp(-((M - M_0) / sigma)^2 / 2)
                (beta-DPO, arXiv 2407.08639)
    slope       a group's beta is beta / (1 + epsilon step), and beta follows the mean step; the step is +1 where moving
                the velocity on, away from the reference, would raise the margin (s rises with r), -1 where it would
                lower it (epsilon-DPO, arXiv 2502.13177, in closed form: see `error_slope`)
    snr         beta such that the std of s over draws of (t, eps) is `ratio` times that of r / tau, measured with one
                more draw every so many updates
    fixed       beta_0

beta stays within beta_0 / bound and bound beta_0. What an update saw moves the beta of the next; `batch` and a group's
beta under `slope` are of the update itself. M_0 and sigma are those of the updates before it; published beta-DPO puts
this one's in, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from gdro_bench import content
from gdro_bench.content import Count, NonNegative, Positive, Range
from gdro_bench.errors import BenchError

CLIP = 0.2  # of kl-target's relative error
MEMORY = 0.9  # of running means
Rule = Literal["fixed", "kl-target", "batch", "slope", "snr"]


@dataclass(frozen=True, slots=True)
class AdaptiveBetaConfig:
    """`[adaptive_beta]` of gdro.toml."""

    rule: Rule
    bound: Annotated[float, Range(1)]
    every: Count  # updates between corrections of kl-target, or between measurements of snr
    kl_target: Positive
    rate: NonNegative
    strength: NonNegative
    keep: Annotated[float, Range(0, 1, above=True)]
    epsilon: Annotated[float, Range(0, 0.5)]
    ratio: Positive


@dataclass(slots=True)
class BetaState:
    """What a controller knows: `log_ratio` is log(beta / beta_0); NaN is what it has not seen yet."""

    updates: int = 0
    log_ratio: float = 0.0
    kappa: float = math.nan
    margin_mean: float = math.nan
    margin_std: float = math.nan


# ---------------------------------------------------------------------------------------------------------------
# The mathematics


def error_slope(residual: Tensor, reference_residual: Tensor) -> Tensor:
    """d/da at a = 0 of |v - v_ref - (1 + a) (v_theta - v_ref)|^2, elementwise: -2 (v - v_theta) (v_theta - v_ref), from
    the residuals v - v_theta and v - v_ref."""
    return -2 * residual * (reference_residual - residual)


def covariance(a: Tensor, b: Tensor) -> Tensor:
    """Within each group, [G], of a and b [G, k]."""
    return ((a - a.mean(1, keepdim=True)) * (b - b.mean(1, keepdim=True))).mean(1)


def running(before: float, now: float) -> float:
    """The running mean; the first value starts it, and what could not be measured leaves it."""
    if math.isnan(before) or math.isnan(now):
        return now if math.isnan(before) else before
    return MEMORY * before + (1 - MEMORY) * now


def kl_correction(kappa: float, target: float, rate: float) -> float:
    """What kl-target adds to log beta."""
    return rate * max(-CLIP, min(CLIP, kappa / target - 1))


def slope_correction(mean_step: float, epsilon: float) -> float:
    """What slope adds to log beta: beta / (1 + epsilon mean step)."""
    return -math.log1p(epsilon * mean_step)


def keep_groups(margins: Tensor, mean: float, std: float, share: float, generator: torch.Generator) -> Tensor:
    """Indices, rising, of the share of groups that batch keeps, drawn without replacement; margins [G]. Groups without
    a margin (NaN) weigh as one at the mean does, and so do all where mean or std are not known."""
    z = (margins - mean) / std if std > 0 else torch.zeros_like(margins)
    # Gumbel's trick: the largest of log weight + Gumbel noise are a draw without replacement
    noise = torch.rand(len(margins), generator=generator, dtype=torch.float64).clamp(min=1e-300)
    keys = -z.double().nan_to_num(0.0).square() / 2 - (-noise.log()).log()
    return keys.topk(max(1, int(share * len(margins)))).indices.sort().values


def batch_factor(margins: Tensor, mean: float, std: float, strength: float) -> float:
    """beta / beta_0 of an update that kept these margins [G]."""
    away = margins.double().nanmean().item() - mean
    return 1.0 + strength * away / std if std > 0 and math.isfinite(away) else 1.0


def snr_beta(noise: float, spread: float, ratio: float) -> float:
    """The beta at which the std of s over draws is ratio * spread, for its std at beta = 1; NaN where that is not to be
    had."""
    return ratio * spread / noise if noise > 0 and spread > 0 else math.nan


def draw_variance(one: Tensor, other: Tensor) -> Tensor:
    """The variance over draws of a group's items around the group's mean, [G], from two draws [G, k]."""
    apart = one - other
    return (apart - apart.mean(1, keepdim=True)).square().sum(1) / (2 * (apart.shape[1] - 1))


# ---------------------------------------------------------------------------------------------------------------
# The controller


class Decision(NamedTuple):
    """An update's beta: one, or one a group [G, 1]; and the groups that it trains on, all if None."""

    beta: float | Tensor
    kept: Tensor | None = None


class Controller:
    """Holds beta. `seed` is the run's: batch draws with it."""

    def __init__(self, config: AdaptiveBetaConfig | None, beta: float, tau: float, seed: int) -> None:
        """Raises:
        BenchError: the rule has nothing to go by."""
        self.config, self.first, self.tau, self.seed = config, beta, tau, seed
        self.rule: Rule = config.rule if config else "fixed"
        self.state = BetaState()
        if self.rule != "fixed" and beta == 0:
            raise BenchError("beta is 0 and cannot be moved.", "Set method.beta above 0.", 2)
        if self.rule == "snr" and tau == 0:
            raise BenchError("With tau 0 the targets of snr are infinite.", "Set method.tau above 0.", 2)

    @property
    def beta(self) -> float:
        return self.first * math.exp(self.state.log_ratio)

    @property
    def wants_draw(self) -> bool:
        """Whether the next update measures s with one more draw. Before the first one, policy and reference are one."""
        c, n = self.config, self.state.updates
        return self.rule == "snr" and c is not None and n > 0 and n % c.every == 0

    def decide(self, margins: Tensor, slopes: Tensor) -> Decision:
        """For groups with these margins at beta_0 [G], NaN where flat, and covariances of slope and reward [G]."""
        c, state = self.config, self.state
        if c is not None and self.rule == "slope":
            beta = self.beta / (1 + c.epsilon * -slopes.sign())
            return Decision(beta.clamp(self.first / c.bound, self.first * c.bound)[:, None])
        if c is not None and self.rule == "batch":
            mean, std = state.margin_mean, state.margin_std
            generator = torch.Generator().manual_seed(content.seed("beta", "keep", self.seed, state.updates))
            kept = keep_groups(margins.cpu(), mean, std, c.keep, generator).to(margins.device)
            factor = batch_factor(margins[kept], mean, std, c.strength)
            return Decision(self.first * max(1 / c.bound, min(c.bound, factor)), kept)
        return Decision(self.beta)

    def learn(self, seen: Mapping[str, float]) -> None:
        """After an update, from its means over all groups: `kappa`, `slope_step`, `margin_at_first` and its `_std`, and
        where an extra draw was made `draw_variance` and `target_variance`."""
        state, c = self.state, self.config
        state.updates += 1
        state.kappa = running(state.kappa, seen["kappa"])
        if seen.get("margin_at_first_std", 0.0) > 0:  # 0 before the first update, where policy and reference are one
            state.margin_mean = running(state.margin_mean, seen["margin_at_first"])
            state.margin_std = running(state.margin_std, seen["margin_at_first_std"])
        if c is None:
            return
        if self.rule == "kl-target" and state.updates % c.every == 0:
            self._move(state.log_ratio + kl_correction(state.kappa, c.kl_target, c.rate))
        elif self.rule == "slope":
            self._move(state.log_ratio + slope_correction(seen["slope_step"], c.epsilon))
        elif self.rule == "snr" and "draw_variance" in seen:
            found = snr_beta(math.sqrt(seen["draw_variance"]), math.sqrt(seen["target_variance"]), c.ratio)
            self._move(math.log(found / self.first) if found > 0 else state.log_ratio)

    def forget(self) -> None:
        """The reference has moved: what was measured against the old one says nothing of the new."""
        self.state.kappa = self.state.margin_mean = self.state.margin_std = math.nan

    def _move(self, log_ratio: float) -> None:
        assert self.config is not None
        most = math.log(self.config.bound)
        self.state.log_ratio = max(-most, min(most, log_ratio))

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = BetaState(**state)
