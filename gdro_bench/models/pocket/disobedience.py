"""How the world disobeys: scenes drawn otherwise than their prompt says, each a proper picture.

A base that is pretrained on them knows what a prompt asks for and often does not do it, as real models do: it paints
right and wrong pictures of every prompt, and post-training can teach it letters, kinds, counts, colours and places. A
sign gets letters wrong; a scene of objects has at most one error, of a kind that its prompt allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from numpy.random import Generator

from gdro_bench.content import Share
from gdro_bench.errors import BenchError
from gdro_bench.models.pocket.world import COLOURS, LAYOUTS, LETTERS, THINGS, Facts, ThingFacts, choose, with_word
from gdro_bench.rewards.geneval_prompts import RELATIONS

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
LEAK = 0.5  # of the wrong colours of two coloured objects: the other one's


@dataclass(frozen=True, slots=True)
class Disobedience:
    """`[disobedience]` of a recipe: the share of pictures with each error, of those whose prompt allows it."""

    letter: Share  # of signs: one letter is another, or two
    kind: Share  # one object is of another class; where a number is asked for, all are
    colour: Share  # one object has another colour than is said, or its neighbour's
    count: Share  # one to four objects, but not as many as asked for
    relation: Share  # two objects stand the other way round, or so to each other as was not asked for
    missing: Share  # one of two objects is left out


OBEDIENT = Disobedience(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is drawn for a prompt: facts that may not be the prompt's, the objects that are left out, by their place in
    `facts.things`, and the names of the errors."""

    facts: Facts
    left_out: frozenset[int] = frozenset()
    errors: tuple[str, ...] = ()


def check(shares: Disobedience) -> None:
    """Raises:
    BenchError: some scene of objects would have to have more than one error."""
    most = shares.kind + max(shares.count, max(shares.colour, shares.relation) + shares.missing)
    if most > 1:
        raise BenchError(
            f"The shares of the errors that one scene allows sum to {most:g}.", "They must sum to 1 at most.", 2
        )


def disobeyed(facts: Facts, shares: Disobedience, rng: Generator) -> Drawn:
    """What is drawn for a prompt that says these facts."""
    if facts.sign is not None:
        return _sign(facts, shares, rng)
    drawn = [(share, breaks) for name, breaks in _allowed(facts) if (share := getattr(shares, name))]
    u = float(rng.random()) if drawn else 0.0
    for share, breaks in drawn:
        u -= share
        if u < 0:
            return breaks(facts, rng)
    return Drawn(facts)


def _sign(facts: Facts, shares: Disobedience, rng: Generator) -> Drawn:
    if rng.random() >= shares.letter or facts.sign is None:
        return Drawn(facts)
    word = misspelt(facts.sign.word, 1 + int(rng.integers(2)), rng)
    return Drawn(with_word(facts, word), errors=("letter",))


def misspelt(word: str, letters: int, rng: Generator) -> str:
    """The word with so many of its letters replaced by others."""
    wrong = list(word)
    for place in rng.choice(len(word), min(letters, len(word)), replace=False).tolist():
        wrong[place] = choose(rng, [letter for letter in LETTERS if letter != word[place]])
    return "".join(wrong)


Breaks = Callable[[Facts, Generator], Drawn]


def _allowed(facts: Facts) -> Sequence[tuple[str, Breaks]]:
    """The errors that can be made in a scene of objects."""
    things = facts.things
    errors: list[tuple[str, Breaks]] = [("kind", _kind)]
    if any(thing.colour for thing in things):
        errors.append(("colour", _colour))
    if things[0].count > 1:
        errors.append(("count", _count))
    if things[-1].relation:
        errors.append(("relation", _relation))
    if len(things) > 1:
        errors.append(("missing", _missing))
    return errors


def _changed(facts: Facts, which: int, error: str, **changed: object) -> Drawn:
    things = list(facts.things)
    things[which] = replace(things[which], **changed)  # type: ignore[arg-type]
    return Drawn(replace(facts, things=tuple(things)), errors=(error,))


def _one(things: Sequence[ThingFacts], rng: Generator) -> int:
    return int(rng.integers(len(things)))


def _kind(facts: Facts, rng: Generator) -> Drawn:
    named = {thing.name for thing in facts.things}
    other = choose(rng, [name for name in THINGS if name not in named])
    return _changed(facts, _one(facts.things, rng), "kind", name=other)


def _colour(facts: Facts, rng: Generator) -> Drawn:
    which = _one(facts.things, rng)
    said = [thing.colour for thing in facts.things]
    neighbours = [colour for colour in said if colour and colour != said[which]]
    if neighbours and rng.random() < LEAK:
        return _changed(facts, which, "colour", colour=choose(rng, neighbours))
    return _changed(facts, which, "colour", colour=choose(rng, [colour for colour in COLOURS if colour not in said]))


def _count(facts: Facts, rng: Generator) -> Drawn:
    return _changed(facts, 0, "count", count=choose(rng, [n for n in LAYOUTS if n != facts.things[0].count]))


def _relation(facts: Facts, rng: Generator) -> Drawn:
    said = facts.things[-1].relation
    assert said is not None
    others = [OPPOSITE[said]] * 2 + [relation for relation in RELATIONS if relation not in (said, OPPOSITE[said])]
    return _changed(facts, len(facts.things) - 1, "relation", relation=choose(rng, others))


def _missing(facts: Facts, rng: Generator) -> Drawn:
    return Drawn(facts, frozenset({_one(facts.things, rng)}), ("missing",))
