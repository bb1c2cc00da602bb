"""Models that can be trained: each a `Policy`, opened from its profile.

Another package adds its own through the entry-point group `gdro_bench.models`.
"""

from __future__ import annotations

import gc
from pathlib import Path

from gdro_bench import registry
from gdro_bench.errors import BenchError
from gdro_bench.policy import Policy
from gdro_bench.profile import Profile


def open_policy(profile: Profile, device: str, seed: int) -> Policy:
    """The policy of a profile, with fresh adapters drawn from `seed`. What an earlier run of this process left goes
    first: a model that is held in a circle would take the device's memory until Python looks for it."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    opened: Policy = registry.lookup("model", profile.model)(profile, device, profile.lora, seed)
    return opened


def open_model(profile: Profile, weights: Path | None, lora: Path | None, device: str) -> Policy:
    """A model to look at: the profile's or the weights of a folder, with trained adapters or without.

    Raises:
        BenchError: an unknown model, or weights or adapters that cannot be loaded.
    """
    opened: Policy = registry.lookup("model", profile.model)(profile, device, None, 0, weights)
    if lora is not None:
        opened.load(lora)
    return opened


def own_device(device: str, slot: int) -> str:
    """Of so many processes side by side, the device of the one with this number: CUDA devices take turns."""
    import torch

    if device != "cuda":
        return device
    index = slot % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def pick_device(name: str) -> str:
    """`auto` is CUDA where there is one.

    Raises:
        BenchError: CUDA was asked for and there is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise BenchError("There is no CUDA device here.", "Use --device cpu, or leave the option out.", 2)
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
