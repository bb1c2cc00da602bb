"""Scoring without training: pictures from disk with the real reader, and a run's adapters against its record."""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_instruments
from click.testing import CliRunner, Result
from judge_server import RIGHT, Judge
from numpy.random import default_rng
from PIL import Image

from gdro_bench import registry
from gdro_bench.budget import Ledger
from gdro_bench.cli import main
from gdro_bench.commands import evaluate
from gdro_bench.engine import held_out, plan, record
from gdro_bench.engine.run_state import RunState
from gdro_bench.errors import BenchError
from gdro_bench.instruments import Instruments
from gdro_bench.models.pocket import prompts as pocket_prompts
from gdro_bench.models.pocket import world
from gdro_bench.score import Images, Score, check_axes, corrected_score, judge_mean
from gdro_bench.task import Correction, Prompt

pytestmark = pytest.mark.usefixtures("sketched")


def call(*arguments: object) -> Result:
    in_process = ("--set", "profile.reader.workers=0")  # tests of workers are elsewhere
    return CliRunner().invoke(main, ["eval", *map(str, arguments), "--device", "cpu", *in_process])


def picture(path: Path, word: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = world.Facts("blue", "plain", world.SignFacts(word, "white", "top", "large"), ())
    Image.fromarray(world.render(facts, default_rng(1)).pixels).save(path)
    return path


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    picture(tmp_path / "right.png", "CAFE")
    picture(tmp_path / "wrong.png", "CAFE")
    large = Image.open(tmp_path / "right.png").resize((128, 128))  # of another size
    large.save(tmp_path / "large.png")
    file = tmp_path / "list.csv"
    file.write_text(
        'path,prompt\nright.png,"a sign ""cafe"""\nlarge.png,"a sign ""CAFE"""\nwrong.png,"a sign ""MOON"""\n'
    )
    return file


def test_a_list_of_pictures_is_scored_and_written(listed: Path, tmp_path: Path) -> None:
    result = call("ocr", "--images", listed, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert scores["reward"].tolist() == [1.0, 1.0, 0.0]
    assert scores["read"].tolist() == ["CAFE"] * 3
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert found["pictures"] == 3
    assert found["reward"]["mean"] == pytest.approx(2 / 3)
    assert found["reward"]["low"] < 2 / 3 < found["reward"]["high"]


def test_geneval_s_folders_are_read(tmp_path: Path) -> None:
    for i, word in enumerate(("CAFE", "HAND")):
        picture(tmp_path / f"{i:05d}" / "samples" / "0000.png", word)
        picture(tmp_path / f"{i:05d}" / "samples" / "0001.png", "ZOOM")
        (tmp_path / f"{i:05d}" / "metadata.jsonl").write_text(json.dumps({"prompt": f'a sign "{word}"'}))
    result = call("ocr", "--images", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "4 pictures" in result.output
    assert pd.read_csv(tmp_path / "out" / "scores.csv")["reward"].tolist()[::2] == [1.0, 1.0]


SETTINGS = (
    "profile.budget.limit=200",
    "profile.budget.marks=[1.0]",
    "profile.reader.workers=0",
    "profile.drift.prompts=0",
    "profile.health.prompts=0",
    "method.prompts=2",
    "method.k=4",
    "method.optimiser.learning_rate=0.02",  # so that even this little training shows
)


def test_a_run_s_adapters_generate_what_its_record_says(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(pocket_prompts.ocr_prompts("tuning", 0, 16)))
    flags = [part for setting in SETTINGS for part in ("--set", setting)]
    chosen = ["--out", str(tmp_path / "runs"), "--device", "cpu", "--prompts", str(prompts)]
    made = CliRunner().invoke(main, ["run", "ocr", "--method", "flow-grpo", *chosen, *flags])
    assert made.exit_code == 0, made.output
    folder = next(tmp_path.glob("runs/ocr/pocket/*"))
    base, last = record.read(folder).points
    result = call("ocr", "--lora", folder / "lora", "--prompts", prompts, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert found["reward"]["mean"] == pytest.approx(last.reward.mean, abs=1e-9) != base.reward.mean


CORRECTION = Correction(("alignment", "coherence", "style"), pivot=3.0, shift=0.2)


def test_the_corrected_score_is_the_paper_s():
    r, u = np.array([0.5, 1.0]), np.array([4.0, 3.0])
    assert corrected_score(r, u, CORRECTION) == pytest.approx([0.7, 0.2])
    judged = [Score(3.0, {"alignment": 5.0, "coherence": 3.0, "style": 1.0})]
    assert judge_mean(judged, CORRECTION) == pytest.approx([3.0])
    assert judge_mean(judged, Correction(("coherence", "style"), 3.0, 0.2)) == pytest.approx([2.0])
    assert np.isnan(judge_mean([Score(math.nan)], CORRECTION)).all()


def test_a_score_that_failed_may_have_no_parts():
    """As an instrument of another package may give it."""

    class Named:
        name = "reward"

    asked, scores = [Prompt(text, "") for text in "abc"], [Score(math.nan, note="failed"), Score(1.0, {"exact": 1.0})]
    found = evaluate.result(Named(), asked, [*scores, Score(0.0, {"exact": 0.0})])
    assert (found.unscored, found.parts["exact"].mean) == (1, 0.5)
    check_axes(Named(), [Score(math.nan), Score(3.0, dict.fromkeys(CORRECTION.axes, 3.0))], CORRECTION)
    with pytest.raises(BenchError, match="does not rate alignment, coherence, style"):
        check_axes(Named(), [Score(math.nan), Score(3.0)], CORRECTION)
    rows = [
        {"mark": 0.0, "prompt": i, "text": "a", "value": s.value, "note": s.note, **s.parts}
        for i, s in enumerate(scores)
    ]
    point = held_out.point_of(0.0, rows, rows, RunState(Ledger(limit=100)))
    assert (point.unscored, point.parts) == (1, {"exact": 1.0})


def test_the_judge_s_address_may_be_the_profile_s(server: Judge, listed: Path, tmp_path: Path) -> None:
    arguments = ("--images", listed, "--judge", "unified-reward", "--set", f"profile.judge.url={server.url}")
    result = call("ocr", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["judge"].startswith("UnifiedReward")


def test_both_orders_of_averaging_are_told_apart():
    def score(value: float) -> Score:
        return Score(value, dict.fromkeys(CORRECTION.axes, value))

    class Named:
        name = "judge"

    asked = [Prompt(text, "") for text in "abc"]
    plain = evaluate.result(Named(), asked, [score(1.0), score(0.0), score(float("nan"))])
    scores, said = [score(1.0), score(0.0), score(1.0)], [score(4.0), score(3.0), score(float("nan"))]
    found = evaluate.with_judge(plain, asked, scores, Named(), said, CORRECTION)
    assert found.corrected["mean"].mean == pytest.approx((1.2 + 0.2) / 2)
    assert found.corrected["of the means"].mean == pytest.approx(0.5 * 0.5 + 0.2)
    assert found.corrected["of the means"].low <= 0.45 <= found.corrected["of the means"].high
    assert found.unjudged == 1


def test_a_judge_can_be_asked_too(server: Judge, listed: Path, tmp_path: Path) -> None:
    server.answers = [RIGHT, RIGHT, "no", "no"]
    result = call(
        "ocr", "--images", listed, "--judge", "unified-reward", "--judge-url", server.url, "--judge-model", "judge-7b",
        "--out", tmp_path / "o", "--set", "profile.max_unscored=0.5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Judge: judge-7b (1-5)." in result.output
    found = json.loads((tmp_path / "o" / "eval.json").read_text())
    assert found["unjudged"] == 1
    assert found["axes"]["alignment"]["mean"] == 4.5
    assert len(pd.read_csv(tmp_path / "o" / "scores.csv")["style"].dropna()) == 2


@pytest.mark.slow
def test_a_judge_that_is_not_there_is_named(listed: Path) -> None:
    result = call("ocr", "--images", listed, "--judge", "unified-reward", "--judge-url", "http://127.0.0.1:9/v1")
    assert result.exit_code == 1
    assert "The judge at http://127.0.0.1:9/v1 does not answer" in result.output


@pytest.mark.parametrize(
    ("judge", "side", "said"),
    [("pocket-facts", 64, "does not rate alignment"), ("pocket", 65, "64 x 64 px; these have 65 x 65")],
)
def test_a_judge_that_does_not_suit_costs_no_reward(judge: str, side: int, said: str, tmp_path: Path) -> None:
    Image.new("RGB", (side, side), "red").save(tmp_path / "a.png")
    prompt = 'a large red sign that reads ""TREE"" at the top of a blue wall'
    (tmp_path / "list.csv").write_text(f'path,prompt\na.png,"{prompt}"\n')
    result = call("ocr", "--images", tmp_path / "list.csv", "--judge", judge, "--out", tmp_path / "o")
    assert result.exit_code == 1
    assert said in result.output
    assert json.loads((tmp_path / "o" / "eval.json").read_text())["reward"]["mean"] == 0


def test_pictures_that_cannot_be_scored_cost_no_other_reward(listed: Path, tmp_path: Path) -> None:
    asked = Rates("style")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluate, "instruments", lambda *_: (HalfBlind(), asked))
        result = call("ocr", "--images", listed, "--judge", "pocket", "--out", tmp_path / "o")
    assert result.exit_code == 1
    assert "1 of 3 images could not be scored" in result.output
    assert asked.asked == 0
    assert pd.read_csv(tmp_path / "o" / "scores.csv")["reward"].notna().sum() == 2


class HalfBlind:
    """A reward that cannot score what is larger."""

    name = "half blind"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(1.0 if images.shape[1] == 64 else math.nan)] * len(images)


def test_an_evaluation_of_something_else_is_not_written_over(listed: Path, tmp_path: Path) -> None:
    assert call("ocr", "--images", listed, "--out", tmp_path / "o").exit_code == 0
    assert json.loads((tmp_path / "o" / "eval.json").read_text())["inputs"] == {
        "task": "ocr", "profile": "pocket", "settings": [], "images": str(listed),
    }  # fmt: skip
    assert call("ocr", "--images", listed, "--out", tmp_path / "o").exit_code == 0
    other = listed.rename(tmp_path / "other.csv")
    result = call("ocr", "--images", other, "--out", tmp_path / "o")
    assert result.exit_code == 2
    assert "holds an evaluation with another images" in " ".join(result.output.split())


class Rates:
    """A judge that rates this one axis."""

    def __init__(self, axis: str) -> None:
        self.name, self.axis, self.asked = "judge", axis, 0

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        self.asked += len(images)
        return [Score(3.0, {self.axis: 3.0})] * len(images)


@pytest.mark.parametrize(("axis", "asked"), [("style", 5), ("beauty", 2)])
def test_a_judge_that_does_not_suit_is_asked_about_one_batch(
    axis: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "BATCH", 2)
    judge, image = Rates(axis), np.zeros((8, 8, 3), dtype=np.uint8)
    pictures = evaluate.Pictures(["a"] * 5, [image] * 5, [Prompt("a", "a")] * 5)
    judged, refusal = evaluate.ask([pictures], judge, Correction(("style",), 3.0, 0.2), lambda done, total: None)
    assert judge.asked == asked
    assert (judged is None) == (refusal is not None) == (asked < 5)


def judged_by(url: str, *more: object) -> tuple[object, ...]:
    return "--judge", "unified-reward", "--judge-url", url, "--judge-model", "judge-7b", *more


def test_a_judge_that_fails_on_too_many_is_an_error_and_the_rewards_stay(
    server: Judge, listed: Path, tmp_path: Path
) -> None:
    server.answers = ["no"]
    result = call("ocr", "--images", listed, *judged_by(server.url), "--out", tmp_path / "o")
    assert result.exit_code == 1
    assert "judge-7b (1-5) gave no judgement on 3 of 3 pictures (no three ratings in 'no')" in result.output
    text = (tmp_path / "o" / "eval.json").read_text()
    evaluation = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert evaluation["reward"]["mean"] == pytest.approx(2 / 3)
    assert evaluation["axes"]["style"]["mean"] is None


@pytest.mark.parametrize(
    "url", ["nonsense", "user:secret@host/v1", "ftp://user:secret@host/v1", "http://", "http://h:x"]
)
def test_what_is_no_address_is_refused_at_once_and_without_its_password(listed: Path, url: str) -> None:
    result = call("ocr", "--images", listed, *judged_by(url))
    assert result.exit_code == 2
    assert "is no web address" in result.output
    assert "secret" not in result.output


def test_a_judge_s_password_is_sent_and_not_shown(server: Judge, listed: Path) -> None:
    server.answers = [401]
    result = call("ocr", "--images", listed, *judged_by(server.url.replace("://", "://user:se%40cret@")))
    assert result.exit_code == 1
    assert f"The judge at {server.url} refuses: HTTP 401" in result.output
    assert "cret" not in result.output
    assert server.authorizations[0] == "Basic " + base64.b64encode(b"user:se@cret").decode()


def test_a_spreadsheet_s_byte_order_mark_does_no_harm(listed: Path) -> None:
    listed.write_text(listed.read_text(), encoding="utf-8-sig")
    assert call("ocr", "--images", listed).exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('path,prompt\nright.png,"a caf\u00e9 ""CAFE"""\n'.encode("latin-1"), "Save it as a CSV file in UTF-8"),
        (b"path,text\nright.png,a\nright.png,b\n", "has no column 'prompt'; it has: 'path', 'text'"),
        (b"path;prompt\nright.png;a\n", "has no column 'path'; it has: 'path;prompt'"),
    ],
)
def test_a_list_that_is_none_is_named_once(listed: Path, content: bytes, message: str) -> None:
    listed.write_bytes(content)
    result = call("ocr", "--images", listed)
    assert result.exit_code == 1
    assert message in result.output


def test_brackets_in_paths_are_no_markup(listed: Path, tmp_path: Path) -> None:
    result = call("ocr", "--images", listed, "--out", tmp_path / "ev[/]x")
    assert result.exit_code == 0, result.output
    assert "ev[/]x/eval.json" in result.output


class Detecting:
    """The reward of another package, which looks at a detector's objects."""

    name = "objects"

    def __init__(self, instruments: Instruments) -> None:
        self.detector = instruments.detector()

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(len(detected.objects))) for detected in self.detector(images)]


def test_any_reward_that_detects_takes_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TABLES["reward"], "objects", f"{__name__}:Detecting")
    request = evaluate.EvalRequest(
        None, None, None, tiny_instruments.mask2former(tmp_path / "m"), tiny_instruments.clip(tmp_path / "c"),
        "none", "", "", "cpu",
    )  # fmt: skip
    task, profile, _ = plan.evaluation_inputs("ocr", "pocket", (), None)
    scorer, _ = evaluate.instruments(replace(task, reward="objects"), profile, request)
    assert "Mask2Former" in scorer.detector.name
    with pytest.raises(BenchError, match="'ocr' detects no objects"):
        evaluate.instruments(task, profile, request)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda f: None, "There are no pictures in"),
        (lambda f: f.rmdir(), "There is no "),
        (lambda f: (f / "list.csv").write_text("path,prompt\n"), "There are no pictures in"),
        (lambda f: (f / "list.csv").write_text("path,prompt\na.png,\n"), "line 2, lacks a path or a prompt"),
        (lambda f: (f / "list.csv").write_text('path,prompt\na.png,"a ""B"""\n'), "a.png cannot be read"),
        (lambda f: ((f / "a.png").write_text("x"), (f / "list.csv").write_text('path,prompt\na.png,"a ""B"""\n')),
         "a.png cannot be read"),
        (lambda f: ((f / "a.ppm").write_bytes(b"P6\n64`64\n255\n" + bytes(99)),
                    (f / "list.csv").write_text('path,prompt\na.ppm,"a ""B"""\n')), "a.ppm cannot be read"),
        (lambda f: (picture(f / "a.png", "CAT"), (f / "list.csv").write_text("path,prompt\na.png,a cat\n")),
         "no text in straight double quotes"),
    ],
)  # fmt: skip
def test_bad_input_is_named(tmp_path: Path, prepare, said: str) -> None:
    prepare(tmp_path)
    images = tmp_path / "list.csv" if (tmp_path / "list.csv").exists() else tmp_path
    result = call("ocr", "--images", images)
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_adapters_that_are_not_there_are_named(tmp_path: Path) -> None:
    result = call("ocr", "--lora", tmp_path)
    assert result.exit_code == 1
    assert "cannot be loaded" in result.output


def test_nothing_is_generated_where_pictures_are_given(tmp_path: Path) -> None:
    assert "Leave out --weights, --lora" in call("ocr", "--images", tmp_path, "--lora", tmp_path).output
