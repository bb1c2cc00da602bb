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
from gdro_bench.instruments import hub, mmdet_weights
from gdro_bench.instruments.clip import ClipColours, open_clip_or_transformers
from gdro_bench.profile import DetectorConfig
from gdro_bench.rewards.geneval_rules import Detection, Detections
from gdro_bench.score import Images

SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32  # px, as mmdet tests
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BEST = 100  # detections a picture
TOGETHER = 8  # pictures a pass
FLOOR = 0.05  # class probability, which bounds a score: what is below is no detection (GenEval counts from 0.3 on)


def coco_names() -> list[str]:
    """COCO's 80 classes in index order, as GenEval calls them."""
    return (content.root() / "tasks" / "geneval" / "classes.txt").read_text(encoding="utf-8").splitlines()


def open_detector(config: DetectorConfig, device: str) -> Mask2FormerDetector:
    return Mask2FormerDetector(config.source, config.clip, device)


class Mask2FormerDetector:
    """Pictures uint8 [B, H, W, 3] of any size -> what is seen on each, with masks and, on demand, colours."""

    def __init__(self, source: str, clip: str, device: str = "cpu", floor: float = FLOOR) -> None:
        """`source`: a folder, a hub id, or mmdet's checkpoint (`.pth`). `floor`: see `detections`."""
        self.model = _load(source).to(device).eval()
        self.classes = coco_names()
        if self.model.config.num_labels != len(self.classes):
            raise BenchError(
                f"{source!r} knows {self.model.config.num_labels} classes, not COCO's 80.", "Give another."
            )
        classifier = open_clip_or_transformers(clip, device)
        self.colours = ClipColours(classifier)
        self.device, self.floor = device, floor
        weights = f"{Path(source).name} {content.fingerprint(self.model)}"
        self.name = f"Mask2Former {weights}, {classifier.name} (transformers {version('transformers')})"

    def __call__(self, images: Images) -> list[Detections]:
        return [
            seen for start in range(0, len(images), TOGETHER) for seen in self._see(images[start : start + TOGETHER])
        ]

    @torch.no_grad()
    def _see(self, images: Images) -> list[Detections]:
        prepared = [prepare(image) for image in images]
        pixels, size = torch.cat([one for one, _ in prepared]), prepared[0][1]  # pictures of one array have one size
        output = self.model(pixel_values=pixels.to(self.device))
        sizes = (pixels.shape[2], pixels.shape[3]), size, (images.shape[1], images.shape[2])
        logits = zip(output.class_queries_logits.float(), output.masks_queries_logits.float(), strict=True)
        return [
            self._named(image, detections(classes, masks, *sizes, floor=self.floor))
            for image, (classes, masks) in zip(images, logits, strict=True)
        ]

    def _named(self, image: NDArray[np.uint8], instances: list[tuple[int, Detection]]) -> Detections:
        objects: dict[str, list[Detection]] = {}
        for label, detection in instances:
            objects.setdefault(self.classes[label], []).append(detection)
        return Detections(objects, lambda name, objects_: self.colours(image, name, objects_))


def _load(source: str) -> Any:
    if Path(source).suffix == ".pth":
        return mmdet_weights.load(source)
    from transformers import Mask2FormerForUniversalSegmentation

    return hub.load_model(
        Mask2FormerForUniversalSegmentation, source, "Mask2Former", "geneval", mmdet_weights.NOT_GIVEN
    )


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
    class_logits: Tensor,
    mask_logits: Tensor,
    padded: tuple[int, int],
    resized: tuple[int, int],
    size: tuple[int, int],
    floor: float = 0.0,
) -> list[tuple[int, Detection]]:
    """mmdet's instance post-processing, best first; computed where the logits are, and fetched from there once.

    Args:
        class_logits: [Q, 81], the last is `nothing`. mask_logits: [Q, h, w]. padded, resized, size: (H, W) of the
            network's input, of the picture in it, and of the picture itself. floor: class probability below which
            masks are not even computed; mmdet has none.
    """
    scores = class_logits.softmax(-1)[:, :-1]
    best = scores.flatten().topk(min(BEST, scores.numel()))
    enough = int((best.values >= floor).sum())
    values, indices = best.values[:enough], best.indices[:enough]
    if not enough:
        return []
    queries, labels = indices // scores.shape[1], indices % scores.shape[1]
    asked, place = torch.unique(queries, return_inverse=True)  # a query with two labels has one mask
    masks = interpolate(mask_logits[asked][None], padded, mode="bilinear", align_corners=False)
    masks = interpolate(masks[..., : resized[0], : resized[1]], size, mode="bilinear", align_corners=False)[0]
    inside = masks > 0
    area = inside.sum((1, 2))
    certainty = (masks.sigmoid() * inside).sum((1, 2)) / area.clamp(min=1)
    score = (values * certainty[place]).cpu().tolist()
    held, boxes, bits = area.cpu().tolist(), _boxes(inside).cpu().tolist(), inside.cpu().numpy()
    instances = [
        (label, Detection(tuple(boxes[query]), value, mask=bits[query]))
        for label, query, value in zip(labels.tolist(), place.tolist(), score, strict=True)
        if held[query]
    ]
    return sorted(instances, key=lambda pair: -pair[1].score)


def _boxes(inside: Tensor) -> Tensor:
    """The tight boxes (x0, y0, x1, y1) of masks [N, H, W], right and lower sides outside: [N, 4]."""
    height, width = inside.shape[1:]
    rows, columns = inside.any(2).int(), inside.any(1).int()
    first = [columns.argmax(1), rows.argmax(1)]
    last = [width - columns.flip(1).argmax(1), height - rows.flip(1).argmax(1)]
    return torch.stack([*first, *last], 1).float()
