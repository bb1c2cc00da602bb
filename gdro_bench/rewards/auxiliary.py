"""Rewards that watch: cheap ones, whose disagreement with a task's reward may say that it is being hacked. Where they
are aggregated with it, they are trained on, too.

A method's `[auxiliary]` names rewards of the registry. Their values travel with the task's score, as parts of it, and
are charged to the ledger as reward calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from gdro_bench.instruments import Instruments, panel
from gdro_bench.rewards.geneval_prompts import plural
from gdro_bench.rewards.geneval_rules import Detections, Detector
from gdro_bench.score import AUXILIARY, Images, Score, Scorer
from gdro_bench.task import Prompt

FULL = 1.5  # bytes a pixel of a JPEG file that scores 0: pure noise has 1.3


class Compressibility:
    """1 - (bytes of the picture as a JPEG file of quality 95) / (1.5 * pixels), within 0..1: the negative length that
    DDPO's compressibility is (arXiv 2305.13301), on a scale that does not depend on the picture's size."""

    name = f"JPEG compressibility (quality {panel.JPEG_QUALITY})"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        pixels = images.shape[1] * images.shape[2]
        lengths = panel.jpeg_bytes(images).tolist()
        return [Score(min(1.0, max(0.0, 1 - n / (FULL * pixels))), {"jpeg_bytes": n}) for n in lengths]


class Objects:
    """The detector's best score for each class that the prompt names, averaged over them, in 0..1; where it names none,
    1 less the best score of anything. Text in quotes names nothing. Neither colours nor places are looked at."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.name = f"asked objects ({detector.name})"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        asked = [named(prompt.text, tuple(self.detector.classes)) for prompt in prompts]
        return [_score(names, seen) for names, seen in zip(asked, self.detector(images), strict=True)]


def _score(names: tuple[str, ...], seen: Detections) -> Score:
    best = {name: max((d.score for d in found), default=0.0) for name, found in seen.objects.items()}
    if not names:
        return Score(1 - max(best.values(), default=0.0), {}, "no object asked")
    return Score(sum(best.get(name, 0.0) for name in names) / len(names), {}, ", ".join(names))


@cache
def named(text: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the classes that a prompt names outside its quotes, in the singular or the plural."""
    said = re.sub(r'"[^"]*("|$)', " ", text)
    words = {c: rf"\b(?:{re.escape(c)}|{re.escape(plural(c))}|{re.escape(c)}s)\b" for c in classes}
    return tuple(c for c, pattern in words.items() if re.search(pattern, said, re.IGNORECASE))


class WithAuxiliaries:
    """A task's scorer whose scores carry the auxiliary rewards' values as parts."""

    def __init__(self, scorer: Scorer, auxiliaries: Mapping[str, Scorer]) -> None:
        self.scorer, self.auxiliaries = scorer, auxiliaries
        self.name = scorer.name

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        scores = self.scorer(images, prompts)
        for name, auxiliary in self.auxiliaries.items():
            values = [score.value for score in auxiliary(images, prompts)]
            scores = [
                replace(score, parts={**score.parts, AUXILIARY + name: value})
                for score, value in zip(scores, values, strict=True)
            ]
        return scores


def watched(scorer: Scorer, auxiliaries: Mapping[str, Scorer]) -> Scorer:
    """The scorer, with auxiliary rewards if there are any."""
    return WithAuxiliaries(scorer, auxiliaries) if auxiliaries else scorer


def values_of(scores: Sequence[Score], names: Sequence[str]) -> Tensor:
    """The auxiliary rewards that N scores carry, float32 [M, N]."""
    return torch.tensor([[score.parts[AUXILIARY + name] for score in scores] for name in names]).view(
        len(names), len(scores)
    )


def open_compressibility(instruments: Instruments) -> Compressibility:
    return Compressibility()


def open_objects(instruments: Instruments) -> Objects:
    return Objects(instruments.detector())
