"""The gold score of a picture: the share of its prompt's facts that hold, read from pixels by plain arithmetic.

Facts of a sign scene: the wall's colour and texture, the sign's colour and place, and the object, its colour and its
side. Of a scene of GenEval's grammar: every object at the place where the world puts it, its colour if one is said,
and that there is nothing else. What the sign says is no fact here: the reward reads that; but a wrong letter is an
error, and its errors are told by kind. Neither a reward nor a judge uses these readers, and they only work in this
world, whose layout and colours are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gdro_bench.models.pocket import letters, parse, world
from gdro_bench.models.pocket.world import COLOURS, SIZE, THING_SIDE, THINGS, Facts, ThingFacts
from gdro_bench.profile import JudgeConfig
from gdro_bench.score import BY_ERROR, Images, Score
from gdro_bench.task import Prompt

Pixels = NDArray[np.float64]  # [H, W, 3] or [n, 3], 0..255
Mask = NDArray[np.bool_]
PALETTE = np.array(list(COLOURS.values()), dtype=np.float64)
APART = 40.0  # in a channel: what differs more from the wall is no wall
PATTERN = 9.0  # in luminance: a texture fainter than this is plain
THERE = 0.6  # an object's stencil must fit better than the wall alone by this factor
FADED = 0.5  # of the contrast of new ink: what has less has faded, of which the world leaves 0.4 at most
EMPTY = 0.06  # share of pixels beyond the wall's that a scene with nothing else may have


@dataclass(frozen=True, slots=True)
class Wall:
    """What the wall looks like, fitted where nothing stands before it: its pixels, and which facts that makes."""

    pixels: Pixels
    colour: str
    texture: str


@dataclass(frozen=True, slots=True)
class Stencil:
    """Where a class of object puts its own colour, where it puts any, and where none, in a box of 30x30 px; the share
    of the box that is of its own colour, and that share and the free one together."""

    own: Mask
    any: Mask
    free: Mask
    own_share: float
    weighed: float


def nearest_colour(rgb: Pixels) -> str:
    return list(COLOURS)[int(np.square(PALETTE - rgb).sum(axis=1).argmin())]


def held(pixels: Images, facts: Facts) -> dict[str, bool]:
    """For each of the facts whether the picture [64, 64, 3] shows it."""
    image = pixels.astype(np.float64)
    wall = read_wall(image, _free(facts))
    truth: dict[str, bool] = {}
    if facts.sign is not None:
        shown = _panel_colour(image, facts.sign)
        elsewhere = _panel_colour(image, world.SignFacts(facts.sign.word, "", _opposite(facts.sign.place), ""))
        truth |= {"wall colour": wall.colour == facts.wall, "wall texture": wall.texture == facts.texture}
        truth["sign place"] = _distance(shown, wall) > max(APART, _distance(elsewhere, wall) / 2)
        truth["sign colour"] = truth["sign place"] and nearest_colour(shown) == facts.sign.colour
    truth |= _things_held(image, wall, facts)
    if facts.sign is None:
        truth["nothing else"] = float((np.abs(image - wall.pixels).max(axis=2) > APART)[_free(facts)].mean()) < EMPTY
    return truth


def _opposite(place: str) -> str:
    return next(other for other in world.PLACES if other != place)


# ---------------------------------------------------------------------------------------------------------------
# The wall


def _free(facts: Facts) -> Mask:
    """Where nothing stands before the wall, even if an object stands at the wrong side."""
    free = np.ones((SIZE, SIZE), dtype=np.bool_)
    spots = _spots(facts)
    wrong = [_other_side(thing, spot) for thing, spot in zip(facts.things, spots, strict=False) if thing.side]
    for x, y in spots + wrong:
        free[y : y + THING_SIDE + 1, x : x + THING_SIDE + 1] = False
    if facts.sign is not None:
        x0, y0, x1, y1 = world.panel_of(facts.sign)
        free[y0 - 2 : y1 + 3, max(x0 - 2, 0) : x1 + 3] = False  # it may hang a pixel off
    return free


def _spots(facts: Facts) -> list[tuple[int, int]]:
    return world.spots(facts.things, facts.sign.place if facts.sign else None) if facts.things else []


@cache
def _patterns() -> dict[str, NDArray[np.float64]]:
    """How far each texture has gone from the wall's colour to its other one: [64, 64] in 0..1."""
    shares = {"gradient": np.repeat(np.linspace(0, 1, SIZE)[:, None], SIZE, axis=1)}
    for texture in ("striped", "dotted"):
        image = Image.new("L", (SIZE, SIZE))
        world.draw_pattern(ImageDraw.Draw(image), texture, 1)
        shares[texture] = np.asarray(image, dtype=np.float64)
    return shares


def read_wall(image: Pixels, free: Mask) -> Wall:
    """The texture that explains most of what is free, if it is not too faint, and the colour that it starts from."""
    pixels = image[free]
    best, left = Wall(np.broadcast_to(np.median(pixels, axis=0), image.shape), "", "plain"), math.inf
    for texture, pattern in _patterns().items():
        centred = pattern[free] - pattern[free].mean()  # least squares of a line
        slope = centred @ pixels / max(float(centred @ centred), 1e-9)
        start = pixels.mean(axis=0) - slope * pattern[free].mean()
        error = np.abs(pixels - start - pattern[free][:, None] * slope).mean()
        if np.abs(slope).mean() > PATTERN and error < left:
            best, left = Wall(start + pattern[..., None] * slope, "", texture), error
    plain = np.abs(pixels - np.median(pixels, axis=0)).mean()
    if left > 0.8 * plain:
        best = Wall(np.broadcast_to(np.median(pixels, axis=0), image.shape), "", "plain")
    return Wall(best.pixels, nearest_colour(best.pixels[0, -1]), best.texture)


# ---------------------------------------------------------------------------------------------------------------
# The sign


def _panel_colour(image: Pixels, sign: world.SignFacts) -> Pixels:
    """Of the rim between a panel's outline and its word, where such a sign hangs."""
    x0, y0, x1, y1 = world.panel_of(sign)
    rim = np.zeros((SIZE, SIZE), dtype=np.bool_)
    rim[y0 + 1 : y1, x0 + 1 : x1] = True
    rim[y0 + world.MARGIN : y1 - world.MARGIN + 1, x0 + world.MARGIN : x1 - world.MARGIN + 1] = False
    colour: Pixels = np.median(image[rim], axis=0)
    return colour


def _distance(colour: Pixels, wall: Wall) -> float:
    return float(np.abs(colour - wall.pixels.mean(axis=(0, 1))).max())


# ---------------------------------------------------------------------------------------------------------------
# The objects


@cache
def _stencil(name: str) -> Stencil:
    ground, own = (255, 0, 255), (128, 128, 128)
    image = Image.new("RGB", (SIZE, SIZE), ground)
    THINGS[name](ImageDraw.Draw(image), 16, 16, THING_SIDE, own)
    pixels = np.asarray(image)[16 : 17 + THING_SIDE, 16 : 17 + THING_SIDE].astype(int)
    is_own, is_any = (pixels == own).all(axis=2), (pixels != ground).any(axis=2)
    own_share = float(is_own.mean())
    return Stencil(is_own, is_any, ~is_any, own_share, own_share + float((~is_any).mean()))


@cache
def _stencils() -> dict[str, Stencil]:
    return {name: _stencil(name) for name in THINGS}


def read_thing(image: Pixels, wall: Wall, spot: tuple[int, int]) -> tuple[str, str]:
    """(class, colour) of what stands in a box of 30x30 px, or two empty strings."""
    box = _box(spot)
    pixels, behind = image[box], wall.pixels[box]
    off_wall = np.abs(pixels - behind).mean(axis=2)
    errors, owns = {"": THERE * float(off_wall.mean())}, dict[str, Pixels]()
    for name, stencil in _stencils().items():
        inside = pixels[stencil.own]
        owns[name] = np.median(inside, axis=0)
        off_own = np.abs(inside - owns[name]).mean() * stencil.own_share
        errors[name] = float(off_own + off_wall[stencil.free].sum() / off_wall.size) / stencil.weighed
    best = min(errors, key=lambda name: errors[name])
    return best, nearest_colour(owns[best]) if best else ""


def _things_held(image: Pixels, wall: Wall, facts: Facts) -> dict[str, bool]:
    each = [thing for thing in facts.things for _ in range(thing.count)]
    truth: dict[str, bool] = {}
    for i, (thing, spot) in enumerate(zip(each, _spots(facts), strict=True)):
        name, colour = read_thing(image, wall, spot)
        truth[f"object {i}"] = name == thing.name
        if thing.colour is not None:
            truth[f"object {i} colour"] = bool(name) and colour == thing.colour
        if thing.side is not None:
            truth[f"object {i} side"] = bool(name) and not read_thing(image, wall, _other_side(thing, spot))[0]
    return truth


# ---------------------------------------------------------------------------------------------------------------
# Errors by kind


@dataclass(frozen=True, slots=True)
class Shown:
    """An object that is seen: its class and colour, and the corner of its box."""

    name: str
    colour: str
    spot: tuple[int, int]


ARRANGEMENTS = [  # the corners at which the world puts one to four objects, and two above each other
    world.spots(things, None)
    for things in (
        *((ThingFacts("cat", count=count),) for count in world.LAYOUTS),
        (ThingFacts("cat"), ThingFacts("cat", relation="above")),
    )
]
CORNERS = sorted({corner for corners in ARRANGEMENTS for corner in corners})


def read_things(image: Pixels, wall: Wall) -> list[Shown]:
    """What is seen at the corners of that arrangement whose objects account for most of what is not wall."""
    off_wall = np.abs(image - wall.pixels).max(axis=2) > APART
    at = {spot: read_thing(image, wall, spot) for spot in CORNERS if off_wall[_box(spot)].mean() > EMPTY}
    best: tuple[float, list[Shown]] = (0.0, [])
    for corners in ARRANGEMENTS:
        seen = [Shown(*at[spot], spot) for spot in corners if spot in at and at[spot][0]]
        covered = float(sum(off_wall[_box(one.spot)][_stencils()[one.name].any].sum() for one in seen))
        missed = float(sum((~off_wall[_box(one.spot)] & _stencils()[one.name].any).sum() for one in seen))
        best = max(best, (covered - missed, seen), key=lambda pair: pair[0])
    return best[1]


def _box(spot: tuple[int, int]) -> tuple[slice, slice]:
    x, y = spot
    return np.s_[y : y + THING_SIDE + 1, x : x + THING_SIDE + 1]


def _wall_behind(image: Pixels) -> Wall:
    """The wall of a scene that may be any: fitted to all, then to what that fit calls wall."""
    wall = read_wall(image, np.ones((SIZE, SIZE), dtype=np.bool_))
    for _ in range(3):
        near = np.abs(image - wall.pixels).max(axis=2) <= APART
        if near.mean() < 0.2:
            break
        wall = read_wall(image, near)
    return wall


def errors(pixels: Images, facts: Facts, truth: dict[str, bool] | None = None) -> dict[str, float]:
    """For each kind of error that the prompt allows, whether the picture [64, 64, 3] has it, 0 or 1. `truth`: what
    `held` says of it, if that is known.

    On a scene with a sign: `letter`, the share in 0..1 of its letters that are others; `fading`, its ink is nearly
    gone; `wall`, `sign` and `object`, a fact of theirs does not hold. On a scene of objects: `kind`, an object of a
    class that was not asked for; `count`, too few or too many of what a number was asked of; `missing` and `extra`,
    fewer or more objects than were asked for elsewhere; `colour` and `relation`, where all that was asked for is there.
    """
    image = pixels.astype(np.float64)
    if facts.sign is not None:
        return _errors_of_sign(image, facts.sign, held(pixels, facts) if truth is None else truth)
    made = _errors_of_things(read_things(image, _wall_behind(image)), facts)
    return {kind: float(is_made) for kind, is_made in made.items()}


def _errors_of_sign(image: Pixels, sign: world.SignFacts, truth: dict[str, bool]) -> dict[str, float]:
    shown = letters.read(image, sign)
    wrong = sum(a != b for a, b in zip(shown.word, sign.word, strict=True))
    found = {"letter": wrong / len(sign.word), "fading": float(shown.contrast < FADED)}
    for part in ("wall", "sign", "object"):
        of_part = [holds for name, holds in truth.items() if name.startswith(part)]
        found |= {part: float(not all(of_part))} if of_part else {}
    return found


def _errors_of_things(shown: list[Shown], facts: Facts) -> dict[str, bool]:
    asked = [thing for thing in facts.things for _ in range(thing.count)]
    names = sorted(one.name for one in shown)
    found = {"kind": any(one.name not in {thing.name for thing in asked} for one in shown)}
    if facts.things[0].count > 1:
        return found | {"count": len(shown) != len(asked)}
    found |= {"missing": len(shown) < len(asked), "extra": len(shown) > len(asked)}
    whole = names == sorted(thing.name for thing in asked)
    by_name = {one.name: one for one in shown}
    if any(thing.colour for thing in asked):
        found["colour"] = whole and any(t.colour and by_name[t.name].colour != t.colour for t in asked)
    if asked[-1].relation:
        spots = [by_name[thing.name].spot for thing in asked] if whole else []
        found["relation"] = whole and spots != world.spots(facts.things, None)
    return found


def _other_side(thing: ThingFacts, spot: tuple[int, int]) -> tuple[int, int]:
    return (SIZE // 2 + 1 if thing.side == "left" else 1), spot[1]


# ---------------------------------------------------------------------------------------------------------------
# The instrument


def open_gold(config: JudgeConfig) -> Gold:
    return Gold()


class Gold:
    """A `Scorer`: the share of facts that hold, its parts the errors that the prompt allows (`errors`); NaN
    for a prompt that is not of the world's grammar."""

    name = "gold: share of the prompt's facts that hold"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        """Raises:
        BenchError: pictures of another size."""
        world.check_size(images, "pocket's gold score")
        return [self._score(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _score(self, image: Images, prompt: Prompt) -> Score:
        facts = parse.facts_of(prompt.text)
        if facts is None:
            return Score(math.nan, note="not a prompt of the pocket world")
        truth = held(image, facts)
        wrong = ", ".join(name for name, holds in truth.items() if not holds)
        parts = {BY_ERROR + kind: share for kind, share in errors(image, facts, truth).items()}
        return Score(sum(truth.values()) / len(truth), parts, f"wrong: {wrong}" if wrong else "all facts hold")
