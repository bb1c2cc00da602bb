"""Scoring while the next pictures are painted: the same scores, in order, with a bounded queue."""

import json
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from gdro_bench.distributed import ProcessGroup, gather_scores
from gdro_bench.errors import BenchError
from gdro_bench.score import Checked, GeneratedBatch, Images, Score, score_batches
from gdro_bench.task import Prompt

BATCHES = 6


class Slow:
    """Scores a picture by its first pixel, once the gate is open."""

    name = "slow"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.done = 0

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        assert self.gate.wait(10)
        self.done += 1
        return [
            Score(float(image[0, 0, 0]), {"n": 1.0}, prompt.text) for image, prompt in zip(images, prompts, strict=True)
        ]


def painted(seen: list[int]) -> Iterator[GeneratedBatch]:
    for i in range(BATCHES):
        seen.append(i)
        yield np.full((2, 4, 4, 3), i, np.uint8), [Prompt(f"{i}", ""), Prompt(f"{i} again", "")]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_scores_come_in_order(ahead: int) -> None:
    scorer = Slow()
    scorer.gate.set()
    found = score_batches(painted([]), scorer, ahead)
    assert [[one.value for one in batch] for batch in found] == [[float(i)] * 2 for i in range(BATCHES)]
    flat = gather_scores(ProcessGroup(), found, BATCHES, 0.0)
    assert [one.note for one in flat[:3]] == ["0", "0 again", "1"]
    assert flat[0].parts == {"n": 1.0}


def test_painting_runs_ahead_as_far_as_it_may() -> None:
    scorer, seen = Slow(), []
    thread = threading.Thread(target=score_batches, args=(painted(seen), scorer, 2))
    thread.start()
    for _ in range(200):
        if len(seen) == 3:
            break
        threading.Event().wait(0.01)
    threading.Event().wait(0.05)
    assert (seen, scorer.done) == ([0, 1, 2], 0)  # two wait, the third has nowhere to go
    scorer.gate.set()
    thread.join()
    assert (len(seen), scorer.done) == (BATCHES, BATCHES)


def test_what_may_fail_is_a_share_of_all_and_not_of_a_batch() -> None:
    batches = [[Score(math.nan, {}, "broken"), Score(math.nan, {}, "broken")], *[[Score(1.0), Score(0.0)]] * 9]
    assert len(gather_scores(ProcessGroup(), batches, 10, 0.1)) == 20
    with pytest.raises(BenchError, match=r"2 of 20 images could not be scored \(broken\)"):
        gather_scores(ProcessGroup(), batches, 10, 0.05)


def test_what_a_scorer_raises_is_not_lost() -> None:
    def fails(images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        raise BenchError("No.", "Mend it.")

    with pytest.raises(BenchError, match="Mend it"):
        score_batches(painted([]), fails, 2)


class Slips:
    """A scorer of another package."""

    name = "slips 1"
    detector = "its own"

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([0.5, 0.5], "gave 2 images a list with a float"),
        ([Score(0.5)], "gave 2 images 1 scores"),
        (np.zeros(2), "gave 2 images a ndarray"),
        (None, "gave 2 images a NoneType"),
    ],
)
def test_what_is_no_score_is_told_with_whose_it_is(answer: object, said: str) -> None:
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(BenchError, match=rf"The reward 'mine' {said}.*gdro_bench\.score\.Score"):
        Checked(Slips(answer), "reward", "mine")(images, [Prompt("", "")] * 2)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (Score(None), "is no number"),  # type: ignore[arg-type]
        (Score(float("inf")), "infinite"),
        (Score(0.5, {"area": float("-inf")}), "infinite"),
        (Score(0.5, None), "is no number"),  # type: ignore[arg-type]
        (Score(0.5, {"prompt": 1.0}), "called 'prompt'"),
    ],
)
def test_scores_that_no_table_could_hold_are_told(score: Score, said: str) -> None:
    with pytest.raises(BenchError, match=rf"The reward 'mine' gave an? .*{said}"):
        Checked(Slips([score]), "reward", "mine")(np.zeros((1, 4, 4, 3), dtype=np.uint8), [Prompt("", "")])


def test_a_part_may_not_be_called_as_a_column_of_its_table() -> None:
    """An axis of a judge may be `text`: its table has no such column, but the mean rating, `u`."""
    images, prompts = np.zeros((1, 4, 4, 3), dtype=np.uint8), [Prompt("", "")]
    axis, taken = [Score(4.0, {"text": 4.0})], [Score(4.0, {"u": 4.0})]
    assert Checked(Slips(axis), "judge", "mine")(images, prompts) == axis
    for kind, scores in (("reward", axis), ("judge", taken)):
        with pytest.raises(BenchError, match=f"The {kind} 'mine' gave a part called"):
            Checked(Slips(scores), kind, "mine")(images, prompts)  # type: ignore[arg-type]


def test_scores_become_python_s_own_numbers() -> None:
    """Else another process could not be told of them."""
    given = [Score(np.float32(0.5), {"area": np.float32(0.25)})]  # type: ignore[arg-type]
    (plain,) = Checked(Slips(given), "reward", "mine")(np.zeros((1, 4, 4, 3), dtype=np.uint8), [Prompt("", "")])
    assert json.loads(json.dumps(plain.plain())) == [0.5, {"area": 0.25}, ""]


def test_a_scorer_of_another_package_is_itself_but_for_its_slips() -> None:
    right = [Score(0.1), Score(0.2)]
    scorer = Checked(Slips(right), "reward", "mine")
    assert scorer(np.zeros((2, 4, 4, 3), dtype=np.uint8), [Prompt("", "")] * 2) == right
    assert (scorer.name, scorer.detector, hasattr(scorer, "nothing")) == ("slips 1", "its own", False)
    with pytest.raises(BenchError, match="The judge 'x' has no name"):
        Checked(object(), "judge", "x")
