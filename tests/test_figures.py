"""Figures as a reader needs them: nothing lies on anything else."""

import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from gdro_bench import figures
from gdro_bench.registry import TABLES

BUILT_IN = tuple(TABLES["method"])

SEEN = ["1 red cup, 1 brown scissors, 1 white stop sign, 2 purple umbrellas", "1 cow", "", "UNPRONOUNCEABLE" * 5]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test saves."""
    kept: list[Figure] = []
    save = figures.save

    def keep(figure: Figure, path: Path) -> None:
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save", keep)
    return kept


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_captions_lie_on_no_picture_and_on_no_other_caption(columns: int, tmp_path: Path, drawn: list[Figure]) -> None:
    titles = [f"method-{i}, 100%" for i in range(columns)]
    images = np.zeros((len(SEEN), 64, 64, 3), np.uint8)
    figures.sample_sheet(
        tmp_path / "sheet", dict.fromkeys(titles, images), dict.fromkeys(titles, SEEN), ["a photo of a cow"] * len(SEEN)
    )
    shown = [axis for axis in drawn[0].axes if axis.images]
    assert len(shown) == columns * len(SEEN)
    boxes = [axis.title.get_window_extent() for axis in shown] + [axis.images[0].get_window_extent() for axis in shown]
    assert not [pair for pair in combinations(boxes, 2) if Bbox.intersection(*pair)]
    assert (tmp_path / "sheet.png").exists()
    assert (tmp_path / "sheet.pdf").exists()


def test_a_long_prompt_is_cut_on_the_sheet(tmp_path: Path) -> None:
    """Wrapped whole, one of 40,000 characters makes a picture of thousands of lines."""
    images, long = np.zeros((2, 64, 64, 3), np.uint8), "a sign " * 6000
    begun = time.perf_counter()
    figures.sample_sheet(tmp_path / "long", {"base": images}, {"base": [long, ""]}, [long, "a cow"])
    assert time.perf_counter() - begun < 5
    with Image.open(tmp_path / "long.png") as sheet:
        assert sheet.height < 1000


def test_letters_that_the_font_lacks_are_boxes_and_long_ones_end_in_dots() -> None:
    assert figures._plain("a 猫") == "a \u25a1"
    assert figures._plain("x" * 160) == "x" * 160
    assert figures._plain("x" * 161) == "x" * 159 + "\u2026"


def test_a_method_has_one_style_in_all_figures_and_no_two_labels_share_one() -> None:
    few, many = ["gdro", "gdro online", "flow-grpo"], [*BUILT_IN, "gdro online", "gdro (k = 2)"]
    styles = figures.styles_of(many)
    assert list(styles) == many
    assert len(set(styles.values())) == len(many)
    assert figures.styles_of(few)["flow-grpo"] == styles["flow-grpo"]
    assert len({figures.styles_of(few)[label][0] for label in few}) == len(few)


def test_the_user_s_own_backend_stays(tmp_path: Path) -> None:
    code = "import matplotlib; matplotlib.use('svg'); import gdro_bench.figures; print(matplotlib.get_backend())"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert seen.stdout.strip().lower() == "svg"


def test_letters_in_a_pdf_are_type_s_that_journals_take(tmp_path: Path) -> None:
    losses = pd.DataFrame({"stage": ["a"] * 2, "images": [1, 2], "loss": [1.0, 0.5]})
    figures.loss_curve(tmp_path / "loss", losses)
    drawn = (tmp_path / "loss.pdf").read_bytes()
    assert b"/Type3" not in drawn
    assert b"/TrueType" in drawn or b"/CIDFontType2" in drawn


def test_one_test_with_one_number_has_an_axis(tmp_path: Path) -> None:
    one = {"number": 1, "task": "ocr", "measured": "a difference", "unit": "difference", "value": 0.1}
    one |= {"value_low": np.nan, "value_high": np.nan, "bound": 0.1, "weakly": np.nan, "side": "at least", "seeds": 1}
    figures.verdicts(tmp_path / "claims", pd.DataFrame([one | {"verdict": "undecided"}]))
    assert (tmp_path / "claims.png").stat().st_size > 1000


def test_every_panel_has_its_own_curve_and_the_reference_s(tmp_path: Path, drawn: list[Figure]) -> None:
    labels = ["gdro", *(f"gdro (k={k})" for k in range(2, 12))]
    curves = pd.concat(
        pd.DataFrame({"label": label, "seed": "mean", "cost": [0, 100], "reward": [0.5, 0.6 + i / 100]})
        for i, label in enumerate(labels)
    ).assign(reward_low=0.4, reward_high=0.9, measured=True)
    styles = figures.styles_of(labels)
    figures.cost_panels(
        tmp_path / "reward", curves, "cost", "evaluations", "reward", "a reward", 0.55, styles, reference="gdro"
    )
    panels = [axis for axis in drawn[0].axes if axis.axison]
    assert [axis.get_title() for axis in panels] == labels[1:]
    for i, axis in enumerate(panels, 1):
        ends = {str(line.get_label()): np.asarray(line.get_ydata())[-1] for line in axis.lines}
        assert ends["gdro"] == 0.6
        assert ends[labels[i]] == 0.6 + i / 100
    boxes = [axis.title.get_window_extent() for axis in panels] + [axis.get_window_extent() for axis in panels]
    assert not [pair for pair in combinations(boxes, 2) if Bbox.intersection(*pair)]
