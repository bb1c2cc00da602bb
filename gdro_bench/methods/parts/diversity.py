"""Advantages shaped by novelty (GARDO, arXiv 2512.24138): of the good images of a group, the unusual ones count more.

    D_i = min over j != i of its group of 1 - f_i . f_j                      f: features of unit length
    A_i <- A_i * (D_i / mean of D over the group   if r_i >= mean of r   else 1)

Novelty never rescues a bad image. Group sums of A are not 0 any more. The article's features are DINOv3's. Here they
are plainer and need no other network, so they tell pictures apart by their layout of colours, not by what is in them:

    pixels    the picture's mean colours on a grid of 8x8, less mid-grey
    latents   the model's own latents before they are decoded
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gdro_bench.score import Images

GRID = 8  # cells a side that pixels are pooled to
Features = Literal["pixels", "latents"]


def pixel_features(images: Images) -> Tensor:
    """Mean colours [B, 3 * GRID^2] of uint8 images [B, H, W, 3] in -1/2..1/2; H and W may be anything from GRID up."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255 - 0.5
    return torch.nn.functional.adaptive_avg_pool2d(pixels, GRID).flatten(1)


def novelty(features: Tensor) -> Tensor:
    """D [G, k]: cosine distance of each image's features [G, k, ...] to the nearest other one of its group."""
    unit = torch.nn.functional.normalize(features.flatten(2).double(), dim=2)
    apart = (1 - unit @ unit.transpose(1, 2)).clamp(min=0)
    itself = torch.eye(apart.shape[1], dtype=torch.bool, device=apart.device)
    nearest: Tensor = apart.masked_fill(itself, float("inf")).amin(2)
    return nearest


def factors(r: Tensor, d: Tensor) -> Tensor:
    """What novelty D [G, k] multiplies advantages by, for rewards r [G, k]: 1 below the group's mean, and everywhere in
    a group of identical images, whose D are all 0 up to rounding."""
    mean = d.mean(1, keepdim=True)
    relative = torch.where(mean > SAME, d / mean, torch.ones_like(d))
    return torch.where(r >= r.nanmean(1, keepdim=True), relative.to(r.dtype), torch.ones_like(r))


SAME = 1e-9  # a mean distance below it is rounding
