"""GenEval's published detector: mmdet's Mask2Former (Swin-S, COCO instances), for numbers that equal papers'.

It needs mmdet 3 with a compiled mmcv, which few environments have; `mask2former` computes the same from the same
checkpoint without them. Objects are kept as mmdet gives them; pictures are turned to BGR, which mmdet takes arrays as.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdro_bench import content
from gdro_bench.errors import BenchError
from gdro_bench.instruments import mmdet_weights
from gdro_bench.instruments.clip import ClipColours, open_clip_or_transformers
from gdro_bench.instruments.mask2former import coco_names
from gdro_bench.profile import DetectorConfig
from gdro_bench.rewards.geneval_rules import Detection, Detections
from gdro_bench.score import Images


class MMDetDetector:
    """Pictures uint8 [B, H, W, 3] of any size -> what is seen on each, with masks and, on demand, colours."""

    def __init__(self, checkpoint: str, config: str, clip: str, device: str) -> None:
        """Raises:
        BenchError: mmdet is not installed, or a file is not there or not what it should be."""
        try:
            number = version("mmdet")
            from mmdet.apis import inference_detector, init_detector
            from mmdet.utils import get_test_pipeline_cfg
        except (PackageNotFoundError, ImportError) as error:
            raise BenchError(
                f"mmdet cannot be imported ({error}).",
                "Install mmdet 3 and mmcv as tasks/README.md says, or set profile.detector.name=mask2former.",
            ) from error
        for path in (config, checkpoint):
            if not Path(path).is_file():
                raise BenchError(
                    f"mmdet's file {path!r} is not there.",
                    "Set profile.detector.config and profile.detector.source to Mask2Former's configuration and "
                    "checkpoint (`mim download mmdet --config mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco`).",
                )
        self.model = init_detector(config, None, device=device)
        try:
            self.model.load_state_dict(mmdet_weights.read(checkpoint))
        except RuntimeError as error:
            raise BenchError(
                f"{checkpoint} does not fit {config}.",
                "Give the checkpoint that mmdet's model zoo has for that configuration.",
            ) from error
        get_test_pipeline_cfg(self.model.cfg)[0].to_float32 = False  # the published evaluator's mmdet 2 resizes bytes
        self._infer = inference_detector
        self.classes = coco_names()
        classifier = open_clip_or_transformers(clip, device)
        self.colours = ClipColours(classifier)
        weights = f"{Path(checkpoint).stem} {content.fingerprint(self.model)}"
        self.name = f"mmdet {number} {weights}, {classifier.name}"

    def __call__(self, images: Images) -> list[Detections]:
        return [self._see(image) for image in images]

    def _see(self, image: NDArray[np.uint8]) -> Detections:
        instances = self._infer(self.model, np.ascontiguousarray(image[:, :, ::-1])).pred_instances.cpu().numpy()
        objects = objects_of(instances.labels, instances.scores, instances.bboxes, instances.masks, self.classes)
        return Detections(objects, lambda name, objects_: self.colours(image, name, objects_))


def open_detector(config: DetectorConfig, device: str) -> MMDetDetector:
    return MMDetDetector(config.source, config.config or "", config.clip, device)


def objects_of(
    labels: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]],
    boxes: NDArray[np.floating[Any]],
    masks: NDArray[np.bool_],
    classes: list[str],
) -> dict[str, list[Detection]]:
    """Detections by class, best first, from labels [N], scores [N], boxes [N, 4] px and masks [N, H, W]."""
    objects: dict[str, list[Detection]] = {}
    for i in np.argsort(-scores, kind="stable"):
        x0, y0, x1, y1 = (float(side) for side in boxes[i])
        detection = Detection((x0, y0, x1, y1), float(scores[i]), mask=masks[i])
        objects.setdefault(classes[int(labels[i])], []).append(detection)
    return objects
