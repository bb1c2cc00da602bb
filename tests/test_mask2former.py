"""GenEval's large instruments: post-processing worked out by hand, and the real classes with tiny random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from gdro_bench.cli import main
from gdro_bench.errors import BenchError
from gdro_bench.rewards import geneval_prompts, mask2former
from gdro_bench.rewards.geneval_prompts import COLOURS
from gdro_bench.rewards.geneval_rules import Detection


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Mask2Former and CLIP of a few thousand random weights, saved as their real classes save them."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTokenizer,
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        SwinConfig,
    )

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("instruments")
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=6, num_labels=80,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(root / "mask2former-tiny")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": 600, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "eos_token_id": 2}
    clip = CLIPConfig(text_config=text, vision_config=small | {"image_size": 224, "patch_size": 56}, projection_dim=8)
    CLIPModel(clip).save_pretrained(root / "clip-tiny")
    letters = "abcdefghijklmnopqrstuvwxyz-"
    words = ["<|startoftext|>", "<|pad|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {word: i for i, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(root / "clip-tiny")
    return str(root / "mask2former-tiny"), str(root / "clip-tiny")


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


# -- colours


def test_the_crop_shows_the_object_on_grey():
    image = np.full((20, 20, 3), 255, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:10, 5:10] = True
    cut = np.asarray(mask2former.crop(image, Detection((5, 5, 15, 10), 0.9, mask=mask)))
    assert cut.shape == (5, 10, 3)
    assert (cut[:, :5] == 255).all()
    assert (cut[:, 5:] == 153).all()


@pytest.mark.parametrize("size", [(30, 30), (300, 40), (5, 500)])
def test_crops_become_clip_s_squares(size):
    pixels = mask2former.clip_pixels(Image.new("RGB", size, (255, 0, 0)))
    assert tuple(pixels.shape) == (3, 224, 224)
    assert pixels[0].mean() > 1.5 > 0 > pixels[2].mean()


def test_the_nearest_colour_is_told(folders):
    from gdro_bench.models.pocket.world import COLOURS as RGB

    colours = mask2former.ClipColours(folders[1])
    painted = np.concatenate([np.full((20, 20, 3), RGB[name], np.uint8) for name in COLOURS], axis=1)
    boxes = [Detection((20 * i, 0, 20 * i + 20, 20), 0.9) for i in range(len(COLOURS))]
    crops = torch.stack([mask2former.clip_pixels(mask2former.crop(painted, box)) for box in boxes])
    with torch.no_grad():
        seen = colours.model.visual_projection(colours.model.vision_model(pixel_values=crops).pooler_output)
    colours._texts["patch"] = torch.nn.functional.normalize(seen, dim=-1)
    assert colours(painted, "patch", boxes) == list(COLOURS)


def test_colour_texts_are_unit_vectors_of_three_templates(folders):
    colours = mask2former.ClipColours(folders[1])
    with torch.no_grad():
        features = colours._colour_features("cat")
    assert features.shape == (10, 8)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(10))
    assert colours.model.config.text_config.hidden_act == "quick_gelu"


# -- the whole


def test_the_real_classes_load_and_see(folders):
    detector = mask2former.Mask2FormerDetector(*folders)
    assert detector.name.startswith("Mask2Former mask2former-tiny, CLIP clip-tiny (transformers ")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    seen = detector(image[None])[0]
    again = mask2former.Mask2FormerDetector(*folders)(image[None])[0]
    assert seen.objects == again.objects
    detections = [d for group in seen.objects.values() for d in group]
    assert 0 < len(detections) <= 100
    for d in detections:
        assert 0 <= d.box[0] < d.box[2] <= 96
        assert 0 <= d.box[1] < d.box[3] <= 64
        assert 0 < d.score < 1
    name, group = next(iter(seen.objects.items()))
    assert set(seen.colours(name, group[:2])) <= set(COLOURS)


def test_weights_that_are_not_there_are_named(folders, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mask2former"}))
    with pytest.raises(BenchError, match="Mask2Former cannot be loaded"):
        mask2former.Mask2FormerDetector(str(tmp_path), folders[1])
    with pytest.raises(BenchError, match="CLIP cannot be loaded"):
        mask2former.ClipColours(str(Path(tmp_path) / "nowhere"))


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
    ("task", "flags"), [("geneval", ["--clip", "x"]), ("ocr", ["--clip", "x", "--mask2former", "y"])]
)
def test_half_of_the_instruments_or_another_task_is_refused(task, flags, tmp_path):
    (tmp_path / "list.csv").write_text('path,prompt,metadata\na.png,"a ""B""",\n')
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    if task == "geneval":
        line = json.dumps(geneval_prompts.single_object("cat").published()).replace('"', '""')
        (tmp_path / "list.csv").write_text(f'path,prompt,metadata\na.png,a cat,"{line}"\n')
    result = CliRunner().invoke(main, ["eval", task, "--images", str(tmp_path / "list.csv"), *flags])
    assert result.exit_code == 2
    assert "go together" in result.output
