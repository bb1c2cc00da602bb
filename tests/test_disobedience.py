"""A world that breaks its prompts: with the errors that a recipe names, as often as it says, each a proper picture."""

import io
import json
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from rich.console import Console

from gdro_bench import content
from gdro_bench.engine import plan
from gdro_bench.errors import BenchError
from gdro_bench.models.pocket import gold, prompts, world
from gdro_bench.models.pocket.disobedience import OBEDIENT, Disobedience, Drawn, check, disobeyed, misspelt
from gdro_bench.models.pocket.policy import WEIGHTS
from gdro_bench.models.pocket.training import base_card
from gdro_bench.models.pocket.training.train_base import Lesson, Pretraining, draw_batch

ERRORS = ("kind", "colour", "count", "relation", "missing")


def object_scenes(n: int, seed: int = 0) -> list[world.Facts]:
    rng = default_rng(seed)
    return [world.thing_facts(rng) for _ in range(n)]


def sign_scenes(n: int, seed: int = 0) -> list[world.Facts]:
    rng = default_rng(seed)
    return [world.sign_facts(rng, world.random_letters(rng)) for _ in range(n)]


def drawn_for(scenes: list[world.Facts], shares: Disobedience, seed: int = 1) -> list[Drawn]:
    rng = default_rng(seed)
    return [disobeyed(facts, shares, rng) for facts in scenes]


def allows(facts: world.Facts, error: str) -> bool:
    things = facts.things
    return {
        "kind": True,
        "colour": any(thing.colour for thing in things),
        "count": things[0].count > 1,
        "relation": things[-1].relation is not None,
        "missing": len(things) > 1,
    }[error]


def test_without_shares_every_picture_is_what_its_prompt_says():
    scenes = object_scenes(50) + sign_scenes(50)
    assert drawn_for(scenes, OBEDIENT) == [Drawn(facts) for facts in scenes]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_made_wherever_the_prompt_allows_it_and_changes_nothing_else(error):
    scenes = object_scenes(300)
    for facts, drawn in zip(scenes, drawn_for(scenes, replace(OBEDIENT, **{error: 1.0})), strict=True):
        if not allows(facts, error):
            assert drawn == Drawn(facts)
            continue
        assert drawn.errors == (error,)
        parts = {"kind": "name", "colour": "colour", "count": "count", "relation": "relation"}
        asked = [{part: getattr(thing, part) for part in parts.values()} for thing in facts.things]
        shown = [{part: getattr(thing, part) for part in parts.values()} for thing in drawn.facts.things]
        changed = [(i, part) for i, one in enumerate(asked) for part in one if one[part] != shown[i][part]]
        assert [part for _, part in changed] == ([] if error == "missing" else [parts[error]])
        assert len(drawn.left_out) == (error == "missing")
        assert replace(drawn.facts, things=facts.things) == facts


def test_a_scene_of_objects_has_at_most_one_error_each_as_often_as_the_recipe_says():
    shares = Disobedience(letter=0.5, kind=0.15, colour=0.3, count=0.4, relation=0.25, missing=0.1)
    check(shares)
    scenes = object_scenes(6000)
    drawn = drawn_for(scenes, shares)
    assert max(len(one.errors) for one in drawn) == 1
    for error in ERRORS:
        made = [error in one.errors for facts, one in zip(scenes, drawn, strict=True) if allows(facts, error)]
        share = getattr(shares, error)
        assert np.mean(made) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(made)))


def test_shares_that_ask_for_two_errors_in_a_scene_are_refused():
    with pytest.raises(BenchError, match=r"sum to 1\.1"):
        check(Disobedience(1.0, 0.3, 0.5, 0.1, 0.6, 0.2))


@pytest.mark.parametrize("letters", [1, 2])
def test_so_many_letters_are_wrong(letters):
    rng = default_rng(0)
    for word in ("CAT", "HOUSE") * 20:
        wrong = misspelt(word, letters, rng)
        assert len(wrong) == len(word)
        assert sum(a != b for a, b in zip(word, wrong, strict=True)) == letters


def test_a_sign_gets_letters_wrong_and_nothing_else():
    scenes = sign_scenes(600)
    drawn = drawn_for(scenes, replace(OBEDIENT, letter=0.4, kind=0.5, colour=0.5))
    wrong = [one.facts.sign.word != facts.sign.word for facts, one in zip(scenes, drawn, strict=True)]
    assert np.mean(wrong) == pytest.approx(0.4, abs=0.08)
    assert [one.errors == ("letter",) for one in drawn] == wrong
    for facts, one in zip(scenes, drawn, strict=True):
        assert replace(one.facts, sign=facts.sign) == facts


def test_some_colours_are_the_neighbours():
    two = world.Facts(None, None, None, (world.ThingFacts("cat", "red"), world.ThingFacts("bus", "blue")))
    drawn = drawn_for([two] * 400, replace(OBEDIENT, colour=1.0))
    seen = Counter(tuple(thing.colour for thing in one.facts.things) for one in drawn)
    leaked = seen["red", "red"] + seen["blue", "blue"]
    assert leaked / 400 == pytest.approx(0.5, abs=0.1)
    assert all("red" in colours or "blue" in colours for colours in seen)


@pytest.mark.parametrize("error", ERRORS)
def test_what_disobeys_is_a_proper_picture_of_something_else(error):
    rng = default_rng(3)
    seen = 0
    for facts in object_scenes(60, seed=4):
        drawn = disobeyed(facts, replace(OBEDIENT, **{error: 1.0}), rng)
        if not drawn.errors:
            continue
        seen += 1
        pixels = world.render(drawn.facts, rng, left_out=drawn.left_out).pixels
        held = gold.held(pixels, drawn.facts)
        gone = {name for name, holds in held.items() if not holds}
        assert gone == {name for which in drawn.left_out for name in held if name.startswith(f"object {which}")}
        assert not all(gold.held(pixels, facts).values())
    assert seen > 5


def test_what_is_left_out_leaves_the_others_where_they_were():
    facts = world.Facts("blue", "plain", None, (world.ThingFacts("cat"), world.ThingFacts("bus", relation="above")))
    whole, part = (world.render(facts, default_rng(0), left_out=out) for out in ((), {0}))
    assert part.boxes == whole.boxes[1:]


RECIPE = content.load(content.find("profile", "pocket") / "training" / "pretrain.toml", Pretraining)
RIGHT = replace(RECIPE, disobedience=OBEDIENT)
WRONG = replace(RECIPE, disobedience=Disobedience(1.0, 1.0, 0.0, 0.0, 0.0, 0.0))


def test_a_batch_disobeys_once_it_may_and_its_prompts_do_not_tell():
    words = prompts.words("train")
    obedient, early, late = (
        draw_batch(config, words, (0, 1, 3), 16, Lesson(16, 0.5, 0.15, obedient))
        for config, obedient in ((RIGHT, False), (WRONG, True), (WRONG, False))
    )
    assert obedient.prompts == early.prompts
    assert torch.equal(obedient.pixels, early.pixels)
    assert obedient.prompts[0] == late.prompts[0]
    assert not torch.equal(obedient.pixels[0], late.pixels[0])


@pytest.mark.usefixtures("sketched")
def test_the_card_of_a_base_tells_its_groups_and_their_errors(tmp_path, monkeypatch):
    """Of the shipped base, as if it had been made so."""
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    lines = [{"stage": stage, "images": n, "loss": 1 / n} for stage in ("autoencoder", "transformer") for n in (8, 16)]
    (tmp_path / "losses.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    whole = plan.evaluation_inputs

    def few(*arguments):
        made, profile, found = whole(*arguments)
        return made, replace(profile, reader=replace(profile.reader, workers=0)), found[:8]

    monkeypatch.setattr(plan, "evaluation_inputs", few)
    for name, value in {"GROUPS": 2, "GROUP": 3, "SHEET": 4}.items():
        monkeypatch.setattr(base_card, name, value)
    recipe = base_card.recipe()
    base_card.write_card(tmp_path, 0, recipe, Console(file=io.StringIO()))
    card = (tmp_path / "weights" / "MODEL_CARD.md").read_text()
    for task in ("ocr", "geneval"):
        assert f"2 tuning prompts of {task} with 3 images each" in card
    assert card.count("of the groups have variance") == 2
    for error in ("letter", "kind"):
        assert re.search(rf"\| {error} \| {getattr(recipe.disobedience, error):.0%} \| \d+% \|", card)
    assert re.search(rf"\| fading \| {recipe.lessons[-1].faded_signs:.0%} \| \d+% \|", card)
    assert re.search(r"\| wall \| none \| \d+% \|", card)
    for picture in re.findall(r"\]\((.*?\.png)\)", card):
        assert (tmp_path / "weights" / picture).exists()
    assert {"samples-geneval.png", "groups-ocr.png"} <= set(re.findall(r"\]\((.*?\.png)\)", card))
