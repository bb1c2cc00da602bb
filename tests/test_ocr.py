"""The OCR reward's definition, and readers as they are: the engine reads, fails and dies for real where it can."""

import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pytest

from gdro_bench import task
from gdro_bench.errors import BenchError
from gdro_bench.instruments import engines, readers
from gdro_bench.instruments.readers import EngineReader, Reading, area
from gdro_bench.models.pocket import prompts as pocket_prompts
from gdro_bench.models.pocket import world
from gdro_bench.profile import ReaderConfig
from gdro_bench.rewards.ocr import OcrReward, TextSize, ocr_reward
from gdro_bench.task import Prompt

SQUARE = ((0.0, 0.0), (8.0, 0.0), (8.0, 4.0), (0.0, 4.0))  # 32 square px


@dataclass
class Said:
    """A reader that says what it is told to."""

    readings: Sequence[Reading]
    name: str = "told"

    def __call__(self, images):
        return list(self.readings)


def score(*readings: Reading, target: str = "FOLD"):
    images = np.zeros((len(readings), 64, 64, 3), np.uint8)
    return OcrReward(Said(readings))(images, [Prompt(f'a sign "{target}"', target)] * len(readings))


def signs(count: int, seed: int = 0, **drawn: float):
    """Rendered signs with held-out words, and what a prompt says of them."""
    rng = np.random.default_rng(seed)
    words = rng.permutation(pocket_prompts.words("held-out"))[:count]
    facts = [world.sign_facts(rng, str(word)) for word in words]
    images = np.stack([world.render(f, rng, **drawn).pixels for f in facts])
    return images, [Prompt(world.phrase(f, rng), f.sign.word) for f in facts]


# -- the definition


@pytest.mark.parametrize(
    ("read", "target", "expected"),
    [
        ("FOLD", "FOLD", 1.0),
        ("xxFOLDxx", "FOLD", 1.0),  # part of what was read is enough
        ("f o l d", "FOLD", 1.0),
        ("newyork", "New York", 1.0),
        ("FOLE", "FOLD", 0.75),
        ("FLD", "FOLD", 0.75),
        ("FO", "FOLD", 0.5),
        ("", "FOLD", 0.0),
        ("COMPLETELYELSE", "FOLD", 0.0),  # a distance above the length counts as the length
        ("FOLx", "F OLD", 0.75),  # the length is the target's without spaces
    ],
)
def test_reward_is_flow_grpos(read, target, expected):
    assert ocr_reward(read, target) == expected


def test_a_target_of_spaces_is_refused():
    with pytest.raises(ValueError, match="other than a space"):
        ocr_reward("x", "  ")


def test_lines_are_read_as_one_text():
    found = score(Reading(("FO", "LD"), (SQUARE, SQUARE)))[0]
    assert (found.value, found.parts["exact"], found.note) == (1.0, 1.0, "FO LD")


def test_exact_and_extra_tell_a_part_from_the_whole():
    parts = score(Reading(("A FOLD",)))[0].parts
    assert (parts["exact"], parts["extra_characters"]) == (0.0, 1.0)


def test_an_image_without_text_scores_zero_and_an_unread_one_nothing():
    empty, unread = score(Reading(), Reading(failure="it died"))
    assert empty.scored
    assert empty.value == 0.0
    assert not unread.scored
    assert all(math.isnan(part) for part in unread.parts.values())
    assert unread.parts.keys() == empty.parts.keys()
    assert "it died" in unread.note


def test_area_is_the_polygons_whichever_way_round():
    diamond = ((2.0, 0.0), (4.0, 3.0), (2.0, 6.0), (0.0, 3.0))
    assert area(SQUARE) == area(SQUARE[::-1]) == area(SQUARE[1:] + SQUARE[:1]) == 32.0
    assert area(diamond) == 12.0


def test_text_area_is_a_share_of_the_image():
    assert score(Reading(("FO", "LD"), (SQUARE, SQUARE)))[0].parts["text_area"] == 2 * 32 / 64**2
    huge = tuple((100 * x, 100 * y) for x, y in SQUARE)
    assert score(Reading(("FOLD",), (huge,)))[0].parts["text_area"] == 1.0


def test_the_size_of_text_is_a_reward_of_its_own_whatever_is_said():
    reward = TextSize(OcrReward(Said((Reading(("FO", "LD"), (SQUARE, SQUARE)), Reading(failure="it died")))))
    found, unread = reward(np.zeros((2, 64, 64, 3), dtype=np.uint8), [Prompt("", "TREE")] * 2)
    assert found.value == 2 * 32 / 64**2
    assert found.parts["ocr"] == 0.0
    assert not unread.scored


# -- prompts


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ('a sign "FOLD"', "FOLD"),
        ('"ONE" and "TWO"', "ONE"),
        ('says "New York", twice', "New York"),
        ("no quotes", None),
        ('an open "quote', "quote"),  # up to the line's end, as Flow-GRPO has it
        ('an open "Grand Opening \n', "Grand Opening"),
        ('nothing behind it: "', None),
        ('nothing but spaces:"  ', None),
        ('an empty "" one', None),
        ('a blank "  " one', None),
    ],
)
def test_target_is_the_first_quoted_span(line, target):
    assert task.first_quoted(line) == target


def test_prompts_are_read_one_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text('a "ONE"\n\n  a "TWO" é  \n', encoding="utf-8")
    assert task.read_prompts(path) == [Prompt('a "ONE"', "ONE"), Prompt('a "TWO" é', "TWO")]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b'a "ONE"\n\na sign\n', "line 3, has no text in straight double quotes: 'a sign'"),
        (b"a sign that says \xe2\x80\x9cONE\xe2\x80\x9d\n", "line 1"),
        (b"\n \n", "is empty"),
        (b'a "\xff"', "cannot be read"),
    ],
)
def test_a_bad_prompt_file_is_refused_by_line(tmp_path, written, said):
    path = tmp_path / "prompts.txt"
    path.write_bytes(written)
    with pytest.raises(BenchError) as caught:
        task.read_prompts(path)
    assert str(path) in caught.value.problem
    assert said in caught.value.problem


def test_a_missing_prompt_file_is_refused(tmp_path):
    with pytest.raises(BenchError, match="cannot be read"):
        task.read_prompts(tmp_path / "none.txt")


# -- the reader


@pytest.fixture(scope="module")
def rapid() -> EngineReader:
    return EngineReader(ReaderConfig(limit_side=128, workers=0))


def test_the_reader_reads_the_worlds_fresh_signs(rapid):
    images, prompts = signs(12, faded_signs=0.0)
    scores = OcrReward(rapid)(images, prompts)
    assert all(score.scored for score in scores)
    assert np.mean([score.value for score in scores]) > 0.9
    assert all(0 < score.parts["text_area"] < 1 for score in scores if score.value)


def test_another_word_than_the_signs_is_not_rewarded(rapid):
    images, prompts = signs(4)
    wrong = [Prompt(p.text, "QQQQQ") for p in prompts]
    assert max(score.value for score in OcrReward(rapid)(images, wrong)) <= 0.2


def test_a_bare_wall_holds_no_text(rapid):
    wall = world.render(world.Facts("green", "plain", None, ()), np.random.default_rng(0)).pixels
    assert rapid(wall[None]) == [Reading()]


def test_the_engine_is_given_bgr(monkeypatch, rapid):
    given = []
    monkeypatch.setattr(readers, "_engine", (rapid.config, lambda image: given.append(image) or []))
    red = np.zeros((1, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    rapid(red)
    assert given[0].flags.c_contiguous
    assert (given[0] == (0, 0, 255)).all()


def test_an_engine_that_raises_fails_its_image_alone(monkeypatch, rapid):
    images, prompts = signs(3)
    (_, engine), calls = readers._engine, iter(range(3))

    def second_fails(image):
        if next(calls) == 1:
            raise RuntimeError("out of memory")
        return engine(image)

    monkeypatch.setattr(readers, "_engine", (rapid.config, second_fails))
    scores = OcrReward(rapid)(images, prompts)
    assert [score.scored for score in scores] == [True, False, True]
    assert scores[1].note == "not read: RuntimeError: out of memory"


@pytest.fixture
def worker():
    reader = EngineReader(ReaderConfig(limit_side=128, workers=1))
    yield reader
    if reader._workers is not None:
        reader._workers.shutdown()


def test_a_reader_that_died_is_replaced(worker, rapid):
    images, _ = signs(3)
    expected = rapid(images)
    assert worker(images) == expected
    (process,) = worker._workers._processes
    os.kill(process, signal.SIGKILL)
    assert worker(images) == expected


def kill_on_red(config, images):
    """In a worker: dies of the first image whose first pixel is red."""
    if (images[:, 0, 0] == (255, 0, 0)).all(-1).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return [Reading(("read",))] * len(images)


def test_an_image_that_kills_its_reader_costs_itself_alone(worker, monkeypatch):
    monkeypatch.setattr(readers, "_read_here", kill_on_red)
    images = np.zeros((6, 8, 8, 3), np.uint8)
    images[2, 0, 0] = (255, 0, 0)
    read = worker(images)
    assert [reading.failure for reading in read] == ["", "", "a reader process died", "", "", ""]


# -- PaddleOCR: what its two lines return, and what is said where it is not


BOX = [[1, 2], [9, 2], [9, 5], [1, 5]]


def test_both_lines_of_paddle_give_lines_and_boxes():
    corners = ((1.0, 2.0), (9.0, 2.0), (9.0, 5.0), (1.0, 5.0))
    assert engines.lines_of_2([[[BOX, ("CAFE", 0.9)], [BOX, ("BAR", 0.0)]]]) == [("CAFE", corners)]
    assert engines.lines_of_2([None]) == []
    seen = {"rec_texts": ["CAFE", "BAR"], "rec_scores": [0.9, 0.49], "rec_polys": np.array([BOX, BOX])}
    assert engines.lines_of_3([seen]) == [("CAFE", corners)]
    assert engines.lines_of_3([{"rec_texts": [], "rec_scores": [], "rec_polys": []}]) == []


@pytest.mark.skipif(find_spec("paddleocr") is not None, reason="PaddleOCR is installed")
def test_without_paddle_the_extra_is_named():
    with pytest.raises(BenchError, match=r"PaddleOCR is not installed.*gdro-bench\[paddle\]"):
        EngineReader(ReaderConfig(limit_side=960, workers=0, engine="paddleocr"))


def test_paddles_models_are_named_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "version", lambda package: "2.9.1")
    assert engines.paddle_name(960, "") == "paddleocr 2.9.1 en_PP-OCRv3_det en_PP-OCRv4_rec limit 960"
    with pytest.raises(BenchError, match="does not hold one folder"):
        engines.paddle_name(960, str(tmp_path))
    for name in ("my_det_infer", "my_rec_infer"):
        (tmp_path / name).mkdir()
    assert engines.paddle_name(960, str(tmp_path)) == "paddleocr 2.9.1 my_det my_rec limit 960"


def test_an_engine_that_cannot_start_says_so_through_a_worker(tmp_path):
    reader = EngineReader(ReaderConfig(limit_side=128, workers=1))
    broken = ReaderConfig(limit_side=960, workers=1, engine="paddleocr", models=str(tmp_path))
    reader.config = broken
    with pytest.raises(BenchError, match="PaddleOCR is not installed"):
        reader(np.zeros((1, 8, 8, 3), np.uint8))
    reader._workers.shutdown()


def test_models_that_an_engine_would_not_read_are_refused(tmp_path):
    with pytest.raises(BenchError, match="models that come with it"):
        engines.rapid_name(960, str(tmp_path))
