"""Judging a finished run's pictures: complete, resumable, by the instruments that were asked for."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from judge_server import Judge
from numpy.random import default_rng
from test_compare import MARKS, make_run

from gdro_bench.cli import main
from gdro_bench.engine import judging, record, samples
from gdro_bench.errors import BenchError
from gdro_bench.models.pocket import world
from gdro_bench.profile import JudgeConfig
from gdro_bench.rewards import ocr
from gdro_bench.rewards.readers import TesseractReader
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt


class Counting:
    """Rates by brightness, counts what it is asked, and goes away after so many calls."""

    name = "counting judge"

    def __init__(self, patience: int = 1000) -> None:
        self.asked: list[str] = []
        self.patience = patience

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        self.patience -= 1
        if self.patience < 0:
            raise BenchError("The judge went away.", "Start it again.")
        self.asked += [prompt.text for prompt in prompts]
        axes = [dict.fromkeys(("alignment", "coherence", "style"), 1 + image.mean() / 64) for image in images]
        return [Score(one["style"], one, "seen") for one in axes]


def quietly(run: Path, judge: Counting) -> None:
    judging.judge_run(run, {"judge": judge}, lambda done, total: None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_every_kept_picture_of_every_mark_is_judged(run: Path) -> None:
    quietly(run, Counting())
    table = judging.read(run)
    assert len(table) == len(MARKS) * 8
    assert set(table["mark"]) == set(MARKS)
    assert table["u"].tolist() == pytest.approx((1 + 20 * table["prompt"] / 64).tolist())
    assert (table["judge_note"] == "seen").all()


def test_what_did_not_change_is_not_judged_again(run: Path) -> None:
    judge = Counting()
    quietly(run, judge)
    assert len(judge.asked) == (len(MARKS) - 1) * 8  # the pool was filled from the first mark to the second


def test_a_judge_that_goes_away_loses_nothing(run: Path) -> None:
    with pytest.raises(BenchError, match="went away"):
        quietly(run, Counting(patience=2))
    second = Counting()
    quietly(run, second)
    assert len(second.asked) == (len(MARKS) - 3) * 8
    whole = judging.read(run)
    (run / judging.TABLE).unlink()
    quietly(run, Counting())
    pd.testing.assert_frame_equal(judging.read(run), whole)


def test_another_judge_begins_anew(run: Path) -> None:
    quietly(run, Counting())
    other = Counting()
    other.name = "another"
    quietly(run, other)
    assert other.asked
    assert judging.instruments(run) == {"judge": "another"}


def test_pictures_that_are_gone_are_named(run: Path) -> None:
    samples.path_of(run, 1.0).unlink()
    with pytest.raises(BenchError, match=r"pictures of .* at 100% are gone"):
        quietly(run, Counting())


def test_the_pocket_instruments_judge_from_the_command_line(run: Path) -> None:
    for path in (run / "samples").iterdir():
        samples.write(path, np.full((len(samples.numbers(path)), 64, 64, 3), 90, dtype=np.uint8))
    scores = pd.read_parquet(run / "scores.parquet")
    scores["text"] = 'a large red sign that reads "TREE" at the top of a blue wall'
    scores.to_parquet(run / "scores.parquet")
    result = CliRunner().invoke(main, ["judge", str(run)])
    assert result.exit_code == 0, result.output
    table = judging.read(run)
    assert table[["alignment", "coherence", "style"]].stack().between(1, 5).all()
    assert (table["gold"] < 0.5).all()
    assert json.loads((run / judging.INSTRUMENTS).read_text())["judge"].startswith("pocket judge ")


def test_a_server_judges_from_the_command_line(run: Path, server: Judge) -> None:
    arguments = ["judge", str(run), "--judge", "unified-reward", "--gold", "none", "--url", server.url]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert judging.read(run)["coherence"].eq(3.0).all()


def test_a_judge_without_an_address_says_what_to_set(run: Path) -> None:
    result = CliRunner().invoke(main, ["judge", str(run), "--judge", "unified-reward"])
    assert result.exit_code == 2
    assert "profile.judge.url" in result.output


def test_an_unknown_judge_is_named(run: Path) -> None:
    assert "Did you mean 'pocket'?" in CliRunner().invoke(main, ["judge", str(run), "--judge", "poket"]).output


def test_no_judge_leaves_a_finished_run_alone(run: Path) -> None:
    judging.finish(record.read(run), run, JudgeConfig("none", "none", "none", "", ""), lambda done, total: None)
    assert not (run / judging.TABLE).exists()


def test_what_another_judge_has_begun_is_not_thrown_away(run: Path) -> None:
    with pytest.raises(BenchError, match="went away"):
        quietly(run, Counting(patience=2))
    begun = judging.read(run)
    pocket = JudgeConfig("pocket", "pocket-facts", "none", "", "")
    judging.finish(record.read(run), run, pocket, lambda done, total: None)
    pd.testing.assert_frame_equal(judging.read(run), begun)
    assert judging.instruments(run) == {"judge": Counting.name}


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_a_second_reader_reads_what_the_first_reads(tmp_path: Path) -> None:
    facts = world.Facts("blue", "plain", world.SignFacts("TREE", "white", "top", "large"), ())
    pictures = [world.render(facts, default_rng(seed)).pixels for seed in range(8)]
    picture = min(pictures, key=lambda pixels: pixels[10:18, 20:44].min())  # the darkest ink: not faded
    reward = ocr.OcrReward(TesseractReader())
    right, wrong = reward(np.stack([picture, picture]), [Prompt("", "TREE"), Prompt("", "HOUSE")])
    assert (right.value, right.note) == (1.0, "TREE")
    assert wrong.value < 0.5


def test_a_second_reader_that_is_not_there_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    result = CliRunner().invoke(main, ["judge", str(run), "--judge", "none", "--second-reader", "tesseract"])
    assert result.exit_code == 1
    assert "Tesseract is not installed" in result.output
