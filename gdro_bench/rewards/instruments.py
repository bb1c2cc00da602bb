"""What a profile measures with, opened for the rewards that need it: a reader of text, a detector of objects."""

from __future__ import annotations

from dataclasses import dataclass

from gdro_bench import registry
from gdro_bench.profile import DetectorConfig, Profile, ReaderConfig
from gdro_bench.rewards.geneval_rules import Detector
from gdro_bench.rewards.readers import EngineReader
from gdro_bench.score import Scorer
from gdro_bench.task import Task


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
    scorer: Scorer = registry.lookup("reward", task.reward)(Instruments(profile.reader, profile.detector, device))
    return scorer
