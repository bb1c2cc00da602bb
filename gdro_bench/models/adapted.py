"""What every policy does alike whose transformer carries LoRA adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gdro_bench.models.lora import adapters_merged, adapters_off, adapters_replaced, adapters_scaled, lora_parameters
from gdro_bench.policy import Cond


class Adapted:
    """The part of a `gdro_bench.policy.Policy` that is about its adapters; a model adds its `velocity`."""

    transformer: Any

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def reference_velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        with adapters_off(self.transformer):
            return self.velocity(x, t, cond)

    @torch.no_grad()
    def lagged_velocity(self, adapters: Sequence[Tensor], x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        with adapters_replaced(self.transformer, adapters):
            return self.velocity(x, t, cond)

    def merged(self) -> AbstractContextManager[None]:
        return adapters_merged(self.transformer)

    def scaled(self, factor: float) -> AbstractContextManager[None]:
        return adapters_scaled(self.transformer, factor)

    def parameters(self) -> Iterator[Parameter]:
        return lora_parameters(self.transformer)
