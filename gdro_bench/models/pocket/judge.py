"""The pocket judge: a small network that rates a picture of the pocket world on three axes, each 1 to 5.

Alignment: how many of the prompt's facts the picture shows (what the sign says is not among them: it does not read).
Coherence: how free of blur, stripes, blocks and double exposure it is. Style: how full its contrast, colours and shades
are. It is no UnifiedReward and its numbers are not comparable with that one's; records carry its own name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gdro_bench.errors import BenchError
from gdro_bench.judging import JudgeConfig
from gdro_bench.models.pixels import to_tensor
from gdro_bench.models.pocket import parse, world
from gdro_bench.models.pocket.network import Residual
from gdro_bench.models.pocket.world import COLOURS, PLACES, SIDES, TEXTURES, THINGS, Facts
from gdro_bench.rewards.geneval_prompts import RELATIONS
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

AXES = ("alignment", "coherence", "style")
LOWEST, HIGHEST = 1.0, 5.0
WEIGHTS = Path(__file__).parent / "judge_weights"
_CHOICES: tuple[tuple[str, ...], ...] = (
    tuple(COLOURS), TEXTURES, tuple(COLOURS), PLACES, tuple(THINGS), tuple(COLOURS), ("1", "2", "3", "4"),
    tuple(THINGS), tuple(COLOURS), tuple(RELATIONS), SIDES,
)  # fmt: skip
FIELDS = len(_CHOICES)
FACTS = sum(map(len, _CHOICES))  # length of the vector that says what the prompt asks for


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the network says: logits that each field is as asked, [B, FIELDS]; coherence and style in 1..5, [B, 2]."""

    fields: Tensor
    quality: Tensor


def fields(facts: Facts) -> tuple[str | None, ...]:
    """The facts one by one, each one of its `_CHOICES`; None or "" where nothing is said."""
    sign = (facts.sign.colour, facts.sign.place) if facts.sign else (None, None)
    first = facts.things[0] if facts.things else world.ThingFacts("")
    second = facts.things[1] if len(facts.things) > 1 else world.ThingFacts("")
    said = (facts.wall, facts.texture, *sign, first.name, first.colour, str(first.count if first.name else ""))
    return (*said, second.name, second.colour, second.relation, first.side)


def vector(facts: Facts) -> Tensor:
    """The same, one-hot field by field, zeros where nothing is said: float32 [FACTS]."""
    said = zip(fields(facts), _CHOICES, strict=True)
    return torch.tensor([float(field == choice) for field, choices in said for choice in choices])


class Network(nn.Module):
    """Pixels [B, 3, 64, 64] in -1..1 and facts [B, FACTS] -> verdict.

    Two eyes: one sees how the picture is painted, the other what it shows, steered by what was asked for (FiLM, arXiv
    1709.07871).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.painted = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, stride=2, padding=1), Residual(width), Residual(width),
            nn.GroupNorm(8, width), nn.SiLU(),
        )  # fmt: skip
        self.shown = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, width, 3, padding=1), Residual(width), Residual(width),
            nn.Conv2d(width, wide, 3, stride=2, padding=1), Residual(wide),
        )  # fmt: skip
        self.asked = nn.Sequential(nn.Linear(FACTS, wide), nn.SiLU(), nn.Linear(wide, 4 * wide))
        self.compare = nn.ModuleList(Residual(wide) for _ in range(2))
        self.right = nn.Sequential(nn.Flatten(), nn.Linear(wide * 16, wide), nn.SiLU(), nn.Linear(wide, FIELDS))
        self.quality = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, pixels: Tensor, facts: Tensor) -> Verdict:
        painted = self.painted(pixels)
        quality = self.quality(torch.cat((painted.mean(dim=(2, 3)), painted.amax(dim=(2, 3))), dim=1))
        shown = self.shown(pixels)
        steering = self.asked(facts)[..., None, None].chunk(4, dim=1)
        for block, (scale, shift) in zip(self.compare, (steering[:2], steering[2:]), strict=True):
            shown = block(shown * (1 + scale) + shift)
        return Verdict(self.right(nn.functional.avg_pool2d(shown, 2)), rating(quality.sigmoid()))


def rating(share: Tensor) -> Tensor:
    """0..1 -> 1..5."""
    return LOWEST + (HIGHEST - LOWEST) * share


class PocketJudge:
    """A `Scorer`: `value` is the mean of the three axes, which are its parts; NaN for a prompt of another grammar."""

    def __init__(self, network: Network, version: str = "untitled") -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = f"pocket judge {version} (1-5)"

    @classmethod
    def open(cls, folder: Path = WEIGHTS) -> PocketJudge:
        """Loads the judge of `folder`.

        Raises:
            BenchError: its weights are missing or damaged.
        """
        try:
            network = Network(**json.loads((folder / "judge.json").read_text()))
            network.load_state_dict(load_file(folder / "judge.safetensors"))
            version = hashlib.sha256((folder / "judge.safetensors").read_bytes()).hexdigest()[:8]
        except Exception as error:
            raise BenchError(
                f"The pocket judge in {folder} cannot be loaded: {error}.",
                "Install gdro-bench again, or train it anew with `gdro-bench pretrain pocket-judge`.",
            ) from error
        return cls(network, version)

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        asked = [parse.facts_of(prompt.text) for prompt in prompts]
        facts = torch.stack([torch.zeros(FACTS) if one is None else vector(one) for one in asked])
        said = self.network(to_tensor(images), facts)
        asked_for = torch.tensor([[bool(f) for f in fields(one)] if one else [True] * FIELDS for one in asked])
        right = (said.fields.sigmoid() * asked_for).sum(1) / asked_for.sum(1)
        rated = torch.cat((rating(right)[:, None], said.quality), dim=1).double()
        return [_score(axes, one) for axes, one in zip(rated.tolist(), asked, strict=True)]


def open_judge(config: JudgeConfig) -> PocketJudge:
    return PocketJudge.open()


def _score(axes: list[float], facts: Facts | None) -> Score:
    if facts is None:
        return Score(math.nan, dict.fromkeys(AXES, math.nan), "not judged: not a prompt of the pocket world")
    return Score(sum(axes) / len(axes), dict(zip(AXES, axes, strict=True)))


def save(network: Network, width: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.json").write_text(json.dumps({"width": width}) + "\n")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "judge.safetensors")
