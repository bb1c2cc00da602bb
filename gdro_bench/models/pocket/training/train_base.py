"""Pretraining of the pocket base: first the autoencoder, then the transformer on its latents.

Batch n is drawn from (seed, stage, n) alone and the learning rate is a function of images seen, so that a
training killed at any moment goes on from its last checkpoint to the same weights. Several processes share a batch of
the transformer's, and each trains the autoencoder whole, whose latents are normalised over a batch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gdro_bench import content
from gdro_bench.content import Count, Share
from gdro_bench.distributed import ProcessGroup
from gdro_bench.errors import BenchError, first_line
from gdro_bench.models.pocket import disobedience, network, text, world
from gdro_bench.models.pocket.disobedience import OBEDIENT, Disobedience, disobeyed

ALONE = ProcessGroup()


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the two trainings: images in all and a batch, peak rate, and the share of images over which it decays."""

    images: int
    batch: int
    learning_rate: float
    warmup_images: int
    decay_share: float
    ema: float


@dataclass(frozen=True, slots=True)
class Lesson:
    """A part of the transformer's training: so many images, a share of them with a sign, of which a share has faded;
    obedient ones are what their prompts say."""

    images: Count
    sign_share: Share
    faded_signs: Share
    obedient: bool


@dataclass(frozen=True, slots=True)
class Pretraining:
    """Settings of `baselines/pocket/training/pretrain.toml`."""

    autoencoder: Stage
    transformer: Stage
    encoder_width: int
    decoder_width: int
    latent_noise: float  # added to latents while the decoder trains, in standard deviations
    panel_weight: float  # loss weight of what shows the sign
    thing_weight: float  # loss weight of what shows an object
    sign_share: Share  # of the autoencoder's scenes
    faded_signs: Share  # of the autoencoder's signs
    random_share: float  # share of signs with random letters
    drop_share: float  # share of prompts left out, for guidance
    t_mean: float  # logit-normal t
    checkpoint_batches: int
    lessons: tuple[Lesson, ...]  # of the transformer, one after the other; the last one goes on to its end
    disobedience: Disobedience


@dataclass(frozen=True, slots=True)
class Batch:
    """`pixels` [B, 3, 64, 64] in -1..1, `weight` [B, 1, 64, 64] of each pixel in the loss, and the prompts."""

    pixels: Tensor
    weight: Tensor
    prompts: list[str]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a training reports after each batch."""

    stage: str
    images: int
    total: int
    loss: float


Report = Callable[[Progress], None]


def draw_batch(config: Pretraining, words: list[str], seed: tuple[int, ...], size: int, lesson: Lesson) -> Batch:
    """Renders a batch; the same seed gives the same batch on any machine."""
    shares = OBEDIENT if lesson.obedient else config.disobedience
    rng = np.random.default_rng(seed)
    pixels, weights, prompts = [], [], []
    for _ in range(size):
        if rng.random() < lesson.sign_share:
            word = world.random_letters(rng) if rng.random() < config.random_share else world.choose(rng, words)
            facts = world.sign_facts(rng, word)
            prompts.append(world.phrase(facts, rng))
        else:
            facts = world.thing_facts(rng)
            prompts.append(world.phrase(facts, rng))
        drawn = disobeyed(facts, shares, rng)
        picture = world.render(drawn.facts, rng, lesson.faded_signs, drawn.left_out)
        pixels.append(picture.pixels)
        weights.append(_loss_weight(config, picture))
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    return Batch(stacked / 127.5 - 1, torch.stack(weights), prompts)


def _loss_weight(config: Pretraining, picture: world.Picture) -> Tensor:
    weight = torch.ones(1, world.SIZE, world.SIZE)
    regions = [(box, config.thing_weight) for box in picture.boxes]
    for (x0, y0, x1, y1), value in [*regions, *([(picture.panel, config.panel_weight)] if picture.panel else [])]:
        weight[:, max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = value
    return weight


def rate(stage: Stage, images: int) -> float:
    """Learning rate after `images` images: linear warm-up, constant, linear decay to zero at the end."""
    decay = (stage.images - images) / (stage.decay_share * stage.images)
    return stage.learning_rate * min(1.0, images / stage.warmup_images, max(decay, 0.0))


class Ema:
    """Exponential moving average of a network's floating-point tensors, with a warm start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)
            else:
                self.shadow[name].copy_(value)


def autoencoder_loss(
    model: network.Autoencoder, batch: Batch, config: Pretraining, generator: torch.Generator
) -> Tensor:
    latents = model.encode(batch.pixels)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    error = model.decode(latents + config.latent_noise * noise) - batch.pixels
    return ((error.abs() + error.square()) * batch.weight).mean()


def transformer_loss(
    model: nn.Module,
    latents: Tensor,
    pixel_weight: Tensor,
    encoded: tuple[Tensor, Tensor],
    config: Pretraining,
    generator: torch.Generator,
    rows: slice = slice(None),
) -> Tensor:
    """Conditional flow matching on packed latents [b, 64, 16] (Lipman et al. 2023): the share of the whole batch's
    loss that these `rows` of it have.

    A token weighs as much as the heaviest of its pixels in `pixel_weight` [B, 1, 64, 64], the whole batch's.
    """
    x0 = network.pack(latents)
    t = torch.sigmoid(torch.randn(len(pixel_weight), generator=generator) + config.t_mean)[rows].to(x0.device)
    eps = torch.randn((len(pixel_weight), *x0.shape[1:]), generator=generator)[rows].to(x0.device)
    x_t = (1 - t)[:, None, None] * x0 + t[:, None, None] * eps
    error = network.velocity(model, x_t, t, *encoded) - (eps - x0)
    weight = torch.nn.functional.max_pool2d(pixel_weight, world.SIZE // network.GRID).flatten(1)  # [B, 64]
    return (error.square().mean(-1) * weight[rows]).sum() / weight.sum()


class Pretrainer:
    """Trains one stage after the other, writing `state-<stage>.pt` under `out`, from where the same recipe goes on."""

    def __init__(
        self,
        config: Pretraining,
        words: list[str],
        seed: int,
        device: str,
        out: Path,
        processes: ProcessGroup = ALONE,
    ) -> None:
        self.config, self.words, self.seed, self.device, self.out = config, words, seed, device, out
        self.processes = processes
        moving = asdict(config) | {"checkpoint_batches": None}  # all that moves a weight
        self.recipe = content.digest(seed, moving, words)
        disobedience.check(config.disobedience)
        if not config.lessons:
            raise BenchError("The recipe of the base has no lesson.", "Give it one [[lessons]] at least.", 2)
        out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = text.Tokenizer.of_the_world()
        torch.manual_seed(seed)
        self.autoencoder = network.Autoencoder(config.encoder_width, config.decoder_width).to(device)
        self.transformer = network.new_transformer(self.tokenizer).to(device)

    def run(self, report: Report) -> None:
        self._train("autoencoder", self.autoencoder, self.config.autoencoder, self._autoencoder_step, report)
        self.autoencoder.eval().requires_grad_(False)
        self._train("transformer", self.transformer, self.config.transformer, self._transformer_step, report)

    def _autoencoder_step(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Leaves the batch's gradient in the parameters; returns its loss."""
        loss = autoencoder_loss(self.autoencoder, batch, self.config, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _transformer_step(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """As the autoencoder's; a process takes its share of the batch."""
        kept = (torch.rand(len(batch.prompts), generator=generator) >= self.config.drop_share)[:, None, None]
        (rows,) = self.processes.own(self.processes.batches(len(batch.prompts), len(batch.prompts)))
        prompts = batch.prompts[rows]
        features = (self.tokenizer(prompts) * kept[rows]).to(self.device)
        letters = (self.tokenizer.letter_columns(prompts) * kept[rows]).to(self.device)
        latents = self.autoencoder.encode(batch.pixels[rows])
        encoded = (features, letters)
        loss = transformer_loss(self.transformer, latents, batch.weight, encoded, self.config, generator, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        whole = loss.detach().clone()
        self.processes.all_reduce([whole, *(p.grad for p in self.transformer.parameters() if p.grad is not None)])
        return whole

    def _train(
        self,
        name: str,
        model: nn.Module,
        stage: Stage,
        loss_of: Callable[[Batch, torch.Generator], Tensor],
        report: Report,
    ) -> None:
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        ema = Ema(model, stage.ema)
        first = self._resume(name, model, optimiser, ema)
        self.processes.barrier()  # all have read the checkpoint before one writes the next
        losses: list[float] = []
        batches = math.ceil(stage.images / stage.batch)
        model.train()
        for step in range(first, batches):
            for group in optimiser.param_groups:
                group["lr"] = rate(stage, (step + 1) * stage.batch)
            batch, generator = self._batch(name, step, stage.batch)
            optimiser.zero_grad()
            loss = loss_of(batch, generator)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            ema.update(model, step)
            losses.append(loss.item())
            report(Progress(name, (step + 1) * stage.batch, stage.images, losses[-1]))
            if (step + 1) % self.config.checkpoint_batches == 0 or step + 1 == batches:
                self._checkpoint(name, model, optimiser, ema, step + 1)
                self._log(name, (step + 1) * stage.batch, losses)
                losses.clear()
        model.load_state_dict(ema.shadow)

    def _batch(self, name: str, step: int, size: int) -> tuple[Batch, torch.Generator]:
        stage = ("autoencoder", "transformer").index(name)
        lesson = self._lesson(name, step * size)
        batch = draw_batch(self.config, self.words, (self.seed, stage, step), size, lesson)
        torch_seed = int(np.random.SeedSequence((self.seed, stage, step)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(torch_seed)
        return Batch(batch.pixels.to(self.device), batch.weight.to(self.device), batch.prompts), generator

    def _lesson(self, name: str, images: int) -> Lesson:
        """What is taught after so many images of a stage."""
        if name == "autoencoder":
            config = self.config
            return Lesson(config.autoencoder.images, config.sign_share, config.faded_signs, obedient=True)
        for lesson in self.config.lessons:
            if images < lesson.images:
                return lesson
            images -= lesson.images
        return self.config.lessons[-1]

    def _checkpoint(self, name: str, model: nn.Module, optimiser: torch.optim.Optimizer, ema: Ema, step: int) -> None:
        if not self.processes.is_main:
            return
        state = {
            "recipe": self.recipe,
            "step": step,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "ema": ema.shadow,
        }
        partial = self.out / f"state-{name}.partial"
        torch.save(state, partial)
        os.replace(partial, self.out / f"state-{name}.pt")

    def _log(self, name: str, images: int, losses: list[float]) -> None:
        if not self.processes.is_main:
            return
        line = json.dumps({"stage": name, "images": images, "loss": sum(losses) / len(losses)})
        with (self.out / "losses.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def _resume(self, name: str, model: nn.Module, optimiser: torch.optim.Optimizer, ema: Ema) -> int:
        path = self.out / f"state-{name}.pt"
        if not path.exists():
            return 0
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # of a damaged file torch raises whatever it meets
            raise BenchError(f"{path} cannot be read: {first_line(error)}.", "Delete it to begin anew.") from error
        if state.get("recipe") != self.recipe:
            raise BenchError(
                f"{path} was begun with another seed, recipe or vocabulary.", "Give another --out, or delete it."
            )
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        ema.shadow = state["ema"]
        return int(state["step"])
