"""GenEval's grammar and rules against published facts and cases worked out by hand."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from numpy.random import default_rng

from gdro_bench.cli import main
from gdro_bench.rewards import geneval_prompts as prompts
from gdro_bench.rewards import geneval_rules as rules
from gdro_bench.rewards.geneval_prompts import Clause, Scene
from gdro_bench.rewards.geneval_rules import Detection

CLASSES = (Path(__file__).parents[1] / "tasks" / "geneval" / "classes.txt").read_text(encoding="utf-8").splitlines()
SUITE = prompts.suite(default_rng(43), CLASSES, 100)


def at(x: float, y: float, score: float = 0.95, side: float = 100) -> Detection:
    return Detection((x - side / 2, y - side / 2, x + side / 2, y + side / 2), score)


def colourless(name: str, found: object) -> list[str]:
    raise AssertionError("no colour was asked for")


# -- prompts


def test_the_test_set_has_the_published_size_and_tags():
    assert len(CLASSES) == 80
    assert Counter(scene.tag for scene in SUITE) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100,
    }  # fmt: skip
    assert [scene.tag for scene in SUITE] == sorted((s.tag for s in SUITE), key=prompts.TAGS.index)


def test_counts_and_relations_come_as_often_as_published():
    assert Counter(s.include[0].count for s in SUITE if s.tag == "counting") == {2: 26, 3: 28, 4: 26}
    relations = Counter(s.include[1].position[0] for s in SUITE if s.tag == "position")
    assert relations == {"below": 28, "right of": 27, "above": 26, "left of": 19}


@pytest.mark.parametrize(
    "line",
    [
        '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}',
        '{"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "sports ball", "count": 1}],'
        ' "prompt": "a photo of a bench and a sports ball"}',
        '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}],'
        ' "prompt": "a photo of two clocks"}',
        '{"tag": "colors", "include": [{"class": "fire hydrant", "count": 1, "color": "blue"}],'
        ' "prompt": "a photo of a blue fire hydrant"}',
        '{"tag": "position", "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1,'
        ' "position": ["right of", 0]}], "prompt": "a photo of a dog right of a teddy bear"}',
        '{"tag": "color_attr", "include": [{"class": "wine glass", "count": 1, "color": "purple"}, {"class": "apple",'
        ' "count": 1, "color": "black"}], "prompt": "a photo of a purple wine glass and a black apple"}',
    ],
)
def test_published_lines_are_among_them_to_the_letter(line):
    assert line in [json.dumps(scene.published()) for scene in SUITE]
    assert prompts.parse(json.loads(line)) in SUITE


@pytest.mark.parametrize("name", [3, ["cat"], None])
def test_a_class_is_a_word(name):
    line = {"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": "a photo"}
    with pytest.raises(TypeError, match="no word"):
        prompts.parse(line)


def test_every_line_survives_writing_and_reading():
    assert [prompts.parse(json.loads(json.dumps(scene.published()))) for scene in SUITE] == SUITE


def test_training_prompts_have_the_mix_and_none_of_the_test_set():
    found = prompts.training(default_rng(0), CLASSES, 3400, SUITE)
    assert not {scene.prompt for scene in found} & {scene.prompt for scene in SUITE}
    shares = Counter(scene.tag for scene in found)
    assert {tag: n / 200 for tag, n in shares.items()} == pytest.approx(prompts.TRAINING_MIX, rel=0.25)


def test_a_tag_without_unseen_prompts_is_refused():
    classes = ["cat", "dog"]
    test = prompts.suite(default_rng(0), classes, 500)
    with pytest.raises(ValueError, match="leaves no prompt tagged"):
        prompts.training(default_rng(0), classes, 100, test)


def test_nobody_is_coloured():
    scenes = prompts.training(default_rng(1), ["person", "cat", "dog"], 100, [])
    assert not [c for scene in scenes for c in scene.include if c.name == "person" and c.colour]


@pytest.mark.parametrize("world", ["photo", "pocket"])
def test_the_command_writes_them(world):
    result = CliRunner().invoke(main, ["prompts", "geneval", "--seed", "43", "-n", "100", "--world", world])
    lines = result.output.splitlines()
    if world == "photo":
        assert lines == [json.dumps(scene.published()) for scene in SUITE]
    assert {prompts.parse(json.loads(line)).tag for line in lines} == set(prompts.TAGS)


def test_the_command_writes_training_lines():
    result = CliRunner().invoke(main, ["prompts", "geneval", "--split", "train", "-n", "30"])
    found = [prompts.parse(json.loads(line)) for line in result.output.splitlines()]
    assert len(found) == 30
    assert not {scene.prompt for scene in found} & {scene.prompt for scene in SUITE}


# -- which detections count, and how they lie


def test_detections_above_the_threshold_count_best_first():
    detected = {"cat": [at(0, 0, 0.3), at(1, 0, 0.31), at(2, 0, 0.95)], "dog": [at(0, 0, 0.1)]}
    assert [d.score for d in rules.kept(detected, "two_object")["cat"]] == [0.95, 0.31]
    assert [d.score for d in rules.kept(detected, "counting")["cat"]] == [0.95]
    assert set(rules.kept(detected, "counting")) == {"cat"}
    assert len(rules.kept({"cat": [at(i, 0, 0.5) for i in range(20)]}, "colors")["cat"]) == 16


# -- verdicts

VERDICTS = [
    [part.strip() for part in line.split(" | ")]
    for line in (Path(__file__).parent / "geneval_verdicts.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def asked(text: str) -> tuple[list[Clause], list[Clause]]:
    """Clauses as `geneval_verdicts.txt` writes them: those to include, those to exclude."""
    clauses: dict[bool, list[Clause]] = {True: [], False: []}
    pattern = rf"(no )?(\d+ )?({'|'.join(prompts.COLOURS)})? ?(\w+)(?: ({'|'.join(prompts.RELATIONS)}) (\d))?"
    for part in text.split("; "):
        no, count, colour, name, relation, target = re.fullmatch(pattern, part).groups()  # type: ignore[union-attr]
        position = (relation, int(target)) if relation else None
        clauses[not no].append(Clause(name, int(count or 1), colour, position))
    return clauses[True], clauses[False]


def detected(text: str) -> dict[str, list[Detection]]:
    """Objects as `geneval_verdicts.txt` writes them."""
    objects: dict[str, list[Detection]] = {}
    number = r"(-?[\d.]+)"
    pattern = rf"(?:(\d+)x)?([a-z]+)(?:@{number},{number})?(?::(\d+)x(\d+))?(?:\*{number})?(?:=(\w+))?"
    for part in text.split() if text != "nothing" else []:
        n, name, x, y, w, h, score, colour = re.fullmatch(pattern, part).groups()  # type: ignore[union-attr]
        x, y, w, h = float(x or 0), float(y or 0), float(w or 100) / 2, float(h or 100) / 2
        found = Detection((x - w, y - h, x + w, y + h), float(score or 0.95), colour)
        objects.setdefault(name, []).extend([found] * int(n or 1))
    return objects


@pytest.mark.parametrize(("tag", "clauses", "objects", "right"), VERDICTS)
def test_the_verdict_is_the_official_one(tag: str, clauses: str, objects: str, right: str) -> None:
    include, exclude = asked(clauses)
    scene = Scene(tag, tuple(include), "", tuple(exclude))
    verdict = rules.verdict(scene, rules.kept(detected(objects), tag), rules.detected_colours)
    assert verdict is {"yes": True, "no": False}[right]


def test_there_are_cases_of_every_tag():
    assert Counter(tag for tag, *_ in VERDICTS).keys() == {scene.tag for scene in SUITE}
    assert len(VERDICTS) >= 200


RED_CAT = Scene("colors", (Clause("cat", 1, "red"),), "")
CAT_LEFT = Scene("position", (Clause("dog"), Clause("cat", position=("left of", 0))), "")
LEFT, RIGHT = at(0, 0), at(300, 0)


@pytest.mark.parametrize(("seen", "right"), [(["red"], True), (["blue"], False)])
def test_only_the_best_object_s_colour_is_asked(seen, right):
    asked: list[int] = []

    def colours(name, found):
        asked.append(len(found))
        return seen

    assert rules.verdict(RED_CAT, {"cat": [LEFT, RIGHT]}, colours) is right
    assert asked == [1]


# -- training scores


@pytest.mark.parametrize(("n", "published", "mended"), [(0, 0, 0), (1, 1, 1), (2, 0, 0), (3, -1, 0), (16, -14, 0)])
def test_the_published_score_of_a_single_object_is_not_clipped(n, published, mended):
    scene, objects = Scene("single_object", (Clause("cat"),), ""), {"cat": [LEFT] * n}
    assert rules.published_score(scene, objects, colourless) == published
    assert rules.mended_score(scene, objects, colourless) == mended


@pytest.mark.parametrize(("n", "score"), [(3, 0.75), (4, 1), (5, 0.75), (8, 0), (16, -2)])
def test_counting_earns_by_nearness(n, score):
    scene = Scene("counting", (Clause("cat", 4),), "")
    assert rules.published_score(scene, {"cat": [LEFT] * n}, colourless) == score


@pytest.mark.parametrize(
    ("objects", "published", "mended"),
    [
        ({"cat": [LEFT], "dog": [RIGHT]}, 1.0, 1.0),
        ({"cat": [RIGHT], "dog": [LEFT]}, 0.75, 2 / 3),
        ({"dog": [RIGHT]}, 1 / 3, 1 / 3),
        ({"cat": [LEFT]}, 1 / 3, 1 / 3),
    ],
)
def test_a_position_earns_one_even_if_it_is_wrong_as_published(objects, published, mended):
    assert rules.published_score(CAT_LEFT, objects, colourless) == pytest.approx(published)
    assert rules.mended_score(CAT_LEFT, objects, colourless) == pytest.approx(mended)


@pytest.mark.parametrize(("n", "seen", "score"), [(1, ["red"], 1.0), (1, ["blue"], 0.5), (2, [], 0.0), (0, [], 0.0)])
def test_a_wrong_colour_earns_half_and_a_wrong_count_nothing(n, seen, score):
    assert rules.published_score(RED_CAT, {"cat": [LEFT] * n}, lambda name, found: seen) == score


def test_a_colour_is_asked_about_once():
    asked = []

    def tell(name, found):
        asked.append(len(found))
        return ["red" for _ in found]

    colours = rules.cached_colours(tell)
    assert [colours("cat", [LEFT]), colours("cat", [LEFT, RIGHT]), colours("cat", [])] == [["red"], ["red", "red"], []]
    assert asked == [1, 1]
    assert colours("dog", [LEFT]) == ["red"]
    assert asked == [1, 1, 1]


def test_strict_asks_for_exact_counts():
    scene = Scene("single_object", (Clause("cat"),), "")
    assert rules.strict(scene, {"cat": [LEFT]}, colourless)
    assert not rules.strict(scene, {"cat": [LEFT, RIGHT]}, colourless)
