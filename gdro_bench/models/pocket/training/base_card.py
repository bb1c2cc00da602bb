"""How the pocket base and its prompts are made: content in, weights, prompt files and a model card out."""

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
from gdro_bench.instruments import open_reward
from gdro_bench.models.pocket import gold, parse, world
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.models.pocket.prompts import words
from gdro_bench.models.pocket.training.train_base import Pretrainer, Pretraining, Progress
from gdro_bench.profile import Sampler
from gdro_bench.score import Images, Score

matplotlib.use("Agg")
SHEET = 24  # pictures on a sample sheet
SHOWN, EACH = 4, 4  # groups on a sheet of theirs, and pictures of each
TUNING = "profile.prompts=pocket-tuning"
GROUPS, GROUP = 40, 16  # groups that a card tells of, and their images: a pool's


@dataclasses.dataclass(frozen=True, slots=True)
class CardTask:
    """A task that a base is made for, what its card calls the reward, and the stricter part that it tells, too."""

    task: str
    title: str
    strict: str


OCR, GENEVAL = CardTask("ocr", "OCR reward", "exact"), CardTask("geneval", "GenEval's mended score", "correct")


def recipe() -> Pretraining:
    return content.load(content.find("profile", "pocket") / "training" / "pretrain.toml", Pretraining)


def pretrain(out: Path, seed: int, images: int | None, console: Console, processes: ProcessGroup) -> None:
    """Trains the base, exports to `out/weights` and writes the card there."""
    config = recipe()
    if images is not None:
        config = dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, images=images))
    trainer = Pretrainer(config, words("train"), seed, processes.device, out, processes)
    with progress.bars(console, "images") as bars:
        shown = {stage: bars.add_task(stage, total=None) for stage in ("autoencoder", "transformer")}

        def report(state: Progress) -> None:
            what = f"{state.stage}, loss {state.loss:.3f}"
            bars.update(shown[state.stage], completed=state.images, total=state.total, description=what)

        trainer.run(report)
    if not processes.is_main:
        return
    export(trainer, out / "weights")
    write_card(out, seed, config, console)


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
    trainer.tokenizer.save(folder / "tokenizer.json")


# ---------------------------------------------------------------------------------------------------------------
# The model card


def write_card(out: Path, seed: int, config: Pretraining, console: Console) -> None:
    """MODEL_CARD.md, loss curve and sample sheets beside the weights, every number from this very training."""
    weights = out / "weights"
    policy = PocketPolicy.open("cpu", None, 0, weights)
    figures.loss_curve(weights / "loss", pd.read_json(out / "losses.jsonl", lines=True))
    summaries, shares = [], dict[str, float]()
    for card_task in (OCR, GENEVAL):
        summaries.append(_evaluated(policy, card_task, weights / f"samples-{card_task.task}", console))
        told, found = _grouped(policy, card_task, weights / f"groups-{card_task.task}", console)
        summaries.append(told)
        shares |= {error: share for error, share in found.items() if error not in shares}
    (weights / "MODEL_CARD.md").write_text(_card(policy.name, seed, config, summaries, shares), encoding="utf-8")
    console.print(f"Weights and card: {weights}", soft_wrap=True)


def _evaluated(policy: PocketPolicy, card_task: CardTask, sheet: Path, console: Console) -> str:
    """Scores of the task's held-out prompts, in words; the first pictures go to a sheet."""
    task_, profile, held_out = plan.evaluation_inputs(card_task.task, "pocket", (), None)
    console.print(f"Scoring {len(held_out)} held-out images of {card_task.task} for the card")
    images = sampling.held_out_images(policy, held_out, task_.name, profile.sampler)
    scores = open_reward(task_, profile, "cpu")(images, held_out)
    notes = {"base": [score.note for score in scores[:SHEET]]}
    _draw(sheet, {"base": images[:SHEET]}, notes, [p.text for p in held_out[:SHEET]])
    return _held_out(held_out, scores, card_task, profile.sampler)


def _grouped(policy: PocketPolicy, card_task: CardTask, sheet: Path, console: Console) -> tuple[str, dict[str, float]]:
    """What a method can learn from: groups of pictures of one tuning prompt, in words, and the share of each kind of
    error, of the pictures on which it can be seen. Some of the groups go to a sheet, their errors named."""
    task_, profile, found = plan.evaluation_inputs(card_task.task, "pocket", (TUNING,), None)
    prompts = list({prompt.text: prompt for prompt in found}.values())[:GROUPS]
    console.print(f"Scoring {len(prompts)} groups of {GROUP} images of {card_task.task} for the card")
    each = [prompt for prompt in prompts for _ in range(GROUP)]
    noise = sampling.noise_for([("card", p.text, i % GROUP) for i, p in enumerate(each)], policy.latent_shape)
    with torch.no_grad():
        images = policy.decode(sampling.sample(policy, noise, each, profile.sampler, reference=False))
    rewards = np.array([s.value for s in open_reward(task_, profile, "cpu")(images, each)]).reshape(-1, GROUP)
    best, varied = stats.bootstrap_mean(np.nanmax(rewards, axis=1)), np.nanstd(rewards, axis=1) > 0
    errors = [_errors(image, prompt) for image, prompt in zip(images, each, strict=True)]
    kinds = sorted({kind for one in errors for kind in one})
    shares = {
        kind: float(np.mean([one[kind] > 0 for one in errors if not math.isnan(one.get(kind, math.nan))]))
        for kind in kinds
    }
    _draw_groups(sheet, prompts, images.reshape(len(prompts), GROUP, *images.shape[1:]), errors)
    told = f"""{len(prompts)} tuning prompts of {card_task.task} with {GROUP} images each: the best of a group has
  {best}, {varied.mean():.0%} of the groups have variance; {np.isnan(rewards).sum()} images not scored."""
    return told, shares


def _draw_groups(sheet: Path, prompts: list[task.Prompt], groups: Images, errors: list[dict[str, float]]) -> None:
    """The first groups [P, GROUP, H, W, 3], a row each, above each picture its errors, [P * GROUP]."""
    rows = range(min(SHOWN, len(prompts)))
    columns = {f"noise {j + 1}": groups[: len(rows), j] for j in range(min(EACH, GROUP))}
    notes = {
        name: [", ".join(kind for kind, made in errors[i * GROUP + j].items() if made > 0) or "no error" for i in rows]
        for j, name in enumerate(columns)
    }
    _draw(sheet, columns, notes, [prompts[i].text for i in rows])


def _draw(sheet: Path, columns: dict[str, Images], notes: dict[str, list[str]], prompts: list[str]) -> None:
    """As a run's sheet; its PNG is in the wheel, so it should be small."""
    figures.sample_sheet(sheet, columns, notes, prompts)
    figures.copy_in_few_colours(sheet.with_suffix(".png"), sheet.with_suffix(".png"))


def _errors(image: Images, prompt: task.Prompt) -> dict[str, float]:
    facts = parse.facts_of(prompt.text)
    return gold.errors(image, facts) if facts else {}


def _held_out(prompts: list[task.Prompt], scores: list[Score], card_task: CardTask, sampler: Sampler) -> str:
    texts = [prompt.text for prompt in prompts]
    values, strict = (
        stats.bootstrap_mean(np.array(each), prompts=texts)
        for each in ([s.value for s in scores], [s.parts[card_task.strict] for s in scores])
    )
    return f"""{card_task.title}, {len(set(texts))} held-out prompts, {len(scores)} images, {sampler.steps} Euler steps,
  no guidance: **{values}** (95 % bootstrap over prompts); {card_task.strict} {strict};
  {sum(math.isnan(score.value) for score in scores)} not scored."""


def _lessons(config: Pretraining) -> str:
    return ";\n  ".join(
        f"{one.images:,} images, {one.sign_share:.0%} with a sign, of which {one.faded_signs:.0%} have faded, "
        + ("as their prompts say" if one.obedient else "often not as their prompts say, by the shares below")
        for one in config.lessons
    )


def _rows(config: Pretraining, shares: dict[str, float]) -> str:
    """Of the table of errors."""
    drawn = {name: f"{share:.0%}" for name, share in dataclasses.asdict(config.disobedience).items()}
    drawn |= {"fading": f"{config.lessons[-1].faded_signs:.0%}"}
    return "\n".join(f"| {error} | {drawn.get(error, 'none')} | {share:.0%} |" for error, share in shares.items())


def _card(name: str, seed: int, config: Pretraining, summaries: list[str], shares: dict[str, float]) -> str:
    found = "\n- ".join(summaries)
    return f"""# {name}

The base of the `pocket` profile: diffusers' `FluxTransformer2DModel` (width 160, 2 double and 4 single
blocks) on the 16x16x4 latents of a small convolutional autoencoder, for 64x64 pictures.

- Made by: `gdro-bench pretrain pocket --seed {seed}` (torch {torch.__version__}); its settings are in
  `baselines/pocket/training/pretrain.toml`.
- Data: the procedural world of `gdro_bench/models/pocket/world.py`; {config.random_share:.0%} of the signs show random
  letters and the others one of {len(words("train"))} training words. The {len(words("held-out"))} held-out words are
  never drawn as training words (random letters may spell one by chance).
- The transformer's lessons: {_lessons(config)}.
- Autoencoder: {config.autoencoder.images:,} images in batches of {config.autoencoder.batch}, {config.sign_share:.0%}
  with a sign, of which {config.faded_signs:.0%} have faded.
- Transformer: {config.transformer.images:,} images in batches of {config.transformer.batch}; EMA weights.
- {found}

Errors by kind: in the last lesson, of the pictures whose prompt allows them, and as gold reads them in the base's, of
those on which they can be seen (`letter`: a wrong one at least):

| error | drawn in the recipe | painted by the base |
| --- | ---: | ---: |
{_rows(config, shares)}

![loss](loss.png)

![held-out prompts of ocr](samples-ocr.png)

![held-out prompts of geneval](samples-geneval.png)

![groups of one prompt of ocr, with their errors](groups-ocr.png)

![groups of one prompt of geneval, with their errors](groups-geneval.png)

It writes words of {world.MIN_LETTERS} to {world.MAX_LETTERS} capital letters and knows {len(world.THINGS)} objects; a
prompt outside the world's grammar is read as far as its words are known.
"""
