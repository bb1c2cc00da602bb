"""The OCR reward of Flow-GRPO (arXiv 2505.05470, section 4.1), as its code defines it.

Target and reading lose their spaces and their case; the distance is 0 if the target is part of the reading, else
Levenshtein's, at most the target's length n; the reward is 1 - distance / n.

The target is what `task.first_quoted` finds, a prompt with one quote mark included. Lines are joined in the reader's
order, without a separator.

Differences: 1. a reader that fails gives NaN, not 0. 2. the reader gets channels in the order it expects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from gdro_bench.instruments import Instruments
from gdro_bench.instruments.readers import Reader, Reading, area
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt


def normal(text: str) -> str:
    return text.replace(" ", "").lower()


def ocr_reward(read: str, target: str) -> float:
    """1 - min(distance, n) / n in 0..1, where n is the target's length without spaces.

    Raises:
        ValueError: the target is empty.
    """
    read, target = normal(read), normal(target)
    if not target:
        raise ValueError("an OCR target must hold a character other than a space")
    if target in read:
        return 1.0
    return 1.0 - min(Levenshtein.distance(read, target), len(target)) / len(target)


class OcrReward:
    """Scores images by what a reader reads. Parts: `exact`, `extra_characters`, `text_area` (share of the image)."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @property
    def name(self) -> str:
        return f"OCR reward ({self.reader.name})"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        pixels = images.shape[1] * images.shape[2]
        return [_score(r, p, pixels) for r, p in zip(self.reader(images), prompts, strict=True)]


def _score(reading: Reading, prompt: Prompt, pixels: int) -> Score:
    if reading.failure:
        nothing = dict.fromkeys(("exact", "extra_characters", "text_area"), math.nan)
        return Score(math.nan, nothing, f"not read: {reading.failure}")
    read, target = normal("".join(reading.lines)), normal(prompt.target)
    parts = {
        "exact": float(read == target),
        "extra_characters": float(max(0, len(read) - len(target))),
        "text_area": min(1.0, sum(area(box) for box in reading.boxes) / pixels),
    }
    return Score(ocr_reward(read, target), parts, " ".join(reading.lines))


class TextSize:
    """A reward to be hacked: the share of the picture that is text, whatever it says; parts as `OcrReward`'s, with its
    value as `ocr`. A judge that cannot tell what this does to pictures is no judge."""

    def __init__(self, reward: OcrReward) -> None:
        self.reward = reward

    @property
    def name(self) -> str:
        return f"share of text ({self.reward.reader.name})"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [
            Score(score.parts["text_area"], {"ocr": score.value, **score.parts}, score.note)
            for score in self.reward(images, prompts)
        ]


def open_text_size(instruments: Instruments) -> TextSize:
    return TextSize(open_reward(instruments))


def open_reward(instruments: Instruments) -> OcrReward:
    return OcrReward(instruments.reader())
