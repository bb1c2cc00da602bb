"""The published models' shapes, with random or no weights: to count or time what a run needs before it has them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gdro_bench.errors import BenchError
from gdro_bench.models.lora import add_lora
from gdro_bench.models.pretrained import FluxPolicy, PretrainedPolicy, SD3Policy
from gdro_bench.policy import Cond
from gdro_bench.profile import PretrainedConfig, Profile

TRANSFORMERS: dict[str, dict[str, Any]] = {  # as in the hub's transformer/config.json, where diffusers' default differs
    "black-forest-labs/FLUX.1-dev": {"guidance_embeds": True},
    "stabilityai/stable-diffusion-3.5-medium": {
        "sample_size": 128, "in_channels": 16, "out_channels": 16, "num_layers": 24, "attention_head_dim": 64,
        "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
}  # fmt: skip
AUTOENCODER: dict[str, Any] = {  # of both models
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "scaling_factor": 0.36,
    "shift_factor": 0.11, "sample_size": 1024, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
CLIP_TOKENS = 77  # which SD3 has beside T5's


def transformer_config(config: PretrainedConfig) -> dict[str, Any]:
    """Of the pipeline's folder, or of the published model of that name.

    Raises:
        BenchError: the source is neither.
    """
    written = _written(config, "transformer")
    if written is None and config.source not in TRANSFORMERS:
        raise BenchError(f"The shapes of {config.source!r} are not known.", "Bring its folder here.")
    return written or TRANSFORMERS[config.source]


def autoencoder_config(config: PretrainedConfig) -> dict[str, Any]:
    """Of the pipeline's folder, or of the published models."""
    return _written(config, "vae") or AUTOENCODER


def _written(config: PretrainedConfig, part: str) -> dict[str, Any] | None:
    path = Path(config.source) / part / "config.json"
    if not path.is_file():
        return None
    table = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in table.items() if not name.startswith("_")}


def text_bytes(config: PretrainedConfig, flux: bool) -> int:
    """Of one encoded text, as it is kept in the cache."""
    shapes = {"joint_attention_dim": 4096, "pooled_projection_dim": 768} | transformer_config(config)  # diffusers' own
    tokens = config.text_tokens + (0 if flux else CLIP_TOKENS)
    elements = tokens * int(shapes["joint_attention_dim"]) + int(shapes["pooled_projection_dim"])
    dtype: torch.dtype = getattr(torch, config.dtype)
    return elements * dtype.itemsize


def open_shapes(
    profile: Profile, transformer: dict[str, Any], device: str, dtype: torch.dtype, autoencoder: dict[str, Any]
) -> PretrainedPolicy:
    """The profile's policy with fresh adapters and random weights (none on device `meta`); each text is the same random
    embedding."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    assert profile.pretrained is not None
    flux = profile.model == "flux"
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = (FluxTransformer2DModel if flux else SD3Transformer2DModel)(**transformer)
            torch.nn.Module.to(network, dtype)  # its buffers, too, as when it is loaded; diffusers' own `to` warns
            vae = AutoencoderKL(**autoencoder)
    finally:
        torch.set_default_dtype(torch.float32)
    add_lora(network, profile.lora, 0)
    name: Any = str(dtype).removeprefix("torch.")
    config = replace(profile.pretrained, dtype=name, text_cache="", sharded=False)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=flux)
    policy: PretrainedPolicy
    if flux:
        policy = FluxPolicy(FluxPipeline(scheduler, vae, None, None, None, None, network), config, "", device)
    else:
        parts = (network, scheduler, vae, *[None] * 6)
        policy = SD3Policy(StableDiffusion3Pipeline(*parts), config, "", device)
    tokens = config.text_tokens + (0 if flux else CLIP_TOKENS)
    texts = torch.randn(1, tokens, network.config.joint_attention_dim, device=device, dtype=dtype)
    pooled = torch.randn(1, network.config.pooled_projection_dim, device=device, dtype=dtype)
    policy.encode = lambda prompts: Cond((texts, pooled)).repeat_each(len(prompts))  # type: ignore[method-assign]
    return policy
