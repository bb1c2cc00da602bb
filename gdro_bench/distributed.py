"""Many processes, one run: `accelerate launch` or `torchrun` starts them, each with its device.

Work is dealt out in batches (of prompts, of an update's groups), batch i to process i modulo their number; what comes
out of them is put together again in order. What is drawn depends on the plan alone, so a run draws the same numbers and
sees the same groups whatever the number of processes. The first process alone writes files.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gdro_bench.errors import BenchError, first_line
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
TIMEOUT_SECONDS = "GDRO_BENCH_TIMEOUT"  # environment: how long processes wait for each other
HALF_AN_HOUR = "1800"


def patience() -> float:
    """Seconds that processes wait for each other.

    Raises:
        BenchError: the environment says something else than a number above 0.
    """
    written = os.environ.get(TIMEOUT_SECONDS, HALF_AN_HOUR)
    try:
        seconds = float(written)
        if not 0 < seconds < math.inf:
            raise ValueError(written)
    except ValueError as error:
        raise BenchError(f"{TIMEOUT_SECONDS} is {written!r}.", "Give seconds, such as 1800.", 2) from error
    return seconds


def batches(count: int, most: int, processes: int = 1) -> list[slice]:
    """Rows of `count` items in batches of `most`, but for the last: rounding differs between batches of other sizes,
    and a clip range may be as narrow as that. Where several processes would not have one each, smaller, nearly equal
    ones."""
    if count > processes * most or processes == 1:
        return [slice(start, min(start + most, count)) for start in range(0, count, most)]
    starts = [count * i // processes for i in range(processes + 1)]
    return [slice(start, end) for start, end in pairwise(starts) if end > start]


class ProcessGroup:
    """The processes of a run; this one is number `rank` of `size`. In `lockstep` where the model is spread over them:
    all must call it equally often then; `padding` while this one calls it only to keep step."""

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu", lockstep: bool = False) -> None:
        self.rank, self.size, self.device, self.lockstep = rank, size, device, lockstep
        self.padding = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def batches(self, count: int, most: int) -> list[slice]:
        """Rows of `count` items, in batches of `most` at most."""
        return batches(count, most, self.size)

    def own(self, items: Sequence[T]) -> list[T]:
        """Those of the items that are this process's work."""
        return list(items[self.rank :: self.size])

    def passes(self, rows: Sequence[slice]) -> Iterator[slice]:
        """This process's batches of `rows`. In lockstep, processes that have fewer than others go through the first one
        once more, `padding`: what comes out then counts nowhere and is not charged."""
        own = self.own(rows)
        yield from own
        if not self.lockstep or not rows:
            return
        self.padding = True
        try:
            yield from [rows[0]] * (math.ceil(len(rows) / self.size) - len(own))
        finally:
            self.padding = False

    def gather_rows(self, own: Sequence[Tensor], rows: Sequence[slice]) -> Tensor:
        """What all processes made of these batches of rows, in order: [N, ...] on the CPU; `own` is what this one made
        of its own. Batches travel a round at a time, so a device holds one of each process and no more."""
        if self.size == 1:
            return torch.cat([part.cpu() for part in own])
        kinds = [kind for kind in self._all_objects([(str(p.dtype), list(p.shape[1:])) for p in own[:1]]) if kind]
        dtype, shape = getattr(torch, kinds[0][0][0].removeprefix("torch.")), kinds[0][0][1]
        most = max(one.stop - one.start for one in rows)
        whole = torch.empty((rows[-1].stop, *shape), dtype=dtype)
        for number in range(math.ceil(len(rows) / self.size)):
            sent = torch.zeros((most, *shape), dtype=dtype, device=self.device)
            if number < len(own):
                sent[: len(own[number])] = own[number]
            parts = [torch.empty_like(sent) for _ in range(self.size)]
            self._meet()
            self._communicate(dist.all_gather, parts, sent)
            for one, part in zip(rows[number * self.size :], parts, strict=False):
                whole[one] = part[: one.stop - one.start].cpu()
        return whole

    def gather_objects(self, own: Sequence[Any], count: int) -> list[Any]:
        """What all processes made of `count` items, in order, if JSON can say it."""
        if self.size == 1:
            return list(own)
        every = self._all_objects(list(own))
        return [every[i % self.size][i // self.size] for i in range(count)]

    def broadcast(self, value: T) -> T:
        """What the first process says, if JSON can say it."""
        return value if self.size == 1 else self._all_objects(value if self.is_main else None)[0]

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Raises:
        BenchError: another process knows another value of one of these names."""
        for rank, theirs in enumerate(self._all_objects(dict(facts)) if self.size > 1 else []):
            for name, value in facts.items():
                if theirs[name] != value:
                    raise BenchError(
                        f"Processes {self.rank} and {rank} differ in their {name} ({value}, {theirs[name]}).",
                        "Give all machines the same code, settings and weights, then type the same command again.",
                    )

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Adds up each tensor over the processes, in place; all of one dtype, they travel together."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._meet()
        self._communicate(dist.all_reduce, flat)
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def all_reduce_dict(self, values: dict[str, float]) -> dict[str, float]:
        """Each value added up; processes may know different names."""
        if self.size == 1:
            return values
        total: dict[str, float] = {}
        for one in self._all_objects(values):
            for name, value in one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def barrier(self) -> None:
        """Until all are here."""
        if self.size > 1:
            self._meet()

    def first_alone(self, work: Callable[[Callable[[], None]], None]) -> None:
        """What the first process does while the others wait, for as long as it takes, if it calls what it is given
        often enough.

        Raises:
            BenchError: the work did; all raise.
        """
        if self.is_main:
            self._working(work)
            return
        while told := self.broadcast(None):
            problem, remedy = told
            if problem:
                raise BenchError(problem, remedy)

    def _working(self, work: Callable[[Callable[[], None]], None]) -> None:
        """The first process's part; the others hear nothing when it has ended, and no problem while it goes on."""
        heard = time.monotonic()

        def tick() -> None:
            nonlocal heard
            if time.monotonic() - heard > patience() / 10:
                self.broadcast(["", ""])
                heard = time.monotonic()

        try:
            work(tick)
        except BenchError as error:
            self.broadcast([error.problem, error.remedy])
            raise
        self.broadcast(None)

    def _meet(self) -> None:
        """All are here. It goes over gloo, which notices at once that a process is gone, where NCCL would wait and then
        abort without a sentence; so it stands before everything that goes over NCCL."""
        self._communicate(dist.all_reduce, torch.zeros(1))

    def _all_objects(self, own: Any) -> list[Any]:
        """Each process's object, by rank. JSON, because torch's own exchange of objects would unpickle what the network
        brings."""
        written = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._communicate(dist.all_gather, lengths, torch.tensor([len(written)]))
        longest = max(int(length) for length in lengths)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        self._communicate(dist.all_gather, parts, torch.nn.functional.pad(written, (0, longest - len(written))))
        return [json.loads(part[: int(length)].numpy().tobytes()) for part, length in zip(parts, lengths, strict=True)]

    def _communicate(self, operation: Callable[..., Any], *arguments: Any) -> None:
        try:
            operation(*arguments)
        except RuntimeError as error:  # the backends' word for a peer that is gone or late
            raise BenchError(
                f"Process {self.rank} of {self.size} has lost another: {first_line(error)}.",
                "Look for its error above; the same command goes on from the last checkpoint.",
            ) from error


def _place() -> tuple[int, int]:
    """This process's rank, and of how many it is one.

    Raises:
        BenchError: the environment tells it in part, or not in numbers.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    try:
        return (0, 1) if int(size) == 1 else (int(os.environ["RANK"]), int(size))
    except (KeyError, ValueError) as error:
        raise BenchError(
            f"WORLD_SIZE is {size!r} and RANK {os.environ.get('RANK', 'not set')!r}.",
            "Start several processes with torchrun, which sets both, or unset them.",
            2,
        ) from error


def _own_gpu(local_rank: str) -> str:
    """The GPU of the process of this number on this machine.

    Raises:
        BenchError: there is none.
    """
    there = torch.cuda.device_count()
    if not local_rank.isdecimal() or int(local_rank) >= there:
        raise BenchError(
            f"The process with LOCAL_RANK {local_rank} has no GPU: there are {there} here.",
            f"Start at most {there} processes on this machine (torchrun --nproc-per-node {there})."
            if there
            else "Give --device cpu.",
            2,
        )
    return f"cuda:{local_rank}"


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """The processes that this process was launched into, or one of its own; `device` is `cpu` or `cuda`.

    What lies on the CPU travels over gloo, what lies on a GPU over NCCL. Leaves the process group at the end; not
    NCCL's after an error, since that waits for all the others, and nobody would read the error.

    Raises:
        BenchError: the processes do not find each other.
    """
    rank, size = _place()
    if size == 1:
        yield ProcessGroup(device=device)
        return
    timeout = timedelta(seconds=patience())
    if device == "cuda":
        device = _own_gpu(os.environ.get("LOCAL_RANK", str(rank)))
        torch.cuda.set_device(device)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timeout, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise BenchError(
            f"Process {rank} of {size} finds no others: {first_line(error)}.",
            "Start them with torchrun, and see that all machines reach MASTER_ADDR and MASTER_PORT. Where a machine "
            "has several networks, name one: GLOO_SOCKET_IFNAME=eth0, say.",
        ) from error
    ended = False
    try:
        yield ProcessGroup(rank, size, device)
        ended = True
    finally:
        if ended or backend == "gloo":
            dist.destroy_process_group()
