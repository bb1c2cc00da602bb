"""GenEval's large instruments: post-processing worked out by hand, and the real classes with tiny random weights."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny_instruments
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from gdro_bench.cli import main
from gdro_bench.errors import BenchError
from gdro_bench.instruments import mask2former
from gdro_bench.rewards import geneval_prompts
from gdro_bench.rewards.geneval_prompts import COLOURS
from gdro_bench.rewards.geneval_rules import Detection


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("instruments")
    return tiny_instruments.mask2former(root / "mask2former-tiny"), tiny_instruments.clip(root / "clip-tiny")


# -- pictures in


@pytest.mark.parametrize(
    ("shape", "resized", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((64, 128), (667, 1333), (672, 1344)),
        ((900, 300), (1333, 444), (1344, 448)),
    ],
)
def test_pictures_are_resized_and_padded_as_mmdet_does(shape, resized, padded):
    pixels, size = mask2former.prepare(np.zeros((*shape, 3), np.uint8))
    assert size == resized
    assert tuple(pixels.shape) == (1, 3, *padded)


def test_channels_are_red_green_blue():
    red = np.zeros((800, 800, 3), np.uint8)
    red[..., 0] = 255
    pixels, _ = mask2former.prepare(red)
    expected = (torch.tensor([255.0, 0, 0]) - torch.tensor(mask2former.MEAN)) / torch.tensor(mask2former.STD)
    torch.testing.assert_close(pixels[0, :, 5, 5], expected)


# -- logits out


def logits(queries: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Nothing anywhere: class logits [Q, 81], mask logits [Q, 16, 16]."""
    classes = torch.full((queries, 81), -20.0)
    classes[:, 80] = 20.0
    return classes, torch.full((queries, 16, 16), -8.0)


def found(classes: torch.Tensor, masks: torch.Tensor, floor: float = 0.01) -> list[tuple[int, Detection]]:
    pairs = mask2former.detections(classes, masks, (64, 64), (64, 48), (32, 24))
    return [(label, d) for label, d in pairs if d.score > floor]


def test_a_query_becomes_a_box_around_its_mask_and_a_score():
    classes, masks = logits()
    classes[1, 80], classes[1, 17] = 0.0, 1.0
    masks[1, 4:8, 2:10] = 3.0
    ((label, detection),) = found(classes, masks)
    assert label == 17
    # 16 cells cover 64 px of the padded input and 32 of the picture: a cell is 2 px
    assert detection.box == pytest.approx((4, 8, 20, 16), abs=1.01)
    assert detection.mask.shape == (32, 24)
    assert detection.mask.sum() == pytest.approx(8 * 16, rel=0.25)
    probability = torch.tensor([1.0, 0.0]).softmax(0)[0].item()
    assert probability * 0.6 < detection.score < probability * torch.tensor(3.0).sigmoid().item()


def test_what_lies_in_the_padding_is_cut_off():
    classes, masks = logits()
    classes[0, 80], classes[0, 3] = 0.0, 5.0
    masks[0, :, 13:] = 5.0  # right of the 48 px that hold the picture
    assert found(classes, masks) == []


def test_one_query_may_have_two_labels_and_the_best_comes_first():
    classes, masks = logits()
    classes[2, [80, 5, 9]] = torch.tensor([0.0, 2.0, 3.0])
    masks[2, 2:6, 2:6] = 3.0
    pairs = found(classes, masks)
    assert [label for label, _ in pairs] == [9, 5]
    assert pairs[0][1].score > pairs[1][1].score
    assert pairs[0][1].box == pairs[1][1].box


# -- the whole


def test_buffers_that_a_file_lacks_are_computed_and_weights_are_not(folders, tmp_path):
    """Versions of transformers differ in what buffers they save; a weight that is missing would be drawn at random."""
    shutil.copytree(folders[0], tmp_path / "copy")
    (file,) = (tmp_path / "copy").glob("*.safetensors")
    whole = load_file(file)
    buffers = ("relative_position_index", "empty_weight")
    save_file({name: one for name, one in whole.items() if not name.endswith(buffers)}, file, {"format": "pt"})
    mask2former.Mask2FormerDetector(str(tmp_path / "copy"), folders[1])
    older = {name: one for name, one in whole.items() if not re.search(r"encoder\.(swin\.)?layernorm\.", name)}
    assert len(older) == len(whole) - 2
    save_file(older, file, {"format": "pt"})  # as the shipped weights are: no prediction needs that norm
    detector = mask2former.Mask2FormerDetector(str(tmp_path / "copy"), folders[1])
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    both = [d(picture)[0].objects for d in (detector, mask2former.Mask2FormerDetector(*folders))]
    assert both[0] == both[1]
    save_file({name: one for name, one in whole.items() if "class_predictor" not in name}, file, {"format": "pt"})
    with pytest.raises(BenchError, match=r"lacks 2 of its weights, class_predictor\.bias"):
        mask2former.Mask2FormerDetector(str(tmp_path / "copy"), folders[1])


def test_the_real_classes_load_and_see(folders):
    detector = mask2former.Mask2FormerDetector(*folders, floor=0.0)
    assert re.match(
        r"Mask2Former mask2former-tiny [0-9a-f]{8}, CLIP clip-tiny [0-9a-f]{8} \(transformers ", detector.name
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    seen = detector(image[None])[0]
    again = mask2former.Mask2FormerDetector(*folders, floor=0.0)(image[None])[0]
    assert seen.objects == again.objects
    detections = [d for group in seen.objects.values() for d in group]
    assert 0 < len(detections) <= 100
    for d in detections:
        assert 0 <= d.box[0] < d.box[2] <= 96
        assert 0 <= d.box[1] < d.box[3] <= 64
        assert 0 < d.score < 1
    name, group = next(iter(seen.objects.items()))
    assert set(seen.colours(name, group[:2])) <= set(COLOURS)


def one_by_one(classes: torch.Tensor, masks: torch.Tensor) -> list[tuple[int, Detection]]:
    """mmdet's post-processing written as its text says it, a mask at a time."""
    scores = classes.softmax(-1)[:, :-1]
    best, instances = scores.flatten().topk(min(100, scores.numel())), []
    for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        query, label = divmod(index, scores.shape[1])
        wide = torch.nn.functional.interpolate(masks[query][None, None], (64, 64), mode="bilinear")[..., :48]
        mask = torch.nn.functional.interpolate(wide, (32, 24), mode="bilinear")[0, 0]
        inside = mask > 0
        if inside.any():
            y, x = inside.nonzero().T
            box = (float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1))
            instances.append((label, Detection(box, score * float(mask.sigmoid()[inside].mean()), mask=inside.numpy())))
    return sorted(instances, key=lambda pair: -pair[1].score)


def test_masks_together_give_what_masks_one_by_one_give():
    draw = torch.Generator().manual_seed(0)
    classes, masks = 3 * torch.randn(9, 81, generator=draw), 4 * torch.randn(9, 16, 16, generator=draw) - 3
    masks[4] = -8.0  # nothing inside
    expected, seen = one_by_one(classes, masks), mask2former.detections(classes, masks, (64, 64), (64, 48), (32, 24))
    assert 50 < len(seen) < 100
    assert [(label, d.box) for label, d in seen] == [(label, d.box) for label, d in expected]
    assert [d.score for _, d in seen] == pytest.approx([d.score for _, d in expected], abs=1e-6)
    assert all((one.mask == other.mask).all() for (_, one), (_, other) in zip(seen, expected, strict=True))


def test_a_floor_leaves_out_what_can_never_count():
    draw = torch.Generator().manual_seed(1)
    classes, masks = 4 * torch.randn(9, 81, generator=draw), 4 * torch.randn(9, 16, 16, generator=draw)
    whole = mask2former.detections(classes, masks, (64, 64), (64, 48), (32, 24))
    above = mask2former.detections(classes, masks, (64, 64), (64, 48), (32, 24), floor=0.3)
    assert 0 < len(above) < len(whole)
    assert [d for d in above if d[1].score >= 0.3] == [d for d in whole if d[1].score >= 0.3]
    assert mask2former.detections(*logits(), (64, 64), (64, 48), (32, 24), floor=0.3) == []


@pytest.mark.slow
def test_pictures_together_are_seen_as_one_by_one(folders):
    detector = mask2former.Mask2FormerDetector(*folders, floor=0.0)
    images = np.random.default_rng(2).integers(0, 256, (mask2former.TOGETHER + 2, 40, 64, 3), dtype=np.uint8)
    together, alone = detector(images), [detector(image[None])[0] for image in images]
    for one, other, image in zip(together, alone, images, strict=True):
        assert one.objects.keys() == other.objects.keys()
        for name, group in one.objects.items():
            assert [d.box for d in group] == [d.box for d in other.objects[name]]
            assert [d.score for d in group] == pytest.approx([d.score for d in other.objects[name]], abs=1e-5)
            assert one.colours(name, group) == detector.colours(image, name, group)


def test_weights_that_are_not_there_are_named(folders, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mask2former"}))
    with pytest.raises(BenchError, match="Mask2Former cannot be loaded"):
        mask2former.Mask2FormerDetector(str(tmp_path), folders[1])
    with pytest.raises(BenchError, match="CLIP cannot be loaded"):
        mask2former.Mask2FormerDetector(folders[0], str(tmp_path / "nowhere"))


def test_eval_takes_them(folders, tmp_path):
    (tmp_path / "00000" / "samples").mkdir(parents=True)
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "00000" / "samples" / "0000.png")
    scene = geneval_prompts.Scene("colors", (geneval_prompts.Clause("bench", 1, "red"),), "a photo of a red bench")
    (tmp_path / "00000" / "metadata.jsonl").write_text(json.dumps(scene.published()))
    chosen = ["--images", str(tmp_path), "--mask2former", folders[0], "--clip", folders[1], "--device", "cpu"]
    result = CliRunner().invoke(main, ["eval", "geneval", *chosen, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "mask2former-tiny" in json.loads((tmp_path / "out" / "eval.json").read_text())["instrument"]


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("geneval", ["--clip", "x"], "go together"),
        ("ocr", ["--clip", "x", "--mask2former", "y"], "'ocr' detects no objects"),
    ],
)
def test_half_of_the_instruments_or_another_task_is_refused(task, flags, message, tmp_path):
    (tmp_path / "list.csv").write_text('path,prompt,metadata\na.png,"a ""B""",\n')
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    if task == "geneval":
        line = json.dumps(geneval_prompts.single_object("cat").published()).replace('"', '""')
        (tmp_path / "list.csv").write_text(f'path,prompt,metadata\na.png,a cat,"{line}"\n')
    result = CliRunner().invoke(main, ["eval", task, "--images", str(tmp_path / "list.csv"), *flags])
    assert result.exit_code == 2
    assert message in result.output
