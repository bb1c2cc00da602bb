"""Colours by CLIP: the crop, the published transform to the pixel, and both libraries that may hold the weights."""

import builtins
import json

import numpy as np
import pytest
import tiny_instruments
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from gdro_bench.errors import BenchError
from gdro_bench.instruments import clip
from gdro_bench.rewards.geneval_prompts import COLOURS
from gdro_bench.rewards.geneval_rules import Detection


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> clip.TransformersClip:
    return clip.TransformersClip(tiny_instruments.clip(tmp_path_factory.mktemp("clip") / "clip-tiny"))


def test_the_crop_shows_the_object_on_grey():
    image = np.full((20, 20, 3), 255, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:10, 5:10] = True
    cut = np.asarray(clip.crop(image, Detection((5, 5, 15, 10), 0.9, mask=mask)))
    assert cut.shape == (5, 10, 3)
    assert (cut[:, :5] == 255).all()
    assert (cut[:, 5:] == 153).all()


@pytest.mark.parametrize("size", [(30, 30), (300, 40), (5, 500)])
def test_crops_become_clip_s_squares(size):
    pixels = clip.pixels_of(Image.new("RGB", size, (255, 0, 0)))
    assert tuple(pixels.shape) == (3, 224, 224)
    assert pixels[0].mean() > 1.5 > 0 > pixels[2].mean()


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((224, 224), (224, 224), (0, 0)),
        ((448, 226), (444, 224), (110, 0)),
        ((226, 448), (224, 444), (0, 110)),
        ((227, 224), (227, 224), (2, 0)),  # 1.5 is rounded to the even 2
        ((229, 224), (229, 224), (2, 0)),  # and 2.5 as well
        ((510, 382), (299, 224), (38, 0)),  # 299.05 is cut; 37.5 is rounded to the even 38
    ],
)
def test_the_transform_rounds_as_torchvision_does(size, resized, corner):
    """Worked out from torchvision's Resize(224) and CenterCrop(224), which open_clip composes."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    left, upper = corner
    square = picture.resize(resized, Image.Resampling.BICUBIC).crop((left, upper, left + 224, upper + 224))
    expected = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (clip.MEAN, clip.STD))
    torch.testing.assert_close(clip.pixels_of(picture) * std + mean, expected)


def test_weights_that_are_not_whole_are_refused(tmp_path):
    """transformers would draw the rest at random, another at every start."""
    folder = tmp_path / "clip-tiny"
    tiny_instruments.clip(folder)
    (file,) = folder.glob("*.safetensors")
    whole = load_file(file)
    save_file({name: weight for name, weight in whole.items() if not name.startswith("text_")}, file, {"format": "pt"})
    with pytest.raises(BenchError, match=r"CLIP in .* lacks \d+ of its weights, text_"):
        clip.TransformersClip(str(folder))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BenchError, match="CLIP cannot be loaded"):
        clip.TransformersClip(str(folder))


def test_the_nearest_colour_is_told(tiny):
    from gdro_bench.models.pocket.world import COLOURS as RGB

    colours = clip.ClipColours(tiny)
    painted = np.concatenate([np.full((20, 20, 3), RGB[name], np.uint8) for name in COLOURS], axis=1)
    boxes = [Detection((20 * i, 0, 20 * i + 20, 20), 0.9) for i in range(len(COLOURS))]
    with torch.no_grad():
        seen = tiny.pictures(torch.stack([clip.pixels_of(clip.crop(painted, box)) for box in boxes]))
    colours._texts["patch"] = normalize(seen, dim=-1)
    assert colours(painted, "patch", boxes) == list(COLOURS)


def test_colour_texts_are_unit_vectors_of_three_templates(tiny):
    features = clip.ClipColours(tiny).colour_features("cat")
    assert features.shape == (10, 8)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(10))
    assert tiny.model.config.text_config.hidden_act == "quick_gelu"


# -- through open_clip, where it is installed (the extra `open-clip`; it needs torchvision)


def test_without_open_clip_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.split(".")[0] == "open_clip":
            raise ImportError("No module named 'open_clip'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BenchError, match="open_clip cannot be imported") as told:
        clip.open_clip_or_transformers("weights.safetensors", "cpu")
    assert "gdro-bench[open-clip]" in told.value.remedy


def open_clip_tiny(tmp_path) -> tuple[str, str]:
    """An architecture of few weights under a name, and a file of random ones."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    tower = {"width": 32, "layers": 1}
    config = {
        "embed_dim": 16, "quick_gelu": True,
        "vision_cfg": tower | {"image_size": 224, "patch_size": 56, "head_width": 16},
        "text_cfg": tower | {"context_length": 77, "vocab_size": 49408, "heads": 2},
    }  # fmt: skip
    (tmp_path / "tiny-quickgelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-quickgelu.json")
    torch.manual_seed(0)
    path = tmp_path / "open_clip_model.safetensors"
    save_file(open_clip.create_model("tiny-quickgelu").state_dict(), path)
    return str(path), "tiny-quickgelu"


def test_open_clip_sees_as_its_own_transform_and_encoders_do(tmp_path):
    weights, architecture = open_clip_tiny(tmp_path)
    import open_clip

    chosen = clip.OpenClip(weights, architecture=architecture)
    transform = open_clip.image_transform(224, is_train=False, mean=clip.MEAN, std=clip.STD)
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 600, (60, 2)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        torch.testing.assert_close(clip.pixels_of(picture), transform(picture))
    features = clip.ClipColours(chosen).colour_features("cat")
    assert features.shape == (10, 16)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(10))
    assert chosen.name.startswith("CLIP tiny-quickgelu (open_clip ")


def test_the_published_architecture_has_quickgelu():
    open_clip = pytest.importorskip("open_clip")
    assert open_clip.get_model_config(clip.OPEN_CLIP_ARCHITECTURE)["quick_gelu"] is True


def test_a_file_that_is_missing_or_of_another_architecture_is_named(tmp_path):
    weights, architecture = open_clip_tiny(tmp_path)
    with pytest.raises(BenchError, match="is not there"):
        clip.OpenClip(str(tmp_path / "nowhere.safetensors"))
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(BenchError, match="does not hold the weights of tiny-quickgelu"):
        clip.OpenClip(str(tmp_path / "torn.safetensors"), architecture=architecture)
    assert clip.OpenClip(weights, architecture=architecture).model.training is False
