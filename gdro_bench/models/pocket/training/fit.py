"""How the pocket instruments (detector, judge) are fitted: one batch after another, each drawn from (seed, n) alone, so
that a training that was killed can begin anew to the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from gdro_bench.models.pixels import to_images, to_tensor
from gdro_bench.models.pocket.network import Autoencoder
from gdro_bench.score import Images

LATENT_NOISE = 0.1  # what a pocket model leaves in its latents, about


class Schedule(Protocol):
    """Settings of an instrument's training."""

    @property
    def images(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...


def fit(
    network: nn.Module,
    schedule: Schedule,
    seed: int,
    loss_of: Callable[[Generator], Tensor],
    report: Callable[[int, float], None],
) -> None:
    """AdamW on one cycle of the learning rate. `loss_of` draws a batch; `report` hears of images seen and loss."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=1e-4)
    batches = schedule.images // schedule.batch
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, schedule.learning_rate, total_steps=batches, pct_start=0.1)
    for n in range(batches):
        loss = loss_of(np.random.default_rng((seed, n)))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        cycle.step()
        report((n + 1) * schedule.batch, loss.item())
    network.eval()


@torch.no_grad()
def through(autoencoder: Autoencoder, images: Images) -> Images:
    """The pictures [B, 64, 64, 3] as the autoencoder gives them back."""
    return to_images(autoencoder.decode(autoencoder.encode(to_tensor(images))))


@torch.no_grad()
def some_through(autoencoder: Autoencoder, pixels: Tensor, share: float, rng: Generator) -> Tensor:
    """Pixels [B, 3, 64, 64] of which a share is as the autoencoder gives it back from slightly noisy latents."""
    again = torch.from_numpy(rng.random(len(pixels)) < share)
    if again.any():
        latents = autoencoder.encode(pixels[again])
        noise = torch.from_numpy(rng.standard_normal(latents.shape)).float()
        pixels[again] = autoencoder.decode(latents + LATENT_NOISE * noise).clamp(-1, 1)
    return pixels
