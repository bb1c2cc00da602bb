"""What a sign of the pocket world says and how strong its ink is, read from pixels by plain arithmetic.

The world sets signs in one known type and hangs them within a few pixels of a known place, so every letter is matched
with the 26 that could stand there. No reward uses this: it tells a wrong letter from a right one that has faded, which
an OCR engine cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gdro_bench.models.pocket import world
from gdro_bench.models.pocket.world import ADVANCE, COLOURS, LETTERS, SignFacts

REACH = (4, 3)  # px to each side that letters may be off: signs hang loosely, and are centred by their letters' ink
FLAT = 4.0  # levels of luminance: what varies by less has no letters
LUMINANCE = np.array((0.299, 0.587, 0.114))
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sign says, and its contrast: how far its ink is off the panel's colour, about 1 for ink as it is new."""

    word: str
    contrast: float


@cache
def _letters(length: int, type_size: str, place: str) -> tuple[list[tuple[int, int]], Floats]:
    """The corners (x, y) of the cells of a sign's word, and what each of the 26 letters inks of a cell, [26, h, w] in
    0..1."""
    example = SignFacts("H" * length, "", place, type_size)
    font, panel = world.sign_font(example), world.panel_of(example)
    top, bottom = font.getbbox(LETTERS)[1::2]
    width = font.size * ADVANCE
    inked = []
    for letter in LETTERS:
        image = Image.new("L", (round(width), int(bottom - top)))
        ImageDraw.Draw(image).text((0, -top), letter, 255, font)
        inked.append(np.asarray(image, dtype=np.float64) / 255)
    left = panel[0] + world.MARGIN - font.getbbox(example.word)[0]
    above = panel[1] + world.MARGIN - (font.getbbox(example.word)[1] - top)
    return [(round(left + i * width), int(above)) for i in range(length)], np.stack(inked)


def read(image: Floats, sign: SignFacts) -> Reading:
    """What a sign says that should look like this one, of a picture [64, 64, 3] in 0..255: as many letters as its word
    has, each the one that fits best, all equally far off their places and all darker or all lighter than the panel."""
    return _read(image, sign)[1]


def fit(image: Floats, sign: SignFacts) -> float:
    """How well letters of this sign's size fit a picture [64, 64, 3] in 0..255: 1 at most."""
    return _read(image, sign)[0]


def _read(image: Floats, sign: SignFacts) -> tuple[float, Reading]:
    """How well the letters fit, 1 at most, and what they are."""
    corners, inked = _letters(len(sign.word), sign.type_size, sign.place)
    stencils = _centred(inked)  # [26, h w]
    length = np.linalg.norm(stencils, axis=1)
    cells = _centred(_cells(image @ LUMINANCE, corners, (inked.shape[1], inked.shape[2])))  # [offsets, n, h w]
    strength = cells @ (stencils / length[:, None]).T  # [offsets, n, 26]
    fits = strength / np.maximum(np.linalg.norm(cells, axis=-1, keepdims=True), FLAT * np.sqrt(cells.shape[-1]))
    signed = np.stack((fits, -fits))
    total = signed.max(axis=-1).mean(axis=-1)  # [2, offsets]
    ink, offset = np.unravel_index(int(total.argmax()), total.shape)
    which = signed[ink, offset].argmax(axis=-1)
    contrast = np.abs(strength[offset, np.arange(len(which)), which] / length[which]).mean()
    word = "".join(LETTERS[letter] for letter in which)
    return float(total[ink, offset]), Reading(word, float(contrast) / abs(_new_contrast(sign, lighter=ink == 0)))


def _new_contrast(sign: SignFacts, lighter: bool) -> float:
    """How much lighter than a panel of the sign's colour ink is that has not faded, in levels of luminance. Some shades
    of green take light ink and some dark: then it is that which was found."""
    fill = np.array(COLOURS[sign.colour])
    inks = {world.ink_on(tuple(fill + shade)) for shade in (-world.SHADE, world.SHADE)}
    contrasts = {float((np.array(ink) - fill) @ LUMINANCE) for ink in inks}
    return max((one for one in contrasts if (one > 0) == lighter), key=abs, default=max(contrasts, key=abs))


def _centred(pictures: Floats) -> Floats:
    """Pictures [..., h, w] as vectors [..., h w] less their means."""
    flat = pictures.reshape(*pictures.shape[:-2], -1)
    centred: Floats = flat - flat.mean(axis=-1, keepdims=True)
    return centred


def _cells(grey: Floats, corners: list[tuple[int, int]], size: tuple[int, int]) -> Floats:
    """The word's cells at every offset within `REACH`: [offsets, n, h, w]."""
    (across, down), edge = REACH, max(size) + max(REACH)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(grey, edge, mode="edge"), size)
    x, y = (np.array(axis) + edge for axis in zip(*corners, strict=True))
    offsets = [(dy, dx) for dy in range(-down, down + 1) for dx in range(-across, across + 1)]
    return np.stack([windows[y + dy, x + dx] for dy, dx in offsets])
