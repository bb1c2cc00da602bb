"""The gold score of a picture: the share of its prompt's facts that hold, read from pixels by plain arithmetic.

Facts of a sign scene: the wall's colour and texture, the sign's place, its colour and its size if one is said, the
object, its colour and its side. Of a scene of GenEval's grammar: every object at the place where the world puts it (two
of which no relation is said in either order) and its colour if one is said. Of both: that there is nothing else. What
the sign says is no fact here: the reward reads that; but a wrong letter is an error, and its errors are told by kind.
Neither a reward nor a judge uses these readers, and they only work in this world, whose layout and colours are known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
HANGS = 25.0  # in a channel: a panel that differs more is there; all of its rim is asked, so less will do
PATTERN = 9.0  # in luminance: a texture fainter than this is plain
THERE = 0.6  # an object's stencil must fit better than the wall alone by this factor
FADED = 0.5  # of the contrast of new ink: what has less has faded, of which the world leaves 0.4 at most
LEGIBLE = 0.12  # of that contrast: letters of less cannot be told
BLUR = 2  # px around what stands there that may be no wall
SEEN = 54  # px that are no wall: fewer are no object, which covers some hundreds
MORE = 90  # px that are no wall where none was asked: fewer may be the edge of what was


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
    wall = _wall_beside(image, _free(facts))
    truth: dict[str, bool] = {}
    if facts.sign is not None:
        truth |= {"wall colour": wall.colour == facts.wall, "wall texture": wall.texture == facts.texture}
        truth |= _sign_held(image, wall, facts.sign)
    orders = [facts.things, facts.things[::-1]] if _in_any_order(facts.things) else [facts.things]
    each = [_things_held(image, wall, replace(facts, things=things)) for things in orders]
    best = max(each, key=lambda one: sum(one.values()))
    truth |= best
    sign = facts.sign and replace(facts.sign, type_size="large")  # a sign of another size is nothing else
    if (beyond := _free(replace(facts, sign=sign), BLUR)).any():
        truth["nothing else"] = not _is_seen(image, wall, beyond)
    return truth


def _in_any_order(things: tuple[ThingFacts, ...]) -> bool:
    return len(things) == 2 and all(thing.relation is None and thing.side is None for thing in things)


def _off(image: Pixels, wall: Wall) -> Mask:
    """What is no wall, [64, 64]."""
    off: Mask = np.abs(image - wall.pixels).max(axis=2) > APART
    return off


def _is_seen(image: Pixels, wall: Wall, where: Mask) -> bool:
    """Whether anything stands there before the wall."""
    return int(_off(image, wall)[where].sum()) >= MORE


# ---------------------------------------------------------------------------------------------------------------
# The wall


def _free(facts: Facts, margin: int = 0) -> Mask:
    """Where nothing stands before the wall, even if an object stands at the wrong side, nor so many px around it."""
    spots = _spots(facts)
    wrong = [_other_side(thing, spot) for thing, spot in zip(facts.things, spots, strict=False) if thing.side]
    free = _beside(spots + wrong, margin)
    if facts.sign is not None:  # it may hang a pixel off
        x0, y0, x1, y1 = world.panel_of(facts.sign)
        free[max(y0 - 2 - margin, 0) : y1 + 3 + margin, max(x0 - 2 - margin, 0) : x1 + 3 + margin] = False
    return free


def _beside(spots: Sequence[tuple[int, int]], margin: int = 0) -> Mask:
    """Beside objects with these corners, and so many px around them."""
    free = np.ones((SIZE, SIZE), dtype=np.bool_)
    for x, y in spots:
        free[max(y - margin, 0) : y + THING_SIDE + 1 + margin, max(x - margin, 0) : x + THING_SIDE + 1 + margin] = False
    return free


def _wall_beside(image: Pixels, free: Mask) -> Wall:
    """The wall where something that was not asked for may stand before it: what is off the wall of the other three
    quarters is left out."""
    wall = read_wall(image, free)
    if not _is_seen(image, wall, free):
        return wall
    apart = np.abs(image - wall.pixels).max(axis=2)
    wall = read_wall(image, free & (apart <= np.quantile(apart[free], 0.75)))
    bare = free & ~_off(image, wall)
    return read_wall(image, bare) if bare.any() else wall


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


def _sign_held(image: Pixels, wall: Wall, sign: world.SignFacts) -> dict[str, bool]:
    seen = replace(sign, type_size=_type_size(image, wall, sign))
    shown = _panel_colour(image, seen)
    there = _distance(image, wall, seen) > HANGS
    truth = {"sign place": there, "sign colour": there and nearest_colour(shown) == sign.colour}
    if sign.type_size:
        truth["sign size"] = there and seen.type_size == sign.type_size
    return truth


def _type_size(image: Pixels, wall: Wall, sign: world.SignFacts) -> str:
    """The size whose panel, hung a pixel off at most, agrees best with what is no wall in the sign's half, and whose
    letters fit best what stands on it."""
    half = np.s_[: SIZE // 2] if sign.place == "top" else np.s_[SIZE // 2 :]
    sizes = [replace(sign, type_size=size) for size in world.TYPE_SIZES]
    apart = max(_distance(image, wall, one) for one in sizes)
    off = np.abs(image - wall.pixels).max(axis=2) > min(APART, apart / 2)

    def agreement(sized: world.SignFacts, dx: int, dy: int) -> float:
        x0, y0, x1, y1 = world.panel_of(sized, dx, dy)
        panel = np.zeros((SIZE, SIZE), dtype=np.bool_)
        panel[y0 : y1 + 1, x0 : x1 + 1] = True
        return float((off & panel)[half].sum() / (off | panel)[half].sum())

    def fit(one: world.SignFacts) -> float:
        return letters.fit(image, one) + max(agreement(one, dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1))

    return max(sizes, key=fit).type_size


def _panel_colour(image: Pixels, sign: world.SignFacts) -> Pixels:
    """Of the rim between a panel's outline and its word, where such a sign hangs."""
    x0, y0, x1, y1 = world.panel_of(sign)
    rim = np.zeros((SIZE, SIZE), dtype=np.bool_)
    rim[y0 + 1 : y1, x0 + 1 : x1] = True
    rim[y0 + world.MARGIN : y1 - world.MARGIN + 1, x0 + world.MARGIN : x1 - world.MARGIN + 1] = False
    colour: Pixels = np.median(image[rim], axis=0)
    return colour


def _distance(image: Pixels, wall: Wall, sign: world.SignFacts) -> float:
    """Of a panel's colour from the wall's behind it, in a channel."""
    return float(np.abs(_panel_colour(image, sign) - _panel_colour(wall.pixels, sign)).max())


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
    if _off(image, wall)[box].sum() < SEEN:
        return "", ""
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
    off_wall = _off(image, wall)
    at = {spot: read_thing(image, wall, spot) for spot in CORNERS}
    best: tuple[float, list[Shown]] = (0.0, [])  # how many px are explained, and by what
    for corners in ARRANGEMENTS:
        seen = [Shown(*at[spot], spot) for spot in corners if at[spot][0]]
        explained = 0.0
        for one in seen:
            inside, stencil = off_wall[_box(one.spot)], _stencils()[one.name].any
            explained += max(float(inside[stencil].sum() - (~inside)[stencil].sum()), 0.0)
        best = max(best, (explained, seen), key=lambda pair: (pair[0], len(pair[1])))
    return best[1]


def _box(spot: tuple[int, int]) -> tuple[slice, slice]:
    x, y = spot
    return np.s_[y : y + THING_SIDE + 1, x : x + THING_SIDE + 1]


def _wall_behind(image: Pixels) -> Wall:
    """The wall of a scene that may be any: fitted beside that arrangement of fewest objects which leaves nothing else
    to be seen."""
    for corners in sorted(ARRANGEMENTS, key=len):
        wall = read_wall(image, _beside(corners))
        if not _is_seen(image, wall, _beside(corners, BLUR)):
            break
    return wall


def errors(pixels: Images, facts: Facts, truth: dict[str, bool] | None = None) -> dict[str, float]:
    """For each kind of error that the prompt allows, whether the picture [64, 64, 3] has it, 0 or 1; NaN where that
    cannot be seen. `truth`: what `held` says of it, if that is known.

    On a scene with a sign: `letter`, the share in 0..1 of its letters that are others, where they can be told;
    `fading`, its ink is nearly gone, where there is a sign at its place; `wall`, `sign` and `object`, a fact of theirs
    does not hold. On a scene of objects: `kind`, an object stands there in place of another that was asked for;
    `count`, too few or too many of what a number was asked of; `missing` and `extra`, fewer or more objects than were
    asked for elsewhere, or something that is none; `colour` and `relation`, of pictures on which all that was asked for
    is there and no more.
    """
    image = pixels.astype(np.float64)
    if facts.sign is not None:
        return _errors_of_sign(image, facts, facts.sign, held(pixels, facts) if truth is None else truth)
    wall = _wall_behind(image)
    shown = read_things(image, wall)
    return _errors_of_things(shown, _is_seen(image, wall, _beside([one.spot for one in shown], BLUR)), facts)


def _errors_of_sign(image: Pixels, facts: Facts, sign: world.SignFacts, truth: dict[str, bool]) -> dict[str, float]:
    wall = _wall_beside(image, _free(facts))
    shown = letters.read(image, replace(sign, type_size=_type_size(image, wall, sign)))
    wrong = sum(a != b for a, b in zip(shown.word, sign.word, strict=True))
    found = {"letter": math.nan, "fading": math.nan}
    if truth["sign place"] and set(sign.word) <= set(world.LETTERS):
        found = {"letter": wrong / len(sign.word), "fading": float(shown.contrast < FADED)}
        found |= {"letter": math.nan} if shown.contrast < LEGIBLE else {}
    for part in ("wall", "sign", "object"):
        of_part = [holds for name, holds in truth.items() if name.startswith(part)]
        found |= {part: float(not all(of_part))} if of_part else {}
    return found


def _errors_of_things(shown: list[Shown], more: bool, facts: Facts) -> dict[str, float]:
    """`more`: whether anything is seen besides."""
    asked = [thing for thing in facts.things for _ in range(thing.count)]
    wanted, there = Counter(thing.name for thing in asked), Counter(one.name for one in shown)
    found = {"kind": float(bool(there.keys() - wanted.keys() or (there - wanted and wanted - there)))}
    if facts.things[0].count > 1:
        return found | {"count": float(len(shown) != len(asked) or more)}
    found |= {"missing": float(len(shown) < len(asked)), "extra": float(len(shown) + more > len(asked))}
    by_name = {one.name: one for one in shown}
    whole = there == wanted and not more
    if any(thing.colour for thing in asked):
        wrong = whole and any(t.colour and by_name[t.name].colour != t.colour for t in asked)
        found["colour"] = float(wrong) if whole else math.nan
    if asked[-1].relation:
        spots = [by_name[thing.name].spot for thing in asked] if whole else []
        found["relation"] = float(spots != world.spots(facts.things, None)) if whole else math.nan
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

    name = "gold 2: share of the prompt's facts that hold"  # another number where a picture may get another score

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
