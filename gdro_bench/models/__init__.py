"""Models that can be trained: each a `Policy`, opened from its profile."""

from __future__ import annotations

from pathlib import Path

from gdro_bench.errors import BenchError, unknown
from gdro_bench.models.lora import Lora, load_lora
from gdro_bench.policy import Policy

MODELS = ("pocket",)


def open_policy(model: str, lora: Lora, device: str, seed: int) -> Policy:
    """The policy of a profile's `model`, its adapters drawn from `seed`."""
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    from gdro_bench.models.pocket.policy import PocketPolicy

    return PocketPolicy.open(device, lora, seed)


def open_model(model: str, weights: Path | None, lora: Path | None, device: str) -> Policy:
    """A model to look at: the profile's `model` or the weights of a folder, with trained adapters or without.

    Raises:
        BenchError: an unknown model, or weights or adapters that cannot be loaded.
    """
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    from gdro_bench.models.pocket.policy import WEIGHTS, PocketPolicy

    policy = PocketPolicy.open(device, None, 0, weights or WEIGHTS)
    if lora is not None:
        load_lora(policy.transformer, lora)
    return policy


def pick_device(name: str) -> str:
    """`auto` is CUDA where there is one.

    Raises:
        BenchError: CUDA was asked for and there is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise BenchError("There is no CUDA device here.", "Use --device cpu, or leave the option out.", 2)
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
