"""The gold score on scenes whose every fact is known, and the parser that says which facts a prompt asks for."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.random import default_rng

from gdro_bench.models.pocket import gold, letters, parse, world
from gdro_bench.models.pocket.disobedience import Disobedience, disobeyed
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.models.pocket.training import fit
from gdro_bench.task import Prompt

WORDS = ("TREE", "OWL", "BREAD", "HAT")


def scenes(n: int, seed: int) -> list[world.Facts]:
    rng = default_rng(seed)
    return [world.sign_facts(rng, world.choose(rng, WORDS)) if i % 2 else world.thing_facts(rng) for i in range(n)]


def drawn(facts: list[world.Facts], seed: int = 1) -> np.ndarray:
    rng = default_rng(seed)
    return np.stack([world.render(one, rng).pixels for one in facts])


def test_a_prompt_is_parsed_to_the_facts_that_it_says():
    rng = default_rng(0)
    for facts in scenes(400, seed=0):
        assert parse.facts_of(world.phrase(facts, rng)) == facts


@pytest.mark.parametrize("prompt", ["", "a photo of a zebra", "a photo of three cats and a dog", 'a sign "X"', "a cat"])
def test_a_prompt_of_another_grammar_has_no_facts(prompt):
    assert parse.facts_of(prompt) is None


def test_a_word_is_what_the_model_paints_of_it():
    scene = 'a {} sign that reads "{}" at the top of a blue wall'
    assert parse.facts_of(scene.format("red", "si nk")) == parse.facts_of(scene.format("red", "SINK"))
    assert parse.facts_of(scene.format("red", "A" * 94)) is None
    image = world.render(SIGN, default_rng(5)).pixels
    (score,) = gold.Gold()(image[None], [Prompt(scene.format("white", "B2B"), "B2B")])
    assert np.isnan(score.parts["error letter"])


def test_two_objects_beside_a_sign_are_not_of_the_worlds_grammar():
    both = "with a green cat at the left and a red bus at the right"
    assert parse.facts_of(f'a red sign that reads "SINK" at the top of a blue wall {both}') is None


def test_right_scenes_hold_all_their_facts():
    facts = scenes(60, seed=2)
    for image, one in zip(drawn(facts), facts, strict=True):
        assert all(gold.held(image, one).values())


def test_the_autoencoder_costs_nearly_nothing():
    facts = scenes(40, seed=3)
    images = fit.through(PocketPolicy.open("cpu", None, 0).autoencoder, drawn(facts))
    shares = [np.mean(list(gold.held(image, one).values())) for image, one in zip(images, facts, strict=True)]
    assert np.mean(shares) > 0.98


SIGN = world.Facts(
    "blue", "striped", world.SignFacts("TREE", "white", "top", ""), (world.ThingFacts("cat", "red", side="left"),)
)
THINGS = world.Facts(None, None, None, (world.ThingFacts("cup", "green"), world.ThingFacts("bus", relation="above")))


def wrong(asked: world.Facts, shown: world.Facts) -> set[str]:
    found = gold.held(world.render(shown, default_rng(5)).pixels, asked)
    return {name for name, holds in found.items() if not holds}


@pytest.mark.parametrize(
    ("shown", "facts"),
    [
        (replace(SIGN, wall="green"), {"wall colour"}),
        (replace(SIGN, texture="plain"), {"wall texture"}),
        (replace(SIGN, texture="gradient"), {"wall texture"}),
        (replace(SIGN, sign=replace(SIGN.sign, colour="pink")), {"sign colour"}),
        (replace(SIGN, things=(world.ThingFacts("cow", "red", side="left"),)), {"object 0"}),
        (replace(SIGN, things=(world.ThingFacts("cat", "white", side="left"),)), {"object 0 colour"}),
        (replace(SIGN, things=()), {"object 0", "object 0 colour", "object 0 side"}),
        (replace(SIGN, things=(world.ThingFacts("cat", "red", side="right"),)), {
            "object 0", "object 0 colour", "object 0 side"
        }),
    ],
)  # fmt: skip
def test_what_is_wrong_on_a_sign_scene_is_named(shown, facts):
    assert wrong(SIGN, shown) == facts


def test_a_sign_at_the_other_place_is_no_sign_here():
    moved = replace(SIGN, sign=replace(SIGN.sign, place="bottom"), things=())
    assert {"sign place", "sign colour"} <= wrong(replace(SIGN, things=()), moved)


@pytest.mark.parametrize(
    ("shown", "facts"),
    [
        (replace(THINGS, things=(THINGS.things[1], world.ThingFacts("cup", "green", relation="above"))), {
            "object 0", "object 0 colour", "object 1"
        }),
        (replace(THINGS, things=(world.ThingFacts("cup", "pink"), THINGS.things[1])), {"object 0 colour"}),
    ],
)  # fmt: skip
def test_what_is_wrong_on_a_scene_of_objects_is_named(shown, facts):
    assert wrong(THINGS, shown) == facts


def test_of_two_objects_no_order_is_asked_but_for_a_relation():
    for relation, held in ((None, set()), ("right of", {"object 0", "object 1"})):
        asked = replace(THINGS, things=(world.ThingFacts("cup"), world.ThingFacts("bus", relation=relation)))
        assert wrong(asked, replace(THINGS, things=(world.ThingFacts("bus"), world.ThingFacts("cup")))) == held


SMALL = replace(SIGN, sign=replace(SIGN.sign, type_size="small"))


@pytest.mark.parametrize("things", [SIGN.things, ()])
@pytest.mark.parametrize("asked", world.TYPE_SIZES)
@pytest.mark.parametrize("shown", world.TYPE_SIZES)
def test_a_sign_of_another_size_is_wrong_where_one_was_asked(asked, shown, things):
    """And its letters are no others for that."""
    asked, shown = (replace(SIGN, sign=replace(SIGN.sign, type_size=size), things=things) for size in (asked, shown))
    is_wrong = asked.sign.type_size and shown.sign.type_size != asked.sign.type_size
    assert wrong(asked, shown) == ({"sign size"} if is_wrong else set())
    image = world.render(shown, default_rng(5), faded_signs=0.0).pixels
    found = {name for name, made in gold.errors(image, asked).items() if made}
    assert found == ({"sign"} if is_wrong else set())


def test_a_second_sign_or_an_object_that_nobody_asked_for_is_seen():
    asked = replace(SIGN, things=())
    assert "nothing else" in wrong(asked, SIGN)
    image = world.render(asked, default_rng(5)).pixels.copy()
    image[36:64] = image[:28]  # the sign's half
    assert {name for name, holds in gold.held(image, asked).items() if not holds} == {"nothing else"}


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("name", world.THINGS)
def test_many_large_objects_leave_the_wall_to_be_seen(name, count):
    asked = world.Facts(None, None, None, (world.ThingFacts(name, count=count),))
    images = drawn([asked] * 4)
    for image in (*images, *fit.through(PocketPolicy.open("cpu", None, 0).autoencoder, images)):
        assert all(gold.held(image, asked).values())
        assert gold.errors(image, asked) == {"kind": 0, "count": 0}


def test_what_is_hardly_seen_is_missing_and_pays_no_gold():
    asked = world.Facts("blue", "plain", None, (world.ThingFacts("cat"),))
    whole, empty = (
        world.render(one, default_rng(5)).pixels.astype(float) for one in (asked, replace(asked, things=()))
    )
    for share, there in ((0.15, False), (0.6, True)):
        ghost = (empty + share * (whole - empty)).astype(np.uint8)
        assert gold.held(ghost, asked)["object 0"] == there
        assert gold.errors(ghost, asked)["missing"] == (not there)


def test_the_same_object_twice_stands_in_place_of_the_other():
    asked = world.Facts(None, None, None, (world.ThingFacts("cat", "red"), world.ThingFacts("bus", "blue")))
    twice = replace(asked, things=(world.ThingFacts("cat", "red"), world.ThingFacts("cat", "blue")))
    found = gold.errors(world.render(twice, default_rng(5)).pixels, asked)
    assert {name: made for name, made in found.items() if not np.isnan(made)} == {"kind": 1, "missing": 0, "extra": 0}


def test_what_is_no_object_of_the_world_is_something_too_many():
    asked = world.Facts("blue", "plain", None, (world.ThingFacts("cat"),))
    image = world.render(asked, default_rng(5)).pixels.copy()
    image[2:12, 2:12] = 240
    assert gold.errors(image, asked) == {"kind": 0, "missing": 0, "extra": 1}
    assert not gold.held(image, asked)["nothing else"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("asked", [SIGN, THINGS, replace(THINGS, things=(world.ThingFacts("cat", count=4),))])
def test_a_picture_of_nothing_known_shows_nothing_that_was_asked(asked):
    noise = default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    half = np.zeros((64, 64, 3), dtype=np.uint8)
    half[:, 32:] = 255
    for image in (noise, half, np.zeros_like(noise), np.full_like(noise, 255)):
        assert sum(gold.held(image, asked).values()) <= 3
        assert gold.errors(image, asked)


def test_one_object_too_many_is_seen():
    asked = world.Facts(None, None, None, (world.ThingFacts("cat"),))
    assert "nothing else" in wrong(asked, replace(asked, things=(world.ThingFacts("cat", count=4),)))


def test_bigger_letters_cost_the_facts_that_they_cover():
    image = world.render(SIGN, default_rng(5)).pixels.copy()
    image[4:60, 2:62] = 240
    held = gold.held(image, SIGN)
    assert not any(held[name] for name in ("wall texture", "object 0", "object 0 colour"))


def test_a_strange_prompt_is_unscored_and_a_known_one_says_what_is_wrong():
    image = world.render(SIGN, default_rng(5)).pixels
    prompt = world.phrase(replace(SIGN, wall="green"), default_rng(0))
    strange, known = gold.Gold()(np.stack([image, image]), [Prompt("a nice day", ""), Prompt(prompt, "TREE")])
    assert not strange.scored
    assert known.value == pytest.approx(7 / 8)
    assert known.note == "wrong: wall colour"


# -- errors by kind


SHARES = Disobedience(letter=0.0, kind=0.15, colour=0.3, count=0.4, relation=0.3, missing=0.15)


def test_the_errors_of_a_picture_are_named():
    rng = default_rng(5)
    facts = [world.thing_facts(rng) for _ in range(60)]
    scenes = [disobeyed(one, SHARES, rng) for one in facts]
    images = np.stack([world.render(one.facts, rng, left_out=one.left_out).pixels for one in scenes])
    through = fit.through(PocketPolicy.open("cpu", None, 0).autoencoder, images)
    assert {error for one in scenes for error in one.errors} == {"kind", "colour", "count", "relation", "missing"}
    for pictures, least in ((images, 0.95), (through, 0.9)):
        right = []
        for image, asked, drawn in zip(pictures, facts, scenes, strict=True):
            found = gold.errors(image, asked)
            assert set(drawn.errors) <= set(found)
            to_see = {name for name in drawn.errors if not np.isnan(found[name])}
            right.append({name for name, made in found.items() if made > 0} == to_see)
        assert np.mean(right) >= least


def test_an_empty_wall_shows_no_object_and_lacks_what_was_asked():
    wall = world.render(world.Facts("green", "dotted", None, ()), default_rng(0)).pixels
    two = world.Facts(None, None, None, (world.ThingFacts("cat"), world.ThingFacts("bus")))
    assert gold.errors(wall, two) == {"kind": 0, "missing": 1, "extra": 0}
    assert all(
        np.isnan(gold.errors(wall, replace(THINGS, things=THINGS.things))[name]) for name in ("colour", "relation")
    )


def test_what_a_sign_says_is_read_and_how_strong_its_ink_is():
    rng = default_rng(6)
    facts = [world.sign_facts(rng, world.random_letters(rng)) for _ in range(80)]
    autoencoder = PocketPolicy.open("cpu", None, 0).autoencoder
    for faded in (False, True):
        drawn = np.stack([world.render(one, rng, faded_signs=float(faded)).pixels for one in facts])
        through = fit.through(autoencoder, drawn)
        for pictures, least in ((drawn, 1.0), (through, 0.9 if not faded else 0.6)):
            read = [letters.read(p.astype(float), one.sign) for p, one in zip(pictures, facts, strict=True)]
            assert np.mean([found.word == one.sign.word for found, one in zip(read, facts, strict=True)]) >= least
            assert np.mean([(found.contrast < gold.FADED) == faded for found in read]) >= 0.95


def test_an_empty_panel_says_nothing_that_was_asked():
    blank = replace(SIGN, sign=None)
    image = world.render(blank, default_rng(0)).pixels
    assert letters.read(image.astype(float), SIGN.sign).word != "TREE"
    assert letters.read(np.full((64, 64, 3), 90.0), SIGN.sign).contrast == 0


@pytest.mark.parametrize(
    ("shown", "errors"),
    [
        (SIGN, set()),
        (world.with_word(SIGN, "TRAE"), {"letter"}),
        (world.with_word(SIGN, "SINK"), {"letter"}),
        (replace(SIGN, wall="green"), {"wall"}),
        (replace(SIGN, sign=replace(SIGN.sign, colour="pink")), {"sign"}),
        (replace(SIGN, things=(world.ThingFacts("cow", "red", side="left"),)), {"object"}),
    ],
)
def test_the_errors_of_a_sign_scene_are_named(shown, errors):
    found = gold.errors(world.render(shown, default_rng(5), faded_signs=0.0).pixels, SIGN)
    assert set(found) == {"letter", "fading", "wall", "sign", "object"}
    assert {name for name, made in found.items() if made} == errors


def test_where_there_is_no_sign_no_letter_is_wrong_and_none_has_faded():
    moved = replace(SIGN, sign=replace(SIGN.sign, place="bottom"), things=())
    found = gold.errors(world.render(moved, default_rng(5)).pixels, replace(SIGN, things=()))
    assert found["sign"] == 1
    assert np.isnan([found["letter"], found["fading"]]).all()


def test_letters_that_are_nearly_gone_are_faded_and_no_others():
    image = world.render(world.with_word(SIGN, "SINK"), default_rng(5), faded_signs=0.0).pixels.astype(float)
    blank = image.copy()
    x0, y0, x1, y1 = world.panel_of(SIGN.sign)
    blank[y0 + 3 : y1 - 2, x0 + 3 : x1 - 2] = image[y0 + 2, x0 + 3]
    for share, letter in ((0.06, None), (1.0, 1.0)):
        found = gold.errors((blank + share * (image - blank)).astype(np.uint8), SIGN)
        assert found["fading"] == (share < 1)
        assert np.isnan(found["letter"]) if letter is None else found["letter"] == letter


def test_green_signs_do_not_fade_more_than_others():
    """Some of its shades take light ink and some dark."""
    green = replace(SIGN, sign=replace(SIGN.sign, colour="green"), wall="white")
    autoencoder = PocketPolicy.open("cpu", None, 0).autoencoder
    for faded in (False, True):
        images = np.stack([world.render(green, default_rng(i), faded_signs=float(faded)).pixels for i in range(60)])
        found = [gold.errors(image, green)["fading"] for image in fit.through(autoencoder, images)]
        assert abs(np.mean(found) - faded) < 0.05


def test_a_faded_sign_is_no_misspelt_one():
    found = gold.errors(world.render(SIGN, default_rng(5), faded_signs=1.0).pixels, SIGN)
    assert {name for name, made in found.items() if made} == {"fading"}


def test_the_parts_of_a_gold_score_are_the_errors_that_the_prompt_allows():
    image = world.render(world.with_word(SIGN, "TRAE"), default_rng(5), faded_signs=0.0).pixels
    (score,) = gold.Gold()(image[None], [Prompt(world.phrase(SIGN, default_rng(0)), "TREE")])
    assert score.value == 1.0  # what a sign says is the reward's affair
    assert {k: v for k, v in score.parts.items() if v} == {"error letter": 0.25}  # one of TREE's four letters
