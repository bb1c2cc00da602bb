"""Training of the pocket judge: scenes of the pocket world, damaged by known amounts.

A severity s in 0..1 of a damage means 5 - 4 s on its axis and nothing on the other; the network learns the severity of
each damage by itself. For alignment the network learns what a picture shows, so that a share s of wrong facts comes to
5 - 4 s. Half of all pictures have been through the autoencoder, as everything has that a model paints, so that what
that loses is no damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor, nn

from gdro_bench.models.pixels import to_images, to_tensor
from gdro_bench.models.pocket import world
from gdro_bench.models.pocket.judge import DAMAGES, KINDS, NOTHING, Network, Verdict, fields
from gdro_bench.models.pocket.network import Autoencoder
from gdro_bench.models.pocket.training import fit
from gdro_bench.models.pocket.world import COLOURS, PLACES, SIDES, TEXTURES, THINGS, Facts, T, choose
from gdro_bench.rewards.geneval_prompts import RELATIONS

Pixels = NDArray[np.uint8]  # [64, 64, 3]


@dataclass(frozen=True, slots=True)
class JudgeTraining:
    """Settings of `baselines/pocket/training/judge.toml`."""

    width: int
    images: int
    batch: int
    learning_rate: float
    things_share: float  # of scenes without a sign
    reconstructed_share: float
    wrong_share: float  # of scenes with facts changed to others
    damaged_share: float  # of pictures, on each of the two other axes


@dataclass(frozen=True, slots=True)
class Example:
    """A picture, what it shows, and how severe each damage to it is, by name."""

    pixels: Pixels
    shown: Facts
    severities: dict[str, float]


# ---------------------------------------------------------------------------------------------------------------
# Wrong facts


def said(facts: Facts) -> list[str]:
    """The names of the facts that can be wrong."""
    names = ["wall", "texture", "sign colour", "place"] if facts.sign else []
    for i, thing in enumerate(facts.things):
        names += [f"{i} name", *([f"{i} colour"] if thing.colour else []), *([f"{i} side"] if thing.side else [])]
        names += [f"{i} count"] if thing.count > 1 else []
        names += [f"{i} relation"] if thing.relation else []
    return names


def with_wrong(facts: Facts, wrong: list[str], rng: Generator) -> Facts:
    """The facts with these drawn anew, each other than it was."""
    for name in wrong:
        facts = _with_other(facts, name, rng)
    return facts


def _with_other(facts: Facts, name: str, rng: Generator) -> Facts:
    if name == "wall":
        return replace(facts, wall=_other(rng, COLOURS, facts.wall, facts.sign.colour if facts.sign else None))
    if name == "texture":
        return replace(facts, texture=_other(rng, TEXTURES, facts.texture))
    if facts.sign and name == "sign colour":
        return replace(facts, sign=replace(facts.sign, colour=_other(rng, COLOURS, facts.sign.colour, facts.wall)))
    if facts.sign and name == "place":
        return replace(facts, sign=replace(facts.sign, place=_other(rng, PLACES, facts.sign.place)))
    number, field = name.split(" ")
    i, things = int(number), list(facts.things)
    choices = _CHOICES[field]
    also = facts.wall if field == "colour" else things[1 - i].name if field == "name" and len(things) > 1 else None
    drawn = _other(rng, choices, getattr(things[i], field), also)
    changed: dict[str, Any] = {field: drawn}
    things[i] = replace(things[i], **changed)
    return replace(facts, things=tuple(things))


_CHOICES: dict[str, Iterable[Any]] = {
    "name": THINGS,
    "colour": COLOURS,
    "side": SIDES,
    "count": (1, 2, 3, 4),
    "relation": RELATIONS,
}


def _other(rng: Generator, choices: Iterable[T], *taken: object) -> T:
    return choose(rng, [c for c in choices if c not in taken])


# ---------------------------------------------------------------------------------------------------------------
# Damages


def blur(pixels: Pixels, s: float, rng: Generator) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.3 + 2.7 * s)))


def stripes(pixels: Pixels, s: float, rng: Generator) -> Pixels:
    """Fine waves over all of the picture."""
    y, x = np.mgrid[: len(pixels), : len(pixels)]
    angle, period = rng.uniform(0, np.pi), rng.uniform(2, 5)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 2 * np.pi))
    return _clipped(pixels + (6 + 54 * s) * wave[..., None])


def blocks(pixels: Pixels, s: float, rng: Generator) -> Pixels:
    """As if the picture were of few, large pixels."""
    side = len(pixels)
    small = Image.fromarray(pixels).resize((side // 4, side // 4), Image.Resampling.BOX)
    coarse = np.asarray(small.resize((side, side), Image.Resampling.NEAREST), dtype=float)
    return _clipped(pixels + (0.2 + 0.8 * s) * (coarse - pixels))


def exposed_twice(pixels: Pixels, s: float, rng: Generator) -> Pixels:
    """Another scene shines through."""
    other = world.render(world.thing_facts(rng), rng).pixels.astype(float)
    return _clipped(pixels + (0.08 + 0.42 * s) * (other - pixels))


def repeated(pixels: Pixels, s: float, rng: Generator) -> Pixels:
    """What is busiest in the picture, an object or a piece of the sign, comes once more where the least is."""
    side, corners = 28, range(0, len(pixels) - 27, 6)
    places = [(x, y) for y in corners for x in corners]
    patch = {(x, y): pixels[y : y + side, x : x + side].astype(float) for x, y in places}
    busy = {place: float(patch[place].std(axis=(0, 1)).mean()) for place in places}
    source = max(places, key=lambda place: busy[place])
    away = [p for p in places if max(abs(p[0] - source[0]), abs(p[1] - source[1])) >= side - 4] or places
    x, y = min(away, key=lambda place: busy[place])
    copied = pixels.astype(float)
    copied[y : y + side, x : x + side] += (0.3 + 0.7 * s) * (patch[source] - patch[x, y])
    return _clipped(copied)


def paler(pixels: Pixels, s: float, rng: Generator) -> Pixels:
    """Without contrast."""
    return _clipped(pixels + (0.1 + 0.75 * s) * (pixels.mean(axis=(0, 1)) - pixels))


def greyer(pixels: Pixels, s: float, rng: Generator) -> Pixels:
    """Without colour."""
    return _clipped(pixels + (0.15 + 0.85 * s) * (pixels.mean(axis=2, keepdims=True) - pixels))


def brighter(pixels: Pixels, s: float, rng: Generator) -> Pixels:
    """Overexposed: light shades run into white."""
    return _clipped(pixels * (1.1 + 0.9 * s) + 10 + 40 * s)


def _clipped(pixels: NDArray[np.floating[Any]]) -> Pixels:
    clipped: Pixels = pixels.round().clip(0, 255).astype(np.uint8)
    return clipped


_BY_AXIS = {"coherence": (blur, stripes, blocks, exposed_twice, repeated), "style": (paler, greyer, brighter)}
COHERENCE, STYLE = (dict(zip(kinds, _BY_AXIS[axis], strict=True)) for axis, kinds in DAMAGES.items())


# ---------------------------------------------------------------------------------------------------------------
# Fitting


def draw(config: JudgeTraining, words: list[str], autoencoder: Autoencoder, rng: Generator) -> list[Example]:
    """A batch: through the autoencoder first, then damaged."""
    scenes = [_scene(config, words, rng) for _ in range(config.batch)]
    pixels = to_tensor(np.stack([world.render(shown, rng).pixels for shown in scenes]))
    seen = to_images(fit.some_through(autoencoder, pixels, config.reconstructed_share, rng))
    examples = []
    for image, shown in zip(seen, scenes, strict=True):
        severities: dict[str, float] = {}
        for damages in (COHERENCE, STYLE):
            if rng.random() < config.damaged_share:
                kind = choose(rng, list(damages))
                severities[kind] = float(rng.random())
                image = damages[kind](image, severities[kind], rng)
        examples.append(Example(image, shown, severities))
    return examples


def _scene(config: JudgeTraining, words: list[str], rng: Generator) -> Facts:
    """A scene whose facts go together, or some of which were changed to others."""
    things = rng.random() < config.things_share
    facts = world.thing_facts(rng) if things else world.sign_facts(rng, choose(rng, words))
    if rng.random() >= config.wrong_share:
        return facts
    names = said(facts)
    return with_wrong(facts, [str(name) for name in rng.permutation(names)[: rng.integers(1, len(names) + 1)]], rng)


def loss(seen: Verdict, batch: list[Example]) -> Tensor:
    """Cross-entropy of every field that the scene was drawn by and of every damage's severity.

    Most damages are absent from most pictures. A distance between severities has its optimum for a damage not yet seen
    next to zero, where it hardly draws any more; the cross-entropy goes on drawing there.
    """
    shown = torch.tensor([fields(one.shown) for one in batch])
    wrong = [
        nn.functional.cross_entropy(logits, shown[:, i], ignore_index=NOTHING, reduction="sum")
        for i, logits in enumerate(seen.fields)
    ]
    severe = torch.tensor([[one.severities.get(kind, 0.0) for kind in KINDS] for one in batch])
    quality = nn.functional.binary_cross_entropy(seen.severities, severe, reduction="sum") / len(batch)
    return torch.stack(wrong).sum() / (shown != NOTHING).sum() + quality


def train(
    config: JudgeTraining,
    words: list[str],
    autoencoder: Autoencoder,
    seed: int,
    report: Callable[[int, float], None],
) -> Network:
    """A trained judge; `report` hears of images seen and loss after each batch."""
    torch.manual_seed(seed)
    network = Network(config.width)

    def loss_of(rng: Generator) -> Tensor:
        batch = draw(config, words, autoencoder, rng)
        return loss(network(to_tensor(np.stack([one.pixels for one in batch]))), batch)

    fit.fit(network, config, seed, loss_of, report)
    return network
