"""What a run may spend and has spent, counted by wrappers around the model and the reward, not by a method's word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from gdro_bench.parallel import Team
from gdro_bench.policy import Cond, Policy
from gdro_bench.score import Images, Score, Scorer
from gdro_bench.task import Prompt

BudgetKind = Literal["evaluations", "images", "seconds"]
ACCOUNTS = ("pool", "collection", "optimisation")  # of a ledger
GRADIENT_COST = 3  # a forward pass with its backward pass, in forward passes


@dataclass(slots=True)
class Spent:
    """Amounts of one kind of work.

    `evaluations` are velocity evaluations of one image; `images` those sampled, or trained on (each time anew, and
    twice under guidance); `seconds` is wall-clock time.
    """

    evaluations: int = 0
    images: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def copy(self) -> Spent:
        return replace(self)

    def over(self, team: Team) -> Spent:
        """What all processes of a team spent together, if each spent this."""
        own = asdict(self)
        return Spent(**{name: type(own[name])(total) for name, total in team.sums(own).items()})


@dataclass(slots=True)
class Ledger:
    """`collection` (pool or rollouts) is kept apart from `optimisation`; `pool` is the part of `collection` that was,
    or could have been, bought before. `limit` is of one kind.

    Evaluations under `torch.no_grad` are collection; the others, the reference's among them, are optimisation.
    """

    limit: int
    kind: BudgetKind = "evaluations"
    collection: Spent = field(default_factory=Spent)
    optimisation: Spent = field(default_factory=Spent)
    pool: Spent = field(default_factory=Spent)

    @property
    def total(self) -> Spent:
        return self.collection + self.optimisation

    @property
    def spent(self) -> float:
        """How much of `limit` is gone."""
        amount: float = getattr(self.total, self.kind)
        return amount

    def accounts(self) -> dict[str, Spent]:
        """Copies of all, by name."""
        return {name: getattr(self, name).copy() for name in ACCOUNTS}

    def share(self, before: Mapping[str, Spent], team: Team) -> None:
        """Turns what this process spent since `before` into what all of its team did."""
        for name, spent in before.items():
            setattr(self, name, spent + (getattr(self, name) - spent).over(team))


@dataclass(frozen=True, slots=True)
class MeteredPolicy:
    """A policy that charges its ledger."""

    policy: Policy
    ledger: Ledger

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.policy.latent_shape

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        return self.policy.encode(prompts)

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if torch.is_grad_enabled():
            self.ledger.optimisation.evaluations += GRADIENT_COST * len(x)
            self.ledger.optimisation.images += len(x)
        else:
            self.ledger.collection.evaluations += len(x)
        return self.policy.velocity(x, t, cond)

    def reference_velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        spent = self.ledger.optimisation if torch.is_grad_enabled() else self.ledger.collection
        spent.evaluations += len(x)
        return self.policy.reference_velocity(x, t, cond)

    def times(self, steps: int, shift: float) -> Tensor:
        return self.policy.times(steps, shift)

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
