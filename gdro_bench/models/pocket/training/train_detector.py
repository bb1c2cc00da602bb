"""Training of the pocket detector on the pocket world: scenes as drawn, as the autoencoder gives them back, blurred,
noisy, and shifted off the grid on which the world draws; and signs, on which there may be nothing to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from gdro_bench.models.pixels import to_tensor
from gdro_bench.models.pocket import world
from gdro_bench.models.pocket.detector import CLASSES, COLOURS, GRID, STRIDE, Detector, Heads, centres
from gdro_bench.models.pocket.network import Autoencoder
from gdro_bench.models.pocket.training import fit
from gdro_bench.rewards.geneval_rules import Box

SHIFT = 6  # px a picture may be moved
GAUSSIAN = 0.8  # cells, standard deviation of the target around an object's centre


@dataclass(frozen=True, slots=True)
class DetectorTraining:
    """Settings of `baselines/pocket/training/detector.toml`."""

    width: int
    images: int
    batch: int
    learning_rate: float
    things_share: float  # share of scenes without a sign
    reconstructed_share: float
    damaged_share: float  # blurred or noisy


@dataclass(frozen=True, slots=True)
class Labelled:
    """A picture [64, 64, 3] and what is in it: class, colour and box of every object."""

    pixels: np.ndarray
    things: list[tuple[int, int, Box]]


@dataclass(frozen=True, slots=True)
class Targets:
    """What the heads should say: class scores [B, 15, 16, 16] in 0..1, and at the cells `at` (rows of batch, row,
    column) that answer for an object its colour [n] and its sides [n, 4] in px."""

    classes: Tensor
    at: Tensor
    colours: Tensor
    sides: Tensor


def labelled(facts: world.Facts, rng: Generator, shift: int = SHIFT) -> Labelled:
    """A rendered scene, moved by up to `shift` px, with its objects."""
    picture = world.render(facts, rng)
    dx, dy = (int(d) for d in rng.integers(-shift, shift + 1, 2))
    padded = np.pad(picture.pixels, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
    pixels = padded[shift - dy : shift - dy + world.SIZE, shift - dx : shift - dx + world.SIZE]
    kinds = [thing for thing in facts.things for _ in range(thing.count)]
    things: list[tuple[int, int, Box]] = []
    for thing, (x0, y0, x1, y1) in zip(kinds, picture.boxes, strict=True):
        colour = COLOURS.index(thing.colour or world.USUAL_COLOURS[thing.name])
        things.append((CLASSES.index(thing.name), colour, (x0 + dx, y0 + dy, x1 + 1 + dx, y1 + 1 + dy)))
    return Labelled(pixels, things)


def draw_scene(rng: Generator, words: list[str], things_share: float) -> world.Facts:
    if rng.random() < things_share:
        return world.thing_facts(rng)
    return world.sign_facts(rng, world.choose(rng, words))


def targets(batch: list[Labelled]) -> Targets:
    """The cell of an object's centre answers for it; its neighbours share the class's score, falling off."""
    x, y = centres()
    classes = torch.zeros(len(batch), len(CLASSES), GRID, GRID)
    at, colours, sides = [], [], []
    for b, one in enumerate(batch):
        for kind, colour, (x0, y0, x1, y1) in one.things:
            cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
            column, row = (min(max(int(c / STRIDE), 0), GRID - 1) for c in (cx, cy))
            away = ((x - x[row, column]) ** 2 + (y - y[row, column]) ** 2) / (GAUSSIAN * STRIDE) ** 2
            classes[b, kind] = torch.maximum(classes[b, kind], (-away / 2).exp())
            here_x, here_y = float(x[row, column]), float(y[row, column])
            at.append((b, row, column))
            colours.append(colour)
            sides.append((here_x - x0, here_y - y0, x1 - here_x, y1 - here_y))
    return Targets(
        classes, torch.tensor(at).view(-1, 3), torch.tensor(colours), torch.tensor(sides, dtype=torch.float).view(-1, 4)
    )


def loss(heads: Heads, wanted: Targets) -> Tensor:
    """CenterNet's focal loss on the class scores, cross-entropy of colours, L1 of sides (in cells)."""
    p = heads.classes.sigmoid().clamp(1e-4, 1 - 1e-4)
    right = wanted.classes == 1
    missed = -((1 - p) ** 2 * p.log())[right].sum()
    false = -((1 - wanted.classes) ** 4 * p**2 * (1 - p).log())[~right].sum()
    objects = max(1, len(wanted.at))
    b, row, column = wanted.at.unbind(1)
    colour = nn.functional.cross_entropy(heads.colours[b, :, row, column], wanted.colours) if len(b) else 0.0
    side = (heads.sides[b, :, row, column] - wanted.sides).abs().mean() / STRIDE if len(b) else 0.0
    return (missed + false) / objects + colour + side


@torch.no_grad()
def as_seen(batch: list[Labelled], autoencoder: Autoencoder, config: DetectorTraining, rng: Generator) -> Tensor:
    """Pixels [B, 3, 64, 64] in -1..1: some as drawn, some as the autoencoder gives them back, some blurred or noisy."""
    pixels = to_tensor(np.stack([one.pixels for one in batch]))
    pixels = fit.some_through(autoencoder, pixels, config.reconstructed_share, rng)
    blurred = torch.from_numpy(rng.random(len(batch)) < config.damaged_share)
    if blurred.any():
        pixels[blurred] = nn.functional.avg_pool2d(pixels[blurred], 3, stride=1, padding=1, count_include_pad=False)
    noisy = torch.from_numpy(rng.random(len(batch)) < config.damaged_share)
    if noisy.any():
        strength = torch.from_numpy(rng.uniform(0, 0.25, (int(noisy.sum()), 1, 1, 1))).float()
        pixels[noisy] += strength * torch.from_numpy(rng.standard_normal(pixels[noisy].shape)).float()
    return pixels.clamp(-1, 1)


def train(
    config: DetectorTraining,
    words: list[str],
    autoencoder: Autoencoder,
    seed: int,
    report: Callable[[int, float], None],
) -> Detector:
    """A trained detector; `report` hears of images seen and loss after each batch."""
    torch.manual_seed(seed)
    network = Detector(config.width)

    def loss_of(rng: Generator) -> Tensor:
        batch = [labelled(draw_scene(rng, words, config.things_share), rng) for _ in range(config.batch)]
        return loss(network(as_seen(batch, autoencoder, config, rng)), targets(batch))

    fit.fit(network, config, seed, loss_of, report)
    return network
