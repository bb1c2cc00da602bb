"""Writes prompt sets: the files in `tasks/` were made so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

from numpy.random import default_rng

from gdro_bench import content
from gdro_bench.errors import unknown
from gdro_bench.rewards import geneval_prompts

Split = Literal["train", "tuning", "held-out"]
Classes = Literal["coco", "pocket"]
GENEVAL_SEEDS: dict[Split, int] = {"train": 0, "tuning": 1, "held-out": 43}
TEST_DRAWS: dict[Classes, int] = {"coco": 100, "pocket": 40}  # of each tag of GenEval's test sets


def lines(task: str, split: Split | None, seed: int | None, count: int | None, classes: Classes) -> list[str]:
    """The lines of a prompt set; what is None takes the task's default, which gives a file that is shipped.

    Raises:
        BenchError: there is no such task.
    """
    if task not in MAKERS:
        raise unknown("task with prompts to write called", task, MAKERS)
    return MAKERS[task](split, seed, count, classes)


def _ocr(split: Split | None, seed: int | None, count: int | None, classes: Classes) -> list[str]:
    from gdro_bench.models.pocket import making

    chosen: Split = split or "train"
    usual = 2000 if chosen == "train" else 200
    return making.ocr_prompts(chosen, seed or 0, count or usual)


def _geneval(split: Split | None, seed: int | None, count: int | None, classes: Classes) -> list[str]:
    """Metadata in JSON: the test set, `count` draws of each tag (of COCO's classes the published one), or lines to
    train or to tune on, none of which is in the test set."""
    names, chosen = class_names(classes), split or "held-out"
    rng = default_rng(GENEVAL_SEEDS[chosen] if seed is None else seed)
    if chosen == "held-out":
        scenes = geneval_prompts.suite(rng, names, count or TEST_DRAWS[classes])
    else:
        test = geneval_prompts.suite(default_rng(GENEVAL_SEEDS["held-out"]), names, TEST_DRAWS[classes])
        scenes = geneval_prompts.training(rng, names, count or (2000 if chosen == "train" else 250), test)
    if classes == "pocket":
        scenes = list(dict.fromkeys(scenes))  # few classes repeat often; a pool of one scene twice is a waste
    return [json.dumps(scene.published()) for scene in scenes]


def class_names(classes: Classes) -> list[str]:
    """COCO's 80 as GenEval names them, or those of the pocket world."""
    if classes == "pocket":
        from gdro_bench.models.pocket import world

        return sorted(world.THINGS)
    return (content.root() / "tasks" / "geneval" / "classes.txt").read_text(encoding="utf-8").splitlines()


MAKERS: dict[str, Callable[[Split | None, int | None, int | None, Classes], list[str]]] = {
    "ocr": _ocr,
    "geneval": _geneval,
}
