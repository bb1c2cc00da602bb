"""How the pocket judge and its card are made."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console

from gdro_bench import content, progress, stats
from gdro_bench.models.pocket import prompts as pocket_prompts
from gdro_bench.models.pocket import world
from gdro_bench.models.pocket.disobedience import OBEDIENT, Disobedience, disobeyed
from gdro_bench.models.pocket.judge import AXES, PocketJudge, save
from gdro_bench.models.pocket.network import Autoencoder
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.models.pocket.training import train_judge
from gdro_bench.models.pocket.training.fit import through
from gdro_bench.models.pocket.training.train_judge import COHERENCE, STYLE, JudgeTraining
from gdro_bench.score import Images
from gdro_bench.task import Prompt

SCENES = 100  # for every line of the card
SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
ERRORS = tuple(field.name for field in fields(Disobedience))
Answers = dict[str, np.ndarray]  # axis -> ratings [N]


def pretrain(out: Path, seed: int, console: Console) -> None:
    """Trains the judge and writes weights and card to `out/weights`."""
    config = content.load(content.find("profile", "pocket") / "training" / "judge.toml", JudgeTraining)
    autoencoder = PocketPolicy.open("cpu", None, 0).autoencoder
    train, words = train_judge.train, pocket_prompts.words("train")
    network = progress.fitted(
        console, "judge", config.images, lambda report: train(config, words, autoencoder, seed, report)
    )
    folder = out / "weights"
    save(network, config.width, folder)
    (folder / "CARD.md").write_text(card(PocketJudge(network), autoencoder, config, seed), encoding="utf-8")
    console.print(f"Weights and card: {folder}", soft_wrap=True)


def scenes(rng: Generator, count: int = SCENES) -> list[world.Facts]:
    """Half signs with held-out words, half objects."""
    held_out = pocket_prompts.words("held-out")
    return [
        world.sign_facts(rng, world.choose(rng, held_out)) if i % 2 else world.thing_facts(rng) for i in range(count)
    ]


def answers(judge: PocketJudge, facts: list[world.Facts], images: Images, rng: Generator) -> Answers:
    """What the judge says of pictures for these prompts."""
    scores = judge(images, [Prompt(world.phrase(one, rng), "") for one in facts])
    return {axis: np.array([score.parts[axis] for score in scores]) for axis in AXES}


def reconstructed(autoencoder: Autoencoder, facts: list[world.Facts], rng: Generator) -> Images:
    return through(autoencoder, np.stack([world.render(one, rng).pixels for one in facts]))


def by_damage(judge: PocketJudge, autoencoder: Autoencoder, kind: str, seed: int) -> list[Answers]:
    """What the judge says at each of `SEVERITIES` of one damage, on the same fresh scenes."""
    damage = (COHERENCE | STYLE)[kind]
    facts = scenes(np.random.default_rng(seed))
    images = reconstructed(autoencoder, facts, np.random.default_rng(seed + 1))
    by_step = []
    for s in SEVERITIES:
        rng = np.random.default_rng(seed + 2)
        by_step.append(answers(judge, facts, np.stack([damage(i, s, rng) if s else i for i in images]), rng))
    return by_step


def by_wrong_facts(judge: PocketJudge, autoencoder: Autoencoder, seed: int) -> list[Answers]:
    """What the judge says where about such shares of the prompt's facts are wrong."""
    by_step = []
    for s in SEVERITIES:
        rng = np.random.default_rng(seed)
        facts = scenes(rng)
        shown = []
        for one in facts:
            names = [str(name) for name in rng.permutation(train_judge.said(one))]
            shown.append(train_judge.with_wrong(one, names[: round(s * len(names))], rng))
        by_step.append(answers(judge, facts, reconstructed(autoencoder, shown, rng), rng))
    return by_step


def by_error(judge: PocketJudge, autoencoder: Autoencoder, name: str, seed: int) -> list[Answers]:
    """What the judge says of `SCENES` scenes drawn right, and of the same with one error of this kind."""
    rng, shares = np.random.default_rng(seed), replace(OBEDIENT, **{name: 1.0})
    said: list[world.Facts] = []
    right: list[NDArray[np.uint8]] = []
    wrong: list[NDArray[np.uint8]] = []
    while len(said) < SCENES:
        facts = scenes(rng, 2)[name == "letter"]
        drawn = disobeyed(facts, shares, rng)
        if drawn.errors:
            said.append(facts)
            right.append(world.render(facts, rng).pixels)
            wrong.append(world.render(drawn.facts, rng, left_out=drawn.left_out).pixels)
    return [
        answers(judge, said, through(autoencoder, np.stack(one)), np.random.default_rng(seed)) for one in (right, wrong)
    ]


def card(judge: PocketJudge, autoencoder: Autoencoder, config: JudgeTraining, seed: int) -> str:
    rows = [_row("wrong facts", "alignment", by_wrong_facts(judge, autoencoder, seed + 1))]
    errors = "\n".join(_error_row(name, by_error(judge, autoencoder, name, seed + 1)) for name in ERRORS)
    for axis, damages in (("coherence", COHERENCE), ("style", STYLE)):
        rows += [_row(kind, axis, by_damage(judge, autoencoder, kind, seed + 1)) for kind in damages]
    heads = " | ".join(f"{s:g}" for s in SEVERITIES)
    table = "\n".join(rows)
    return f"""# Pocket judge

Rates pictures of the pocket world for alignment, coherence and style, each 1 to 5
(`gdro_bench/models/pocket/judge.py`). Made by `gdro-bench pretrain pocket-judge --seed {seed}` (torch
{torch.__version__}) from {config.images:,} scenes with damages of known severity s, for which it learns 5 - 4 s on the
damage's axis; its settings are in `baselines/pocket/training/judge.toml`. It does not read: a misspelt sign costs
nothing here. It is not UnifiedReward.

Its mean rating on {SCENES} fresh scenes (held-out words, through the autoencoder) by severity, with 95 % bootstrap over
scenes at both ends; beside them what the damage at its worst costs the other two axes.

| damage | axis | {heads} | others, at worst |
| --- | --- | {" | ".join("---:" for _ in SEVERITIES)} | --- |
{table}

What one error of the kinds that the base was taught to make costs, of {SCENES} proper pictures each, paired with the
same scene drawn right, with 95 % bootstrap over scenes.

| error | {" | ".join(AXES)} |
| --- | {" | ".join("---:" for _ in AXES)} |
{errors}
"""


def _row(kind: str, axis: str, by_step: list[Answers]) -> str:
    ends = (0, len(by_step) - 1)
    cells = [
        str(stats.bootstrap_mean(f[axis])) if i in ends else f"{f[axis].mean():.3f}" for i, f in enumerate(by_step)
    ]
    others = [f"{a} {by_step[-1][a].mean() - by_step[0][a].mean():+.2f}" for a in AXES if a != axis]
    return f"| {kind} | {axis} | {' | '.join(cells)} | {', '.join(others)} |"


def _error_row(name: str, right_and_wrong: list[Answers]) -> str:
    right, wrong = right_and_wrong
    return f"| {name} | {' | '.join(str(stats.bootstrap_mean(wrong[a] - right[a])) for a in AXES)} |"
