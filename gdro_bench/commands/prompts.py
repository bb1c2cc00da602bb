"""Writes prompt sets: the files in `tasks/` were made so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

from numpy.random import default_rng

from gdro_bench import content
from gdro_bench.errors import unknown
from gdro_bench.models.pocket import prompts as pocket_prompts
from gdro_bench.rewards import geneval_prompts, ocr_prompts

Split = Literal["train", "tuning", "held-out"]
World = Literal["photo", "pocket"]  # what a model can paint
GENEVAL_SEEDS: dict[Split, int] = {"train": 0, "tuning": 1, "held-out": 43}
GENEVAL_LINES: dict[tuple[World, Split], int] = {
    ("photo", "train"): 5000, ("photo", "tuning"): 300, ("pocket", "train"): 2000, ("pocket", "tuning"): 250,
}  # fmt: skip
OCR_PHOTO_LINES: dict[Split, int] = {"train": 5000, "tuning": 200, "held-out": 1000}
TEST_DRAWS: dict[World, int] = {"photo": 100, "pocket": 40}  # of each tag of GenEval's test sets


def lines(task: str, split: Split | None, seed: int | None, count: int | None, world: World | None) -> list[str]:
    """The lines of a prompt set; what is None takes the task's default, which gives a file that is shipped.

    Raises:
        BenchError: there is no such task.
    """
    if task not in MAKERS:
        raise unknown("task with prompts to write called", task, MAKERS)
    return MAKERS[task](split, seed, count, world)


def _ocr(split: Split | None, seed: int | None, count: int | None, world: World | None) -> list[str]:

    chosen_split: Split = split or "train"
    if world == "photo":
        rng, usual = default_rng([seed or 0, list(OCR_PHOTO_LINES).index(chosen_split)]), OCR_PHOTO_LINES[chosen_split]
        return ocr_prompts.draw(rng, [word.lower() for word in pocket_prompts.words(chosen_split)], count or usual)
    return pocket_prompts.ocr_prompts(chosen_split, seed or 0, count or (2000 if chosen_split == "train" else 200))


def _geneval(split: Split | None, seed: int | None, count: int | None, world: World | None) -> list[str]:
    """Metadata in JSON: the test set, `count` draws of each tag (of COCO's classes the published one), or lines to
    train or to tune on, none of which is in the test set."""
    world = world or "photo"
    names, chosen_split = class_names(world), split or "held-out"
    rng = default_rng(GENEVAL_SEEDS[chosen_split] if seed is None else seed)
    if chosen_split == "held-out":
        scenes = geneval_prompts.suite(rng, names, count or TEST_DRAWS[world])
    else:
        test = geneval_prompts.suite(default_rng(GENEVAL_SEEDS["held-out"]), names, TEST_DRAWS[world])
        scenes = geneval_prompts.training(rng, names, count or GENEVAL_LINES[world, chosen_split], test)
    if world == "pocket" and chosen_split != "train":
        scenes = list(dict.fromkeys(scenes))  # few classes repeat often; to train on, they are the mix
    return [json.dumps(scene.published()) for scene in scenes]


def class_names(world: World) -> list[str]:
    """COCO's 80 as GenEval names them, or those of the pocket world."""
    if world == "pocket":
        from gdro_bench.models.pocket.world import THINGS

        return sorted(THINGS)
    return (content.root() / "tasks" / "geneval" / "classes.txt").read_text(encoding="utf-8").splitlines()


MAKERS: dict[str, Callable[[Split | None, int | None, int | None, World | None], list[str]]] = {
    "ocr": _ocr,
    "geneval": _geneval,
}
