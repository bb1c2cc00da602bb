"""The state of a run that is under way."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from gdro_bench.budget import ACCOUNTS, Cost, Ledger
from gdro_bench.engine import record
from gdro_bench.engine.record import Point
from gdro_bench.methods import Step


@dataclass(slots=True)
class RunState:
    """What a run has to show so far: it goes into checkpoints, and at the end into the record."""

    ledger: Ledger
    points: list[Point] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[dict[str, float]] = field(default_factory=list)  # spent when each point was made
    health: list[dict[str, Any]] = field(default_factory=list)  # a row for each health picture
    steps_before: list[int] = field(default_factory=list)  # how many steps had been made when each point was
    updates: int = 0
    code: list[str] = field(default_factory=list)  # versions that it has been run with, one after another

    def log(self, step: Step) -> None:
        self.updates += step.kind == "optimise"
        total = self.ledger.total.evaluations
        uses = {f"{name}_evaluations": count for name, count in self.ledger.evaluations_by_use().items()}
        self.steps.append({"kind": step.kind, "update": self.updates, "evaluations": total, **uses, **step.metrics})

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunState:
        table = json.loads(text)
        spent: dict[str, Any] = {name: Cost(**table["ledger"].pop(name)) for name in ACCOUNTS}
        ledger = Ledger(**table.pop("ledger"), **spent)
        points = [record.point_from(point) for point in table.pop("points")]
        return cls(ledger, points, **table)
