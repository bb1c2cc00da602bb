"""What `[auxiliary]` and `[regulariser]` do to a method that samples while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gdro_bench.methods import TrainContext
from gdro_bench.methods.parts import diversity, regularise
from gdro_bench.methods.parts.gate import ShareController
from gdro_bench.methods.parts.moving_reference import MovingReference
from gdro_bench.methods.parts.regularise import AuxiliaryConfig, RolloutRegulariser
from gdro_bench.rewards.auxiliary import values_of
from gdro_bench.score import Images, Score


@dataclass(frozen=True, slots=True)
class Lesson:
    """Of an epoch's images: the rewards [G, k] to train on, what multiplies their advantages [G, k] and which of them
    pay the KL, bool [G, k]; the last two are None where nothing asks for them. And what was measured."""

    r: Tensor
    factors: Tensor | None = None
    gated: Tensor | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


class RolloutGuard:
    """The tables at work, with the state that they need. Without tables it changes nothing."""

    def __init__(
        self,
        config: RolloutRegulariser | None,
        auxiliary: AuxiliaryConfig | None,
        context: TrainContext,
        parameters: Sequence[Tensor],
    ) -> None:
        self.config, self.parameters = config or RolloutRegulariser(), parameters
        self.names = auxiliary.rewards if auxiliary else ()
        gate, reference = self.config.gate, self.config.reference
        self.controller = ShareController(gate.share, gate.adaptive) if gate else None
        self.reference = MovingReference(reference) if reference else None

    # -- the reference

    @property
    def adapters(self) -> list[Tensor] | None:
        """Of the reference that the KL is taken to; None for the model without any."""
        return self.reference.adapters if self.reference else None

    def begin_epoch(self) -> dict[str, float]:
        if self.reference is None:
            return {}
        self.reference.begin_epoch(self.parameters)
        return {"reference_resets": float(self.reference.resets)}

    def see(self, measured: Mapping[str, float]) -> None:
        """An update's measurements."""
        if self.reference and "kl" in measured:
            self.reference.see(measured["kl"])

    # -- rewards

    def features(self, images: Images, latents: Tensor) -> Tensor | None:
        """What novelty is measured on, [B, ...] on the CPU."""
        if self.config.diversity is None:
            return None
        return diversity.pixel_features(images) if self.config.diversity == "pixels" else latents.float().cpu()

    def lesson(self, r: Tensor, scores: Sequence[Score], features: Tensor | None) -> Lesson:
        """Of the task's rewards r [G, k], its scores [G * k] and what novelty is measured on, [G * k, ...]."""
        auxiliary = values_of(scores, self.names).view(len(self.names), *r.shape)
        rewards = regularise.total(self.config.aggregation, r, auxiliary)
        pairs = zip(self.names, auxiliary, strict=True)
        measured = {f"auxiliary_{name}": values.nanmean().item() for name, values in pairs}
        factors = None
        if features is not None:
            d = diversity.novelty(features.view(*r.shape, *features.shape[1:]))
            factors = diversity.factors(rewards, d)
            measured["novelty"] = d.mean().item()
        if self.config.gate is None or self.controller is None:
            return Lesson(rewards, factors, None, measured)
        doubt = regularise.doubt(self.config.gate, self.controller, r, auxiliary)
        return Lesson(rewards, factors, doubt.gated, measured | doubt.measured())

    # -- its state

    def state_dict(self) -> dict[str, Any]:
        parts = {"controller": self.controller, "reference": self.reference}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.controller:
            self.controller.load_state_dict(state["controller"])
        if self.reference:
            self.reference.load_state_dict(state["reference"], self.parameters)


def shaped(advantage: Tensor, factors: Tensor | None, limit: float) -> Tensor:
    """Advantages [G, k] times their factors, clipped anew."""
    return advantage if factors is None else (advantage * factors).clamp(-limit, limit)


def paying(gated: Tensor | None, kept: Tensor) -> Tensor | None:
    """What each kept image pays of the KL [N], for gated [G, k] and kept indices [N]: the mean over all is that over
    the gated ones. The published code takes that mean in each pass, which would depend on the size of passes."""
    return None if gated is None else regularise.payers(torch.flatten(gated)[kept])
