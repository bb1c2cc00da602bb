"""The runs of a sweep side by side on this machine, a process each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gdro_bench import models
from gdro_bench.commands import children
from gdro_bench.commands.board import GO_ON, Board, Message, Outcome, Watcher, work
from gdro_bench.commands.children import READY, Child
from gdro_bench.engine.plan import Plan


def execute(plans: Sequence[Plan], listener: Watcher, device: str, jobs: int) -> list[Outcome]:
    """Runs up to `jobs` of them at once, each with its share of the cores; records are those of one after another at
    as many threads. Runs that share a pool wait until one of them has filled it."""
    workers = Processes(device, jobs)
    try:
        return Board(plans, listener, workers).run()
    finally:
        children.end(workers.children.values())


class Processes:
    """`Workers` that are processes of this machine, up to `jobs` at once."""

    def __init__(self, device: str, jobs: int) -> None:
        self.device, self.jobs = device, jobs
        self.children: dict[Path, Child] = {}
        self.slots: dict[Path, int] = {}

    def has_room(self) -> bool:
        return len(self.children) < self.jobs

    def begin(self, one: Plan) -> None:
        def begun(child: Child) -> None:
            self.children[one.folder] = child

        slot = self.slots[one.folder] = min(set(range(self.jobs)) - set(self.slots.values()))
        children.start(_work, (one, self.device, slot), children.threads_of(self.jobs), begun)

    def listen(self) -> Iterator[tuple[Path, Message]]:
        folders = {id(child): folder for folder, child in self.children.items()}
        for child in children.speaking(self.children.values()):
            folder, message = folders[id(child)], child.hear()
            if message == READY:
                continue
            if message is None:
                message = ("failed", f"Its process ended with {child.process.exitcode}; {GO_ON}.")
            if message[0] in ("done", "failed"):
                child.process.join()
                del self.children[folder], self.slots[folder]
            yield folder, message


def _work(given: tuple[Plan, str, int], threads: int, say: Callable[[Message], None]) -> None:
    """One run, in a process of its own."""
    one, device, slot = given
    say(work(one, models.own_device(device, slot), threads, say))
