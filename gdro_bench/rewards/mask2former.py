"""GenEval's detector at full scale on transformers alone: Mask2Former finds objects (CLIP names their colours).

Mask2Former's outputs are scored as mmdet scores them (class probability times the mean mask probability inside the
binary mask, the best 100 of queries x classes, boxes from masks, no suppression), at mmdet's test size of 800 by 1333.
With mmdet's checkpoint, a file, it computes what the published evaluator does; with weights of the hub, which the
model's authors trained, numbers are near the published metric's, not equal. Pictures are RGB throughout.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from gdro_bench import content
from gdro_bench.errors import BenchError
from gdro_bench.profile import DetectorConfig
from gdro_bench.rewards import hub, mmdet_weights
from gdro_bench.rewards.clip import ClipColours, open_clip_or_transformers
from gdro_bench.rewards.geneval_rules import Detection, Detections
from gdro_bench.score import Images

SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32  # px, as mmdet tests
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BEST = 100  # detections a picture


def coco_names() -> list[str]:
    """COCO's 80 classes in index order, as GenEval calls them."""
    return (content.root() / "tasks" / "geneval" / "classes.txt").read_text(encoding="utf-8").splitlines()


def open_detector(config: DetectorConfig, device: str) -> Mask2FormerDetector:
    return Mask2FormerDetector(config.source, config.clip, device)


class Mask2FormerDetector:
    """Pictures uint8 [B, H, W, 3] of any size -> what is seen on each, with masks and, on demand, colours."""

    def __init__(self, source: str, clip: str, device: str = "cpu") -> None:
        """`source`: a folder, a hub id, or mmdet's checkpoint (`.pth`)."""
        self.model = _load(source).to(device).eval()
        self.classes = coco_names()
        if self.model.config.num_labels != len(self.classes):
            raise BenchError(
                f"{source!r} knows {self.model.config.num_labels} classes, not COCO's 80.", "Give another."
            )
        classifier = open_clip_or_transformers(clip, device)
        self.colours = ClipColours(classifier)
        self.device = device
        self.name = f"Mask2Former {Path(source).name}, {classifier.name} (transformers {version('transformers')})"

    def __call__(self, images: Images) -> list[Detections]:
        return [self._see(image) for image in images]

    @torch.no_grad()
    def _see(self, image: NDArray[np.uint8]) -> Detections:
        pixels, size = prepare(image)
        output = self.model(pixel_values=pixels.to(self.device))
        instances = detections(
            output.class_queries_logits[0].float().cpu(),
            output.masks_queries_logits[0].float().cpu(),
            (pixels.shape[2], pixels.shape[3]),
            size,
            (image.shape[0], image.shape[1]),
        )
        objects: dict[str, list[Detection]] = {}
        for label, detection in instances:
            objects.setdefault(self.classes[label], []).append(detection)
        return Detections(objects, lambda name, objects_: self.colours(image, name, objects_))


def _load(source: str) -> Any:
    if Path(source).suffix == ".pth":
        return mmdet_weights.load(source)
    from transformers import Mask2FormerForUniversalSegmentation

    return hub.load(Mask2FormerForUniversalSegmentation, source, "Mask2Former", "geneval", use_safetensors=True)


def prepare(image: NDArray[np.uint8]) -> tuple[Tensor, tuple[int, int]]:
    """Resized to fit 1333 x 800 and padded to a multiple of 32: [1, 3, H', W'], and the size before padding."""
    height, width = image.shape[:2]
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)  # as mmcv does, without antialiasing
    pixels = (torch.from_numpy(resized).float() - torch.tensor(MEAN)) / torch.tensor(STD)
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
    instances = []
    for score, label, mask in zip(best.values.tolist(), labels.tolist(), masks, strict=True):
        inside = mask > 0
        if inside.any():
            certainty = float(mask.sigmoid()[inside].mean())
            instances.append((label, Detection(_box(inside), score * certainty, mask=inside.numpy())))
    return sorted(instances, key=lambda pair: -pair[1].score)


def _box(inside: Tensor) -> tuple[float, float, float, float]:
    """The tight box of a mask [H, W], its right and lower side outside."""
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
