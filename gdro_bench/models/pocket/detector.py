"""The pocket detector: a small convolutional network that finds the pocket world's objects, their boxes and colours.

One cell of a 16x16 grid answers for an object whose centre lies in it (as in CenterNet, arXiv 1904.07850): a score for
every class, the distances to the box's four sides, and the colour.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gdro_bench.errors import BenchError
from gdro_bench.models.pixels import to_tensor
from gdro_bench.models.pocket import world
from gdro_bench.models.pocket.network import Residual
from gdro_bench.profile import DetectorConfig
from gdro_bench.rewards.geneval_rules import Detection, Detections, detected_colours
from gdro_bench.score import Images

STRIDE = 4  # px of a cell
GRID = world.SIZE // STRIDE
CLASSES = tuple(sorted(world.THINGS))
COLOURS = tuple(world.COLOURS)
FLOOR = 0.05  # scores below it are no detections
# The focal loss leaves scores of sure objects near 0.7, GenEval counts from 0.9: scores are sharpened around MIDDLE.
MIDDLE, SHARPNESS = 0.4, 4.0
WEIGHTS = Path(__file__).parent / "detector_weights"  # apart from `weights`, whose content names the model


@dataclass(frozen=True, slots=True)
class Heads:
    """What the network says of every cell: class scores as logits [B, 15, 16, 16], colour logits [B, 10, 16, 16], and
    distances from the cell's centre to the box's left, upper, right and lower side in px, [B, 4, 16, 16]."""

    classes: Tensor
    colours: Tensor
    sides: Tensor


class Detector(nn.Module):
    """See the module."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(STRIDE),
            nn.Conv2d(3 * STRIDE**2, width, 3, padding=1),
            *(Residual(width) for _ in range(4)),
            nn.GroupNorm(8, width),
            nn.SiLU(),
        )
        self.head = nn.Conv2d(width, len(CLASSES) + len(COLOURS) + 4, 1)

    def forward(self, pixels: Tensor) -> Heads:  # [B, 3, 64, 64] in -1..1
        classes, colours, sides = self.head(self.body(pixels)).split([len(CLASSES), len(COLOURS), 4], dim=1)
        return Heads(classes - 4.6, colours, nn.functional.softplus(sides) * STRIDE)  # rare at first: sigmoid 0.01


def centres() -> tuple[Tensor, Tensor]:
    """x and y of the cells' centres in px, each [16, 16]."""
    along = torch.arange(GRID) * STRIDE + STRIDE / 2
    y, x = torch.meshgrid(along, along, indexing="ij")
    return x, y


def sharpened(score: float) -> float:
    """A score with its logit's distance from that of MIDDLE stretched, where it becomes 1/2."""
    stretched = SHARPNESS * (math.log(score / (1 - score)) - math.log(MIDDLE / (1 - MIDDLE))) if score < 1 else math.inf
    return 1 / (1 + math.exp(-stretched))


def decode(heads: Heads) -> list[dict[str, list[Detection]]]:
    """For every picture: class -> detections, best first. A cell counts where no neighbour has a higher score."""
    scores = heads.classes.sigmoid()
    peaks = (scores == nn.functional.max_pool2d(scores, 3, stride=1, padding=1)) & (scores > FLOOR)
    x, y = centres()
    detections: list[dict[str, list[Detection]]] = [{} for _ in scores]
    for b, c, row, column in peaks.nonzero().tolist():
        left, upper, right, lower = heads.sides[b, :, row, column].tolist()
        cx, cy = float(x[row, column]), float(y[row, column])
        colour = COLOURS[int(heads.colours[b, :, row, column].argmax())]
        box = (cx - left, cy - upper, cx + right, cy + lower)
        detection = Detection(box, sharpened(float(scores[b, c, row, column])), colour)
        detections[b].setdefault(CLASSES[c], []).append(detection)
    return [{name: sorted(of, key=lambda d: -d.score) for name, of in picture.items()} for picture in detections]


class PocketDetector:
    """The shipped detector, on pictures: uint8 [B, 64, 64, 3] -> the detections on each."""

    def __init__(self, network: Detector, version: str = "") -> None:
        """version: of its weights, for its name."""
        self.network = network.eval().requires_grad_(False)
        self.name = f"pocket detector {version}".strip()
        self.classes = CLASSES

    @classmethod
    def open(cls, folder: Path = WEIGHTS) -> PocketDetector:
        """Loads the detector of `folder`.

        Raises:
            BenchError: its weights are missing or damaged.
        """
        try:
            network = Detector(**json.loads((folder / "detector.json").read_text()))
            network.load_state_dict(load_file(folder / "detector.safetensors"))
            version = hashlib.sha256((folder / "detector.safetensors").read_bytes()).hexdigest()[:8]
        except Exception as error:
            raise BenchError(
                f"The pocket detector in {folder} cannot be loaded: {error}.",
                "Install gdro-bench again, or train it anew with `gdro-bench pretrain pocket-detector`.",
            ) from error
        return cls(network, version)

    @torch.no_grad()
    def __call__(self, images: Images) -> list[Detections]:
        """Raises:
        BenchError: pictures of another size."""
        world.check_size(images, self.name)
        return [Detections(objects, detected_colours) for objects in decode(self.network(to_tensor(images)))]


def open_detector(config: DetectorConfig | None, device: str) -> PocketDetector:
    return PocketDetector.open()


def save(network: Detector, width: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "detector.json").write_text(json.dumps({"width": width}) + "\n")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "detector.safetensors")
