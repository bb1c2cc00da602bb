"""GenEval's published checkpoint in transformers' class: what mmdet makes of such weights, without mmdet and mmcv."""

import re
from pathlib import Path

import mmdet_like
import numpy as np
import pytest
import tiny_instruments
import torch

from gdro_bench.errors import BenchError
from gdro_bench.instruments import mmdet_weights
from gdro_bench.instruments.mask2former import Mask2FormerDetector


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As mmdet 2 saves it: its names, a buffer among the weights, and what it was trained by beside them."""
    named = {mmdet_like.like_mmdet_2(name): value for name, value in mmdet_like.weights().items()}
    buffer = {"backbone.stages.0.blocks.0.attn.w_msa.relative_position_index": torch.zeros(49, 49, dtype=torch.long)}
    path = tmp_path_factory.mktemp("mmdet") / "swin-s.pth"
    torch.save({"meta": {"mmdet_version": "2.24.1"}, "state_dict": named | buffer}, path)
    return str(path)


def test_the_detector_makes_mmdet_s_logits(checkpoint: str, tmp_path: Path) -> None:
    detector = Mask2FormerDetector(checkpoint, tiny_instruments.clip(tmp_path / "clip-tiny"))
    with torch.no_grad():
        output = detector.model(pixel_values=mmdet_like.PIXELS)
    found = mmdet_like.some_of(output.class_queries_logits[0], output.masks_queries_logits[0])
    assert found == pytest.approx(mmdet_like.LOGITS, abs=1e-3)
    assert re.match(r"Mask2Former swin-s\.pth [0-9a-f]{8}, CLIP clip-tiny [0-9a-f]{8}", detector.name)


def test_all_names_of_a_checkpoint_are_read(checkpoint: str) -> None:
    assert mmdet_weights.read(checkpoint).keys() >= mmdet_like.shapes().keys()


def test_four_neighbours_are_ordered_as_transformers_merges_them() -> None:
    def entry(channel: int, row: int, column: int) -> int:
        return 100 * channel + 10 * row + column

    by_channel = [entry(channel, row, column) for channel in range(3) for row in range(2) for column in range(2)]
    by_place = [entry(channel, row, column) for column in range(2) for row in range(2) for channel in range(3)]
    merged = mmdet_weights.by_neighbour(torch.tensor([by_channel, by_channel]))
    np.testing.assert_array_equal(merged, [by_place, by_place])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not there"),
        ({"meta": Path("a"), "state_dict": {}}, "cannot be read as tensors"),  # a pickle that would run code
        ({"weights": {}}, "cannot be read as tensors"),
        ({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, "does not hold mmdet's Mask2Former"),
    ],
)
def test_another_file_is_refused(content: object, said: str, tmp_path: Path) -> None:
    if content is not None:
        torch.save(content, tmp_path / "other.pth")
    with pytest.raises(BenchError, match=said):
        mmdet_weights.load(str(tmp_path / "other.pth"))


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    panoptic = {
        "panoptic_head.cls_embed.weight": torch.zeros(134, 256),
        "panoptic_head.cls_embed.bias": torch.zeros(134),
    }
    torch.save({"state_dict": mmdet_like.weights() | panoptic}, tmp_path / "panoptic.pth")
    with pytest.raises(BenchError, match="does not hold mmdet's Mask2Former"):
        mmdet_weights.load(str(tmp_path / "panoptic.pth"))
