"""How many bytes a run leaves on disk, and how many it needs there on the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gdro_bench.profile import Profile
from gdro_bench.task import Prompt

if TYPE_CHECKING:
    from gdro_bench.methods import CostModel

FLOAT = 4  # bytes
PIXEL = 1.5  # bytes, of a photograph's PNG
COPIES = 4  # of the adapters in a checkpoint: themselves, their average and AdamW's two moments


def by_run(
    profile: Profile, costs: CostModel, collected: int, held_out: int, latent: float, adapters: float, picture: float
) -> float:
    """The latents of so many images that are collected and kept, checkpoints (twice while one is written, with an
    epoch's chains if there are any), kept pictures of the held-out prompts, and kept adapters.

    Args:
        latent, adapters, picture: bytes of one.
    """
    checkpoint = (COPIES + costs.copies) * adapters + costs.chains(profile.sampler.steps) * latent
    points = len(profile.budget.marks) + 1
    pictures = points * min(profile.kept_images, held_out)
    kept = (points if profile.keep_adapters else 0) + 1  # with those of the end
    return collected * latent + 2 * checkpoint + pictures * picture + kept * adapters


def by_texts(profile: Profile, prompts: Iterable[Prompt]) -> float:
    """The cache of encoded texts."""
    config = profile.pretrained
    if config is None or not config.text_cache:
        return 0.0
    from gdro_bench.models import shapes  # here, because it needs torch

    return len({prompt.text for prompt in prompts}) * shapes.text_bytes(config, profile.model == "flux")
