"""The pocket networks: a small convolutional autoencoder, and diffusers' own FLUX transformer at pocket size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gdro_bench.models.pocket import text

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

LATENT_CHANNELS = 4
GRID = text.GRID  # image tokens a side, after 2x2 packing
TOKEN_CHANNELS = LATENT_CHANNELS * 4
LATENT_SHAPE = (GRID * GRID, TOKEN_CHANNELS)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        hidden: Tensor = self.inner(torch.nn.functional.silu(self.norm(x)))
        changed: Tensor = self.outer(torch.nn.functional.silu(hidden))
        return x + changed


class Autoencoder(nn.Module):
    """64x64 RGB in -1..1 <-> latents [B, 4, 16, 16] of zero mean and unit variance a channel.

    Batch normalisation without a scale holds the latents at unit variance while training, so they need no factor.
    """

    def __init__(self, encoder_width: int, decoder_width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, encoder_width, 3, padding=1),
            Residual(encoder_width),
            Residual(encoder_width),
            nn.Conv2d(encoder_width, LATENT_CHANNELS, 1),
            nn.BatchNorm2d(LATENT_CHANNELS, affine=False),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, decoder_width, 3, padding=1),
            Residual(decoder_width),
            Residual(decoder_width),
            Residual(decoder_width),
            nn.Conv2d(decoder_width, 128, 1),
            nn.PixelShuffle(2),
            Residual(32),
            nn.Conv2d(32, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def encode(self, pixels: Tensor) -> Tensor:  # [B, 3, 64, 64] -> [B, 4, 16, 16]
        latents: Tensor = self.encoder(pixels)
        return latents

    def decode(self, latents: Tensor) -> Tensor:  # [B, 4, 16, 16] -> [B, 3, 64, 64]
        pixels: Tensor = self.decoder(latents)
        return pixels


def pack(latents: Tensor) -> Tensor:
    """[B, 4, 16, 16] -> tokens [B, 64, 16], 2x2 latents a token, as FLUX packs them."""
    tokens = torch.nn.functional.pixel_unshuffle(latents, 2)
    return tokens.flatten(2).transpose(1, 2)


def unpack(tokens: Tensor) -> Tensor:
    """Tokens [B, 64, 16] -> latents [B, 4, 16, 16]."""
    grid = tokens.transpose(1, 2).reshape(len(tokens), TOKEN_CHANNELS, GRID, GRID)
    return torch.nn.functional.pixel_shuffle(grid, 2)


def image_positions() -> Tensor:
    """Rotary positions [64, 3] (kind, row, column) of the image tokens."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).flatten(0, 1).float()


def new_transformer(tokenizer: text.Tokenizer) -> FluxTransformer2DModel:
    """A pocket FLUX transformer with fresh weights: 2 double and 4 single blocks, width 160, 3.6 M parameters."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=TOKEN_CHANNELS + len(tokenizer.letters),
        out_channels=TOKEN_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=tokenizer.features,
        pooled_projection_dim=tokenizer.features,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def velocity(transformer: nn.Module, x: Tensor, t: Tensor, features: Tensor, letters: Tensor) -> Tensor:
    """The velocity v = eps - x0 that the transformer predicts.

    Args:
        x: noisy tokens [B, 64, 16]. t: [B], 1 is noise. features: [B, SLOTS, F] and
            letters: [B, GRID, L] from the tokenizer; all rows of image tokens get the same letters.
    """
    hints = letters[:, None].expand(-1, GRID, -1, -1).flatten(1, 2)  # [B, 64, L]
    filled = features.sum(dim=(1, 2)).clamp_min(1.0) / 2  # a filled slot holds two ones
    predicted: Tensor = transformer(
        hidden_states=torch.cat((x, hints), dim=2),
        encoder_hidden_states=features,
        pooled_projections=features.sum(dim=1) / filled[:, None],
        timestep=t,
        img_ids=image_positions().to(x.device),
        txt_ids=text.text_positions().to(x.device),
        return_dict=False,
    )[0]
    return predicted
