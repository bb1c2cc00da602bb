"""Pictures as models give them and as everything else takes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gdro_bench.score import Images


def to_tensor(images: Images) -> Tensor:
    """Pictures [B, H, W, 3] -> pixels [B, 3, H, W] in -1..1."""
    return torch.tensor(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> Images:
    """Pixels [B, 3, H, W] in -1..1 -> pictures [B, H, W, 3]."""
    scaled = ((pixels.float() + 1) * 127.5).round().clamp(0, 255)
    images: Images = scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(images)
