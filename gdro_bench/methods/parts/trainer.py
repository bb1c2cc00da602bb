"""What every method does with a gradient: AdamW with warm-up and clipping, a moving average, and their saved state."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gdro_bench.content import Count, Natural, NonNegative, Positive, Share
from gdro_bench.distributed import ProcessGroup
from gdro_bench.errors import TrainingFailed
from gdro_bench.methods.parts.ema import Decay, Ema
from gdro_bench.policy import Policy

LOWER = "Lower method.optimiser.learning_rate or another setting of the method; the last checkpoint is kept."


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """`[optimiser]` of a method's TOML: AdamW, and the average of the weights that is evaluated (see `ema`)."""

    learning_rate: NonNegative
    warmup_steps: Natural
    weight_decay: NonNegative
    epsilon: Positive  # added to the root of the second moment
    clip: Positive  # of the gradient's norm
    ema_slope: NonNegative
    ema_ceiling: Share
    steady_steps: Count | None = None  # of the full rate; from then on it falls as 1 / updates, which needs no end
    batch: Count | None = None  # images a pass of a method with a pool; without it, all of an update's at once


def rate(config: OptimiserConfig, update: int) -> float:
    """The learning rate of this update, of which the first is 1."""
    warm = min(1.0, update / max(1, config.warmup_steps))
    steady = min(1.0, config.steady_steps / update) if config.steady_steps else 1.0
    return config.learning_rate * warm * steady


class Trainer:
    """Updates a policy's adapters; `updates` counts how often. Every process makes the same one."""

    def __init__(self, policy: Policy, config: OptimiserConfig, processes: ProcessGroup) -> None:
        self.config, self.processes = config, processes
        self.parameters = list(policy.parameters())
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=0.0, eps=config.epsilon, weight_decay=config.weight_decay
        )
        self.ema = Ema(self.parameters, Decay(0, 0.0, config.ema_slope, config.ema_ceiling))
        self.updates = 0

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradient to this update's. One of many processes must not stop alone: there `update` finds
        what is not finite, in all of them.

        Raises:
            TrainingFailed: the loss is not finite.
        """
        if self.processes.size == 1 and not torch.isfinite(loss):
            raise TrainingFailed(f"The loss is {loss.item()} at update {self.updates + 1}.", LOWER)
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> float:
        """One optimiser step on the gradients so far, of all processes; returns their norm before clipping.

        Raises:
            TrainingFailed: the norm is not finite: the step would leave no weight that is a number.
        """
        for parameter in self.parameters:
            if parameter.grad is None:  # of a process that had nothing to do
                parameter.grad = torch.zeros_like(parameter)
        self.processes.all_reduce([p.grad for p in self.parameters if p.grad is not None])
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.config, self.updates + 1)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        if not torch.isfinite(norm):
            raise TrainingFailed(f"The gradient's norm is {norm.item()} at update {self.updates + 1}.", LOWER)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.updates += 1
        self.ema.update(self.updates)
        return norm.item()

    def evaluation_weights(self) -> AbstractContextManager[None]:
        return self.ema.applied()

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "parameters": [p.detach() for p in self.parameters],
            "averages": self.ema.averages,
            "optimiser": self.optimiser.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]
        for own, saved in zip(self.parameters, state["parameters"], strict=True):
            own.copy_(saved)
        self.ema.load(state["averages"])
        self.optimiser.load_state_dict(state["optimiser"])
