"""One loop for the methods that learn from clean latents alone: DiffusionNFT, AWM, DGPO and CRD.

Rollouts of a deterministic sampler are scored and turned into advantages A. Each image x0 is then noised anew,
x_t = (1 - t) x0 + t eps, and the velocity is fitted to v* = eps - x0, pulled closer or pushed away as A says. With

    e(v) = mean over latent elements of (v - v*)^2

the gradient of each method is a weighted sum of those of e, and the methods differ in the weights (w > 0 pulls):

    NFT    A t / a at theta = old (a = mean |v - v*|), with a pull to an older copy
    AWM    A ratio t e^(p - 1)
    DGPO   sigmoid(S) A,   S = beta / G sum_j A_j (e_j - e_ref,j)
    CRD    10 (A/10 centred - beta R centred) / a,   R = -(e / a - e_old / a_old)
    GDRO   see `gdro`

`mode = "online"` samples anew in every epoch, as published. `mode = "offline"` trains on the pool that GDRO has, with
the reference model in the place of every older copy; with the settings of GDRO in `[offline]` and `[pool]` an update
draws GDRO's very images, t and eps, so that the weights are all that differs. Noise is always the same for policy,
older copies and reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gdro_bench.budget import GRADIENT_COST, Cost
from gdro_bench.content import NonNegative, Positive
from gdro_bench.errors import BenchError
from gdro_bench.methods import CostModel, Method, Step, TrainContext
from gdro_bench.methods.parts.ema import Decay, Ema
from gdro_bench.methods.parts.forward_data import (
    FixedPool,
    Lesson,
    OfflineConfig,
    OnlineConfig,
    Rollouts,
    check_grid,
    check_offline,
    check_online,
    rollout_sampler,
)
from gdro_bench.methods.parts.offline import PoolConfig, pool_cost
from gdro_bench.methods.parts.trainer import OptimiserConfig, Trainer
from gdro_bench.policy import Cond
from gdro_bench.profile import Sampler
from gdro_bench.sampling import guided
from gdro_bench.task import Prompt

Mode = Literal["online", "offline"]
Check = Callable[[Any, Sequence[Prompt], Sampler], None]  # of a method's settings: `Method.check`
Role = Literal["old", "sampler", "reference", "teacher"]  # whose velocities a loss may compare the policy's with


class Settings(Protocol):
    """What the loop reads of a method's config."""

    @property
    def mode(self) -> Mode: ...
    @property
    def std(self) -> Literal["global", "group"]: ...
    @property
    def advantage_clip(self) -> Positive: ...
    @property
    def kl_weight(self) -> NonNegative: ...
    @property
    def teacher_guidance(self) -> NonNegative: ...
    @property
    def online(self) -> OnlineConfig: ...
    @property
    def offline(self) -> OfflineConfig: ...
    @property
    def pool(self) -> PoolConfig: ...
    @property
    def optimiser(self) -> OptimiserConfig: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """A pass: velocities [U, k, *latent_shape] of U groups at a draw each, the target v* of that shape, times and
    advantages [U, k].

    `theta` has a gradient; the others are those that the method's rule `reads`: the lagged copies `old` and `sampler`,
    the `reference` and, guided, the `teacher` of a distilling KL.
    """

    theta: Tensor
    target: Tensor
    t: Tensor
    advantage: Tensor
    old: Tensor | None = None
    sampler: Tensor | None = None
    reference: Tensor | None = None
    teacher: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What a method adds to the loop: the loss of a pass, its mean over images, with what was measured; whose
    velocities it `reads`; the decays of its lagged `copies`; and who samples after n updates, None for the policy."""

    name: str
    loss: Callable[[Seen], tuple[Tensor, dict[str, Tensor]]]
    reads: frozenset[Role]
    copies: Mapping[Role, Decay]
    acts: Callable[[int], Role | None]


# ---------------------------------------------------------------------------------------------------------------
# The mathematics that the methods share, as functions of tensors [U, k, *latent_shape]


def error(v: Tensor, target: Tensor) -> Tensor:
    """e(v), [U, k], in float64: methods look at small differences of it."""
    return (v.double() - target.double()).square().flatten(2).mean(2)


def absolute_error(v: Tensor, target: Tensor) -> Tensor:
    """a(v) = mean |v - v*|, [U, k], float64, without gradient."""
    return (v.detach().double() - target.double()).abs().flatten(2).mean(2)


def distance(v: Tensor, other: Tensor) -> Tensor:
    """mean (v - other)^2, [U, k]: for equal noise levels the KL between two steps of a sampler, up to a factor."""
    return (v - other).square().flatten(2).mean(2)


def kl_roles(config: Settings) -> frozenset[Role]:
    """Whose velocities `kl` needs."""
    if not config.kl_weight:
        return frozenset()
    return frozenset({"reference" if config.teacher_guidance == 1 else "teacher"})


def check(config: Settings, prompts: Sequence[Prompt], sampler: Sampler) -> None:
    """Raises:
    BenchError: settings that do not go together."""
    check_teacher(config, sampler)
    if config.mode == "offline":
        check_offline(config.offline, config.pool)
    else:
        known = len({prompt.text for prompt in prompts})
        check_online(config.online, rollout_sampler(config.online, sampler).steps, known)


def check_teacher(config: Settings, sampler: Sampler) -> None:
    """Raises:
    BenchError: a guided teacher teaches guidance, which the sampler would then apply once more."""
    if config.kl_weight and config.teacher_guidance != 1 and sampler.guidance != 1:
        raise BenchError(
            f"The teacher is guided ({config.teacher_guidance}), and so are the pictures ({sampler.guidance}).",
            "Set method.teacher_guidance=1, or profile.sampler.guidance=1.",
            2,
        )


def kl(loss: Tensor, seen: Seen, weight: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss with its KL to reference or teacher, of this weight (one for all, or [U, k]), if either was asked."""
    other = seen.reference if seen.teacher is None else seen.teacher
    if other is None or (isinstance(weight, float) and not weight):
        return loss, {}
    each = distance(seen.theta, other)
    return loss + (weight * each).mean(), {"kl": each.mean()}


# ---------------------------------------------------------------------------------------------------------------
# The loop


def costs(config: Settings, rule: Rule, sampler: Sampler) -> CostModel:
    """What a training will spend. A copy that still equals the policy is not asked, which saves a little more.

    Raises:
        BenchError: the sampler's grid does not have the steps that are to be trained.
    """
    base = len(rule.reads & {"reference", "teacher"}) and (2 if "teacher" in rule.reads else 1)
    batch = config.optimiser.batch or sampler.batch
    if config.mode == "offline":
        off = config.offline
        trained, together = off.groups * off.k * off.draws, max(1, batch // off.k) * off.k
        each = GRADIENT_COST + max(base, 1 if rule.reads else 0)
        update = Cost(each * trained, trained)
        return CostModel(pool_cost(config.pool, sampler), Cost(), update, 1, together, guided=False)
    on, steps = config.online, rollout_sampler(config.online, sampler)
    check_grid(on, steps.steps)
    images = on.prompts * on.k
    collected = Cost(images * steps.evaluations, images, images)
    trained = images * on.draws // on.updates_per_epoch
    lagged = sum(_asked(rule.copies[role], on) for role in rule.reads if role in rule.copies)
    update = Cost(int((GRADIENT_COST + base + lagged) * trained), trained)
    together = max(1, batch // on.k) * on.k
    copies = len(rule.copies)
    return CostModel(Cost(), collected, update, on.updates_per_epoch, together, False, copies, states=1)


def _asked(decay: Decay, online: OnlineConfig) -> float:
    """The share of updates in which a copy differs from the policy."""
    if decay.ceiling:
        return 1.0
    return 0.0 if online.move_copies == "update" else 1 - 1 / online.updates_per_epoch


def method(config_type: type[Any], rule_of: Callable[[Any], Rule], check: Check = check) -> Method:
    """A method that is this loop with the rule that its settings make."""

    def start(config: Any, context: TrainContext) -> ForwardTraining:
        """Raises:
        BenchError: settings that do not go together."""
        check(config, context.prompts, context.sampler)
        return ForwardTraining(config, rule_of(config), context)

    return Method(config_type, start, lambda config, sampler: costs(config, rule_of(config), sampler), check)


class ForwardTraining:
    """Collects what it trains on, then trains on it, an update a step."""

    def __init__(self, config: Settings, rule: Rule, context: TrainContext) -> None:
        self.config, self.rule, self.context = config, rule, context
        self.trainer = Trainer(context.policy, config.optimiser, context.processes)
        online = config.mode == "online"
        decays = rule.copies if online else {}
        self.copies: dict[str, Ema] = {name: Ema(self.trainer.parameters, decay) for name, decay in decays.items()}
        std, limit = config.std, config.advantage_clip
        self.data: Rollouts | FixedPool = (
            Rollouts(rule.name, config.online, std, limit, context, self._acting)
            if online
            else FixedPool(config.offline, config.pool, std, limit, context)
        )

    def step(self) -> Step:
        return self._optimise() if self.data.ready else self.data.collect()

    def _acting(self) -> AbstractContextManager[None]:
        """Inside, the policy is whoever makes rollouts now."""
        role = self.rule.acts(self.trainer.updates)
        return nullcontext() if role is None else self.copies[role].applied()

    def _optimise(self) -> Step:
        lesson = self.data.lesson(self.trainer.updates)
        pairs, processes = lesson.pairs(), self.context.processes
        batch = self.config.optimiser.batch or self.context.sampler.batch
        current = frozenset(name for name, copy in self.copies.items() if copy.is_current())
        sums: dict[str, float] = {}
        for rows in processes.passes(processes.batches(len(pairs), max(1, batch // lesson.t.shape[2]))):
            some = pairs[rows]
            loss, metrics = self.rule.loss(self._see(lesson, some, current))
            share = 0.0 if processes.padding else len(some) / len(pairs)
            self.trainer.backward(loss * share)
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value.item() * share
        measured = processes.all_reduce_dict(sums) | {"gradient_norm": self.trainer.update()}
        self._move_copies(self.data.learned(self.trainer.updates))
        return Step("optimise", measured, f"update {self.trainer.updates}: loss {measured['loss']:.4f}")

    def _move_copies(self, epoch_over: bool) -> None:
        if epoch_over or self.config.online.move_copies == "update":
            for copy in self.copies.values():
                copy.update(self.trainer.updates)

    def _see(self, lesson: Lesson, pairs: list[tuple[int, int]], current: frozenset[str]) -> Seen:
        """Velocities of the policy and of those that the rule reads, at these (group, draw)."""
        policy, device, groups = self.context.policy, self.trainer.device, [g for g, _ in pairs]
        k, shape = lesson.t.shape[2], policy.latent_shape
        t = torch.stack([lesson.t[g, d] for g, d in pairs]).to(device)
        x0 = lesson.x0[groups].to(device)
        eps = torch.stack([lesson.noise(g, d) for g, d in pairs]).to(device)
        across = t.view(len(pairs), k, *[1] * len(shape))
        x_t = ((1 - across) * x0 + across * eps).flatten(0, 1)
        cond = policy.encode([lesson.prompts[g] for g in groups]).repeat_each(k)
        theta = policy.velocity(x_t, t.flatten(), cond)
        others = self._others(theta, x_t, t.flatten(), cond, current)
        velocities = {role: v.view(len(pairs), k, *shape) for role, v in {"theta": theta, **others}.items()}
        return Seen(target=eps - x0, t=t, advantage=lesson.advantage[groups].to(device), **velocities)

    def _others(self, theta: Tensor, x: Tensor, t: Tensor, cond: Cond, current: frozenset[str]) -> dict[str, Tensor]:
        """No model is asked twice, and none that is known to answer as the policy did."""
        policy, reads, found = self.context.policy, self.rule.reads, dict[str, Tensor]()
        for role in sorted(reads & set(self.copies)):
            found[role] = (
                theta.detach() if role in current else policy.lagged_velocity(self.copies[role].averages, x, t, cond)
            )
        frozen = [role for role in sorted(reads) if role not in found]
        if frozen:
            reference = policy.reference_velocity(x, t, cond)
            found |= dict.fromkeys(frozen, reference)
        if "teacher" in frozen:
            null = policy.encode([Prompt("", "")])
            teacher = guided(lambda x, t, c: reference if c is cond else policy.reference_velocity(x, t, c), null,
                             self.config.teacher_guidance)  # fmt: skip
            found["teacher"] = teacher(x, t, cond)
        return found

    # -- what the runner needs

    def evaluation_weights(self) -> AbstractContextManager[None]:
        return self.trainer.evaluation_weights()

    def state_dict(self) -> dict[str, Any]:
        copies = {name: copy.averages for name, copy in self.copies.items()}
        return {"data": self.data.state_dict(), "copies": copies, "trainer": self.trainer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.data.load_state_dict(state["data"])
        self.trainer.load_state_dict(state["trainer"])
        for name, copy in self.copies.items():
            copy.load(state["copies"][name])
