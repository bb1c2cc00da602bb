"""GDRO in rounds: a pool that grows from the policy in training.

The pool's prompts are split evenly over the rounds. Round 0 is sampled from the base, as offline; each later one by a
`sampler`, after `updates` updates on the rounds before it: the weights in training (`theta`), their evaluated average
(`ema`), or `old`, which follows them a step a round: old <- lag old + (1 - lag) theta. After the last round training
goes on. A group's images are always of one round: ranks between rounds would partly tell their age.

The last `window` rounds are trained on; where they hold no group that can teach, as many more as it takes. s refers to
the `base`, or to the `sampler` of the last round: then each round's tilt 1 / beta adds to the ones before. With `elite`
the top-1 term acts on the best image so far of a prompt, of whichever round; it does not enter the ranks.

Measured without gradient, at a cost that the ledger counts as collected: the rank agreement of s with the rewards, on
`fresh_groups` of each new round before it is trained on (s still refers to what it did while it was trained), and every
`updates` updates on the last `held_back` groups of round 0, which are never trained on. One round and nothing held back
is the offline method.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gdro_bench import content
from gdro_bench.budget import GRADIENT_COST, Cost
from gdro_bench.content import Count, Natural, Share
from gdro_bench.errors import BenchError
from gdro_bench.methods import CostModel, Step, TrainContext
from gdro_bench.methods.parts.adaptive_beta import Controller
from gdro_bench.methods.parts.agreement import kendall_tau
from gdro_bench.methods.parts.ema import replaced
from gdro_bench.methods.parts.groups import flat_groups
from gdro_bench.methods.parts.offline import (
    Drawn,
    OfflineTraining,
    Origin,
    PoolConfig,
    Source,
    pool_cost,
    taken,
    usable,
)
from gdro_bench.methods.parts.pool_regulariser import PoolGuard
from gdro_bench.methods.parts.trainer import OptimiserConfig, Trainer
from gdro_bench.pool import Groups
from gdro_bench.profile import Sampler
from gdro_bench.task import Prompt, pool_order


@dataclass(frozen=True, slots=True)
class OnlineConfig:
    """`[online]` of gdro.toml."""

    rounds: Count
    updates: Count  # a round; and between measurements on groups held back
    window: Natural  # rounds; 0 is all
    sampler: Literal["theta", "ema", "old"]
    lag: Share
    reference: Literal["base", "sampler"]
    prompts: Literal["new", "same"]  # of a later round: its own part of the pool's, or those of round 0 again
    elite: bool
    fresh_groups: Natural
    held_back: Natural


ONCE = OnlineConfig(1, 1, 0, "theta", 0.0, "base", "new", False, 0, 0)  # the offline method


def online_costs(
    offline: CostModel,
    pool: PoolConfig,
    config: OnlineConfig,
    sampler: Sampler,
    groups: int,
    draws: int,
    snr: int | None,
) -> CostModel:
    """What the offline method spends, and rounds and measurements on top. groups, draws: of an update; snr: the updates
    between its extra draws of (t, eps), if there are any."""
    auxiliaries = offline.pool.reward_calls // offline.pool.images - 1
    each = pool_cost(replace(pool, prompts=pool.prompts // config.rounds), sampler, auxiliaries)
    measured = 2 * pool.images * draws  # policy and reference
    updates = config.updates if config.rounds > 1 or config.held_back else snr or 1
    extra = 2 * (offline.update.images // draws) * updates // snr if snr else 0
    after = Cost(config.held_back * measured + extra)
    if config.rounds == 1:
        return replace(offline, updates=updates, measured=after)
    fresh = Cost(min(config.fresh_groups, pool.prompts // config.rounds) * measured)
    elites = groups * draws if config.elite else 0
    update = offline.update + Cost(GRADIENT_COST * elites, elites)
    batch = offline.batch + offline.batch * elites // offline.update.images  # one more a group
    copies = (config.sampler == "old") + (config.reference == "sampler")
    return CostModel(each, each + fresh, update, updates, batch, copies=copies, rounds=config.rounds, measured=after)


def check_online(config: OnlineConfig, pool: PoolConfig, prompts: Sequence[Prompt]) -> None:
    """Raises:
    BenchError: settings that do not go together."""
    rounds, share = config.rounds, pool.prompts // config.rounds
    if pool.prompts % rounds:
        wanted = max(rounds, pool.prompts - pool.prompts % rounds)
        raise BenchError(
            f"pool.prompts ({pool.prompts}) does not split evenly over {rounds} rounds.",
            f"Set method.pool.prompts={wanted}, say.",
            2,
        )
    needed = pool.prompts if config.prompts == "new" else share
    known = len(prompts)
    if rounds > 1 and needed > known:
        raise BenchError(
            f"{rounds} rounds need {needed} training prompts; there are {known}.",
            "Lower method.pool.prompts, or set method.online.prompts=same.",
            2,
        )
    if config.elite and rounds == 1:
        raise BenchError("online.elite needs images of several rounds.", "Set method.online.rounds above 1.", 2)
    if config.held_back >= min(share, known):
        raise BenchError(
            f"online.held_back is {config.held_back}.", f"It must be below the {share} groups of round 0.", 2
        )
    if config.held_back and rounds > 1 and config.prompts == "same":
        raise BenchError(
            "Groups are held back, but their prompts come again.", "Set method.online.prompts=new or held_back=0.", 2
        )


class Rounds:
    """The rounds so far: what their groups are, and what s refers to (`reference`: adapters, or None for the base)."""

    def __init__(
        self, pool: PoolConfig, config: OnlineConfig, context: TrainContext, guard: PoolGuard | None = None
    ) -> None:
        """Raises:
        BenchError: settings that do not go together."""
        check_online(config, pool, context.prompts)
        self.guard = guard
        self.pool, self.config, self.context = pool, config, context
        self.share = pool.prompts // config.rounds
        self.parameters = list(context.policy.parameters())
        self.old = self._copied() if config.sampler == "old" else []
        self.reference: list[Tensor] | None = None
        self.samplers: list[str] = []  # digests of the weights behind the later rounds
        self.first = 0  # round of the window
        self.order = pool_order(context.prompts, pool.seed)
        self.sources = [Source(pool, context, Origin(self.order[: self.share], context.pool), guard)]
        self._groups: Groups | None = None
        self._elites: dict[str, Tensor] = {}

    @property
    def times(self) -> Tensor:
        return self.sources[-1].times

    @property
    def number(self) -> int:
        """Of the round that is collected or trained on."""
        return len(self.sources) - 1

    @property
    def collected(self) -> int:
        """Shards of it."""
        return self.sources[-1].collected

    @collected.setter
    def collected(self, shards: int) -> None:
        self.sources[-1].collected = shards

    @property
    def complete(self) -> bool:
        return self.sources[-1].complete

    def collect(self) -> Step:
        step, number = self.sources[-1].collect(), self.number
        metrics = {**step.metrics, "round": float(number)}
        return replace(step, metrics=metrics, progress=f"round {number}, {step.progress}")

    # -- a new round

    def next_round(self, trainer: Trainer) -> None:
        for old, parameter in zip(self.old, self.parameters, strict=False):
            old.lerp_(parameter.detach(), 1 - self.config.lag)
        with self._weights(trainer):
            self.samplers.append(self.context.processes.broadcast(_digest(self.parameters)))
        self._open(trainer)

    def _open(self, trainer: Trainer) -> None:
        """The source of the round after those that are there; another sampler's images are never taken for its own."""
        number, context = len(self.sources), self.context
        assert context.own_pool is not None
        start = number * self.share if self.config.prompts == "new" else 0
        origin = Origin(
            self.order[start : start + self.share],
            context.own_pool.another(),
            {"round": number, "adapters": self.samplers[number - 1], "seed": context.seed},
            ("round", number, context.seed),
            lambda: self._weights(trainer),
        )
        self.sources.append(Source(self.pool, context, origin, self.guard))
        self.first = max(0, len(self.sources) - (self.config.window or len(self.sources)))
        self._groups = None

    def _weights(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Inside, the policy is the sampler."""
        if self.config.sampler == "old":
            return replaced(self.parameters, self.old)
        return trainer.evaluation_weights() if self.config.sampler == "ema" else nullcontext()

    def refer_to_sampler(self, trainer: Trainer) -> None:
        """s refers to it from now on."""
        with self._weights(trainer):
            self.reference = self._copied()

    def _copied(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    # -- what an objective draws from

    @property
    def groups(self) -> Groups:
        """Of the window."""
        if self._groups is None:
            parts = [self._trained(number) for number in range(self.first, len(self.sources))]
            self._groups = joined(parts)
            self._elites = self._best() if self.config.elite else {}
        return self._groups

    @property
    def prompts(self) -> list[Prompt]:
        sources = list(enumerate(self.sources))[self.first :]
        return [prompt for number, source in sources for prompt in source.prompts[: self._kept(number)]]

    def usable(self, images: int, drop_flat: bool) -> Tensor:
        """As in `offline`, in a window that is as wide as it must be.

        Raises:
            BenchError: no round has any.
        """
        while self.first:
            try:
                return usable(self.groups.rewards, images, drop_flat)
            except BenchError:
                self.first, self._groups = self.first - 1, None
        return usable(self.groups.rewards, images, drop_flat)

    def taken(self, groups: Tensor, members: list[Tensor]) -> tuple[Tensor, Tensor, list[Prompt]]:
        return taken(self.groups, self.prompts, groups, members)

    def elites(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """The best image so far of each prompt, [G, *latent_shape], if the top-1 term asks for it."""
        if not self.config.elite or self.config.rounds == 1:
            return None
        return torch.stack([self._elites[prompt.text] for prompt in prompts])

    def held_back(self) -> tuple[Groups, list[Prompt]]:
        kept = self._kept(0)
        return _part(self.sources[0].groups, slice(kept, None)), self.sources[0].prompts[kept:]

    def fresh(self) -> tuple[Groups, list[Prompt]]:
        some = slice(self.config.fresh_groups)
        return _part(self.sources[-1].groups, some), self.sources[-1].prompts[some]

    def _kept(self, number: int) -> int:
        """Groups of a round that are trained on, its first ones."""
        return len(self.sources[number].prompts) - (0 if number else self.config.held_back)

    def _trained(self, number: int) -> Groups:
        return _part(self.sources[number].groups, slice(self._kept(number)))

    def _best(self) -> dict[str, Tensor]:
        """Latents by prompt; the earlier image wins a tie."""
        best: dict[str, tuple[float, Tensor]] = {}
        for number, source in enumerate(self.sources):
            groups = self._trained(number)
            for latents, r, prompt in zip(groups.latents, groups.rewards, source.prompts, strict=False):
                known = r.nan_to_num(-math.inf)  # an image that was not scored gives way to any that was
                top = int(known.argmax())
                if prompt.text not in best or known[top].item() > best[prompt.text][0]:
                    best[prompt.text] = known[top].item(), latents[top]
        return {text: latent for text, (_, latent) in best.items()}

    # -- what a resumed run needs

    def state_dict(self) -> dict[str, Any]:
        return {"samplers": self.samplers, "old": self.old, "reference": self.reference}

    def load_state_dict(self, state: Mapping[str, Any], trainer: Trainer) -> None:
        device = self.parameters[0].device
        self.samplers = list(state["samplers"])
        self.old = [tensor.to(device) for tensor in state["old"]]
        self.reference = None if state["reference"] is None else [tensor.to(device) for tensor in state["reference"]]
        for _ in self.samplers:
            self.sources[-1].collected = self.sources[-1].shards
            self._open(trainer)


def _part(groups: Groups, rows: slice) -> Groups:
    paying, factors = (None if part is None else part[rows] for part in (groups.paying, groups.factors))
    return Groups(groups.latents[rows], groups.rewards[rows], groups.cost, paying=paying, factors=factors)


def joined(parts: Sequence[Groups]) -> Groups:
    """Several rounds as one; a regulariser marked all of them or none."""
    latents = [group for part in parts for group in part.latents]
    paying, factors = (
        torch.cat(marks) if len(marks := [m for m in column if m is not None]) else None
        for column in ([part.paying for part in parts], [part.factors for part in parts])
    )
    cost = sum((part.cost for part in parts), Cost())
    return Groups(latents, torch.cat([part.rewards for part in parts]), cost, paying=paying, factors=factors)


def _digest(parameters: Sequence[Tensor]) -> str:
    """Of their bits."""
    found = hashlib.sha256()
    for parameter in parameters:
        found.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


class RankedObjective(Protocol):
    """What this module asks of GDRO's objective."""

    @property
    def controller(self) -> Controller: ...
    def draw(self, generator: torch.Generator) -> Drawn: ...
    def loss(self, drawn: Drawn) -> tuple[Tensor, dict[str, float]]: ...
    def draw_noise(self, groups: int, n: int, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...
    def implicit(self, drawn: Drawn) -> Tensor: ...


class OnlineTraining:
    """Round by round: collects, looks at the round, trains. The budget ends it."""

    def __init__(
        self, objective: RankedObjective, rounds: Rounds, optimiser: OptimiserConfig, context: TrainContext, draws: int
    ) -> None:
        self.objective, self.rounds, self.context, self.draws = objective, rounds, context, draws
        self.offline = OfflineTraining("gdro", objective, rounds, optimiser, context)
        self.trainer = self.offline.trainer
        self.begun = -1  # the last round that was looked at
        self.measured = 0  # updates when held-back groups last were
        self.tilt = 0.0  # of the rounds before, where they add up

    def step(self) -> Step:
        rounds, updates = self.rounds, self.trainer.updates
        if not rounds.complete:
            return rounds.collect()
        if self.begun < rounds.number:
            return self._begin()
        if rounds.config.held_back and updates - self.measured >= rounds.config.updates:
            self.measured = updates
            seen = self._agreement("held_back", *rounds.held_back())
            return Step("collect", seen, f"rank agreement {seen['held_back_agreement']:.2f} on groups held back")
        if self._round_is_over():
            rounds.next_round(self.trainer)
            return rounds.collect()
        return self._optimise()

    def _round_is_over(self) -> bool:
        number, config = self.rounds.number, self.rounds.config
        return number + 1 < config.rounds and self.trainer.updates >= (number + 1) * config.updates

    def _begin(self) -> Step:
        """Looks at a whole new round, before it is trained on."""
        rounds, config = self.rounds, self.rounds.config
        r = rounds.sources[-1].scored.rewards
        flat = flat_groups(r)
        seen = {
            "round": float(rounds.number),
            "round_reward": r.nanmean().item(),
            "flat_share": flat.float().mean().item(),
        }
        if rounds.number and config.fresh_groups:
            seen |= self._agreement("fresh", *rounds.fresh())
        if rounds.number and config.reference == "sampler":
            self.tilt += self._inverse_beta()
            rounds.refer_to_sampler(self.trainer)
            self.objective.controller.forget()
        self.begun = rounds.number
        return Step("collect", seen, f"round {rounds.number}: reward {seen['round_reward']:.3f}")

    def _inverse_beta(self) -> float:
        beta = self.objective.controller.beta
        return 1 / beta if beta else math.nan

    def _optimise(self) -> Step:
        step = self.offline.step()
        self.objective.controller.learn(step.metrics)
        rounds = self.rounds
        seen = {
            "round": float(rounds.number),
            "rounds_trained": float(len(rounds.sources) - rounds.first),
            "tilt": self.tilt + self._inverse_beta(),
        }
        return replace(step, metrics={**step.metrics, **seen}, keep=self._round_is_over())

    @torch.no_grad()
    def _agreement(self, which: str, groups: Groups, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Kendall's tau of s against r, the mean over groups; and how many have none. Each process takes some."""
        context, (count, n) = self.context, groups.rewards.shape
        seed = content.seed("gdro", which, context.seed, self.trainer.updates)
        t, eps = self.objective.draw_noise(count, n, self.draws, torch.Generator().manual_seed(seed))
        drawn = Drawn(torch.stack(list(groups.latents)), groups.rewards, list(prompts), t, eps)
        sums = {"agreement": 0.0, "known": 0.0}
        for rows in context.processes.passes(context.processes.batches(count, max(1, context.sampler.batch // n))):
            found = kendall_tau(self.objective.implicit(drawn[rows]).cpu(), drawn.r[rows])
            if not context.processes.padding:
                sums["agreement"] += found.nansum().item()
                sums["known"] += float((~found.isnan()).sum())
        total = context.processes.all_reduce_dict(sums)
        mean = total["agreement"] / total["known"] if total["known"] else math.nan
        return {f"{which}_agreement": mean, f"{which}_unknown": count - total["known"]}

    def evaluation_weights(self) -> AbstractContextManager[None]:
        return self.trainer.evaluation_weights()

    def state_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("begun", "measured", "tilt")}
        beta = self.objective.controller.state_dict()
        return own | {"offline": self.offline.state_dict(), "rounds": self.rounds.state_dict(), "beta": beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("begun", "measured", "tilt"):
            setattr(self, name, state[name])
        self.rounds.load_state_dict(state["rounds"], self.trainer)
        self.offline.load_state_dict(state["offline"])
        self.objective.controller.load_state_dict(state["beta"])
