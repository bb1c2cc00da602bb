"""What the methods that learn from a fixed pool of scored groups share: filling the pool, drawing from it, and the
errors of policy and reference on what was drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor

from gdro_bench import content, sampling, score, task
from gdro_bench.budget import Cost
from gdro_bench.content import Count, Natural, Range
from gdro_bench.distributed import gather_scores
from gdro_bench.errors import BenchError, TrainingFailed
from gdro_bench.methods import Step, TrainContext
from gdro_bench.methods.parts.groups import flat_groups
from gdro_bench.methods.parts.pool_regulariser import PoolGuard
from gdro_bench.methods.parts.trainer import OptimiserConfig, Trainer
from gdro_bench.policy import Cond
from gdro_bench.pool import Groups, Pool, Sampled
from gdro_bench.profile import Sampler
from gdro_bench.rewards.auxiliary import watched
from gdro_bench.sampling import ConditionalVelocity
from gdro_bench.score import GeneratedBatch

Draw = Literal["random", "unequal", "spread"]  # which images of a group, see `draw_members`
Times = Literal["uniform", "logit-normal", "sampler"]  # how t is drawn
LeastTime = Annotated[float, Range(0, 0.95)]  # of the t that are drawn; 1 is noise, and has to be among them


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """`[pool]` of a method's TOML. Runs of one seed whose methods have the same settings share one pool."""

    prompts: Count
    images: Count  # a prompt
    seed: Natural  # of its noise and, unless 0, of which training prompts it takes; the run's seed is added to it
    shard_prompts: Count
    shared: bool | None = None  # whether runs of all seeds train on one pool: the run's seed is not added

    def of_run(self, seed: int) -> PoolConfig:
        """The pool that a run of this seed trains on: its own, of other prompts and noise, unless it is shared."""
        return self if self.shared else replace(self, seed=self.seed + seed, shared=True)


def pool_cost(config: PoolConfig, sampler: Sampler, auxiliaries: int = 0) -> Cost:
    """Of filling it, with so many auxiliary rewards."""
    images = config.prompts * config.images
    return Cost(images * sampler.evaluations, images, images * (1 + auxiliaries))


@torch.no_grad()
def sample_and_score(
    context: TrainContext,
    keys: Sequence[tuple[str | int, ...]],
    prompts: Sequence[task.Prompt],
    sampler: Sampler,
    reference: bool,
) -> tuple[Tensor, list[score.Score]]:
    """Latents [N, *latent_shape] on the CPU, each from its key's noise, and their scores. Each process takes some
    batches."""
    batches = context.processes.batches(len(prompts), sampler.batch)
    latents: list[Tensor] = []

    def generated() -> Iterator[GeneratedBatch]:
        for rows in context.processes.passes(batches):
            noise = sampling.noise_for(keys[rows], context.policy.latent_shape)
            x0 = sampling.sample(context.policy, noise, prompts[rows], sampler, reference)
            if not context.processes.padding:
                latents.append(x0)
                yield context.policy.decode(x0), prompts[rows]

    scored = score.score_batches(generated(), watched(context.scorer, context.auxiliaries), context.ahead)
    scores = gather_scores(context.processes, scored, len(batches), context.max_unscored)
    return context.processes.gather_rows(latents, batches), scores


def _later_draw(prompt: task.Prompt) -> tuple[str, ...]:
    """In the key of its noise: nothing for the first one, as before there were others."""
    return (f"draw {prompt.draw}",) if prompt.draw else ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose images a source holds, if not the reference model's: those of the policy with the weights that it carries
    inside `weights`, kept in a `pool` of the run. `recipe` and `key` tell them, and their noise, from others."""

    prompts: list[task.Prompt]
    pool: Pool
    recipe: dict[str, Any] = field(default_factory=dict)
    key: tuple[str | int, ...] = ()
    weights: Callable[[], AbstractContextManager[None]] | None = None  # none: the reference model


class Source:
    """Groups of training prompts, sampled and scored once: of the first `prompts` of them in the order of the pool's
    seed, from the reference model, or of an `origin`."""

    def __init__(
        self, config: PoolConfig, context: TrainContext, origin: Origin | None = None, guard: PoolGuard | None = None
    ) -> None:
        self.config, self.context, self.guard = config, context, guard or PoolGuard()
        self.times = times_of_sampler(context)
        self.origin = origin or Origin(task.pool_order(context.prompts, config.seed)[: config.prompts], context.pool)
        self.prompts = self.origin.prompts
        self.shards = math.ceil(len(self.prompts) / config.shard_prompts)
        self.collected = 0
        self._groups: Groups | None = None
        self._scored: Groups | None = None
        recipe = {
            "model": context.policy.name,
            "reward": context.scorer.name,
            "sampler": asdict(context.sampler),
            "prompts": task.digest_with_targets(self.prompts),
            "pool": [len(self.prompts), config.images, config.seed, config.shard_prompts],
        } | self.origin.recipe
        if context.auxiliaries:
            recipe["auxiliaries"] = {name: scorer.name for name, scorer in context.auxiliaries.items()}
        self.origin.pool.open(content.digest(recipe), recipe)

    @property
    def complete(self) -> bool:
        return self.collected == self.shards

    def collect(self) -> Step:
        """One more shard, made or read."""
        shard = self.origin.pool.shard(self.collected, partial(self._sample, self.collected))
        self.collected += 1
        values = torch.tensor([score.value for group in shard.scores for score in group])
        metrics = {"pool_reward": values.nanmean().item(), "unscored": float(values.isnan().sum())}
        if self.complete and self.guard.config:
            metrics |= self.guard.seen(self.scored)[1]
        return Step("collect", metrics, f"pool: {self._first(self.collected)} of {len(self.prompts)} prompts")

    def _first(self, shard: int) -> int:
        """The number of its first prompt, or of all if there is no such shard."""
        return min(shard * self.config.shard_prompts, len(self.prompts))

    @torch.no_grad()
    def _sample(self, shard: int) -> Sampled:
        """Groups from the reference model, whatever the adapters are, or the origin's."""
        n, context, origin = self.config.images, self.context, self.origin
        prompts = self.prompts[self._first(shard) : self._first(shard + 1)]
        keys: list[tuple[str | int, ...]] = [
            ("pool", self.config.seed, p.text, i, *_later_draw(p), *origin.key) for p in prompts for i in range(n)
        ]
        each = [p for p in prompts for _ in range(n)]
        with origin.weights() if origin.weights else nullcontext():
            whole, gathered = sample_and_score(context, keys, each, context.sampler, reference=origin.weights is None)
        scores = iter(gathered)
        return whole.view(len(prompts), n, *whole.shape[1:]), [[next(scores) for _ in range(n)] for _ in prompts]

    @property
    def groups(self) -> Groups:
        """The whole pool, with the rewards that the method's regulariser makes of its scores."""
        if self._groups is None:
            self._groups, _ = self.guard.seen(self.scored)
        return self._groups

    @property
    def scored(self) -> Groups:
        """The whole pool, with the task's rewards.

        Raises:
            BenchError: a shard is damaged, or one is gone that nobody can make again.
        """
        if self._scored is None:
            for shard in range(self.shards):
                self.origin.pool.restore(shard, partial(self._again, shard))
            self._scored = self.origin.pool.groups(self.shards)
        return self._scored

    def _again(self, shard: int) -> Sampled:
        if self.origin.weights:  # of a later round, whose weights have moved on
            raise BenchError(
                f"Images that this run trains on are gone from {self.origin.pool.path}.",
                "Delete checkpoint.pt in the run's folder and type the same command again: the run starts anew.",
            )
        return self._sample(shard)

    def taken(self, groups: Tensor, members: list[Tensor]) -> tuple[Tensor, Tensor, list[task.Prompt]]:
        """These members of these groups: latents [G, n, *latent_shape], rewards [G, n] and the G prompts."""
        return taken(self.groups, self.prompts, groups, members)

    def usable(self, images: int, drop_flat: bool) -> Tensor:
        """As the function of this name."""
        return usable(self.groups.rewards, images, drop_flat)


def marks(groups: Groups, indices: Tensor, members: list[Tensor]) -> dict[str, Tensor]:
    """What these members of the groups of these indices pay of a regulariser, and their novelty's factors, [G, n] each,
    where there are any."""
    pairs = list(zip(indices.tolist(), members, strict=True))
    known = {"paying": groups.paying, "factors": groups.factors}
    return {name: torch.stack([v[g][m] for g, m in pairs]) for name, v in known.items() if v is not None}


def taken(
    groups: Groups, prompts: Sequence[task.Prompt], indices: Tensor, members: list[Tensor]
) -> tuple[Tensor, Tensor, list[task.Prompt]]:
    """These members of the groups of these indices: latents [G, n, *latent_shape], rewards [G, n] and the G prompts."""
    pairs = list(zip(indices.tolist(), members, strict=True))
    x0, r = (torch.stack([part[g][m] for g, m in pairs]) for part in (groups.latents, groups.rewards))
    return x0, r, [prompts[g] for g, _ in pairs]


def usable(r: Tensor, images: int, drop_flat: bool) -> Tensor:
    """Indices of the groups of rewards r [P, n] that can teach: `images` scored and, with `drop_flat`, not all alike.

    Raises:
        TrainingFailed: there is none.
    """
    teaching = ~flat_groups(r) | (not drop_flat)
    found = torch.nonzero(((~r.isnan()).sum(1) >= images) & teaching).flatten()
    if not len(found):
        raise TrainingFailed(
            f"None of the pool's {len(r)} groups has {images} scored images with different rewards.",
            "Raise method.pool.prompts or method.pool.images, or set method.drop_flat=false.",
        )
    return found


@dataclass(frozen=True, slots=True)
class Drawn:
    """What an update trains on: latents x0 [G, n, *latent_shape] of G groups, their rewards r [G, n] and prompts, and D
    draws of t [G, D, n] and eps [G, D, n, *latent_shape]; perhaps an `elite` image a prompt, [G, *latent_shape],
    what images pay of a regulariser and their novelty's factors, [G, n] each."""

    x0: Tensor
    r: Tensor
    prompts: list[task.Prompt]
    t: Tensor
    eps: Tensor
    elite: Tensor | None = None
    paying: Tensor | None = None
    factors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> Drawn:
        perhaps = (None if part is None else part[rows] for part in (self.elite, self.paying, self.factors))
        return Drawn(self.x0[rows], self.r[rows], self.prompts[rows], self.t[rows], self.eps[rows], *perhaps)


class Supply(Protocol):
    """Where an offline method's groups come from, a shard a step; `collected` of them so far."""

    collected: int

    @property
    def complete(self) -> bool: ...
    def collect(self) -> Step: ...


class Objective(Protocol):
    """What an offline method adds: what an update draws, and its loss."""

    def draw(self, generator: torch.Generator) -> Drawn:
        """All that one update draws."""
        ...

    def loss(self, drawn: Drawn) -> tuple[Tensor, dict[str, float]]:
        """The mean loss of some drawn groups, and the means of what was measured on the way."""
        ...


class OfflineTraining:
    """Fills the pool, a shard a step, then trains on it, an optimiser update a step.

    `stream` is the key of the random numbers that updates draw.
    """

    def __init__(
        self, stream: str, objective: Objective, source: Supply, optimiser: OptimiserConfig, context: TrainContext
    ) -> None:
        self.stream, self.objective, self.source, self.context = stream, objective, source, context
        self.trainer = Trainer(context.policy, optimiser, context.processes)

    def step(self) -> Step:
        return self._optimise() if self.source.complete else self.source.collect()

    def _optimise(self) -> Step:
        seed = content.seed(self.stream, self.context.seed, self.trainer.updates)
        drawn = self.objective.draw(torch.Generator().manual_seed(seed))
        sums: dict[str, float] = {}
        processes = self.context.processes
        for rows in processes.passes(self._passes(drawn)):
            part = drawn[rows]
            loss, metrics = self.objective.loss(part)
            weight = 0.0 if processes.padding else len(part) / len(drawn)
            self.trainer.backward(loss * weight)
            for name, value in ({"loss": loss.item()} | metrics).items():
                sums[name] = sums.get(name, 0.0) + value * weight
        metrics = processes.all_reduce_dict(sums) | {"gradient_norm": self.trainer.update()}
        return Step("optimise", metrics, f"update {self.trainer.updates}: loss {metrics['loss']:.2f}")

    def _passes(self, drawn: Drawn) -> list[slice]:
        """Rows of groups that go through the model together."""
        batch = self.trainer.config.batch
        groups = max(1, batch // drawn.r.shape[1]) if batch else len(drawn)
        return self.context.processes.batches(len(drawn), groups)

    def evaluation_weights(self) -> AbstractContextManager[None]:
        return self.trainer.evaluation_weights()

    def state_dict(self) -> dict[str, Any]:
        return {"collected": self.source.collected, "trainer": self.trainer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.collected = state["collected"]
        self.trainer.load_state_dict(state["trainer"])


class Groupwise(Protocol):
    """What `draw_groups` asks of a `Source`, or of many."""

    @property
    def times(self) -> Tensor: ...
    @property
    def groups(self) -> Groups: ...
    def usable(self, images: int, drop_flat: bool) -> Tensor: ...
    def taken(self, groups: Tensor, members: list[Tensor]) -> tuple[Tensor, Tensor, list[task.Prompt]]: ...


class GroupSettings(Protocol):
    """What `draw_groups` reads of a method's settings."""

    @property
    def k(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def draws(self) -> int: ...
    @property
    def share_t(self) -> bool: ...
    @property
    def share_noise(self) -> bool: ...
    @property
    def t_distribution(self) -> Times: ...
    @property
    def t_min(self) -> float | None: ...
    @property
    def draw(self) -> Draw: ...
    @property
    def drop_flat(self) -> bool: ...


def draw_groups(
    source: Groupwise, settings: GroupSettings, latent_shape: tuple[int, ...], generator: torch.Generator, more: int = 0
) -> Drawn:
    """k images each of some groups, with draws of (t, eps), so many `more` than the settings say: whoever has the same
    settings draws the same."""
    n = settings
    some = source.usable(n.k, n.drop_flat)
    groups = some[torch.randint(len(some), (n.groups,), generator=generator)]
    members = [draw_members(source.groups.rewards[g], n.k, n.draw, generator) for g in groups]
    x0, r, prompts = source.taken(groups, members)
    t, eps = draw_noise(n, (n.groups, n.k), n.draws + more, latent_shape, source.times, generator)
    return Drawn(x0, r, prompts, t, eps, **marks(source.groups, groups, members))


def draw_noise(
    settings: GroupSettings,
    shape: tuple[int, int],
    draws: int,
    latent_shape: tuple[int, ...],
    sampler_times: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """`draws` of t [G, D, n] and eps [G, D, n, *latent_shape] for `shape` G groups of n images."""
    (count, n), times, noises = shape, [], []
    for _ in range(draws):
        each = (count, 1 if settings.share_t else n)
        t = draw_t(each, settings.t_distribution, sampler_times, generator, settings.t_min)
        eps = torch.randn((count, 1 if settings.share_noise else n, *latent_shape), generator=generator)
        times.append(t.expand(-1, n))
        noises.append(eps.expand(-1, n, *latent_shape))
    return torch.stack(times, dim=1), torch.stack(noises, dim=1)


def draw_members(r: Tensor, k: int, draw: Draw, generator: torch.Generator) -> Tensor:
    """Indices [k] of k scored images of one group's rewards r [n]; NaN ones are never drawn.

    By `draw`: any, two whose rewards differ first and last among them (every such pair as likely; any, where all are
    equal), or a best and a worst first and last among them.
    """
    scored = torch.nonzero(~r.isnan()).flatten()
    order = scored[torch.randperm(len(scored), generator=generator)]
    pairs = torch.nonzero(r[order][:, None] != r[order][None]) if draw == "unequal" else torch.empty(0)
    if draw == "spread":  # two, even in a tie
        one, other = order[r[order].argmax()], order[len(order) - 1 - r[order].flip(0).argmin()]
    elif len(pairs):
        one, other = order[pairs[torch.randint(len(pairs), (), generator=generator)]]
    else:
        return order[:k]
    others = order[(order != one) & (order != other)][: k - 2]
    return torch.cat((one[None], others, other[None]))


def times_of_sampler(context: TrainContext) -> Tensor:
    """Where the profile's sampler asks the model, from 1 down: [steps]."""
    return context.policy.timesteps(context.sampler.steps, context.sampler.shift)[:-1]


def draw_t(
    shape: tuple[int, ...],
    distribution: Times,
    sampler_times: Tensor,
    generator: torch.Generator,
    t_min: float | None = None,
) -> Tensor:
    """Times in (0, 1] of this shape, none below t_min; by `sampler`, each of `sampler_times` is as likely."""
    t = _any_t(shape, distribution, sampler_times, generator)
    while t_min and (low := t < t_min).any():
        t[low] = _any_t((int(low.sum()),), distribution, sampler_times, generator)
    return t


def _any_t(shape: tuple[int, ...], distribution: Times, sampler_times: Tensor, generator: torch.Generator) -> Tensor:
    if distribution == "sampler":
        return sampler_times[torch.randint(len(sampler_times), shape, generator=generator)]
    if distribution == "logit-normal":
        return torch.randn(shape, generator=generator).sigmoid()
    return torch.rand(shape, generator=generator)


def residual(velocity: ConditionalVelocity, x0: Tensor, t: Tensor, eps: Tensor, cond: Cond) -> Tensor:
    """v - velocity(x_t, t), [B, *latent_shape], with x_t = (1 - t) x0 + t eps and v = eps - x0."""
    across = t.view(-1, *[1] * (x0.ndim - 1))
    return eps - x0 - velocity((1 - across) * x0 + across * eps, t, cond)


def squared_error(velocity: ConditionalVelocity, x0: Tensor, t: Tensor, eps: Tensor, cond: Cond) -> Tensor:
    """|v - velocity(x_t, t)|^2 elementwise, as in `residual`."""
    return residual(velocity, x0, t, eps, cond).square()
