"""A reference that follows (GARDO, arXiv 2512.24138): the KL is taken to a copy of the policy, renewed now and then.

It begins as the model without adapters. At an epoch's start it becomes the policy if a KL above `kl_threshold` was seen
since it last did, or if more than `epochs` epochs have begun since. What the KL then bounds is how fast the policy
drifts from the model without adapters, not how far; so both KLs are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gdro_bench.content import Count, Positive


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """`[regulariser.reference]` of a method's TOML."""

    kl_threshold: Positive  # on the scale of the method's own KL
    epochs: Count


class MovingReference:
    """`adapters` are the reference's, None while it is the model without any."""

    def __init__(self, config: ReferenceConfig) -> None:
        self.config = config
        self.adapters: list[Tensor] | None = None
        self.since, self.exceeded, self.resets = 0, False, 0

    def see(self, kl: float) -> None:
        """A KL to the reference, of an update."""
        self.exceeded = self.exceeded or kl > self.config.kl_threshold

    def begin_epoch(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the reference becomes these parameters."""
        due = self.exceeded or self.since > self.config.epochs
        if due:
            self.adapters = [p.detach().clone() for p in parameters]
            self.since, self.exceeded, self.resets = 0, False, self.resets + 1
        self.since += 1
        return due

    def state_dict(self) -> dict[str, Any]:
        names = ("adapters", "since", "exceeded", "resets")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
        """Back to what `state_dict` gave, on the parameters' device."""
        saved = state["adapters"]
        pairs = None if saved is None else zip(saved, parameters, strict=True)
        self.adapters = None if pairs is None else [copy.to(own) for copy, own in pairs]
        self.since, self.exceeded, self.resets = state["since"], state["exceeded"], state["resets"]
