"""mmdet's own code against ours, where mmdet 3 is, through its published configuration with random weights.

On a CPU Mask2Former calls none of mmcv's compiled operators. mmdet 3.3.0 passed these tests with mmcv-lite 2.1.0
and a module `mmcv._ext` that has every name and does nothing.
"""

import re
from pathlib import Path
from typing import Any

import mmdet_like
import numpy as np
import pytest
import tiny_instruments
import torch

from gdro_bench.errors import BenchError
from gdro_bench.instruments import mask2former
from gdro_bench.instruments.mmdet import MMDetDetector

mmdet = pytest.importorskip("mmdet")
pytestmark = pytest.mark.filterwarnings("default")  # it is older than what it warns of
from mmdet.structures import DetDataSample  # noqa: E402

CONFIG = Path(mmdet.__file__).parent / ".mim/configs/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> MMDetDetector:
    from mmdet.apis import init_detector

    folder = tmp_path_factory.mktemp("mmdet")
    weights = init_detector(str(CONFIG), None, device="cpu").state_dict() | mmdet_like.weights()
    renamed = {mmdet_like.like_mmdet_2(name): value for name, value in weights.items()}
    torch.save({"meta": {"epoch": 50}, "state_dict": renamed}, folder / "mask2former.pth")
    clip = tiny_instruments.clip(folder / "clip-tiny")
    return MMDetDetector(str(folder / "mask2former.pth"), str(CONFIG), clip, "cpu")


def test_it_holds_what_our_copy_of_its_names_says(detector: MMDetDetector) -> None:
    parameters = {name: tuple(value.shape) for name, value in detector.model.named_parameters()}
    assert parameters == mmdet_like.shapes()


def test_it_makes_the_logits_that_transformers_is_held_to(detector: MMDetDetector) -> None:
    size = tuple(mmdet_like.PIXELS.shape[-2:])
    sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "batch_input_shape": size})
    with torch.no_grad():
        features = detector.model.extract_feat(mmdet_like.PIXELS)
        classes, masks = detector.model.panoptic_head(features, [sample])
    assert mmdet_like.some_of(classes[-1][0], masks[-1][0]) == pytest.approx(mmdet_like.LOGITS, abs=1e-3)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_its_classes_are_coco_s_in_the_same_order() -> None:
    from mmdet.datasets import CocoDataset

    pairs = zip(CocoDataset.METAINFO["classes"], mask2former.coco_names(), strict=True)
    renamed = {theirs: ours for theirs, ours in pairs if theirs != ours}
    assert renamed == {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}


@pytest.mark.parametrize("size", [(512, 512), (64, 128), (90, 30)])
def test_pictures_become_the_same_pixels(detector: MMDetDetector, size: tuple[int, int]) -> None:
    theirs, resized = prepared(detector, picture(*size))
    ours, size_before_padding = mask2former.prepare(picture(*size))
    assert resized == size_before_padding
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def prepared(detector: MMDetDetector, image: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
    """What mmdet's network is given, as its `inference_detector` makes it, and the size before padding."""
    from mmcv.transforms import Compose
    from mmdet.utils import get_test_pipeline_cfg

    pipeline = get_test_pipeline_cfg(detector.model.cfg.copy())
    pipeline[0].type = "mmdet.LoadImageFromNDArray"
    data: dict[str, Any] = Compose(pipeline)({"img": np.ascontiguousarray(image[:, :, ::-1]), "img_id": 0})
    batch = {"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}
    given = detector.model.data_preprocessor(batch, False)
    return given["inputs"], given["data_samples"][0].img_shape


def test_logits_become_the_same_detections(detector: MMDetDetector) -> None:
    from torch.nn.functional import interpolate

    torch.manual_seed(1)
    classes, masks = 3 * torch.randn(20, 81), torch.randn(20, 24, 32)
    padded, resized, size = (96, 128), (90, 128), (45, 64)
    sample = DetDataSample(metainfo={"img_shape": resized, "ori_shape": size})
    upsampled = interpolate(masks[None], padded, mode="bilinear", align_corners=False)
    result = detector.model.panoptic_fusion_head.predict(classes[None], upsampled, [sample], rescale=True)
    theirs = result[0]["ins_results"]
    ours = mask2former.detections(classes, masks, padded, resized, size)
    order = theirs.scores.argsort(descending=True)
    assert [label for label, _ in ours] == theirs.labels[order].tolist()
    for (_, detection), i in zip(ours, order.tolist(), strict=True):
        assert detection.score == pytest.approx(theirs.scores[i].item(), abs=1e-6)
        assert detection.box == tuple(theirs.bboxes[i].tolist())
        assert detection.mask is not None
        np.testing.assert_array_equal(detection.mask, theirs.masks[i].numpy())


def test_it_sees(detector: MMDetDetector) -> None:
    image = picture(64, 64)
    (seen,) = detector(image[None])
    found = [detection for group in seen.objects.values() for detection in group]
    assert 0 < len(found) <= 100
    assert all(detection.mask is not None and detection.mask.shape == (64, 64) for detection in found)
    assert re.match(rf"mmdet {mmdet.__version__} mask2former [0-9a-f]{{8}}, CLIP clip-tiny", detector.name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"meta": Path("a"), "state_dict": {}}, "cannot be read as tensors"),  # a pickle that would run code
        ({"state_dict": {"other": torch.zeros(1)}}, "does not fit"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "wrong.pth")
    with pytest.raises(BenchError, match=said):
        MMDetDetector(str(tmp_path / "wrong.pth"), str(CONFIG), "", "cpu")
