"""Prompts with a text to be drawn, for models of the real world: things that carry writing, somewhere, in a style."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

STYLES = (
    "a photograph of", "a close-up of", "a film still of", "a watercolour of", "a pencil drawing of",
    "an oil painting of", "a wide-angle photograph of", "a black-and-white photograph of",
    "an isometric rendering of", "a woodcut of",
)  # fmt: skip
CARRIERS = (
    "a neon sign", "a chalkboard", "a paper coffee cup", "a wooden signpost", "a bakery window", "a brick mural",
    "a concert poster", "a birthday cake", "a cotton T-shirt", "a book cover", "a shop awning", "a taxi roof light",
    "a tiled subway wall", "a lighthouse door", "a market banner", "a fishing boat's hull", "a museum plaque",
    "a departure board", "a cardboard box", "a flat garden stone", "a theatre marquee", "a school notebook",
    "a brass doorplate", "a tea tin", "a surfboard", "a hot-air balloon", "a seed packet", "a skateboard deck",
    "a ferry ticket", "a delivery van", "a knitted scarf", "a robot's chest plate", "a classroom whiteboard",
    "a wine label", "a road sign", "a circus tent", "a kite", "a rusty mailbox", "a stadium screen", "a pizza box",
)  # fmt: skip
PLACES = (
    "in a rainy alley at night", "on a quiet beach at dawn", "in a busy kitchen", "beside a snowy road",
    "in a greenhouse full of ferns", "on a rooftop above the city", "in an empty railway station",
    "under cherry trees in bloom", "in a workshop with warm light", "on a mountain path in fog",
    "in a crowded night market", "by a frozen lake", "in a desert at noon", "in an old library",
    "on a wharf among gulls", "in a child's bedroom", "at the edge of a wheat field", "in a narrow stone street",
    "inside a space station", "in an autumn forest", "on a cluttered desk", "next to a fountain",
)  # fmt: skip
SAYINGS = ('that reads "{text}"', 'saying "{text}"', 'with "{text}" written on it', 'with the text "{text}"')


def draw(rng: Generator, words: Sequence[str], count: int) -> list[str]:
    """`count` prompts; each shows one to three of the words, in capitals, capitalised or small."""
    return [_prompt(rng, words) for _ in range(count)]


def _prompt(rng: Generator, words: Sequence[str]) -> str:
    text = " ".join(str(word) for word in rng.choice(words, int(rng.choice((1, 2, 3), p=(0.5, 0.35, 0.15)))))
    cased = (text.upper(), text.title(), text.lower())[int(rng.choice(3, p=(0.5, 0.35, 0.15)))]
    style, carrier, place, saying = (str(rng.choice(options)) for options in (STYLES, CARRIERS, PLACES, SAYINGS))
    return f"{style} {carrier} {saying.format(text=cased)} {place}"
