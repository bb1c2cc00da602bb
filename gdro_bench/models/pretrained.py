"""FLUX.1-dev and Stable Diffusion 3.5 as policies, through diffusers, from a hub id or a folder.

Weights are held in `dtype`, latents and what a velocity gives in float32. Texts are encoded once and kept on disk; the
text encoders are on the device only while they work. Adapters are written as plain diffusers reads them
(`pipe.load_lora_weights`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gdro_bench import content, sampling
from gdro_bench.distributed import ProcessGroup
from gdro_bench.errors import BenchError, first_line
from gdro_bench.files import write_atomically
from gdro_bench.instruments import hub
from gdro_bench.models.adapted import Adapted
from gdro_bench.models.lora import (
    ADAPTER,
    add_lora,
    check_base,
    load_lora,
    lora_parameters,
    note_base,
    settle,
)
from gdro_bench.models.pixels import to_images
from gdro_bench.policy import Cond
from gdro_bench.profile import LoraConfig, PretrainedConfig, Profile
from gdro_bench.score import Images
from gdro_bench.task import Prompt

SIDE_STEP = 16  # px: a patch of 2 x 2 latents, each of 8 x 8
TEXT_BATCH = 16  # texts encoded at a time
TEXTS_HELD = 256  # in memory; all lie on disk
PREFIX = "transformer"  # of adapters' names, as diffusers' pipelines have them


class PretrainedPolicy(Adapted):
    """See `gdro_bench.policy.Policy`. A family adds how its transformer is called and how its latents lie."""

    def __init__(self, pipeline: Any, config: PretrainedConfig, fingerprint: str, device: str) -> None:
        """fingerprint: of the transformer's weights; it stands in the names of the model and of adapters' base."""
        self.pipeline, self.config, self.device = pipeline, config, device
        settings = (config.dtype, config.distilled_guidance, config.text_tokens, config.float8)
        self.base = f"{Path(config.source).name} {fingerprint}".strip()
        self.encoded_by = [content.fingerprint(encoder) for _, encoder in self._encoders()]
        self.name = f"{self.base} {config.side} px {content.digest(*settings)[:8]}"  # its pools', too
        if config.compiled:  # before the blocks are sharded, as FSDP wants it
            compile_blocks(pipeline.transformer)
        if config.sharded and distributed.is_initialized():
            shard(pipeline.transformer, device)
        self.transformer = pipeline.transformer.to(device).eval()
        self.vae = pipeline.vae.to(device).eval().requires_grad_(False)
        self.vae.enable_slicing()
        self.vae.enable_tiling()
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self._read = lru_cache(TEXTS_HELD)(_read_text)  # of a method it would hold the policy, and that the cache

    @property
    def latent_side(self) -> int:
        """Of the autoencoder's latents."""
        return self.config.side // int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    # -- text

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        self._encode_new([p.text for p in prompts])
        pairs = zip(*(self._read(self._cached(p.text)) for p in prompts), strict=True)
        return Cond(tuple(torch.stack(part).to(self.device, self.dtype) for part in pairs))

    def encode_ahead(self, prompts: Sequence[Prompt], processes: ProcessGroup) -> None:
        """Once for a whole run: T5 is larger than many a transformer, and would travel for every new prompt.

        Raises:
            BenchError: a process does not see what others encoded.
        """
        texts = list(dict.fromkeys(p.text for p in prompts))
        self._encode_new(processes.own(texts))
        processes.barrier()
        seen = processes.gather_objects([all(self._cached(text).exists() for text in texts)], processes.size)
        blind = [str(rank) for rank, sees in enumerate(seen) if not sees]
        if blind:
            raise BenchError(
                f"Processes {', '.join(blind)} do not see what others encoded under {self.config.text_cache}.",
                "Set profile.pretrained.text_cache to a folder that all machines share.",
            )
        for name, _ in self._encoders():
            setattr(self.pipeline, name, None)

    def _encoders(self) -> list[tuple[str, Any]]:
        parts = self.pipeline.components.items()
        return [(name, part) for name, part in parts if name.startswith("text_encoder") and part is not None]

    def _encode_new(self, texts: list[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if not self._cached(text).exists()]
        if not new:
            return
        encoders = [encoder for _, encoder in self._encoders()]
        for encoder in encoders:
            encoder.to(self.device)
        for start in range(0, len(new), TEXT_BATCH):
            some = new[start : start + TEXT_BATCH]
            with torch.no_grad():
                embeds, pooled = (part.to("cpu", self.dtype) for part in self._encode_texts(some))
            for i, text in enumerate(some):
                written = save({"embeds": embeds[i].clone(), "pooled": pooled[i].clone()})
                write_atomically(self._cached(text), written)
        for encoder in encoders:
            encoder.to("cpu")

    def _cached(self, text: str) -> Path:
        key = content.digest(self.config.source, self.encoded_by, self.config.dtype, self.config.text_tokens, text)
        return Path(self.config.text_cache) / f"{key}.safetensors"

    def _encode_texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings [B, L, E] and pooled [B, P]."""
        raise NotImplementedError

    # -- velocities

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self._call(x.to(self.device, self.dtype), t.to(self.device), cond).float()

    def _call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        raise NotImplementedError

    def timesteps(self, steps: int, shift: float) -> Tensor:
        """The model's own schedule if shift is 0."""
        return sampling.timesteps(steps, shift) if shift else sampling.with_exact_ends(self._own_timesteps(steps))

    def _own_timesteps(self, steps: int) -> Tensor:
        raise NotImplementedError

    # -- pictures and adapters

    @torch.no_grad()
    def decode(self, x: Tensor) -> Images:
        latents = self._unpacked(x.to(self.device, self.dtype)) / self.vae.config.scaling_factor
        return to_images(self.vae.decode(latents + self.vae.config.shift_factor, return_dict=False)[0])

    def _unpacked(self, x: Tensor) -> Tensor:
        """Latents as the autoencoder takes them."""
        return x

    def save(self, folder: Path) -> None:
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(self.transformer, adapter_name=ADAPTER)
        settings = self.transformer.peft_config[ADAPTER].to_dict()
        type(self.pipeline).save_lora_weights(folder, weights, transformer_lora_adapter_metadata=settings)
        settle(folder)
        note_base(folder, self.base)

    def load(self, folder: Path) -> None:
        check_base(folder, self.base)
        load_lora(self.transformer, folder, PREFIX)


def blocks(transformer: Any) -> list[Any]:
    """The transformer's blocks, in order: nearly all of its weights."""
    kinds = set(transformer._no_split_modules)  # FSDP gives a sharded block a class derived from its own
    return [module for module in transformer.modules() if kinds & {cls.__name__ for cls in type(module).__mro__}]


def compile_blocks(transformer: Any) -> None:
    """A graph for each way in which a block is called: with gradient and adapters or without, for each batch size."""
    from torch._dynamo import config as dynamo

    dynamo.recompile_limit = 64  # past torch's 8 it would go on uncompiled
    for block in blocks(transformer):
        block.compile()


def shard(transformer: Any, device: str) -> None:
    """Spreads the frozen weights of the blocks over all processes (FSDP2); a block is gathered where it is called, so
    all processes must call it equally often. Adapters stay whole: their gradients are added up."""
    mesh = init_device_mesh(torch.device(device).type, (distributed.get_world_size(),))
    for part in (*blocks(transformer), transformer):  # the whole is the root: it fetches a block while another works
        # asked for, because a root would keep its weights after a forward without gradient
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=set(lora_parameters(part)))


def to_float8(transformer: Any) -> None:
    """Holds the blocks' matrices in float8, with a scale for each row; products are computed in the model's dtype.

    Raises:
        BenchError: torchao is not installed.
    """
    try:
        from torchao.quantization import Float8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise BenchError("torchao is not installed.", "Run `pip install 'gdro-bench[float8]'`.") from error
    for block in blocks(transformer):
        quantize_(block, Float8WeightOnlyConfig())
    warnings.filterwarnings("ignore", message="TorchaoLoraLinear")  # on merging, which is never done


class FluxPolicy(PretrainedPolicy):
    """FLUX.1: tokens of 2x2 latents, [N, C]; guidance is an input where it was distilled in."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return ((self.latent_side // 2) ** 2, self.transformer.config.in_channels)

    def _encode_texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        embeds, pooled, _ = self.pipeline.encode_prompt(
            texts, None, device=self.device, max_sequence_length=self.config.text_tokens
        )
        return embeds, pooled

    def _call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        embeds, pooled = cond.tensors
        side = self.latent_side // 2
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).flatten(0, 1)
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((len(x),), self.config.distilled_guidance, device=x.device)
        v: Tensor = self.transformer(
            hidden_states=x,
            timestep=t.to(self.dtype),
            guidance=guidance,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device, dtype=self.dtype),
            img_ids=places.to(x.device, self.dtype),
            return_dict=False,
        )[0]
        return v

    def _own_timesteps(self, steps: int) -> Tensor:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        scheduler = self.pipeline.scheduler
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        bent = calculate_shift(self.latent_shape[0], *(scheduler.config[name] for name in names))
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=bent)
        times: Tensor = scheduler.sigmas.float().cpu()
        return times

    def _unpacked(self, x: Tensor) -> Tensor:
        side = self.latent_side // 2
        grid = x.transpose(1, 2).reshape(len(x), -1, side, side)
        return torch.nn.functional.pixel_shuffle(grid, 2)


class SD3Policy(PretrainedPolicy):
    """Stable Diffusion 3 and 3.5: latents [C, H, W]."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.transformer.config.in_channels, self.latent_side, self.latent_side)

    def _encode_texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            texts, None, None, self.device, do_classifier_free_guidance=False,
            max_sequence_length=self.config.text_tokens,
        )  # fmt: skip
        return embeds, pooled

    def _call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        embeds, pooled = cond.tensors
        v: Tensor = self.transformer(
            hidden_states=x,
            timestep=1000 * t,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return v

    def _own_timesteps(self, steps: int) -> Tensor:
        self.pipeline.scheduler.set_timesteps(steps)
        times: Tensor = self.pipeline.scheduler.sigmas.float().cpu()
        return times


def open_flux(
    profile: Profile, device: str, lora: LoraConfig | None, seed: int, weights: Path | None = None
) -> FluxPolicy:
    from diffusers import FluxPipeline

    return FluxPolicy(*_opened(FluxPipeline, profile, lora, seed, weights), device=device)


def open_sd3(
    profile: Profile, device: str, lora: LoraConfig | None, seed: int, weights: Path | None = None
) -> SD3Policy:
    from diffusers import StableDiffusion3Pipeline

    return SD3Policy(*_opened(StableDiffusion3Pipeline, profile, lora, seed, weights), device=device)


def _text_encoders(cls: Any, source: str, dtype: torch.dtype) -> dict[str, Any]:
    """By their names in the pipeline, which itself would not tell that transformers drew a missing weight at random.

    Raises:
        ValueError: one lacks a weight."""
    import transformers

    encoders = {}
    for name, part in cls.load_config(source).items():
        if not name.startswith("text_encoder") or part[0] != "transformers":  # a pipeline without one has null there
            continue
        encoders[name], info = getattr(transformers, part[1]).from_pretrained(
            source, subfolder=name, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        if missing := hub.drawn_at_random(encoders[name], info):
            raise ValueError(f"its {name} lacks {missing[0]}")
    return encoders


def _check_whole(pipeline: Any) -> None:
    """Raises:
    ValueError: a part lacks a weight, which diffusers leaves without values."""
    for part, module in pipeline.components.items():
        for name, weight in module.named_parameters() if isinstance(module, torch.nn.Module) else ():
            if weight.is_meta:
                raise ValueError(f"its {part} lacks {name}")


def _opened(
    cls: Any, profile: Profile, lora: LoraConfig | None, seed: int, weights: Path | None
) -> tuple[Any, PretrainedConfig, str]:
    """The pipeline, with fresh adapters if `lora` is given; its settings, with the source that it came from; and the
    fingerprint of the transformer's weights.

    Raises:
        BenchError: the profile says nothing of the model or what cannot be, or its weights cannot be had.
    """
    config = profile.pretrained
    if config is None:
        raise BenchError(f"The model {profile.model!r} needs a table [pretrained].", "Add it to profile.toml.", 2)
    if config.float8 and config.sharded:
        raise BenchError("Weights in float8 cannot be sharded.", "Set one of the two in [pretrained]; it is enough.", 2)
    if config.side % SIDE_STEP:
        raise BenchError(
            f"profile.pretrained.side is {config.side}.", f"Give a multiple of {SIDE_STEP}, such as 512.", 2
        )
    source = str(weights or config.source)
    try:
        dtype = getattr(torch, config.dtype)
        encoders = _text_encoders(cls, source, dtype)
        pipeline = cls.from_pretrained(source, dtype=dtype, use_safetensors=True, **encoders)
        _check_whole(pipeline)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:  # damaged, or of other shapes
        raise BenchError(
            f"The model {source!r} cannot be loaded: {first_line(error)}.",
            "Accept its licence on the hub and log in (`hf auth login`), or set profile.pretrained.source to a folder.",
        ) from error
    weights_digest = content.fingerprint(pipeline.transformer)
    if config.float8:
        to_float8(pipeline.transformer)
    if lora is not None:
        add_lora(pipeline.transformer, lora, seed)
    return pipeline, replace(config, source=source), weights_digest


def _read_text(path: Path) -> tuple[Tensor, Tensor]:
    saved = load_file(path)
    return saved["embeds"], saved["pooled"]
