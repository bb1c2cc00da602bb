"""Figures as a reader needs them: nothing lies on anything else."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from gdro_bench import figures

SEEN = ["1 red cup, 1 brown scissors, 1 white stop sign, 2 purple umbrellas", "1 cow", "", "UNPRONOUNCEABLE" * 5]


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_captions_lie_on_no_picture_and_on_no_other_caption(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = figures.save

    def kept(figure: Figure, path: Path) -> None:
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save", kept)
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
