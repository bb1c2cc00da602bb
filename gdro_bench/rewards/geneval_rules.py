"""GenEval's verdicts on detected objects (arXiv 2310.11513), and the training scores that are made of them.

`verdict` is the official one. `published_score` is what Flow-GRPO (arXiv 2505.05470) trains on, to the letter;
`mended_score` is that without its two quirks; `strict` asks for exact counts as well. Where equal scores of a detector
tie for a place among the best, see `kept`; nothing else ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gdro_bench.rewards.geneval_prompts import Clause, Scene
from gdro_bench.score import Images


class Detector(Protocol):
    """Pictures -> what is seen on each. `name` names the instrument; records carry it."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    def __call__(self, images: Images) -> Sequence[Detections]: ...


THRESHOLD = 0.3  # a detection counts above this score
COUNTING_THRESHOLD = 0.9  # in scenes tagged `counting`
MAX_OBJECTS = 16  # a class, the best by score
POSITION_THRESHOLD = 0.1  # of both boxes' sizes that an offset must exceed
RELATION_THRESHOLD = 0.5  # of the offset's length along an axis

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Detection:
    """An object: its box (x0, y0, x1, y1) in px, y downwards, the detector's score in 0..1, and, if the detector has
    them, its colour and its mask, bool [H, W]."""

    box: Box
    score: float
    colour: str | None = None
    mask: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)


Objects = Mapping[str, Sequence[Detection]]  # by class, best first
Colours = Callable[[str, Sequence[Detection]], list[str]]  # (class, objects) -> the colour of each


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector sees on one picture: objects by class, and who tells their colours."""

    objects: Objects
    colours: Colours


def detected_colours(name: str, detections: Sequence[Detection]) -> list[str]:
    """The colours that the detector gave with its detections; one without a colour gets an empty string."""
    return [detection.colour or "" for detection in detections]


def cached_colours(colours: Colours) -> Colours:
    """The same, asking about each object once only: telling colours is dear."""
    known: dict[tuple[str, Detection], str] = {}

    def tell(name: str, detections: Sequence[Detection]) -> list[str]:
        fresh = [detection for detection in detections if (name, detection) not in known]
        if fresh:
            known.update(zip(((name, detection) for detection in fresh), colours(name, fresh), strict=True))
        return [known[name, detection] for detection in detections]

    return tell


def kept(detected: Objects, tag: str) -> dict[str, list[Detection]]:
    """The detections that count in a scene of this tag, best first; classes without any are left out.

    Of equal scores the one that the detector lists last is the best: a stable sort upwards, turned round. The published
    code turns round numpy's default sort, which is stable for a class of up to 16 detections, and has no defined order
    of ties beyond (nor where numpy sorts with vector instructions).
    """
    threshold = np.float32(COUNTING_THRESHOLD if tag == "counting" else THRESHOLD)
    best = {
        name: sorted((d for d in detections if np.float32(d.score) > threshold), key=lambda d: d.score)[::-1][
            :MAX_OBJECTS
        ]
        for name, detections in detected.items()
    }
    return {name: detections for name, detections in best.items() if detections}


def relations(a: Box, b: Box) -> set[str]:
    """How a lies against b: none, one or two of `left of`, `right of`, `above`, `below`."""
    corners = np.array([a, b], dtype=np.float32).reshape(
        2, 2, 2
    )  # as published: float32's rounding decides at thresholds
    here, there = corners.mean(axis=1)
    offset = here - there
    sizes = np.abs(corners[:, 1] - corners[:, 0]).sum(axis=0)
    revised = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0) * np.sign(offset)
    if (np.abs(revised) < 1e-3).all():
        return set()
    dx, dy = revised / np.linalg.norm(offset)  # the offset before revision
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, share in along.items() if share > RELATION_THRESHOLD}


# ---------------------------------------------------------------------------------------------------------------
# The official verdict


def verdict(scene: Scene, objects: Objects, colours: Colours) -> bool:
    """Whether everything asked for is there: at least the count of each class, judged on its best `count` objects."""
    matched: list[Sequence[Detection] | None] = []
    for clause in scene.include:
        detections = list(objects.get(clause.name, ()))[: clause.count]
        matched.append(detections if _holds(clause, detections, matched, colours) else None)
    excluded = any(len(objects.get(clause.name, ())) >= clause.count for clause in scene.exclude)
    return all(group is not None for group in matched) and not excluded


def _holds(
    clause: Clause,
    detections: Sequence[Detection],
    before: Sequence[Sequence[Detection] | None],
    colours: Colours,
) -> bool:
    if len(detections) < clause.count:
        return False
    if clause.colour is not None and colours(clause.name, detections).count(clause.colour) < clause.count:
        return False
    if clause.position is None:
        return True
    relation, target = clause.position
    targets = before[target]
    return targets is not None and all(relation in relations(a.box, b.box) for a in detections for b in targets)


# ---------------------------------------------------------------------------------------------------------------
# Training scores


def published_score(scene: Scene, objects: Objects, colours: Colours) -> float:
    """Flow-GRPO's partial credit, as its server computes it: the mean of what each clause earns.

    Quirks: 1. not clipped: a class that is there n times when c were asked for earns 1 - |c - n| / c, so below 0 from
    n = 2c + 1 on. 2. a position clause whose target is there earns 1 in every case, and a 0 beside it if it fails.
    `exclude` is not read.
    """
    return _score(scene, objects, colours, mended=False)


def mended_score(scene: Scene, objects: Objects, colours: Colours) -> float:
    """The same in 0..1: no part falls below 0, and a position clause earns 1 only if it holds."""
    return _score(scene, objects, colours, mended=True)


def strict(scene: Scene, objects: Objects, colours: Colours) -> bool:
    """Everything asked for and nothing more of it: full marks in every part of the mended score."""
    return mended_score(scene, objects, colours) == 1.0


def _score(scene: Scene, objects: Objects, colours: Colours, mended: bool) -> float:
    parts: list[float] = []
    matched: list[Sequence[Detection] | None] = []
    for clause in scene.include:
        detections = objects.get(clause.name, ())
        earned, holds = _earned(clause, detections, matched, colours, mended)
        parts += earned
        matched.append(detections if holds else None)
    return float(np.mean([max(part, 0.0) if mended else part for part in parts]))


def _earned(
    clause: Clause,
    detections: Sequence[Detection],
    before: Sequence[Sequence[Detection] | None],
    colours: Colours,
    mended: bool,
) -> tuple[list[float], bool]:
    """What a clause earns, part by part, and whether it holds."""
    parts = [_near(clause.count, len(detections))]
    if len(detections) != clause.count:
        return [*parts, *([0.0] if clause.colour or clause.position else [])], False
    holds = True
    if clause.colour is not None:
        right = colours(clause.name, detections).count(clause.colour)
        parts.append(_near(clause.count, right))
        holds = right == clause.count
    if clause.position is not None and holds:
        relation, target = clause.position
        targets = before[target]
        holds = targets is not None and all(relation in relations(a.box, b.box) for a in detections for b in targets)
        parts.append(float(holds))
        if not (mended or holds or targets is None):
            parts.append(1.0)
    return parts, holds


def _near(wanted: int, count: int) -> float:
    return 1 - abs(wanted - count) / wanted
