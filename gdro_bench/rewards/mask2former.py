"""GenEval's instruments at full scale, on transformers alone: Mask2Former finds objects, CLIP names their colours.

Mask2Former's outputs are scored as mmdet scores them (class probability times the mean mask probability inside the
binary mask, the best 100 of queries x classes, boxes from masks, no suppression), at mmdet's test size of 800 by 1333.
Differences from the published evaluator: 1. weights trained by the model's authors, not by mmdet: numbers are near the
published metric's, not equal. 2. pictures are RGB throughout. CLIP is the published one and keeps its QuickGELU, which
its configuration carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from gdro_bench import content
from gdro_bench.errors import BenchError
from gdro_bench.rewards import hub
from gdro_bench.rewards.geneval_prompts import COLOURS
from gdro_bench.rewards.geneval_rules import Detection, Seen
from gdro_bench.score import Images

SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32  # px, as mmdet tests
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BEST = 100  # detections a picture
CLIP_SIDE = 224
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GREY = (153, 153, 153)  # #999, behind an object's mask
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


def coco_names() -> list[str]:
    """COCO's 80 classes in index order, as GenEval calls them."""
    return (content.root() / "tasks" / "geneval" / "classes.txt").read_text(encoding="utf-8").splitlines()


# ---------------------------------------------------------------------------------------------------------------
# Objects


class Mask2FormerDetector:
    """Pictures uint8 [B, H, W, 3] of any size -> what is seen on each, with masks and, on demand, colours."""

    def __init__(self, source: str, clip: str, device: str = "cpu") -> None:
        from transformers import Mask2FormerForUniversalSegmentation

        self.model = (
            hub.load(Mask2FormerForUniversalSegmentation, source, "Mask2Former", "geneval", use_safetensors=True)
            .to(device)
            .eval()
        )
        self.classes = coco_names()
        if self.model.config.num_labels != len(self.classes):
            raise BenchError(
                f"{source!r} knows {self.model.config.num_labels} classes, not COCO's 80.", "Give another."
            )
        self.colours = ClipColours(clip, device)
        self.device = device
        self.name = f"Mask2Former {Path(source).name}, CLIP {Path(clip).name} (transformers {version('transformers')})"

    def __call__(self, images: Images) -> list[Seen]:
        return [self._see(image) for image in images]

    @torch.no_grad()
    def _see(self, image: NDArray[np.uint8]) -> Seen:
        pixels, size = prepare(image)
        output = self.model(pixel_values=pixels.to(self.device))
        found = detections(
            output.class_queries_logits[0].float().cpu(),
            output.masks_queries_logits[0].float().cpu(),
            (pixels.shape[2], pixels.shape[3]),
            size,
            (image.shape[0], image.shape[1]),
        )
        objects: dict[str, list[Detection]] = {}
        for label, detection in found:
            objects.setdefault(self.classes[label], []).append(detection)
        return Seen(objects, lambda name, chosen: self.colours(image, name, chosen))


def prepare(image: NDArray[np.uint8]) -> tuple[Tensor, tuple[int, int]]:
    """Resized to fit 1333 x 800 and padded to a multiple of 32: [1, 3, H', W'], and the size before padding."""
    height, width = image.shape[:2]
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = (torch.from_numpy(np.array(resized)).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    below, beside = (-size[0] % DIVISOR, -size[1] % DIVISOR)
    return pad(pixels.permute(2, 0, 1)[None], (0, beside, 0, below)), size


def detections(
    class_logits: Tensor, mask_logits: Tensor, padded: tuple[int, int], resized: tuple[int, int], size: tuple[int, int]
) -> list[tuple[int, Detection]]:
    """mmdet's instance post-processing, best first.

    Args:
        class_logits: [Q, 81], the last is `nothing`. mask_logits: [Q, h, w]. padded, resized, size: (H, W) of the
            network's input, of the picture in it, and of the picture itself.
    """
    scores = class_logits.softmax(-1)[:, :-1]
    best = scores.flatten().topk(min(BEST, scores.numel()))
    queries, labels = best.indices // scores.shape[1], best.indices % scores.shape[1]
    masks = interpolate(mask_logits[queries][None], padded, mode="bilinear", align_corners=False)
    masks = interpolate(masks[..., : resized[0], : resized[1]], size, mode="bilinear", align_corners=False)[0]
    found = []
    for score, label, mask in zip(best.values.tolist(), labels.tolist(), masks, strict=True):
        inside = mask > 0
        if inside.any():
            certainty = float(mask.sigmoid()[inside].mean())
            found.append((label, Detection(_box(inside), score * certainty, mask=inside.numpy())))
    return sorted(found, key=lambda pair: -pair[1].score)


def _box(inside: Tensor) -> tuple[float, float, float, float]:
    """The tight box of a mask [H, W], its right and lower side outside."""
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


# ---------------------------------------------------------------------------------------------------------------
# Colours


class ClipColours:
    """Which of GenEval's ten colours an object has, by zero-shot CLIP on its crop with the background greyed."""

    def __init__(self, source: str, device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.model = hub.load(CLIPModel, source, "CLIP", "geneval", use_safetensors=True).to(device).eval()
        self.tokenizer = hub.load(CLIPTokenizer, source, "CLIP's tokenizer", "geneval")
        self.device = device
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8], name: str, found: Sequence[Detection]) -> list[str]:
        crops = torch.stack([clip_pixels(crop(image, detection)) for detection in found]).to(self.device)
        features = self.model.visual_projection(self.model.vision_model(pixel_values=crops).pooler_output)
        likeness = torch.nn.functional.normalize(features, dim=-1) @ self._colour_features(name).T
        return [COLOURS[i] for i in likeness.argmax(1).tolist()]

    def _colour_features(self, name: str) -> Tensor:
        """A unit vector for each colour of this class, [10, D]: the mean over templates of normalised embeddings."""
        if name not in self._texts:
            texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
            features = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
            unit = torch.nn.functional.normalize(features, dim=-1).view(len(COLOURS), len(TEMPLATES), -1)
            self._texts[name] = torch.nn.functional.normalize(unit.mean(1), dim=-1)
        return self._texts[name]


def crop(image: NDArray[np.uint8], detection: Detection) -> Image.Image:
    """The object alone: what its mask leaves out is grey, cut to its box."""
    whole = Image.fromarray(image)
    if detection.mask is not None:
        whole = Image.composite(whole, Image.new("RGB", whole.size, GREY), Image.fromarray(detection.mask))
    x0, y0, x1, y1 = (round(side) for side in detection.box)
    return whole.crop((x0, y0, x1, y1))


def clip_pixels(picture: Image.Image) -> Tensor:
    """CLIP's test transform: shortest side to 224, bicubic, and the centre: [3, 224, 224]."""
    scale = CLIP_SIDE / min(picture.size)
    size = tuple(max(CLIP_SIDE, round(side * scale)) for side in picture.size)
    resized = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, upper = ((side - CLIP_SIDE) // 2 for side in size)
    centre = resized.crop((left, upper, left + CLIP_SIDE, upper + CLIP_SIDE))
    pixels = torch.from_numpy(np.array(centre)).float() / 255
    return ((pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(2, 0, 1)
