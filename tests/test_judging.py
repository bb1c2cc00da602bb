"""Judging a finished run's pictures: complete, resumable, by the instruments that were asked for."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from judge_server import RIGHT, Judge
from known_runs import MARKS, make_run
from numpy.random import default_rng

from gdro_bench.cli import main
from gdro_bench.engine import folders, judging, plan, record, samples
from gdro_bench.errors import BenchError
from gdro_bench.instruments.readers import EngineReader, TesseractReader
from gdro_bench.judges import second_reader
from gdro_bench.judges.unified_reward import Served, Server, UnifiedReward
from gdro_bench.models.pocket import world
from gdro_bench.profile import JudgeConfig, ReaderConfig
from gdro_bench.rewards import ocr
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

PROFILE = {"max_unscored": 0.2, "prompts": "pocket", "judge": {"gold": "pocket-facts"}}


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
    """A finished run whose profile lets a fifth of the pictures be unscored."""
    folder = make_run(tmp_path / "run", pictures=8)
    made = record.read(folder)
    record.write(replace(made, settings=made.settings | {"profile": PROFILE}), folder)
    return folder


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


def served(server: Judge) -> dict[str, UnifiedReward]:
    return {"judge": UnifiedReward(Served(Server(server.url, "judge", attempts=2, backoff=0.01)))}


def command(run: Path, url: str) -> Result:
    arguments = ["judge", str(run), "--judge", "unified-reward", "--gold", "none", "--judge-url", url]
    return CliRunner().invoke(main, arguments)


def test_a_sick_server_is_an_error_and_a_well_one_mends_all(run: Path, server: Judge, waits: list[float]) -> None:
    server.answers = [500]
    sick = command(run, server.url)
    assert sick.exit_code == 1
    assert "gave no judgement on 8 of 8 pictures" in sick.output
    assert "the judge answered HTTP 500" in sick.output
    assert not (run / judging.TABLE).exists()
    assert set(waits) == {1, 2, 4}
    server.answers = [RIGHT]
    assert command(run, server.url).exit_code == 0
    assert judging.read(run)["u"].notna().all()


def test_a_server_that_falls_sick_loses_nothing(run: Path, server: Judge) -> None:
    server.answers = [RIGHT] * 12 + [500]
    with pytest.raises(BenchError, match=r"no judgement on . of 8 pictures"):
        judging.judge_run(run, served(server), lambda done, total: None)
    begun = pd.read_parquet(run / judging.PARTIAL).query("mark > 0")  # the first two points have the same pictures
    assert begun["u"].notna().sum() == 12
    server.answers, before = [RIGHT], len(server.asked)
    judging.judge_run(run, served(server), lambda done, total: None)
    assert judging.read(run)["u"].notna().all()
    assert len(server.asked) - before == (len(MARKS) - 1) * 8 - 12


def test_a_few_failures_are_kept_and_asked_for_again(run: Path, server: Judge) -> None:
    server.answers = ["no", "no", RIGHT]
    with_failure = UnifiedReward(Served(Server(server.url, "judge", concurrency=1)))
    judging.judge_run(run, {"judge": with_failure}, lambda done, total: None)
    assert judging.read(run)["u"].isna().sum() == 2  # one of the base, whose pictures are those of the next point, too
    before = len(server.asked)
    judging.judge_run(run, served(server), lambda done, total: None)
    assert judging.read(run)["u"].notna().all()
    assert len(server.asked) == before + 1


@pytest.mark.parametrize("answer", [404, 500])
def test_a_judge_that_refuses_after_a_good_one_loses_nothing(run: Path, server: Judge, answer: int) -> None:
    quietly(run, Counting())
    good = judging.read(run)
    server.answers = [answer]
    with pytest.raises(BenchError):
        judging.judge_run(run, served(server), lambda done, total: None)
    pd.testing.assert_frame_equal(judging.read(run), good)
    assert judging.instruments(run) == {"judge": Counting.name}
    server.answers = [RIGHT]
    judging.judge_run(run, served(server), lambda done, total: None)
    assert judging.instruments(run) == {"judge": "judge (1-5)"}
    assert judging.read(run)["coherence"].eq(3.0).all()
    assert sorted(path.name for path in run.glob("judged*")) == [judging.TABLE]


def test_a_judge_that_knows_none_of_the_prompts_takes_no_other_s_place(run: Path) -> None:
    quietly(run, Counting())
    for path in (run / "samples").iterdir():
        samples.write(path, np.full((len(samples.numbers(path)), 64, 64, 3), 90, dtype=np.uint8))
    with pytest.raises(BenchError, match=r"rated none of the pictures of .*not a prompt of.* The ratings .* stand"):
        judging.judge_run(run, judging.open_judges(JudgeConfig("pocket", "none", "none", "", "")), lambda *_: None)
    assert judging.instruments(run) == {"judge": Counting.name}
    assert [path.name for path in run.glob("judged*")] == [judging.TABLE]


def test_gold_is_that_of_each_run_s_profile(run: Path, tmp_path: Path, server: Judge) -> None:
    """Pocket's looks at its own pictures alone, so runs of another profile would end the command."""
    of_pocket = make_run(tmp_path / "pocket", seed=1, pictures=8)
    for folder, side, gold in ((run, 512, "none"), (of_pocket, 64, "pocket-facts")):
        made = record.read(folder)
        own = made.settings | {"profile": PROFILE | {"judge": {"gold": gold}}}
        record.write(replace(made, settings=own), folder)
        for path in (folder / "samples").iterdir():
            samples.write(path, np.full((8, side, side, 3), 90, dtype=np.uint8))
    asked = ["judge", str(run), str(of_pocket), "--judge", "unified-reward", "--judge-url", server.url]
    assert CliRunner().invoke(main, asked).exit_code == 0
    assert set(judging.instruments(run)) == {"judge"}
    assert set(judging.instruments(of_pocket)) == {"judge", "gold"}


def test_ratings_are_not_lost_to_instruments_that_give_none(run: Path) -> None:
    quietly(run, Counting())
    asked = ["judge", str(run), "--judge", "none", "--gold"]
    nobody, gold = (CliRunner().invoke(main, [*asked, name]) for name in ("none", "pocket-facts"))
    assert (nobody.exit_code, gold.exit_code) == (2, 1)
    assert "No instrument is named." in nobody.output
    assert "would be lost: no judge was asked." in gold.output.replace("\n", " ")
    assert judging.instruments(run) == {"judge": Counting.name}
    assert [path.name for path in run.glob("judged*")] == [judging.TABLE]


def test_committed_judgements_are_read_as_they_were() -> None:
    folder = next(Path(__file__).parent.parent.glob("reports/ocr-pocket/runs/*-s0"))
    assert set(judging.instruments(folder)) == {"judge", "gold"}
    assert judging.is_complete(record.read(folder), folder)


def test_a_prompt_that_a_judge_does_not_know_is_no_failure(run: Path) -> None:
    for path in (run / "samples").iterdir():
        samples.write(path, np.full((len(samples.numbers(path)), 64, 64, 3), 90, dtype=np.uint8))
    judges = judging.open_judges(JudgeConfig("pocket", "pocket-facts", "none", "", ""))
    judging.judge_run(run, judges, lambda done, total: None)
    table = judging.read(run)
    assert table["gold"].isna().all()
    assert not any(judging.failures(row) for row in table.to_dict("records"))
    written = (run / judging.TABLE).stat().st_mtime_ns
    judging.judge_run(run, judges, lambda done, total: None)
    assert (run / judging.TABLE).stat().st_mtime_ns == written


def test_a_damaged_table_is_named_with_a_remedy(run: Path) -> None:
    quietly(run, Counting())
    (run / judging.TABLE).write_bytes(b"PAR1{")
    with pytest.raises(BenchError, match=r"judged\.parquet cannot be read.*Delete that file"):
        quietly(run, Counting())
    (run / judging.TABLE).unlink()
    quietly(run, Counting())


def test_geneval_s_prompts_keep_their_metadata(tmp_path: Path) -> None:
    prompts = plan.evaluation_inputs("geneval", "pocket", (), None)[2]
    made = record.read(make_run(tmp_path / "geneval"))
    settings = {"profile": {"prompts": "pocket"}}
    scores = pd.read_parquet(tmp_path / "geneval" / "scores.parquet")
    scores["text"] = scores["prompt"].map(lambda number: prompts[number].text)
    scores.to_parquet(tmp_path / "geneval" / "scores.parquet")
    read = judging._prompts(replace(made, task="geneval", settings=settings), tmp_path / "geneval")
    assert [prompt.target for prompt in read] == [prompt.target for prompt in prompts[: len(read)]]


def test_a_second_reader_refuses_prompts_without_a_text(run: Path) -> None:
    second = second_reader.SecondReader(ocr.OcrReward(EngineReader(ReaderConfig(limit_side=128, workers=0))))
    with pytest.raises(BenchError, match=r"with the text in quotes.*--second-reader"):
        judging.judge_run(run, {"second reader": second}, lambda done, total: None)
    metadata = Prompt('a red sign that reads "TREE"', '{"tag": "colors"}')  # of a reward that looks for something else
    assert second(np.zeros((1, 64, 64, 3), dtype=np.uint8), [metadata])[0].value == 0


def test_pictures_that_are_gone_are_named(run: Path) -> None:
    samples.path_of(run, 1.0).unlink()
    with pytest.raises(BenchError, match=r"pictures of .* at 100% are gone"):
        quietly(run, Counting())


def with_grey_pictures(run: Path) -> None:
    """Makes pictures and prompts those of the pocket's world."""
    for path in (run / "samples").iterdir():
        samples.write(path, np.full((len(samples.numbers(path)), 64, 64, 3), 90, dtype=np.uint8))
    scores = pd.read_parquet(run / "scores.parquet")
    scores["text"] = 'a large red sign that reads "TREE" at the top of a blue wall'
    scores.to_parquet(run / "scores.parquet")


def test_a_run_without_pictures_does_not_keep_the_others_from_being_judged(run: Path) -> None:
    with_grey_pictures(run)
    emptied = run.parent / "a-run-before-it"
    shutil.copytree(run, emptied)
    samples.path_of(emptied, 1.0).unlink()
    result = CliRunner().invoke(main, ["judge", str(emptied), str(run)])
    assert result.exit_code == 1
    assert judging.instruments(run)
    assert "Judged 1 runs." in result.output
    assert "are gone" in result.output


def test_a_run_in_use_does_not_keep_the_others_from_being_judged(run: Path) -> None:
    with_grey_pictures(run)
    used = run.parent / "a-run-in-use"
    shutil.copytree(run, used)
    (used / "run.json").write_bytes((used / "run.json").read_bytes() + b"\n")  # else it is the same run
    with folders.locked(used):
        result = CliRunner().invoke(main, ["judge", str(used), str(run)])
    assert result.exit_code == 1
    assert judging.instruments(run)
    assert "Judged 1 runs." in result.output
    assert "is being run by process" in result.output


def test_the_pocket_instruments_judge_from_the_command_line(run: Path) -> None:
    with_grey_pictures(run)
    result = CliRunner().invoke(main, ["judge", str(run)])
    assert result.exit_code == 0, result.output
    table = judging.read(run)
    assert table[["alignment", "coherence", "style"]].stack().between(1, 5).all()
    assert (table["gold"] < 0.5).all()
    assert judging.instruments(run)["judge"].startswith("pocket judge ")


def test_a_server_judges_from_the_command_line(run: Path, server: Judge) -> None:
    arguments = ["judge", str(run), "--judge", "unified-reward", "--gold", "none", "--judge-url", server.url]
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
    begun = pd.read_parquet(run / judging.PARTIAL)
    pocket = JudgeConfig("pocket", "pocket-facts", "none", "", "")
    judging.finish(record.read(run), run, pocket, lambda done, total: None)
    pd.testing.assert_frame_equal(pd.read_parquet(run / judging.PARTIAL), begun)
    assert not (run / judging.TABLE).exists()


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_a_second_reader_reads_what_the_first_reads(tmp_path: Path) -> None:
    facts = world.Facts("blue", "plain", world.SignFacts("TREE", "white", "top", "large"), ())
    pictures = [world.render(facts, default_rng(seed)).pixels for seed in range(8)]
    picture = min(pictures, key=lambda pixels: pixels[10:18, 20:44].min())  # the darkest ink: not faded
    reward = ocr.OcrReward(TesseractReader())
    right, wrong = reward(np.stack([picture, picture]), [Prompt("", "TREE"), Prompt("", "HOUSE")])
    assert (right.value, right.note) == (1.0, "TREE")
    assert wrong.value < 0.5


def test_a_reader_that_is_killed_has_read_nothing_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its picture has no score; that the sign says nothing would be a 0."""
    engine = tmp_path / "tesseract"
    engine.write_text('#!/bin/sh\n[ "$1" = --version ] && echo tesseract 0 && exit\nkill -KILL $$\n')
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (score,) = ocr.OcrReward(TesseractReader())(np.zeros((1, 64, 64, 3), dtype=np.uint8), [Prompt("", "TREE")])
    assert not score.scored
    assert "tesseract ended with -9" in score.note


def test_a_second_reader_that_is_not_there_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    result = CliRunner().invoke(main, ["judge", str(run), "--judge", "none", "--second-reader", "tesseract"])
    assert result.exit_code == 1
    assert "Tesseract is not installed" in result.output
