"""`baselines/<profile>/profile.toml`, field by field: model, instruments and budget, the same for every method.

This module imports nothing heavy: a typo in a profile's setting is told before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gdro_bench.content import Count, Natural, NonNegative, Positive, Share


@dataclass(frozen=True, slots=True)
class Profile:
    """`baselines/<profile>/profile.toml`: model, instruments and budget, the same for every method."""

    model: str
    prompts: str
    held_out_prompts: Count
    kept_images: Count  # of the held-out prompts' pictures, at each mark: grids and judges see only these
    max_unscored: Share
    sampler: Sampler
    drift: DivergenceConfig
    health: HealthConfig | None  # without it, no run says which of its checkpoints was the last healthy one
    lora: LoraConfig
    reader: ReaderConfig
    judge: JudgeConfig
    budget: BudgetConfig
    pretrained: PretrainedConfig | None  # for models that do not come with the package
    detector: DetectorConfig | None  # of objects; without it, the pocket's
    keep_adapters: bool | None  # of every evaluation point, in loras/<mark>; without it, only the last ones are kept
    score_ahead: Natural | None  # batches that may wait for their scores while the next are generated; without it, none


@dataclass(frozen=True, slots=True)
class Sampler:
    """Settings of a sampler. `shift` bends the schedule towards noise, as SD3 does (arXiv 2403.03206, eq. 23); 0 leaves
    it to the model's own scheduler, if it has one."""

    steps: Count
    shift: NonNegative
    guidance: NonNegative  # 1 is none
    batch: Count

    @property
    def passes(self) -> int:
        """Velocity evaluations a step: guidance takes two."""
        return 1 if self.guidance == 1 else 2

    @property
    def evaluations(self) -> int:
        """Velocity evaluations a picture."""
        return self.steps * self.passes


BudgetKind = Literal["evaluations", "images", "seconds"]


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """`limit` of one `kind` that a run may spend, and `marks`, shares of it at which a run is evaluated.

    Kinds: velocity `evaluations`, `images` (sampled or trained on), or `seconds`, which no machine repeats exactly.
    """

    kind: BudgetKind
    limit: int
    marks: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DivergenceConfig:
    """`[drift]` of a profile: the first `prompts` held-out prompts are looked at, with `images` pictures each for
    their diversity; `noise_level` is that of Flow-GRPO's SDE, along which the KL is taken."""

    prompts: Natural
    images: Count
    noise_level: Positive


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """`[health]` of a profile, for finding a run's last healthy mark (`gdro_bench.engine.health`): at each
    evaluation point so many training `prompts` are painted (0: none) and rated by a `judge` of the registry that runs
    beside the model. Where it is `none`, the KL of the path from the base tells, with its `kl_limit` in nats."""

    prompts: Natural
    judge: str
    kl_limit: Positive


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Adapter settings; `targets` are the ends of module names. Updates are scaled by alpha / rank."""

    rank: Count
    alpha: Positive
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PretrainedConfig:
    """`[pretrained]` of a profile."""

    source: str  # hub id or folder of a whole pipeline
    side: Count  # px of a picture
    dtype: Literal["float32", "bfloat16"]  # float16 would round small gradients to 0
    distilled_guidance: NonNegative  # an input of FLUX.1-dev; SD3.5 has none
    text_tokens: Count  # of T5, at most
    gradient_checkpointing: bool
    compiled: bool  # torch.compile of the transformer's blocks
    float8: bool  # the blocks' frozen matrices held in half the memory of bfloat16 (torchao)
    sharded: bool  # where several processes run: its frozen weights are spread over them, not copied to each
    text_cache: str  # folder of encoded texts

    @property
    def latent_elements(self) -> int:
        """Of a picture: both families have 16 channels at an eighth of its side."""
        return 16 * (self.side // 8) ** 2


@dataclass(frozen=True, slots=True)
class ReaderConfig:
    """`[reader]` of a profile: `limit_side` px for detection, `workers` processes (0 reads in this process), the
    `engine` (rapidocr if none is named) and, for paddleocr, the folder of its `models`."""

    limit_side: Count
    workers: Natural
    engine: str | None = None  # in the registry, as a reader
    models: str | None = None


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """`[detector]` of a profile; without it, the pocket detector.

    `source` is mmdet's checkpoint file, or for `mask2former` also a folder or hub id for transformers; `clip`, which
    tells colours to both, such a folder or hub id, or open_clip's file of weights; `config` the configuration file that
    `mmdet` builds the checkpoint's network from.
    """

    name: str  # in the registry, as a detector
    source: str
    clip: str
    config: str | None = None


DEFAULT_JUDGE_MODEL = "UnifiedReward"  # what a server calls it, where nobody says another name


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """`[judge]` of a profile: names of a judge, a gold score and a second reader, `none` for none; for a judge behind a
    server its address and what the server calls it."""

    name: str
    gold: str
    second_reader: str
    url: str
    model: str
