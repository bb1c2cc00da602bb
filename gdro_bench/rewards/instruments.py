"""What a profile measures with, opened for the rewards that need it: a reader of text, a detector of objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gdro_bench.rewards.readers import EngineReader, ReaderConfig

if TYPE_CHECKING:
    from gdro_bench.rewards.geneval import Detector


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """`[detector]` of a profile; without it, the pocket detector.

    `source` is mmdet's checkpoint file, or for `mask2former` also a folder or hub id for transformers; `clip`, which
    tells colours to both, such a folder or hub id, or open_clip's file of weights; `config` the configuration file that
    `mmdet` builds the checkpoint's network from.
    """

    name: Literal["mask2former", "mmdet"]
    source: str
    clip: str
    config: str | None = None


@dataclass(frozen=True, slots=True)
class Instruments:
    """Of a profile, on a device (`cpu` or `cuda`)."""

    reader_config: ReaderConfig
    detector_config: DetectorConfig | None
    device: str

    def reader(self) -> EngineReader:
        return EngineReader(self.reader_config)

    def detector(self) -> Detector:
        """Raises:
        BenchError: it cannot be had."""
        chosen = self.detector_config
        if chosen is None:
            from gdro_bench.models.pocket.detector import PocketDetector

            return PocketDetector.open()
        if chosen.name == "mask2former":
            from gdro_bench.rewards.mask2former import Mask2FormerDetector

            return Mask2FormerDetector(chosen.source, chosen.clip, self.device)
        from gdro_bench.rewards.mmdet import MMDetDetector

        return MMDetDetector(chosen.source, chosen.config or "", chosen.clip, self.device)
