"""What a profile measures with, opened for the rewards that need it: a reader of text, a detector of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gdro_bench import registry
from gdro_bench.errors import BenchError
from gdro_bench.instruments.readers import EngineReader
from gdro_bench.profile import DetectorConfig, Profile, ReaderConfig
from gdro_bench.rewards.geneval_rules import Detector
from gdro_bench.score import Scorer, open_scorer
from gdro_bench.task import Task

PLAIN = "gdro_bench.task:plain_prompt"  # reads any task's prompts


@dataclass(frozen=True, slots=True)
class Instruments:
    """Of a profile, on a device (`cpu` or `cuda`)."""

    reader_config: ReaderConfig
    detector_config: DetectorConfig | None
    device: str

    def reader(self) -> EngineReader:
        """Raises:
        BenchError: it cannot be had."""
        return EngineReader(self.reader_config)

    def detector(self) -> Detector:
        """Raises:
        BenchError: it cannot be had."""
        name = self.detector_config.name if self.detector_config else "pocket"
        detector: Detector = registry.lookup("detector", name)(self.detector_config, self.device)
        return detector


def open_reward(task: Task, profile: Profile, device: str) -> Scorer:
    """The task's reward with the profile's instruments.

    Raises:
        BenchError: an unknown reward, or an instrument that cannot be had.
    """
    return open_named([task.reward], profile, device)[task.reward]


def open_named(names: Sequence[str], profile: Profile, device: str) -> dict[str, Scorer]:
    """These rewards with the profile's instruments, by name.

    Raises:
        BenchError: as `open_reward`.
    """
    instruments = Instruments(profile.reader, profile.detector, device)
    return {name: open_scorer("reward", name, instruments) for name in names}


def check_auxiliaries(names: Sequence[str], task: Task, profile: Profile) -> None:
    """Raises:
    BenchError: one is no reward, judges the run, is the task's own, is there twice or reads prompts another way."""
    judge = profile.judge
    for name in names:
        if name in (judge.name, judge.gold, judge.second_reader):
            raise BenchError(
                f"{name!r} judges this run, so no method may see it.", "Choose another for method.auxiliary.rewards.", 2
            )
        registry.check("reward", name)
        if name == task.reward or names.count(name) > 1:
            raise BenchError(
                f"The auxiliary reward {name!r} is the task's own or there twice.",
                "Name each other reward once in method.auxiliary.rewards.",
                2,
            )
        if registry.names("prompt").get(name) not in (PLAIN, registry.names("prompt").get(task.reward)):
            raise BenchError(
                f"The auxiliary reward {name!r} does not understand the prompts of {task.name!r}.",
                "Choose one that does, such as compressibility.",
                2,
            )
