"""A human study: the page hides whose picture is where and is answered in a real browser; the analysis finds the
preferences that were planted."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from known_runs import EVIL, SLOWER, make_run
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.wait import WebDriverWait
from test_page import DRIVER, FLAGS

from gdro_bench.cli import main
from gdro_bench.comparison import entries
from gdro_bench.comparison.study import answers, pairs
from gdro_bench.comparison.study.answers import Answers
from gdro_bench.comparison.study.pairs import Study
from gdro_bench.engine import samples
from gdro_bench.errors import BenchError

PICTURES = 8


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["study", *map(str, arguments)])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """GDRO's pictures are light, Flow-GRPO's dark, of two seeds each."""
    folder = tmp_path / "runs"
    for seed in (0, 1):
        for method, rewards, shade in (("gdro", (0.4, 0.4, 0.6, 0.7, 0.8), 200), ("flow-grpo", SLOWER, 60)):
            run = make_run(folder / f"{method}-s{seed}", method, seed=seed, rewards=rewards, pictures=PICTURES)
            for point in entries.record.read(run).points:
                shades = [np.full((8, 8, 3), shade + i, dtype=np.uint8) for i in range(PICTURES)]
                samples.write(samples.path_of(run, point.mark), np.stack(shades))
    return folder


@pytest.fixture
def study(runs: Path, tmp_path: Path) -> Study:
    result = call("--runs", runs, "--out", tmp_path / "study", "--pairs", PICTURES)
    assert result.exit_code == 0, result.output
    return pairs.read_key(tmp_path / "study")


def compared(runs: Path) -> entries.Comparison:
    return entries.compare([entries.load(path) for path in sorted(runs.iterdir())], variants=False)


# ---------------------------------------------------------------------------------------------------------------
# What is shown


def test_every_prompt_is_shown_once_with_sides_and_order_of_the_seed(runs: Path) -> None:
    drawn = pairs.draw(compared(runs), "budget", PICTURES, 0, "Which?")
    assert sorted(pair.prompt for pair in drawn.pairs) == list(range(PICTURES))
    assert [pair.number for pair in drawn.pairs] == list(range(PICTURES))
    assert {frozenset((pair.left, pair.right)) for pair in drawn.pairs} == {frozenset(("gdro", "flow-grpo"))}
    assert len({pair.left for pair in drawn.pairs}) == len({pair.seed for pair in drawn.pairs}) == 2
    assert drawn.marks == {"gdro": 1.0, "flow-grpo": 1.0}
    assert pairs.draw(compared(runs), "budget", PICTURES, 0, "Which?") == drawn
    other = pairs.draw(compared(runs), "budget", PICTURES, 1, "Which?")
    assert other.pairs != drawn.pairs
    assert other.name != drawn.name


def test_at_matched_reward_each_method_shows_where_it_reached_it(runs: Path) -> None:
    drawn = pairs.draw(compared(runs), "reward", PICTURES, 0, "Which?")
    assert drawn.marks["gdro"] < drawn.marks["flow-grpo"] == 1.0


def test_the_pictures_are_those_that_the_key_names(runs: Path, study: Study) -> None:
    shown = pairs.pictures(compared(runs), study)
    for pair, (left, right) in zip(study.pairs, shown, strict=True):
        for label, image in ((pair.left, left), (pair.right, right)):
            assert int(image[0, 0, 0]) == {"gdro": 200, "flow-grpo": 60}[label] + pair.prompt


def test_the_page_tells_no_method_and_holds_prompts_as_text(study: Study, tmp_path: Path) -> None:
    page = (tmp_path / "study" / "study.html").read_text()
    for told in ("gdro-s0", '"gdro"', "flow-grpo", "matched", str(tmp_path)):
        assert told not in page
    assert EVIL not in page
    assert re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', page) is None  # nothing from elsewhere
    key = json.loads((tmp_path / "study" / "key.json").read_text())
    assert {key["pairs"][0]["left"], key["pairs"][0]["right"]} == {"gdro", "flow-grpo"}


# ---------------------------------------------------------------------------------------------------------------
# What was answered


def planted(share: float, count: int, raters: int, seed: int = 0, apart: float = 0.0) -> tuple[Study, list[Answers]]:
    """Raters who prefer the reference with this probability, every second one so much `apart` below it and the others
    above it, and call one picture in ten alike."""
    rng = np.random.default_rng(seed)
    drawn = [("gdro", "dpo") if rng.random() < 0.5 else ("dpo", "gdro") for _ in range(count)]
    shown = tuple(pairs.Pair(i, i, f"prompt {i}", 0, *sides) for i, sides in enumerate(drawn))
    made = Study("s", "ocr", "pocket", "", "Which?", "budget", 0, "gdro", {"gdro": 1.0, "dpo": 1.0}, shown)

    def choice(pair: pairs.Pair, rater: int) -> str:
        if rng.random() < 0.1:
            return "tie"
        liked = share + (apart if rater % 2 else -apart)
        return "left" if (rng.random() < liked) == (pair.left == "gdro") else "right"

    return made, [Answers(f"rater {i}", {pair.number: choice(pair, i) for pair in shown}) for i in range(raters)]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_planted_preferences_are_found_within_the_interval(share: float) -> None:
    (verdict,) = answers.verdicts(*planted(share, count=200, raters=5))
    assert verdict.shares["preferred"].low < 0.9 * share < verdict.shares["preferred"].high
    assert verdict.shares["alike"].low < 0.1 < verdict.shares["alike"].high
    assert verdict.win_rate.low < 0.9 * share + 0.05 < verdict.win_rate.high
    assert sum(part.mean for part in verdict.shares.values()) == pytest.approx(1)
    assert (verdict.raters, verdict.answers) == (5, 1000)


def test_intervals_cover_what_was_planted_as_often_as_they_say() -> None:
    covered, widths = 0, []
    for seed in range(40):
        (verdict,) = answers.verdicts(*planted(0.6, count=60, raters=6, seed=seed))
        covered += verdict.win_rate.low <= 0.9 * 0.6 + 0.05 <= verdict.win_rate.high
        widths.append(verdict.win_rate.high - verdict.win_rate.low)
    assert covered >= 34
    # 360 answers of 1, 1/2 or 0: four standard errors are 0.1; the two levels of the bootstrap add up to twice that
    assert 0.08 < np.mean(widths) < 0.2


def test_raters_who_differ_make_the_interval_wider_than_prompts_alone_do() -> None:
    (alike,) = answers.verdicts(*planted(0.6, count=100, raters=6))
    (apart,) = answers.verdicts(*planted(0.6, count=100, raters=6, apart=0.3))
    width = [verdict.win_rate.high - verdict.win_rate.low for verdict in (alike, apart)]
    assert width[1] > 2 * width[0]


def test_few_answers_have_a_wide_interval_and_unanswered_pairs_do_not_count() -> None:
    study, raters = planted(0.8, count=50, raters=3)
    few = [replace(one, choices=dict(list(one.choices.items())[:15])) for one in raters]
    (narrow,), (wide,) = answers.verdicts(study, raters), answers.verdicts(study, few)
    assert wide.win_rate.high - wide.win_rate.low > narrow.win_rate.high - narrow.win_rate.low
    assert (wide.raters, wide.answers) == (3, 45)


def test_krippendorff_s_alpha_of_his_own_example() -> None:
    """Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, section C: nominal data of four observers."""
    rows = ["123321412...", "123322412 5.3".replace(" ", ""), ".33323422 51.".replace(" ", ""), "12332441251."]
    chosen = np.array([[-1 if letter == "." else int(letter) for letter in row] for row in rows])
    assert answers.nominal_alpha(chosen) == pytest.approx(0.743, abs=5e-4)


def test_agreement_is_one_alike_zero_by_chance_and_unknown_alone() -> None:
    study, raters = planted(0.5, count=300, raters=4)
    assert abs(answers.agreement(study, raters)) < 0.1
    assert answers.agreement(study, [raters[0], replace(raters[0], rater="same")]) == 1.0
    assert np.isnan(answers.agreement(study, raters[:1]))
    one_side = [replace(one, choices=dict.fromkeys(one.choices, "left")) for one in raters]
    assert np.isnan(answers.agreement(study, one_side)), "where nothing varies, nothing can be told of agreement"


def saved(path: Path, study: str, rater: str, *choices: str) -> Path:
    rows = [{"pair": i, "choice": choice, "seconds": 1.0} for i, choice in enumerate(choices)]
    path.write_text(json.dumps({"study": study, "rater": rater, "answers": rows}))
    return path


def test_answers_that_cannot_be_used_are_a_sentence_and_a_remedy(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "study"
    good = saved(tmp_path / "a.json", study.name, "anna", "left", "tie")
    for name, path in {
        "answers study other": saved(tmp_path / "b.json", "other", "ben", "left"),
        "names pairs or choices": saved(tmp_path / "c.json", study.name, "cai", "middle"),
        "Two files are of the rater 'anna'": saved(tmp_path / "d.json", study.name, "anna", "left"),
        "cannot be read": tmp_path / "gone.json",
    }.items():
        result = call("--out", out, "--answers", good, "--answers", path)
        assert result.exit_code != 0
        assert name in result.output
    assert "No pair was answered" in call("--out", out, "--answers", saved(tmp_path / "e.json", study.name, "e")).output
    unread = CliRunner().invoke(main, ["compare", "--runs", str(tmp_path / "runs"), "--study", str(out)])
    assert "has no answers yet" in unread.output
    assert "There is no study in" in call("--out", tmp_path, "--answers", good).output
    (out / "key.json").write_text("{")
    assert "is damaged" in call("--out", out, "--answers", good).output


def test_the_folder_keeps_the_answers_that_were_last_given(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "study"
    files = [saved(tmp_path / f"{name}.json", study.name, name, "left") for name in ("anna", "ben")]
    for given in (files, files[1:]):
        assert call("--out", out, *(part for path in given for part in ("--answers", path))).exit_code == 0
        kept = sorted((out / answers.KEPT).iterdir())
        assert [path.read_bytes() for path in kept] == [path.read_bytes() for path in given]


def test_raters_files_beside_the_key_are_left_alone(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "study"
    (out / "answers").mkdir()
    files = [saved(out / "answers" / f"{name}.json", study.name, name, "left") for name in ("anna", "ben")]
    assert call("--out", out, "--answers", files[0]).exit_code == 0
    assert all(path.exists() for path in files)


def test_other_pictures_are_another_study_and_do_not_take_its_key(runs: Path, study: Study, tmp_path: Path) -> None:
    run = entries.record.read(runs / "gdro-s0")
    path = samples.path_of(runs / "gdro-s0", run.points[-1].mark)
    samples.write(path, samples.read(path, list(range(PICTURES))) + 1)
    arguments = ("--runs", runs, "--pairs", PICTURES, "--out")
    assert "holds another study" in call(*arguments, tmp_path / "study").output
    assert pairs.read_key(tmp_path / "study") == study
    assert call(*arguments, tmp_path / "again").exit_code == 0
    again = pairs.read_key(tmp_path / "again")
    assert (again.pairs, again.runs) == (study.pairs, study.runs)
    assert again.name != study.name


@pytest.mark.usefixtures("undrawn")
def test_a_study_is_in_the_report_of_its_runs_alone(runs: Path, study: Study, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert call("--out", out, "--answers", saved(tmp_path / "a.json", study.name, "anna", "left")).exit_code == 0

    def reports(*folders: Path) -> tuple[str, dict[str, str]]:
        made = tmp_path / f"report{len(folders)}"
        given = ["compare", *map(str, folders), "--runs", str(runs), "--study", str(out), "--out", str(made)]
        result = CliRunner().invoke(main, given)
        assert result.exit_code == 0, result.output
        return result.output, {path.parent.name: path.read_text() for path in made.rglob("report.md")}

    assert "is of other runs: it is in no report" in reports(runs / "gdro-s0", runs / "gdro-s1")[0]
    for method in ("gdro", "flow-grpo"):
        make_run(runs / f"{method}-geneval", method, task="geneval")
    output, texts = reports()
    assert "in no report" not in output
    assert {name: "What people prefer" in text for name, text in texts.items()} == {
        "ocr-pocket": True, "geneval-pocket": False,
    }  # fmt: skip


def test_runs_that_make_no_study_are_a_sentence_and_a_remedy(runs: Path, tmp_path: Path) -> None:
    assert "A study needs two methods." in call(runs / "gdro-s0", "--out", tmp_path / "x").output
    for path in runs.rglob("samples"):
        shutil.rmtree(path)
    assert "have no pictures of the same prompt and seed" in call("--runs", runs).output
    with pytest.raises(BenchError, match="There is no study"):
        pairs.read_key(tmp_path)


# ---------------------------------------------------------------------------------------------------------------
# In a browser

needs_browser = pytest.mark.skipif(DRIVER is None, reason="needs Chromium and its driver on the PATH")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def shade(browser: WebDriver, side: str) -> int:
    """The light of the picture on one side, as the browser paints it."""
    return int(browser.execute_script(
        "const i = document.querySelector(`#${arguments[0]} img`), c = document.createElement('canvas');"
        "c.width = c.height = 1; const p = c.getContext('2d'); p.drawImage(i, 0, 0);"
        "return p.getImageData(0, 0, 1, 1).data[0]", side,
    ))  # fmt: skip


def settled(browser: WebDriver) -> None:
    WebDriverWait(browser, 20).until(
        lambda b: b.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth)")
    )


def count(browser: WebDriver) -> str:
    return browser.find_element(By.ID, "count").text


@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_a_study_is_answered_by_keys_and_touch_left_and_taken_up_again(
    width: int, study: Study, tmp_path: Path, browser: WebDriver, downloads: Path
) -> None:
    """Whoever answers likes the lighter picture; the seventh pair is called alike."""
    address = (tmp_path / "study" / "study.html").as_uri()
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600,
    })  # fmt: skip
    browser.get(address)
    for number in range(PICTURES):
        settled(browser)
        assert count(browser) == f"{number} of {PICTURES}"
        assert browser.find_element(By.ID, "prompt").text == study.pairs[number].text
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        lighter = "left" if shade(browser, "left") > shade(browser, "right") else "right"
        if number == 3:  # wrong, and taken back
            browser.find_element(By.CSS_SELECTOR, "[data-choice=tie]").click()
            browser.find_element(By.ID, "back").click()
        if number == 4:  # the page is closed and opened again
            browser.get(address)
            settled(browser)
            assert count(browser) == f"4 of {PICTURES}"
        if number == 6:
            ActionChains(browser).send_keys(Keys.ARROW_DOWN).perform()
        elif number % 2:
            browser.find_element(By.ID, lighter).click()
        else:
            ActionChains(browser).send_keys(Keys.ARROW_LEFT if lighter == "left" else Keys.ARROW_RIGHT).perform()
    browser.find_element(By.ID, "rater").send_keys(f"anna {width}")
    browser.find_element(By.ID, "save").click()
    path = downloads / f"answers-{study.name}-anna-{width}.json"
    WebDriverWait(browser, 20).until(lambda _: path.exists())
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    browser.execute_script("localStorage.clear()")
    result = call("--out", tmp_path / "study", "--answers", path)
    assert result.exit_code == 0, result.output
    row = pd.read_csv(tmp_path / "study" / "study.csv").iloc[0]
    assert (row["preferred"], row["alike"], row["other preferred"]) == (7 / 8, 1 / 8, 0.0)
    assert "gdro against flow-grpo: preferred 0.875 [" in result.output
    arguments = ["compare", "--runs", tmp_path / "runs", "--study", tmp_path / "study", "--out", tmp_path / "report"]
    assert CliRunner().invoke(main, list(map(str, arguments))).exit_code == 0
    table = (tmp_path / "study" / "study.md").read_text()
    assert table in (tmp_path / "report" / "ocr-pocket" / "report.md").read_text()
