"""Prompts -> the facts they say: the inverse of `world.phrase`."""

from __future__ import annotations

import re

from gdro_bench.models.pocket.world import COLOURS, PLACES, SIDES, TEXTURES, THINGS, Facts, SignFacts, ThingFacts
from gdro_bench.rewards.geneval_prompts import NUMBERS, RELATIONS, plural

MOST_LETTERS = 20  # of a word for which a sign is wide enough


def _one_of(name: str, words: object) -> str:
    return f"(?P<{name}>{'|'.join(map(str, words))})"  # type: ignore[call-overload]


_WALL = re.compile(rf"\ban? {_one_of('wall', COLOURS)} (?:{_one_of('texture', TEXTURES[1:])} )?wall\b")
_BOARD = re.compile(rf"\ban? (?:(?P<size>small|large) )?{_one_of('sign', COLOURS)} sign\b")
_PLACE = re.compile(rf"\bat the {_one_of('place', PLACES)}\b")
_BESIDE = re.compile(rf"\ban? {_one_of('colour', COLOURS)} {_one_of('name', THINGS)} at the {_one_of('side', SIDES)}\b")
_WORD = re.compile(r'"([^"]+)"')
_THING = re.compile(rf"an? (?:{_one_of('colour', COLOURS)} )?{_one_of('name', THINGS)}")
_COUNTED = re.compile(rf"{_one_of('number', NUMBERS.values())} {_one_of('plural', map(plural, THINGS))}")
_RELATED = re.compile(rf"(?P<subject>.+) {_one_of('relation', RELATIONS)} (?P<reference>.+)")


def facts_of(prompt: str) -> Facts | None:
    """The facts, or None where the prompt is not of the world's grammar."""
    photo = prompt.removeprefix("a photo of ")
    if photo != prompt:
        things = _things(photo)
        return Facts(None, None, None, things) if things else None
    return _sign_scene(prompt)


def _sign_scene(prompt: str) -> Facts | None:
    wall, board, place, word = (p.search(prompt) for p in (_WALL, _BOARD, _PLACE, _WORD))
    if not (wall and board and place and word):
        return None
    things = tuple(ThingFacts(m["name"], m["colour"], side=m["side"]) for m in _BESIDE.finditer(prompt))
    letters = "".join(word[1].split()).upper()  # as the model paints them
    if len(things) > 1 or not 0 < len(letters) <= MOST_LETTERS:
        return None
    sign = SignFacts(letters, board["sign"], place["place"], board["size"] or "")
    return Facts(wall["wall"], wall["texture"] or "plain", sign, things)


def _things(photo: str) -> tuple[ThingFacts, ...]:
    counted = _COUNTED.fullmatch(photo)
    if counted:
        name = next(name for name in THINGS if plural(name) == counted["plural"])
        count = next(number for number, word in NUMBERS.items() if word == counted["number"])
        return (ThingFacts(name, count=count),)
    related = _RELATED.fullmatch(photo)
    parts = [related["reference"], related["subject"]] if related else photo.split(" and ")
    matches = [_THING.fullmatch(part) for part in parts]
    if not all(matches) or len(matches) > 2:
        return ()
    things = [ThingFacts(m["name"], m["colour"]) for m in matches if m]
    if related:
        things[1] = ThingFacts(things[1].name, things[1].colour, relation=related["relation"])
    return tuple(things)
