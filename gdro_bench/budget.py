"""What a run may spend and has spent, counted by wrappers around the model and the reward, not by a method itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from gdro_bench.distributed import ProcessGroup
from gdro_bench.policy import Cond, Policy
from gdro_bench.profile import BudgetKind
from gdro_bench.score import Images, Score, Scorer
from gdro_bench.task import Prompt

TIMED = ("pool", "collection", "optimisation")  # accounts of a ledger whose seconds are measured
ACCOUNTS = (*TIMED, "lagged")
GRADIENT_COST = 3  # a forward pass with its backward pass, in forward passes


@dataclass(slots=True)
class Cost:
    """Amounts of one kind of work.

    `evaluations` are velocity evaluations of one image; `images` those sampled, or trained on (each time anew, and
    twice under guidance); `seconds` is wall-clock time.
    """

    evaluations: int = 0
    images: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def copy(self) -> Cost:
        return replace(self)

    def summed_over(self, processes: ProcessGroup) -> Cost:
        """What of the process group spent together, if each spent this."""
        own = asdict(self)
        return Cost(**{name: type(own[name])(total) for name, total in processes.all_reduce_dict(own).items()})


@dataclass(slots=True)
class Ledger:
    """`collection` (pool or rollouts) is kept apart from `optimisation`; `pool` is the part of `collection` that was,
    or could have been, bought before. `limit` is of one kind.

    Evaluations under `torch.no_grad` are collection; the others, those of the reference and of lagged copies of the
    policy (`lagged`) among them, are optimisation.
    """

    limit: int
    kind: BudgetKind = "evaluations"
    collection: Cost = field(default_factory=Cost)
    optimisation: Cost = field(default_factory=Cost)
    pool: Cost = field(default_factory=Cost)
    lagged: Cost = field(default_factory=Cost)  # of older copies of the policy, part of `optimisation`

    @property
    def total(self) -> Cost:
        return self.collection + self.optimisation

    @property
    def spent(self) -> float:
        """How much of `limit` is gone."""
        amount: float = getattr(self.total, self.kind)
        return amount

    def evaluations_by_use(self) -> dict[str, int]:
        """What the evaluations so far were for; together they are all of them."""
        forward, lagged = self.optimisation.images, self.lagged.evaluations
        return {
            "rollout": self.collection.evaluations,
            "policy": forward,
            "backward": (GRADIENT_COST - 1) * forward,
            "lagged": lagged,
            "reference": self.optimisation.evaluations - GRADIENT_COST * forward - lagged,
        }

    def accounts(self) -> dict[str, Cost]:
        """Copies of all, by name."""
        return {name: getattr(self, name).copy() for name in ACCOUNTS}

    def share(self, before: Mapping[str, Cost], processes: ProcessGroup) -> None:
        """Turns what this process spent since `before` into what all of the process group did."""
        for name, spent in before.items():
            setattr(self, name, spent + (getattr(self, name) - spent).summed_over(processes))


@dataclass(frozen=True, slots=True)
class MeteredPolicy:
    """A policy that charges its ledger, but for what a process does only to keep step with others."""

    policy: Policy
    ledger: Ledger
    processes: ProcessGroup = field(default_factory=ProcessGroup)

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.policy.latent_shape

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        return self.policy.encode(prompts)

    def encode_ahead(self, prompts: Sequence[Prompt], processes: ProcessGroup) -> None:
        self.policy.encode_ahead(prompts, processes)

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        charged = 0 if self.processes.padding else len(x)
        if torch.is_grad_enabled():
            self.ledger.optimisation.evaluations += GRADIENT_COST * charged
            self.ledger.optimisation.images += charged
        else:
            self.ledger.collection.evaluations += charged
        return self.policy.velocity(x, t, cond)

    def reference_velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        spent = self.ledger.optimisation if torch.is_grad_enabled() else self.ledger.collection
        spent.evaluations += 0 if self.processes.padding else len(x)
        return self.policy.reference_velocity(x, t, cond)

    def lagged_velocity(self, adapters: Sequence[Tensor], x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        charged = 0 if self.processes.padding else len(x)
        if torch.is_grad_enabled():
            self.ledger.optimisation.evaluations += charged
            self.ledger.lagged.evaluations += charged
        else:
            self.ledger.collection.evaluations += charged
        return self.policy.lagged_velocity(adapters, x, t, cond)

    def merged(self) -> AbstractContextManager[None]:
        return self.policy.merged()

    def timesteps(self, steps: int, shift: float) -> Tensor:
        return self.policy.timesteps(steps, shift)

    def decode(self, x: Tensor) -> Images:
        self.ledger.collection.images += len(x)
        return self.policy.decode(x)

    def parameters(self) -> Iterator[Parameter]:
        return self.policy.parameters()

    def save(self, folder: Path) -> None:
        self.policy.save(folder)

    def load(self, folder: Path) -> None:
        self.policy.load(folder)


@dataclass(frozen=True, slots=True)
class MeteredScorer:
    """A reward that charges its ledger."""

    scorer: Scorer
    ledger: Ledger

    @property
    def name(self) -> str:
        return self.scorer.name

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        self.ledger.collection.reward_calls += len(images)
        return self.scorer(images, prompts)
