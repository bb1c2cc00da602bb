"""The GenEval reward: a detector's objects, held against what the prompt's metadata asks for.

`value` is the training score (`geneval_rules`): mended, or Flow-GRPO's published one under the name
`geneval-published`. Parts: the official verdict, the strict one, and the official verdict by tag (NaN for other tags;
GenEval's overall score is the mean of the six tags' means).

Difference from Flow-GRPO: its client sends the server JPEG of PIL's default quality; here the detector sees the pixels.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from gdro_bench.errors import BenchError, unknown
from gdro_bench.instruments import Instruments
from gdro_bench.rewards import geneval_rules as rules
from gdro_bench.rewards.geneval_prompts import TAGS, Scene, parse
from gdro_bench.rewards.geneval_rules import Colours, Detections, Detector, Objects
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt


class GenEvalReward:
    """See the module. A prompt's `target` is its line of metadata."""

    def __init__(self, detector: Detector, kind: str, score: Callable[[Scene, Objects, Colours], float]) -> None:
        self.detector, self.score = detector, score
        self.name = f"GenEval {kind} ({detector.name})"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        """Raises:
        BenchError: a prompt asks for a class that the detector does not know."""
        scenes = [scene_of(prompt.target) for prompt in prompts]
        for clause in (clause for scene in scenes for clause in (*scene.include, *scene.exclude)):
            if clause.name not in self.detector.classes:
                raise unknown(f"class of the {self.detector.name} called", clause.name, self.detector.classes)
        return [self._judge(scene, detections) for scene, detections in zip(scenes, self.detector(images), strict=True)]

    def _judge(self, scene: Scene, detections: Detections) -> Score:
        objects, colours = rules.kept(detections.objects, scene.tag), rules.cached_colours(detections.colours)
        correct = float(rules.verdict(scene, objects, colours))
        parts = {"correct": correct, "strict": float(rules.strict(scene, objects, colours))}
        parts |= {f"correct {tag}": correct if tag == scene.tag else math.nan for tag in TAGS}
        return Score(self.score(scene, objects, colours), parts, _caption(objects))


@cache
def scene_of(metadata: str) -> Scene:
    return parse(json.loads(metadata))


def _caption(objects: Objects) -> str:
    """What was detected, as a caption: `2 red cat, 1 black clock`."""
    counts = Counter(f"{d.colour or ''} {name}".strip() for name, detections in objects.items() for d in detections)
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing seen"


def metadata_prompt(text: str, metadata: str, where: str) -> Prompt:
    """A prompt whose target is its line of GenEval's metadata; in a prompt file that line is all there is.

    Raises:
        BenchError: it is no metadata.
    """
    line = metadata or text
    try:
        scene = scene_of(line)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BenchError(
            f"{where} is no metadata of GenEval: {type(error).__name__}: {error}.",
            "See `gdro-bench prompts geneval -n 1` for the form.",
        ) from error
    if scene.tag not in TAGS:
        raise BenchError(f"{where} has the tag {scene.tag!r}.", f"Known: {', '.join(TAGS)}.")
    return Prompt(scene.prompt, line, scene.tag)


def open_mended(instruments: Instruments) -> GenEvalReward:
    return GenEvalReward(instruments.detector(), "mended score", rules.mended_score)


def open_published(instruments: Instruments) -> GenEvalReward:
    return GenEvalReward(instruments.detector(), "published score", rules.published_score)
