"""The pocket world: 64x64 scenes whose every fact is known, drawn with Pillow from a seeded generator.

A scene is described by `Facts`, which is all that a prompt says. What a prompt leaves open (exact place,
shade, ink, fading) is drawn afresh by `render`, so that one prompt has many right pictures: easy and hard to read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gdro_bench.errors import BenchError
from gdro_bench.rewards.geneval_prompts import NUMBERS, RELATIONS, article, plural
from gdro_bench.score import Images

SIZE = 64
TOKEN_SIDE = 8  # px of an image token of the model
ADVANCE = 0.602  # em, of every letter of DejaVu Sans Mono
MARGIN = 4  # px of a panel around its word
THING_SIDE = 29  # an object fills x to x + 29, both inside: 30 px
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 38, 38),
    "orange": (240, 135, 30),
    "yellow": (240, 215, 50),
    "green": (45, 150, 60),
    "blue": (45, 85, 200),
    "purple": (125, 55, 165),
    "pink": (245, 150, 185),
    "brown": (120, 75, 40),
    "black": (25, 25, 28),
    "white": (240, 240, 236),
}
SHADE = 14  # levels that each channel of a colour may be off
TEXTURES = ("plain", "striped", "dotted", "gradient")
PLACES = ("top", "bottom")
TYPE_SIZES = {"small": 14, "": 16, "large": 19}  # px
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MIN_LETTERS, MAX_LETTERS = 3, 5
LAYOUTS = {  # where a number of objects stand, in image tokens
    1: ((2, 2),),
    2: ((0, 2), (4, 2)),
    3: ((0, 0), (4, 0), (2, 4)),
    4: ((0, 0), (4, 0), (0, 4), (4, 4)),
}
SIDES = ("left", "right")
FADED_SHARE = 0.15  # of signs, which no prompt says
FADING = (0.6, 0.95)  # how far what has faded has gone towards what is behind it: from legible to hardly seen

# Characters of DejaVu Sans (shipped by matplotlib) that make recognisable pictures at this size.
GLYPHS = {
    "airplane": "\u2708",
    "umbrella": "\u2602",
    "scissors": "\u2702",
    "cup": "\u2615",
    "cat": "\U0001f431",
    "cow": "\U0001f42e",
    "horse": "\u265e",
}

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class SignFacts:
    """A sign on the wall: what it says, its colour, place and type size (a key of `TYPE_SIZES`)."""

    word: str
    colour: str
    place: str
    type_size: str


@dataclass(frozen=True, slots=True)
class ThingFacts:
    """Objects of one class, in their usual colour if none is given. `relation` places this one against the thing
    before it, as GenEval's position tag does; `side` of the picture is for an object beside a sign."""

    name: str
    colour: str | None = None
    count: int = 1
    relation: str | None = None
    side: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a prompt says of a scene; a wall of `None` is left to the renderer."""

    wall: str | None
    texture: str | None
    sign: SignFacts | None
    things: tuple[ThingFacts, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered scene: pixels uint8 [64, 64, 3] RGB; the sign's panel, if there is one, and the objects' boxes.

    Boxes are (x0, y0, x1, y1) in px, both corners inside.
    """

    pixels: NDArray[np.uint8]
    panel: Box | None
    boxes: tuple[Box, ...]


# ---------------------------------------------------------------------------------------------------------------
# What a scene holds, and how a prompt says it


T = TypeVar("T")


def choose(rng: Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def random_letters(rng: Generator) -> str:
    """A string of letters that need not be a word: it teaches spelling rather than words."""
    length = int(rng.integers(MIN_LETTERS, MAX_LETTERS + 1))
    return "".join(choose(rng, LETTERS) for _ in range(length))


def sign_facts(rng: Generator, word: str) -> Facts:
    """A wall with a sign that says `word`, and in five of six scenes an object."""
    wall, sign, thing = (str(c) for c in rng.choice(list(COLOURS), 3, replace=False))
    with_thing = rng.random() < 5 / 6
    things = (ThingFacts(choose(rng, list(THINGS)), thing, side=choose(rng, SIDES)),) if with_thing else ()
    type_size = choose(rng, ("small", "", "", "large"))
    return Facts(wall, choose(rng, TEXTURES), SignFacts(word, sign, choose(rng, PLACES), type_size), things)


def with_word(facts: Facts, word: str) -> Facts:
    """The same scene with another word on its sign."""
    assert facts.sign is not None
    return replace(facts, sign=replace(facts.sign, word=word))


def thing_facts(rng: Generator) -> Facts:
    """A scene for one of GenEval's six tags, in Flow-GRPO's spirit: the harder tags more often."""
    names = [str(n) for n in rng.choice(list(THINGS), 2, replace=False)]
    colours = [str(c) for c in rng.choice(list(COLOURS), 2, replace=False)]
    tag = rng.choice(6, p=(0.1, 0.15, 0.2, 0.15, 0.25, 0.15))
    things: tuple[ThingFacts, ...]
    if tag == 0:
        things = (ThingFacts(names[0]),)
    elif tag == 1:
        things = (ThingFacts(names[0]), ThingFacts(names[1]))
    elif tag == 2:
        things = (ThingFacts(names[0], count=int(rng.integers(2, 5))),)
    elif tag == 3:
        things = (ThingFacts(names[0], colours[0]),)
    elif tag == 4:
        things = (ThingFacts(names[0]), ThingFacts(names[1], relation=choose(rng, RELATIONS)))
    else:
        things = (ThingFacts(names[0], colours[0]), ThingFacts(names[1], colours[1]))
    return Facts(None, None, None, things)


def phrase(facts: Facts, rng: Generator) -> str:
    """The facts as an English prompt; sign scenes in one of three wordings, the others in GenEval's grammar."""
    if facts.sign is None:
        return _phrase_things(facts.things)
    sign = facts.sign
    texture = "" if facts.texture == "plain" else f"{facts.texture} "
    wall = f"a {facts.wall} {texture}wall".replace("a orange", "an orange")
    board = article(f"{sign.type_size} {sign.colour} sign".strip())
    thing = " and ".join(f"{article(f'{t.colour} {t.name}')} at the {t.side}" for t in facts.things)
    wording = int(rng.integers(3))
    if wording == 0:
        return f'{board} that reads "{sign.word}" at the {sign.place} of {wall}' + (f" with {thing}" if thing else "")
    if wording == 1:
        return f'{wall} with {board} saying "{sign.word}" at the {sign.place}' + (f" and {thing}" if thing else "")
    start = f"{thing} and {wall}" if thing else wall
    return f'{start}, at the {sign.place} {board} with the word "{sign.word}"'


def _phrase_things(things: tuple[ThingFacts, ...]) -> str:
    if things[0].count > 1:
        return f"a photo of {NUMBERS[things[0].count]} {plural(things[0].name)}"
    named = [article(f"{t.colour} {t.name}" if t.colour else t.name) for t in things]
    if len(things) == 1:
        return f"a photo of {named[0]}"
    if things[1].relation:  # GenEval's metadata names the reference first, its prompt the subject
        return f"a photo of {named[1]} {things[1].relation} {named[0]}"
    return f"a photo of {named[0]} and {named[1]}"


# ---------------------------------------------------------------------------------------------------------------
# Drawing


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _shade(rng: Generator, colour: str) -> tuple[int, int, int]:
    jitter = rng.integers(-SHADE, SHADE + 1, size=3)
    r, g, b = (int(np.clip(c + j, 0, 255)) for c, j in zip(COLOURS[colour], jitter, strict=True))
    return r, g, b


def _luminance(rgb: tuple[int, int, int]) -> float:
    return (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255


def _mix(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    r, g, b_ = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, b_


def ink_on(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """The colour of what is written or drawn on this one: nearly black on light colours, nearly white on dark ones."""
    return (18, 18, 20) if _luminance(rgb) > 0.45 else (248, 248, 244)


def _draw_wall(rng: Generator, colour: str, texture: str) -> Image.Image:
    base = _shade(rng, colour)
    other = _mix(base, ink_on(base), 0.22)
    if texture == "gradient":
        ramp = np.linspace(0, 1, SIZE)[:, None, None] * np.ones((1, SIZE, 1))
        pixels = np.array(base) + ramp * (np.array(_mix(base, ink_on(base), 0.45)) - np.array(base))
        return Image.fromarray(pixels.astype(np.uint8))
    image = Image.new("RGB", (SIZE, SIZE), base)
    draw = ImageDraw.Draw(image)
    draw_pattern(draw, texture, other)
    return image


def draw_pattern(draw: ImageDraw.ImageDraw, texture: str, colour: Colour | int) -> None:
    """The stripes or dots of a wall."""
    if texture == "striped":
        for x in range(0, SIZE, 8):
            draw.rectangle((x, 0, x + 3, SIZE - 1), fill=colour)
    elif texture == "dotted":
        for y in range(0, SIZE, 8):
            for x in range(0, SIZE, 8):
                draw.ellipse((x + 2, y + 2, x + 5, y + 5), fill=colour)


def sign_font(sign: SignFacts) -> ImageFont.FreeTypeFont:
    widest = int(56 / (ADVANCE * len(sign.word)))
    return _font("DejaVuSansMono-Bold.ttf", min(TYPE_SIZES[sign.type_size], widest))


def panel_of(sign: SignFacts, dx: int = 0, dy: int = 0) -> Box:
    """The box of a sign's panel, hung (dx, dy) px off its usual place."""
    x0, y0, x1, y1 = sign_font(sign).getbbox(sign.word)
    half_w, half_h = int(x1 - x0) // 2 + MARGIN, int(y1 - y0) // 2 + MARGIN
    cx = int(np.clip(SIZE // 2 + dx, half_w, SIZE - 1 - half_w))
    cy = (14 if sign.place == "top" else 50) + dy
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


def _draw_sign(rng: Generator, draw: ImageDraw.ImageDraw, sign: SignFacts, faded: float) -> Box:
    dx, dy = int(rng.integers(-1, 2)), int(rng.integers(-1, 2))
    panel = panel_of(sign, dx, dy)
    font = sign_font(sign)
    x0, y0, _, _ = font.getbbox(sign.word)
    fill = _shade(rng, sign.colour)
    ink = ink_on(fill)
    if rng.random() < faded:
        ink = _mix(ink, fill, float(rng.uniform(*FADING)))
    draw.rounded_rectangle(panel, radius=3, fill=fill, outline=_mix(fill, ink_on(fill), 0.6))
    draw.text((panel[0] + MARGIN - x0, panel[1] + MARGIN - y0), sign.word, font=font, fill=ink)
    return panel


Drawer = Callable[[ImageDraw.ImageDraw, int, int, int, Colour], None]


def _glyph(character: str) -> Drawer:
    def draw_glyph(draw: ImageDraw.ImageDraw, x: int, y: int, s: int, colour: Colour) -> None:
        x0, y0, x1, y1 = _font("DejaVuSans.ttf", 100).getbbox(character)
        font = _font("DejaVuSans.ttf", int(100 * (s - 2) / max(x1 - x0, y1 - y0)))
        x0, y0, x1, y1 = font.getbbox(character)
        origin = (x + s / 2 - (x0 + x1) / 2, y + s / 2 - (y0 + y1) / 2)
        draw.text(origin, character, font=font, fill=colour, stroke_width=1 if s > 18 else 0, stroke_fill=colour)

    return draw_glyph


def _clock(d: ImageDraw.ImageDraw, x: int, y: int, s: int, c: Colour) -> None:
    d.ellipse((x, y, x + s, y + s), fill=c)
    d.ellipse((x + s * 0.16, y + s * 0.16, x + s * 0.84, y + s * 0.84), fill=_mix(c, ink_on(c), 0.85))
    d.line((x + s / 2, y + s / 2, x + s / 2, y + s * 0.25), fill=c, width=2)
    d.line((x + s / 2, y + s / 2, x + s * 0.7, y + s * 0.55), fill=c, width=2)


def _stop_sign(d: ImageDraw.ImageDraw, x: int, y: int, s: int, c: Colour) -> None:
    d.rectangle((x + s * 0.45, y + s * 0.6, x + s * 0.55, y + s), fill=(90, 90, 95))
    d.regular_polygon((x + s / 2, y + s * 0.38, s * 0.38), 8, rotation=22.5, fill=c, outline=ink_on(c))
    d.rectangle((x + s * 0.3, y + s * 0.33, x + s * 0.7, y + s * 0.43), fill=ink_on(c))


def _traffic_light(d: ImageDraw.ImageDraw, x: int, y: int, s: int, c: Colour) -> None:
    d.rounded_rectangle((x + s * 0.28, y, x + s * 0.72, y + s), radius=3, fill=c, outline=ink_on(c))
    for i, lamp in enumerate(((230, 50, 40), (245, 200, 40), (60, 190, 80))):
        cy = y + s * (0.2 + 0.3 * i)
        d.ellipse((x + s * 0.39, cy - s * 0.11, x + s * 0.61, cy + s * 0.11), fill=lamp)


def _kite(d: ImageDraw.ImageDraw, x: int, y: int, s: int, c: Colour) -> None:
    d.polygon(
        ((x + s * 0.55, y), (x + s * 0.9, y + s * 0.3), (x + s * 0.5, y + s * 0.72), (x + s * 0.2, y + s * 0.26)), c
    )
    d.line((x + s * 0.55, y, x + s * 0.5, y + s * 0.72), fill=ink_on(c))
    d.line((x + s * 0.5, y + s * 0.72, x + s * 0.2, y + s), fill=c, width=2)


def _bus(d: ImageDraw.ImageDraw, x: int, y: int, s: int, c: Colour) -> None:
    d.rounded_rectangle((x, y + s * 0.2, x + s, y + s * 0.78), radius=3, fill=c)
    for i in range(3):
        left = x + s * (0.08 + 0.3 * i)
        d.rectangle((left, y + s * 0.3, left + s * 0.22, y + s * 0.5), fill=_mix(c, ink_on(c), 0.8))
    for centre in (0.25, 0.75):
        d.ellipse((x + s * (centre - 0.12), y + s * 0.66, x + s * (centre + 0.12), y + s * 0.9), fill=(30, 30, 34))


def _apple(d: ImageDraw.ImageDraw, x: int, y: int, s: int, c: Colour) -> None:
    d.ellipse((x + s * 0.05, y + s * 0.25, x + s * 0.6, y + s), fill=c)
    d.ellipse((x + s * 0.4, y + s * 0.25, x + s * 0.95, y + s), fill=c)
    d.line((x + s * 0.5, y + s * 0.35, x + s * 0.56, y + s * 0.05), fill=(80, 55, 30), width=2)
    d.ellipse((x + s * 0.56, y + s * 0.04, x + s * 0.86, y + s * 0.2), fill=(60, 150, 60))


def _book(d: ImageDraw.ImageDraw, x: int, y: int, s: int, c: Colour) -> None:
    d.rectangle((x + s * 0.12, y, x + s * 0.88, y + s), fill=c)
    d.rectangle((x + s * 0.12, y, x + s * 0.26, y + s), fill=_mix(c, ink_on(c), 0.4))
    for row in (0.25, 0.4):
        d.line((x + s * 0.38, y + s * row, x + s * 0.76, y + s * row), fill=ink_on(c))


def _sports_ball(d: ImageDraw.ImageDraw, x: int, y: int, s: int, c: Colour) -> None:
    d.ellipse((x, y, x + s, y + s), fill=c)
    line = _mix(c, ink_on(c), 0.7)
    d.line((x + s / 2, y, x + s / 2, y + s), fill=line)
    d.line((x, y + s / 2, x + s, y + s / 2), fill=line)
    d.arc((x - s * 0.6, y, x + s * 0.3, y + s), -60, 60, fill=line)
    d.arc((x + s * 0.7, y, x + s * 1.6, y + s), 120, 240, fill=line)


THINGS: dict[str, Drawer] = {name: _glyph(character) for name, character in GLYPHS.items()} | {
    "clock": _clock,
    "stop sign": _stop_sign,
    "traffic light": _traffic_light,
    "kite": _kite,
    "bus": _bus,
    "apple": _apple,
    "book": _book,
    "sports ball": _sports_ball,
}
USUAL_COLOURS = {
    "airplane": "white",
    "umbrella": "purple",
    "scissors": "black",
    "cup": "white",
    "cat": "orange",
    "cow": "brown",
    "horse": "brown",
    "clock": "black",
    "stop sign": "red",
    "traffic light": "black",
    "kite": "pink",
    "bus": "yellow",
    "apple": "red",
    "book": "blue",
    "sports ball": "orange",
}


def spots(things: tuple[ThingFacts, ...], place: str | None) -> list[tuple[int, int]]:
    """The left upper corner of a box of `THING_SIDE` px for every single object, without overlap.

    Corners lie on the grid of image tokens: at any other place the same object is another pattern to learn. And what
    a prompt leaves open about places is settled here, not drawn: a model of this size paints both of two choices.
    """
    return [(x * TOKEN_SIDE + 1, y * TOKEN_SIDE + 1) for x, y in _cells(things, place)]


def _cells(things: tuple[ThingFacts, ...], place: str | None) -> Sequence[tuple[int, int]]:
    """The same corners in image tokens; an object takes four a side."""
    if place is not None:  # beside a sign: one object in the other half of the picture
        return [(0 if things[0].side == "left" else 4, 4 if place == "top" else 0)]
    relation = things[-1].relation
    if relation is not None:  # the reference object, then the one that stands so to it
        near_and_far = ((0, 2), (4, 2)) if relation in ("left of", "right of") else ((2, 0), (2, 4))
        return near_and_far if relation in ("right of", "below") else near_and_far[::-1]
    return LAYOUTS[sum(thing.count for thing in things)]


def render(
    facts: Facts,
    rng: Generator,
    faded_signs: float = FADED_SHARE,
    left_out: Collection[int] = (),
) -> Picture:
    """Draws the scene; all that the facts leave open comes from `rng`.

    Args:
        faded_signs: share of signs that have faded. left_out: which of `facts.things` are not drawn; the others stand
            where they would beside them.
    """
    worn = {thing.colour or USUAL_COLOURS[thing.name] for thing in facts.things}
    wall = facts.wall or choose(rng, [c for c in COLOURS if c not in worn])
    image = _draw_wall(rng, wall, facts.texture or choose(rng, TEXTURES))
    panel = _draw_sign(rng, ImageDraw.Draw(image), facts.sign, faded_signs) if facts.sign else None
    free = iter(spots(facts.things, facts.sign.place if facts.sign else None)) if facts.things else iter(())
    boxes: list[Box] = []
    for which, thing in enumerate(facts.things):
        for _ in range(thing.count):
            x, y = next(free)
            if which in left_out:
                continue
            colour = _shade(rng, thing.colour or USUAL_COLOURS[thing.name])
            THINGS[thing.name](ImageDraw.Draw(image), x, y, THING_SIDE, colour)
            boxes.append((x, y, x + THING_SIDE, y + THING_SIDE))
    return Picture(np.asarray(image, dtype=np.uint8), panel, tuple(boxes))


def check_size(images: Images, instrument: str) -> None:
    """Raises:
    BenchError: these are no pictures of this world's size."""
    if images.shape[1:3] != (SIZE, SIZE):
        raise BenchError(
            f"The {instrument} looks at pictures of {SIZE} x {SIZE} px; these have {images.shape[2]} x "
            f"{images.shape[1]}.",
            "Choose another --judge or --profile for them, or make them as small.",
        )
