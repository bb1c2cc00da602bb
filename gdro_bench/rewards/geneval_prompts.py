"""GenEval's prompts (arXiv 2310.11513): a grammar of six tags over a list of classes, drawn from a seeded generator.

With the 80 COCO classes, seed 43 and n = 100, `suite` gives the published 553 lines in their order. The order of
draws is part of the definition. Difference from the published script: duplicates are found by comparing values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.random import Generator

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
UNCOLOURED = "person"  # "a red person" is never asked for
# Flow-GRPO's mix of training prompts (arXiv 2505.05470): the harder tags more often, single objects never.
TRAINING_MIX = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}


@dataclass(frozen=True, slots=True)
class Clause:
    """`count` objects of a class, perhaps of a colour, perhaps in a relation to those of an earlier clause."""

    name: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None  # relation, index of the clause that it holds against

    def published(self) -> dict[str, Any]:
        optional = {"color": self.colour, "position": self.position and list(self.position)}
        return {"class": self.name, "count": self.count} | {k: v for k, v in optional.items() if v is not None}


@dataclass(frozen=True, slots=True)
class Scene:
    """A prompt and what must (`include`) and must not (`exclude`: so many or more) be in its picture."""

    tag: str
    include: tuple[Clause, ...]
    prompt: str
    exclude: tuple[Clause, ...] = ()

    def published(self) -> dict[str, Any]:
        """The line of GenEval's metadata file, its keys in the published order."""
        clauses = {name: [clause.published() for clause in getattr(self, name)] for name in ("include", "exclude")}
        return {"tag": self.tag} | {name: value for name, value in clauses.items() if value} | {"prompt": self.prompt}


def parse(line: Any) -> Scene:
    """A scene from a line of metadata.

    Raises:
        KeyError: a key is missing.
        TypeError: a part is of another type.
        ValueError: it asks for what no picture can show, such as a colour that no object is told to have.
    """
    if not isinstance(line, dict):
        raise TypeError("it is no JSON object")
    if not isinstance(line["prompt"], str):
        raise TypeError("`prompt` is no text")
    parts = {part: list(line.get(part, [])) for part in ("include", "exclude")}
    if not parts["include"]:
        raise ValueError("it asks for nothing (`include`)")
    clauses = {part: tuple(_clause(table, number) for number, table in enumerate(parts[part])) for part in parts}
    return Scene(line["tag"], clauses["include"], line["prompt"], clauses["exclude"])


def _clause(table: Any, number: int) -> Clause:
    """The clause of this number in its list."""
    if not isinstance(table, dict):
        raise TypeError(f"{table!r} is no clause")
    count, colour, position = table["count"], table.get("color"), table.get("position")
    if not isinstance(table["class"], str):
        raise TypeError(f"`class` is {table['class']!r}, no word")
    if type(count) is not int or count < 1:
        raise ValueError(f"`count` is {count!r}, not a whole number of at least 1")
    if colour is not None and colour not in COLOURS:
        raise ValueError(f"the colour is {colour!r}; known: {', '.join(COLOURS)}")
    if position is None:
        return Clause(table["class"], count, colour)
    relation, against = position
    if relation not in RELATIONS:
        raise ValueError(f"the relation is {relation!r}; known: {', '.join(RELATIONS)}")
    if type(against) is not int or not 0 <= against < number:
        raise ValueError(f"`position` holds against clause {against!r}, which does not come before it")
    return Clause(table["class"], count, colour, (relation, against))


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str) -> str:
    """GenEval's own plural: `es` after an s, else `s` (so `scissorses`, `sheeps`)."""
    return noun + ("es" if noun.endswith("s") else "s")


# ---------------------------------------------------------------------------------------------------------------
# One scene of each tag


def single_object(name: str) -> Scene:
    return Scene("single_object", (Clause(name),), f"a photo of {article(name)}")


def two_object(rng: Generator, classes: Sequence[str]) -> Scene:
    a, b = _two(rng, classes)
    return Scene("two_object", (Clause(a), Clause(b)), f"a photo of {article(a)} and {article(b)}")


def counting(rng: Generator, classes: Sequence[str]) -> Scene:
    name = _one(rng, classes)
    count = int(rng.integers(2, 4, endpoint=True))
    prompt = f"a photo of {NUMBERS[count]} {plural(name)}"
    return Scene("counting", (Clause(name, count),), prompt, (Clause(name, count + 1),))


def colors(rng: Generator, classes: Sequence[str]) -> Scene:
    name, colour = _one(rng, _colourable(classes)), _one(rng, COLOURS)
    return Scene("colors", (Clause(name, 1, colour),), f"a photo of {article(colour)} {name}")


def position(rng: Generator, classes: Sequence[str]) -> Scene:
    """The reference object comes first in the clauses, the subject first in the prompt."""
    subject, reference = _two(rng, classes)
    relation = _one(rng, RELATIONS)
    clauses = (Clause(reference), Clause(subject, position=(relation, 0)))
    return Scene("position", clauses, f"a photo of {article(subject)} {relation} {article(reference)}")


def color_attr(rng: Generator, classes: Sequence[str]) -> Scene:
    names, colours = _two(rng, _colourable(classes)), _two(rng, COLOURS)
    phrases = [f"{article(colour)} {name}" for name, colour in zip(names, colours, strict=True)]
    clauses = tuple(Clause(name, 1, colour) for name, colour in zip(names, colours, strict=True))
    return Scene("color_attr", clauses, f"a photo of {phrases[0]} and {phrases[1]}")


DRAWN: dict[str, Callable[[Generator, Sequence[str]], Scene]] = {
    "two_object": two_object,
    "counting": counting,
    "colors": colors,
    "position": position,
    "color_attr": color_attr,
}
TAGS = ("single_object", *DRAWN)


def _one(rng: Generator, options: Sequence[str]) -> str:
    return options[int(rng.choice(len(options)))]


def _two(rng: Generator, options: Sequence[str]) -> tuple[str, str]:
    a, b = rng.choice(len(options), size=2, replace=False)
    return options[int(a)], options[int(b)]


def _colourable(classes: Sequence[str]) -> list[str]:
    return [name for name in classes if name != UNCOLOURED]


# ---------------------------------------------------------------------------------------------------------------
# Sets of scenes


def suite(rng: Generator, classes: Sequence[str], n: int) -> list[Scene]:
    """The test set: every class alone, then n draws of each other tag, without repetitions."""
    singles = rng.choice(len(classes), size=len(classes), replace=False)
    scenes = [single_object(classes[int(i)]) for i in singles]
    scenes += [draw(rng, classes) for draw in DRAWN.values() for _ in range(n)]
    return list(dict.fromkeys(scenes))


def training(rng: Generator, classes: Sequence[str], n: int, test: Sequence[Scene]) -> list[Scene]:
    """n scenes in Flow-GRPO's mix, none with a prompt of the test set; easy tags repeat, as they do there.

    Raises:
        ValueError: the test set holds every prompt of a tag.
    """
    banned, total = {scene.prompt for scene in test}, sum(TRAINING_MIX.values())
    shares = [weight / total for weight in TRAINING_MIX.values()]
    tags = rng.choice(list(TRAINING_MIX), size=n, p=shares)
    return [_unseen(rng, classes, str(tag), banned) for tag in tags]


def _unseen(rng: Generator, classes: Sequence[str], tag: str, banned: set[str]) -> Scene:
    for _ in range(1000):
        scene = DRAWN[tag](rng, classes)
        if scene.prompt not in banned:
            return scene
    raise ValueError(f"the test set leaves no prompt tagged {tag!r} to train on")
