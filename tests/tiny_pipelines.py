"""Whole FLUX and SD3 pipelines of the real classes with tiny random weights, saved to disk."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SIDE = 32  # px of a picture
WORDS = ["a", "sign", "that", "reads", '"', "red", "blue", "wall", "at", "the", "top", "of", "TREE", "OWL"]


def _clip_tokenizer(length: int = 16) -> Any:
    from transformers import CLIPTokenizer

    letters = sorted({c for word in WORDS for c in word.lower()})
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=[], model_max_length=length)


def _t5_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -1.0) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _clip(projected: bool, width: int = 16, length: int = 16) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=64, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=length, projection_dim=width, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5(width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=SIDE,
        scaling_factor=0.36, shift_factor=0.11, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def save_flux(folder: Path) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15),
        vae=_autoencoder(), text_encoder=_clip(projected=False), tokenizer=_clip_tokenizer(), text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(), transformer=transformer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_sd3(folder: Path) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
        pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_autoencoder(),
        text_encoder=_clip(projected=True), tokenizer=_clip_tokenizer(), text_encoder_2=_clip(projected=True),
        tokenizer_2=_clip_tokenizer(), text_encoder_3=_t5(), tokenizer_3=_t5_tokenizer(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_true_size_sd3(folder: Path) -> Path:
    """SD3.5-medium's own transformer and autoencoder with random weights, 5 GB in bfloat16; its text encoders have the
    true widths and lengths, and one or two thin layers."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    from gdro_bench.models.shapes import AUTOENCODER, CLIP_TOKENS, TRANSFORMERS

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        StableDiffusion3Pipeline(
            transformer=torch.nn.Module.to(  # the table of positions, too
                SD3Transformer2DModel(**TRANSFORMERS["stabilityai/stable-diffusion-3.5-medium"]), torch.bfloat16
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=AutoencoderKL(**AUTOENCODER),
            text_encoder=_clip(True, 768, CLIP_TOKENS), tokenizer=_clip_tokenizer(CLIP_TOKENS),
            text_encoder_2=_clip(True, 1280, CLIP_TOKENS), tokenizer_2=_clip_tokenizer(CLIP_TOKENS),
            text_encoder_3=_t5(4096), tokenizer_3=_t5_tokenizer(),
        ).save_pretrained(folder)  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
    return folder
