"""How the pocket detector and its card are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from rich.console import Console

from gdro_bench import content, progress, stats
from gdro_bench.models.pocket import prompts as pocket_prompts
from gdro_bench.models.pocket import world
from gdro_bench.models.pocket.detector import CLASSES, PocketDetector, save
from gdro_bench.models.pocket.disobedience import OBEDIENT, disobeyed
from gdro_bench.models.pocket.network import Autoencoder
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.models.pocket.training import train_detector
from gdro_bench.models.pocket.training.fit import through
from gdro_bench.models.pocket.training.train_detector import DetectorTraining
from gdro_bench.rewards import geneval_prompts, geneval_rules
from gdro_bench.rewards.geneval_prompts import Scene
from gdro_bench.score import Images
from gdro_bench.stats import Estimate

A_TAG = 100  # scenes of each tag on the card
ERRORS = ("kind", "colour", "count", "relation", "missing")  # that a scene of objects may have


def pretrain(out: Path, seed: int, console: Console) -> None:
    """Trains the detector and writes weights and card to `out/weights`."""
    config = content.load(content.find("profile", "pocket") / "training" / "detector.toml", DetectorTraining)
    autoencoder = PocketPolicy.open("cpu", None, 0).autoencoder
    train, words = train_detector.train, pocket_prompts.words("train")
    network = progress.fitted(
        console, "detector", config.images, lambda report: train(config, words, autoencoder, seed, report)
    )
    folder = out / "weights"
    save(network, config.width, folder)
    (folder / "CARD.md").write_text(card(PocketDetector(network), autoencoder, config, seed), encoding="utf-8")
    console.print(f"Weights and card: {folder}", soft_wrap=True)


def facts_of(scene: Scene) -> world.Facts:
    """The world's facts that show a scene of GenEval's grammar."""
    things = [
        world.ThingFacts(clause.name, clause.colour, clause.count, clause.position[0] if clause.position else None)
        for clause in scene.include
    ]
    return world.Facts(None, None, None, tuple(things))


def accuracy(detector: PocketDetector, autoencoder: Autoencoder | None, rng: Generator) -> dict[str, list[Estimate]]:
    """By tag: how often a right scene is called right, and a scene of another prompt of the tag. With an autoencoder
    the pictures are those that it gives back."""
    scenes = [
        s for s in geneval_prompts.suite(rng, CLASSES, A_TAG) for _ in range(6 if s.tag == "single_object" else 1)
    ]
    shares: dict[str, list[Estimate]] = {}
    for tag in geneval_prompts.TAGS:
        of_tag = [scene for scene in scenes if scene.tag == tag]
        others = [_other(scene, of_tag, rng) for scene in of_tag]
        shares[tag] = [_share(detector, autoencoder, of_tag, shown, rng) for shown in (of_tag, others)]
    return shares


def _other(scene: Scene, scenes: list[Scene], rng: Generator) -> Scene:
    return world.choose(rng, [other for other in scenes if other.include != scene.include])


def on_errors(detector: PocketDetector, autoencoder: Autoencoder | None, rng: Generator) -> dict[str, Estimate]:
    """By kind of error: how often a scene that disobeys its prompt so is called right nevertheless."""
    scenes = [scene for scene in geneval_prompts.suite(rng, CLASSES, A_TAG) if scene.tag != "single_object"]
    shares: dict[str, Estimate] = {}
    for error in ERRORS:
        certain = replace(OBEDIENT, **{error: 1.0})
        drawn = [(scene, disobeyed(facts_of(scene), certain, rng)) for scene in scenes]
        wrong = [(scene, one) for scene, one in drawn if one.errors]
        images = np.stack([world.render(one.facts, rng, left_out=one.left_out).pixels for _, one in wrong])
        shares[error] = _right(detector, autoencoder, [scene for scene, _ in wrong], images)
    return shares


def _share(
    detector: PocketDetector, autoencoder: Autoencoder | None, prompted: list[Scene], shown: list[Scene], rng: Generator
) -> Estimate:
    images = np.stack([world.render(facts_of(scene), rng).pixels for scene in shown])
    return _right(detector, autoencoder, prompted, images)


def _right(
    detector: PocketDetector, autoencoder: Autoencoder | None, prompted: list[Scene], images: Images
) -> Estimate:
    detected = detector(images if autoencoder is None else through(autoencoder, images))
    verdicts = [
        geneval_rules.verdict(scene, geneval_rules.kept(seen.objects, scene.tag), seen.colours)
        for scene, seen in zip(prompted, detected, strict=True)
    ]
    return stats.bootstrap_mean(np.array(verdicts, dtype=float))


def card(detector: PocketDetector, autoencoder: Autoencoder, config: DetectorTraining, seed: int) -> str:
    drawn, again = (accuracy(detector, seen, np.random.default_rng(seed + 1)) for seen in (None, autoencoder))
    rows = "\n".join(
        f"| {tag} | {drawn[tag][0]} | {drawn[tag][1]} | {again[tag][0]} | {again[tag][1]} |" for tag in drawn
    )
    missed, missed_again = (on_errors(detector, seen, np.random.default_rng(seed + 2)) for seen in (None, autoencoder))
    by_error = "\n".join(f"| {error} | {missed[error]} | {missed_again[error]} |" for error in missed)
    return f"""# Pocket detector

Finds the objects of the pocket world, their boxes and colours (`gdro_bench/models/pocket/detector.py`), for GenEval's
verdicts. Made by `gdro-bench pretrain pocket-detector --seed {seed}` (torch {torch.__version__}) from {config.images:,}
scenes; its settings are in `baselines/pocket/training/detector.toml`.

How often GenEval's verdict on its detections is `correct`, on fresh scenes (95 % bootstrap over scenes): where the
scene is the one prompted for, and where it is that of another prompt with the same tag.

| tag | right scene, as drawn | other scene, as drawn | right scene, through the autoencoder | other scene, so |
| --- | ---: | ---: | ---: | ---: |
{rows}

And how often it is `correct` of scenes that disobey their prompts:

| error | as drawn | through the autoencoder |
| --- | ---: | ---: |
{by_error}
"""
