"""The pocket judge: a small network that rates a picture of the pocket world on three axes, each 1 to 5.

Alignment: how many of the prompt's facts the picture shows (what the sign says is not among them: it does not read;
objects are where the world puts them: of two without a relation, the other order is rated lower).
Coherence: how free of blur, stripes, blocks, double exposure and repetition it is. Style: how full its contrast,
colours and shades are. It is no UnifiedReward and its numbers are not comparable with that one's; records carry its
own name.
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
from gdro_bench.models.pixels import to_tensor
from gdro_bench.models.pocket import parse
from gdro_bench.models.pocket.network import Residual
from gdro_bench.models.pocket.world import COLOURS, PLACES, TEXTURES, THINGS, Facts, ThingFacts, check_size
from gdro_bench.profile import JudgeConfig
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

AXES = ("alignment", "coherence", "style")
LOWEST, HIGHEST = 1.0, 5.0
WEIGHTS = Path(__file__).parent / "judge_weights"
_CHOICES: tuple[tuple[str, ...], ...] = (  # wall, texture, sign's colour and place, two objects, how they stand
    tuple(COLOURS), TEXTURES, tuple(COLOURS), PLACES, tuple(THINGS), tuple(COLOURS), tuple(THINGS), tuple(COLOURS),
    ("left", "right", "1", "2", "3", "4", "stacked"),
)  # fmt: skip
DAMAGES = {  # what takes from an axis, as `judge_training` does it
    "coherence": ("blur", "stripes", "blocks", "double exposure", "repetition"),
    "style": ("lost contrast", "lost colour", "overexposure"),
}
KINDS = tuple(kind for kinds in DAMAGES.values() for kind in kinds)
WIDTHS = tuple(map(len, _CHOICES))
NOTHING = -1


def fields(facts: Facts) -> list[int]:
    """What a picture of these facts shows, by fields: the index of each one's choice, NOTHING where nothing is said.

    Objects are named by where they stand, the left or the upper one first, so that a picture alone decides them.
    """
    sign = (facts.sign.colour, facts.sign.place) if facts.sign else (None, None)
    first, second = _placed(facts.things)
    said = (facts.wall, facts.texture, *sign, first.name, first.colour, second.name, second.colour, _layout(facts))
    return [c.index(s) if s else NOTHING for s, c in zip(said, _CHOICES, strict=True)]


def _placed(things: tuple[ThingFacts, ...]) -> tuple[ThingFacts, ThingFacts]:
    """The left or upper object, and the other one."""
    nothing = ThingFacts("")
    first, second = (*things, nothing, nothing)[:2]
    return (second, first) if second.relation in ("left of", "above") else (first, second)


def _layout(facts: Facts) -> str | None:
    if not facts.things:
        return None
    last = facts.things[-1]
    return "stacked" if last.relation in ("above", "below") else last.side or str(sum(t.count for t in facts.things))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the network sees: logits of every field's choices, [B, width] each; how severe each of `KINDS` is, 0..1,
    [B, kinds]."""

    fields: tuple[Tensor, ...]
    severities: Tensor

    @property
    def quality(self) -> Tensor:
        """Coherence and style in 1..5, [B, 2]: severities add up, to the worst at most."""
        axes = torch.split(self.severities, [len(kinds) for kinds in DAMAGES.values()], dim=1)
        return rating(1 - torch.stack([axis.sum(1).clamp(max=1) for axis in axes], dim=1))


class Network(nn.Module):
    """Pixels [B, 3, 64, 64] in -1..1 -> verdict. Two eyes: one sees how a picture is painted, the other what it shows.

    Damages are told by both. The prompt does not come in: whether what is shown was asked for is told afterwards.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.painted = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, stride=2, padding=1), Residual(width), Residual(width),
            nn.GroupNorm(8, width), nn.SiLU(),
        )  # fmt: skip
        self.severities = nn.Sequential(nn.Linear(2 * width + 2 * wide, wide), nn.SiLU(), nn.Linear(wide, len(KINDS)))
        self.shown = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, width, 3, padding=1), Residual(width), Residual(width),
            nn.Conv2d(width, wide, 3, stride=2, padding=1), Residual(wide), Residual(wide), nn.GroupNorm(8, wide),
            nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(wide * 16, 2 * wide), nn.SiLU(),
        )  # fmt: skip
        self.told = nn.Linear(2 * wide, sum(WIDTHS))

    def forward(self, pixels: Tensor) -> Verdict:
        painted, shown = self.painted(pixels), self.shown(pixels)
        severities = self.severities(torch.cat((painted.mean(dim=(2, 3)), painted.amax(dim=(2, 3)), shown), dim=1))
        return Verdict(self.told(shown).split(WIDTHS, dim=1), severities.sigmoid())


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
        """Raises:
        BenchError: pictures of another size."""
        check_size(images, "pocket judge")
        facts = [parse.facts_of(prompt.text) for prompt in prompts]
        verdict = self.network(to_tensor(images))
        chances = [logits.softmax(dim=1) for logits in verdict.fields]
        return [_score(one, [c[i] for c in chances], verdict.quality[i].tolist()) for i, one in enumerate(facts)]


def open_judge(config: JudgeConfig) -> PocketJudge:
    return PocketJudge.open()


def _score(facts: Facts | None, chances: list[Tensor], quality: list[float]) -> Score:
    """Alignment is the mean chance, over the fields that the prompt names, that the picture shows them."""
    if facts is None:
        return Score(math.nan, dict.fromkeys(AXES, math.nan), "not judged: not a prompt of the pocket world")
    right = [float(chance[i]) for chance, i in zip(chances, fields(facts), strict=True) if i != NOTHING]
    axes = [LOWEST + (HIGHEST - LOWEST) * sum(right) / len(right), *quality]
    return Score(sum(axes) / len(axes), dict(zip(AXES, axes, strict=True)))


def save(network: Network, width: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.json").write_text(json.dumps({"width": width}) + "\n")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "judge.safetensors")
