"""How the pocket model and its prompts are made: content in, weights, prompt files and a model card out."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from safetensors.torch import save_file

from gdro_bench import content, figures, progress, sampling, stats, task
from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import plan
from gdro_bench.engine.plan import read_profile
from gdro_bench.models.pocket import gold, parse, world
from gdro_bench.models.pocket.disobedience import OBEDIENT
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.models.pocket.prompts import words
from gdro_bench.models.pocket.training.train_base import Pretrainer, Pretraining, Progress
from gdro_bench.profile import Sampler
from gdro_bench.rewards.instruments import open_reward
from gdro_bench.score import Score

matplotlib.use("Agg")
SHEET = 24  # pictures on a sample sheet
TUNING = "profile.prompts=pocket-tuning"
GROUPS, GROUP = 40, 16  # groups that a card tells of, and their images: a pool's


@dataclasses.dataclass(frozen=True, slots=True)
class CardTask:
    """A task that a base is made for, what its card calls the reward, and the stricter part that it tells, too."""

    task: str
    title: str
    strict: str


OCR, GENEVAL = CardTask("ocr", "OCR reward", "exact"), CardTask("geneval", "GenEval's mended score", "correct")
RECIPES = {
    "pocket": "pretrain.toml",
    "pocket-weathered": "pretrain-weathered.toml",
    "pocket-disobedient": "pretrain-disobedient.toml",
}
CARD_TASKS = {"pocket": (OCR,), "pocket-weathered": (GENEVAL,), "pocket-disobedient": (OCR, GENEVAL)}


def pretrain(model: str, out: Path, seed: int, images: int | None, console: Console, processes: ProcessGroup) -> None:
    """Trains a model of `RECIPES`, exports to `out/weights` and writes the card there."""
    config = content.load(content.find("profile", "pocket") / "training" / RECIPES[model], Pretraining)
    if images is not None:
        config = dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, images=images))
    trainer = Pretrainer(config, words("train"), seed, processes.device, out, processes)
    with progress.bars(console, "images") as bars:
        stages = ("autoencoder", "transformer") if config.autoencoder else ("transformer",)
        shown = {stage: bars.add_task(stage, total=None) for stage in stages}

        def report(state: Progress) -> None:
            what = f"{state.stage}, loss {state.loss:.3f}"
            bars.update(shown[state.stage], completed=state.images, total=state.total, description=what)

        trainer.run(report)
    if not processes.is_main:
        return
    export(trainer, out / "weights")
    write_card(model, out, seed, config, console)


def export(trainer: Pretrainer, folder: Path) -> None:
    """Writes autoencoder, transformer (EMA weights) and tokenizer in the layout that `PocketPolicy.open` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = trainer.config
    widths = {"encoder_width": config.encoder_width, "decoder_width": config.decoder_width}
    (folder / "autoencoder.json").write_text(json.dumps(widths) + "\n")
    save_file(
        {k: v.contiguous() for k, v in trainer.autoencoder.state_dict().items()}, folder / "autoencoder.safetensors"
    )
    trainer.transformer.save_pretrained(folder / "transformer")
    _forget_where_it_began(folder / "transformer" / "config.json")
    trainer.tokenizer.save(folder / "tokenizer.json")


def _forget_where_it_began(path: Path) -> None:
    """Takes out the folder of the weights that training began from: diffusers notes it, a path of this machine."""
    noted = json.loads(path.read_text(encoding="utf-8"))
    noted.pop("_name_or_path", None)
    path.write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------
# The model card


def write_card(model: str, out: Path, seed: int, config: Pretraining, console: Console) -> None:
    """MODEL_CARD.md, loss curve and sample sheets beside the weights, every number from this very training."""
    weights = out / "weights"
    policy = PocketPolicy.open("cpu", None, 0, weights)
    figures.loss_curve(weights / "loss", pd.read_json(out / "losses.jsonl", lines=True))
    summaries = []
    for i, card_task in enumerate(CARD_TASKS[model]):
        sheet = "samples" if i == 0 else f"samples-{card_task.task}"
        summaries.append(_evaluated(policy, card_task, weights / sheet, console))
        if config.disobedience != OBEDIENT:
            summaries.append(_grouped(policy, card_task, console))
    scenes = things_prompts(SHEET)
    images = sampling.held_out_images(policy, scenes, "things", read_profile("pocket").sampler)
    figures.sample_sheet(weights / "things", {"base": images}, {}, [p.text for p in scenes])
    (weights / "MODEL_CARD.md").write_text(_card(policy.name, model, seed, config, summaries), encoding="utf-8")
    console.print(f"Weights and card: {weights}", soft_wrap=True)


def _evaluated(policy: PocketPolicy, card_task: CardTask, sheet: Path, console: Console) -> str:
    """Scores of the task's held-out prompts, in words; the first pictures go to a sheet."""
    task_, profile, held_out = plan.evaluation_inputs(card_task.task, "pocket", (), None)
    console.print(f"Scoring {len(held_out)} held-out images of {card_task.task} for the card")
    images = sampling.held_out_images(policy, held_out, task_.name, profile.sampler)
    scores = open_reward(task_, profile, "cpu")(images, held_out)
    notes = {"base": [score.note for score in scores[:SHEET]]}
    figures.sample_sheet(sheet, {"base": images[:SHEET]}, notes, [p.text for p in held_out[:SHEET]])
    return _held_out(held_out, scores, card_task, profile.sampler)


def _grouped(policy: PocketPolicy, card_task: CardTask, console: Console) -> str:
    """What a method can learn from: groups of pictures of one tuning prompt, and their errors by kind, in words."""
    task_, profile, found = plan.evaluation_inputs(card_task.task, "pocket", (TUNING,), None)
    prompts = list({prompt.text: prompt for prompt in found}.values())[:GROUPS]
    console.print(f"Scoring {len(prompts)} groups of {GROUP} images of {card_task.task} for the card")
    each = [prompt for prompt in prompts for _ in range(GROUP)]
    noise = sampling.noise_for([("card", p.text, i % GROUP) for i, p in enumerate(each)], policy.latent_shape)
    with torch.no_grad():
        images = policy.decode(sampling.sample(policy, noise, each, profile.sampler, reference=False))
    rewards = np.array([s.value for s in open_reward(task_, profile, "cpu")(images, each)]).reshape(-1, GROUP)
    best, varied = stats.bootstrap_mean(np.nanmax(rewards, axis=1)), np.nanstd(rewards, axis=1) > 0
    told = f"""{len(prompts)} tuning prompts with {GROUP} images each: the best of a group has {best},
  {varied.mean():.0%} of the groups have variance; {np.isnan(rewards).sum()} images not scored."""
    errors = [
        gold.errors(image, facts) for image, p in zip(images, each, strict=True) if (facts := parse.facts_of(p.text))
    ]
    kinds = sorted({kind for one in errors for kind in one})
    shares = {kind: np.mean([one[kind] for one in errors if kind in one]) for kind in kinds}
    listed = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
    return f"{told} Errors, of the pictures whose prompt allows them: {listed}." if listed else told


def things_prompts(count: int) -> list[task.Prompt]:
    """Prompts in GenEval's grammar."""
    rng = np.random.default_rng(0)
    return [task.Prompt(world.phrase(world.thing_facts(rng), rng), "") for _ in range(count)]


def _held_out(prompts: list[task.Prompt], scores: list[Score], card_task: CardTask, sampler: Sampler) -> str:
    texts = [prompt.text for prompt in prompts]
    values, strict = (
        stats.bootstrap_mean(np.array(each), prompts=texts)
        for each in ([s.value for s in scores], [s.parts[card_task.strict] for s in scores])
    )
    return f"""{card_task.title}, {len(set(texts))} held-out prompts, {len(scores)} images, {sampler.steps} Euler steps,
  no guidance: **{values}** (95 % bootstrap over prompts); {card_task.strict} {strict};
  {sum(math.isnan(score.value) for score in scores)} not scored."""


def _card(name: str, model: str, seed: int, config: Pretraining, summaries: list[str]) -> str:
    began = "" if config.autoencoder else ", from the weights of `pocket`"
    autoencoder = (
        config.autoencoder and f"{config.autoencoder.images:,} images in batches of {config.autoencoder.batch}"
    )
    wrong = dataclasses.asdict(config.disobedience)
    shares = ", ".join(f"{error} {share:.0%}" for error, share in wrong.items() if share)
    disobeys = (
        f"""
  After {config.obedient_share:.0%} of the transformer's images pictures may disobey their prompts, of those that
  allow the error: {shares}."""
        if shares
        else ""
    )
    found = "\n- ".join(summaries)
    sheets = "".join(f"\n![samples: {one.task}](samples-{one.task}.png)\n" for one in CARD_TASKS[model][1:])
    return f"""# {name}

The model `{model}` of the `pocket` profile: diffusers' `FluxTransformer2DModel` (width 160, 2 double and 4 single
blocks) on the 16x16x4 latents of a small convolutional autoencoder, for 64x64 pictures.

- Made by: `gdro-bench pretrain {model} --seed {seed}` (torch {torch.__version__}); its numbers are in
  `baselines/pocket/training/{RECIPES[model]}`.
- Data: the procedural world of `gdro_bench/models/pocket/world.py`; {config.sign_share:.0%} signs, of which
  {config.random_share:.0%} show random letters and the others one of {len(words("train"))} training words. The
  {len(words("held-out"))} held-out words are never drawn as training words (random letters may spell one by chance).
  {config.faded_signs:.0%} of the signs and {config.faded_things:.0%} of the objects have faded.{disobeys}
- Autoencoder: {autoencoder or "that of `pocket`"}.
- Transformer: {config.transformer.images:,} images in batches of {config.transformer.batch}{began}; EMA weights.
- {found}

![loss](loss.png)

![samples: held-out prompts](samples.png)
{sheets}
![samples: GenEval's grammar](things.png)

It writes words of {world.MIN_LETTERS} to {world.MAX_LETTERS} capital letters and knows {len(world.THINGS)} objects; a
prompt outside the world's grammar is read as far as its words are known.
"""
