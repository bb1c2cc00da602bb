"""Many processes, one run: `accelerate launch` or `torchrun` starts them, each with its device.

Work is dealt out in batches (of prompts, of an update's groups), batch i to process i modulo their number; what comes
out of them is put together again in order. What is drawn depends on the plan alone, so a run draws the same numbers and
sees the same groups whatever the number of processes. The first process alone writes files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gdro_bench.errors import BenchError
from gdro_bench.score import Score, check


def gather_scores(
    processes: ProcessGroup, own: Sequence[Sequence[Score]], count: int, max_unscored: float
) -> list[Score]:
    """The scores of all images, in order, from those that each process made of its batches, `count` in all.

    Raises:
        BenchError: as `check`.
    """
    plain = processes.gather_objects([[score.plain() for score in batch] for batch in own], count)
    scores = [Score(*one) for batch in plain for one in batch]
    check(scores, max_unscored)
    return scores


T = TypeVar("T")
DTYPES = (torch.float32, torch.float64, torch.int64, torch.uint8)  # of what processes tell each other
MAX_DIMENSIONS = 8


def batches(count: int, most: int, processes: int = 1) -> list[slice]:
    """Rows of `count` items in batches of `most` or, for several processes, equally many nearly equal ones for each:
    none waits for another, and all call a model that is spread over them equally often."""
    if processes == 1:
        return [slice(start, start + most) for start in range(0, count, most)]
    number = processes * math.ceil(count / (processes * most))
    starts = [count * i // number for i in range(number + 1)]
    return [slice(start, end) for start, end in pairwise(starts) if end > start]


class ProcessGroup:
    """The processes of a run; this one is number `rank` of `size`. `in_step` where the model is spread over them, so
    that all must call it equally often."""

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu", in_step: bool = False) -> None:
        self.rank, self.size, self.device, self.lockstep = rank, size, device, in_step

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def batches(self, count: int, most: int) -> list[slice]:
        """Rows of `count` items, in batches of `most` at most.

        Raises:
            BenchError: fewer items than processes that must keep in step.
        """
        if self.lockstep and count < self.size:
            raise BenchError(
                f"{count} images cannot be dealt out to {self.size} processes that share a model's weights.",
                "Start fewer processes, or set profile.pretrained.sharded=false; the run goes on from its checkpoint.",
            )
        return batches(count, most, self.size)

    def own(self, items: Sequence[T]) -> list[T]:
        """Those of the items that are this process's work."""
        return list(items[self.rank :: self.size])

    def gather_tensors(self, own: Sequence[Tensor], count: int) -> list[Tensor]:
        """What all processes made of `count` items, in order; `own` is what this one made of its own."""
        if self.size == 1:
            return list(own)
        made = iter(own)
        owners = [i % self.size for i in range(count)]
        return [self._broadcast(next(made) if owner == self.rank else None, owner) for owner in owners]

    def gather_objects(self, own: Sequence[Any], count: int) -> list[Any]:
        """As `tensors`, for what JSON can say."""
        if self.size == 1:
            return list(own)
        written = [torch.frombuffer(bytearray(json.dumps(item).encode()), dtype=torch.uint8) for item in own]
        return [json.loads(bytes(item.tolist())) for item in self.gather_tensors(written, count)]

    def broadcast_flag(self, value: bool) -> bool:
        """What the first process says."""
        return bool(self.gather_tensors([torch.tensor(float(value))] if self.is_main else [], 1)[0])

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Adds up each tensor over the processes, in place; all of one dtype, they travel together."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._communicate(dist.all_reduce, flat)
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def all_reduce_dict(self, values: dict[str, float]) -> dict[str, float]:
        """Each value added up; processes may know different names."""
        if self.size == 1:
            return values
        total: dict[str, float] = {}
        for one in self.gather_objects([values], self.size):
            for name, value in one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def barrier(self) -> None:
        """Until all are here."""
        if self.size > 1:
            self._communicate(dist.barrier)

    def _broadcast(self, tensor: Tensor | None, owner: int) -> Tensor:
        header = torch.zeros(MAX_DIMENSIONS + 2, dtype=torch.int64)
        if tensor is not None:
            shape = (*tensor.shape, *[0] * (MAX_DIMENSIONS - tensor.ndim))
            header = torch.tensor([DTYPES.index(tensor.dtype), tensor.ndim, *shape])
        header = header.to(self.device)
        self._communicate(dist.broadcast, header, owner)
        kind, dimensions, *shape_ = header.tolist()
        if tensor is None:
            tensor = torch.empty(shape_[:dimensions], dtype=DTYPES[kind], device=self.device)
        sent = tensor.to(self.device).contiguous()
        self._communicate(dist.broadcast, sent, owner)
        return sent

    def _communicate(self, operation: Callable[..., Any], *arguments: Any) -> None:
        try:
            operation(*arguments)
        except RuntimeError as error:  # the backends' word for a peer that is gone
            raise BenchError(
                f"Process {self.rank} of {self.size} has lost another: {str(error).splitlines()[0]}.",
                "Look for its error above; the same command goes on from the last checkpoint.",
            ) from error


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """The processes that this process was launched into, or one of its own; `device` is `cpu` or `cuda`.

    Leaves the process group at the end.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup(device=device)
        return
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    try:
        yield ProcessGroup(state.process_index, state.num_processes, str(state.device))
    finally:
        state.destroy_process_group()
