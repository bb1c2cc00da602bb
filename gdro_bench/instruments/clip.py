"""Which colour an object has, as GenEval asks CLIP: its crop on grey against ten colours in three templates each.

The published evaluator runs OpenAI's ViT-L/14 through open_clip 2.20, which gave these weights QuickGELU unasked; later
versions give them GELU unless the architecture's name says otherwise. Here the weights come through transformers, whose
configuration of them carries QuickGELU, or through open_clip under the name that has it. Transform and templates are
one code for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from gdro_bench import content
from gdro_bench.errors import BenchError, first_line
from gdro_bench.instruments import hub
from gdro_bench.rewards.geneval_prompts import COLOURS
from gdro_bench.rewards.geneval_rules import Detection

SIDE = 224  # px
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GREY = (153, 153, 153)  # #999, behind an object's mask
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
OPEN_CLIP_ARCHITECTURE = "ViT-L-14-quickgelu"


class Clip(Protocol):
    """Two encoders into one space of D dimensions; vectors of any length."""

    name: str

    def pictures(self, pixels: Tensor) -> Tensor:
        """[B, 3, 224, 224] -> [B, D]."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """[len(texts), D]."""
        ...


class TransformersClip:
    """From a folder or a hub id, through transformers."""

    def __init__(self, source: str, device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.model = hub.load_model(CLIPModel, source, "CLIP", "geneval").to(device).eval()
        self.tokenizer = hub.load(CLIPTokenizer, source, "CLIP's tokenizer", "geneval")
        self.device = device
        self.name = f"CLIP {Path(source).name} {content.fingerprint(self.model)}"

    def pictures(self, pixels: Tensor) -> Tensor:
        pooled = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
        features: Tensor = self.model.visual_projection(pooled)
        return features

    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.device)
        features: Tensor = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        return features


class OpenClip:
    """From open_clip's file of weights, `open_clip_model.safetensors`, through open_clip."""

    def __init__(self, weights: str, device: str = "cpu", architecture: str = OPEN_CLIP_ARCHITECTURE) -> None:
        """Raises:
        BenchError: open_clip is not installed, or the file is not there or of another architecture."""
        try:
            import open_clip
        except (ImportError, RuntimeError) as error:  # torchvision of another build raises the latter
            raise BenchError(
                f"open_clip cannot be imported ({first_line(error)}).",
                "pip install 'gdro-bench[open-clip]', or give transformers' CLIP (a folder or hub id) instead.",
            ) from error
        if not Path(weights).is_file():
            raise BenchError(
                f"open_clip's file {weights!r} is not there.",
                "Fetch open_clip_model.safetensors of timm/vit_large_patch14_clip_224.openai and give its path.",
            )
        model = open_clip.create_model(architecture, device=device).eval()
        try:
            model.load_state_dict(load_file(weights))
        except Exception as error:  # safetensors and torch raise whatever the file makes them
            raise BenchError(
                f"{weights} does not hold the weights of {architecture}: {first_line(error)}.",
                "Fetch open_clip_model.safetensors of timm/vit_large_patch14_clip_224.openai.",
            ) from error
        self.model, self.device = model, device
        self.tokenizer = open_clip.get_tokenizer(architecture)
        self.name = f"CLIP {architecture} {content.fingerprint(model)} (open_clip {version('open_clip_torch')})"

    def pictures(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(pixels.to(self.device))
        return features

    def texts(self, texts: Sequence[str]) -> Tensor:
        features: Tensor = self.model.encode_text(self.tokenizer(list(texts)).to(self.device))
        return features


def open_clip_or_transformers(source: str, device: str) -> Clip:
    """`source` is a folder or a hub id for transformers, or a file of weights, `….safetensors`, for open_clip.

    Raises:
        BenchError: it cannot be had.
    """
    return OpenClip(source, device) if source.endswith(".safetensors") else TransformersClip(source, device)


class ClipColours:
    """Which of GenEval's ten colours an object has."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8], name: str, detections: Sequence[Detection]) -> list[str]:
        """The colour of each detected object of class `name`; image is uint8 [H, W, 3]."""
        crops = torch.stack([pixels_of(crop(image, detection)) for detection in detections])
        likeness = normalize(self.clip.pictures(crops), dim=-1) @ self.colour_features(name).T
        return [COLOURS[i] for i in likeness.argmax(1).tolist()]

    @torch.no_grad()
    def colour_features(self, name: str) -> Tensor:
        """A unit vector for each colour of this class, [10, D]: the mean over templates of normalised embeddings."""
        if name not in self._texts:
            texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            unit = normalize(self.clip.texts(texts), dim=-1).view(len(COLOURS), len(TEMPLATES), -1)
            self._texts[name] = normalize(unit.mean(1), dim=-1)
        return self._texts[name]


def crop(image: NDArray[np.uint8], detection: Detection) -> Image.Image:
    """The object alone: what its mask leaves out is grey, cut to its box."""
    whole = Image.fromarray(image)
    if detection.mask is not None:
        whole = Image.composite(whole, Image.new("RGB", whole.size, GREY), Image.fromarray(detection.mask))
    x0, y0, x1, y1 = (round(side) for side in detection.box)
    return whole.crop((x0, y0, x1, y1))


def pixels_of(picture: Image.Image) -> Tensor:
    """CLIP's test transform as torchvision rounds it: shortest side to 224, bicubic, and the centre: [3, 224, 224]."""
    shortest = min(picture.size)
    width, height = (SIDE * side // shortest for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, upper = round((width - SIDE) / 2), round((height - SIDE) / 2)
    centre = resized.crop((left, upper, left + SIDE, upper + SIDE))
    pixels = torch.from_numpy(np.array(centre)).float() / 255
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
