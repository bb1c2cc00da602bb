"""The pocket model as a `Policy`: weights from the package, prompts as plain strings, LoRA on the transformer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gdro_bench import sampling
from gdro_bench.distributed import ProcessGroup
from gdro_bench.errors import BenchError
from gdro_bench.models.adapted import Adapted
from gdro_bench.models.lora import (
    add_lora,
    check_base,
    load_lora,
    note_base,
    save_lora,
)
from gdro_bench.models.pixels import to_images
from gdro_bench.models.pocket import network, text
from gdro_bench.policy import Cond
from gdro_bench.profile import LoraConfig, Profile
from gdro_bench.score import Images
from gdro_bench.task import Prompt

WEIGHTS = Path(__file__).parent / "weights"
TEXTS_HELD = 4096  # encoded prompts in memory, 13 KB each


class PocketPolicy(Adapted):
    """See `gdro_bench.policy.Policy`."""

    latent_shape: tuple[int, ...] = network.LATENT_SHAPE

    def __init__(
        self, name: str, transformer: Any, autoencoder: network.Autoencoder, tokenizer: text.Tokenizer, device: str
    ) -> None:
        self.name = name
        self.device = device
        self.tokenizer = tokenizer
        self.transformer = transformer.to(device).eval()
        self.autoencoder = autoencoder.to(device).eval().requires_grad_(False)
        self._encoded = lru_cache(TEXTS_HELD)(partial(_encode_one, tokenizer))  # a method would hold the policy

    @classmethod
    def open(cls, device: str, lora: LoraConfig | None, seed: int, folder: Path = WEIGHTS) -> PocketPolicy:
        """Loads the model of `folder`, with fresh adapters if `lora` is given.

        Raises:
            BenchError: the weights are missing or damaged.
        """
        from diffusers import FluxTransformer2DModel
        from diffusers.utils import logging

        if not folder.is_dir():
            raise BenchError(f"There is no folder {folder}.", "Give one with a pocket model's weights.")
        logging.set_verbosity_error()  # its advice on casting does not concern a float32 model
        try:
            widths = json.loads((folder / "autoencoder.json").read_text())
            autoencoder = network.Autoencoder(**widths)
            autoencoder.load_state_dict(load_file(folder / "autoencoder.safetensors"))
            transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer")
            tokenizer = text.Tokenizer.load(folder / "tokenizer.json")
            transformer.to(device)  # a weight that the file lacks is found here
        except Exception as error:
            raise BenchError(
                f"The pocket model in {folder} cannot be loaded: {error}.",
                "Install gdro-bench again, or make the model anew with `gdro-bench pretrain pocket`.",
            ) from error
        if lora is not None:
            add_lora(transformer, lora, seed)
        return cls(f"pocket-{weights_digest(folder)}", transformer, autoencoder, tokenizer, device)

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        encoded = zip(*(self._encoded(p.text) for p in prompts), strict=True)
        return Cond(tuple(torch.stack(part).to(self.device) for part in encoded))

    def encode_ahead(self, prompts: Sequence[Prompt], processes: ProcessGroup) -> None:
        """Nothing: it has no text encoder."""

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return network.velocity(self.transformer, x.to(self.device), t.to(self.device), *cond.tensors)

    def timesteps(self, steps: int, shift: float) -> Tensor:
        return sampling.timesteps(steps, shift)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Images:
        return to_images(self.autoencoder.decode(network.unpack(x.to(self.device))))

    def save(self, folder: Path) -> None:
        save_lora(self.transformer, folder)
        note_base(folder, self.name)

    def load(self, folder: Path) -> None:
        check_base(folder, self.name)
        load_lora(self.transformer, folder)

    def unsupported(self, prompt: Prompt) -> str | None:
        """What of the prompt this model was never taught to show, in words."""
        return self.tokenizer.unknown(prompt.text)


def open_pocket(
    profile: Profile, device: str, lora: LoraConfig | None, seed: int, weights: Path | None = None
) -> PocketPolicy:
    return PocketPolicy.open(device, lora, seed, weights or WEIGHTS)


def weights_digest(folder: Path) -> str:
    """Names the weights by content: the autoencoder's, then the transformer's."""
    digest = hashlib.sha256()
    for path in (folder / "autoencoder.safetensors", *sorted((folder / "transformer").glob("*.safetensors"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _encode_one(tokenizer: text.Tokenizer, prompt: str) -> tuple[Tensor, Tensor]:
    (tokens,), (columns,) = tokenizer([prompt]), tokenizer.letter_columns([prompt])
    return tokens, columns
