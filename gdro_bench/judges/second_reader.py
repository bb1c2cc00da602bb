"""The OCR reward by another reader, as a judge: has a method learnt to write, or to please one engine?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gdro_bench.errors import BenchError
from gdro_bench.instruments.readers import TesseractReader
from gdro_bench.profile import JudgeConfig
from gdro_bench.rewards.ocr import OcrReward
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt, first_quoted


class SecondReader:
    """Looks for the prompt's first quoted text (`task.first_quoted`), whatever the task's own reward looks for."""

    def __init__(self, reward: OcrReward) -> None:
        self.reward, self.name = reward, reward.name

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        """Raises:
        BenchError: a prompt has no quoted text."""
        for prompt in prompts:
            if first_quoted(prompt.text) is None:
                raise BenchError(
                    f"The second reader compares what it reads with the text in quotes, and {prompt.text[:80]!r} "
                    "has none.",
                    "Leave out --second-reader, or set profile.judge.second_reader=none, for this task.",
                    2,
                )
        return self.reward(images, [replace(prompt, target=first_quoted(prompt.text) or "") for prompt in prompts])


def open_second_reader(config: JudgeConfig) -> SecondReader:
    return SecondReader(OcrReward(TesseractReader()))
