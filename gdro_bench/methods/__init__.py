"""Training methods, one module each: a `Method` that `gdro_bench.registry` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gdro_bench.budget import Cost
from gdro_bench.distributed import ProcessGroup
from gdro_bench.policy import Policy
from gdro_bench.pool import Pool
from gdro_bench.profile import Sampler
from gdro_bench.score import Scorer
from gdro_bench.task import Prompt


@dataclass(frozen=True, slots=True)
class TrainContext:
    """What a method works with. It knows neither the budget nor the marks, the output folder or the judge."""

    policy: Policy
    scorer: Scorer
    prompts: list[Prompt]
    sampler: Sampler
    pool: Pool
    seed: int
    processes: ProcessGroup = field(default_factory=ProcessGroup)
    ahead: int = 0  # batches that may wait for their scores while the next are generated
    max_unscored: float = 1.0  # share of a shard's or an epoch's images
    own_pool: Pool | None = None  # for images that depend on how this run was trained
    auxiliaries: Mapping[str, Scorer] = field(default_factory=dict)  # by name: what watches the task's reward


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of work done, a sampled batch or one optimiser update, and what was measured."""

    kind: Literal["collect", "optimise"]
    metrics: Mapping[str, float]
    progress: str
    keep: bool = False  # what comes next is costly and depends on exactly this state: it is worth a checkpoint


@dataclass(frozen=True, slots=True)
class CostModel:
    """What a method spends: once on its `pool`; then, over and over, on `collected` images and on `updates` optimiser
    updates, each an `update` whose images go through the model in passes of `batch` (an image once for each (t, eps)).

    `guided` says whether updates are guided as rollouts are, `copies` how many older copies of the adapters it keeps,
    `states` how many latents of each collected image (without it, those of the sampler's whole chain).

    With `rounds` the pool is the first of them, images are collected for the others alone, and updates go on. After
    every `updates` something may be `measured`.
    """

    pool: Cost
    collected: Cost
    update: Cost
    updates: int
    batch: int
    guided: bool = True
    copies: int = 0
    states: int | None = None
    rounds: int | None = None
    measured: Cost = field(default_factory=Cost)

    @property
    def rollouts(self) -> int:
        """Images of an epoch whose chains are kept and trained on, guided as they were sampled."""
        return 0 if self.rounds else self.collected.images

    def chains(self, steps: int) -> int:
        """Latents that an epoch's chains hold, where the profile's sampler makes so many steps."""
        return self.rollouts * (self.states or steps + 1)


class Training(Protocol):
    """A training under way, a unit of work a step. No base class: what two methods share is a function or a part."""

    def step(self) -> Step: ...
    def evaluation_weights(self) -> AbstractContextManager[None]:
        """Inside, the policy carries the weights that the method wants evaluated (its EMA, say)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """With the policy's parameters, optimiser, EMA and counters: all that a resumed run needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Method:
    """How a model is trained: all that the registry must know of a method.

    `config_type` is a dataclass that the method's TOML file is read into; `start(config, context)` begins a training;
    `costs(config, sampler)` foretells what it will spend (as far as that can be known before: groups that teach nothing
    may save some); without it a run has no dry run. `check(config, prompts, sampler)` refuses settings that do not go
    together, by a `BenchError`, before a model is opened; prompts are those of training.
    """

    config_type: type[Any]
    start: Callable[[Any, TrainContext], Training]
    costs: Callable[[Any, Sampler], CostModel] | None = None
    check: Callable[[Any, Sequence[Prompt], Sampler], None] | None = None
