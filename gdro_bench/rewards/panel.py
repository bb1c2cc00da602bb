"""Statistics of pictures that no method is trained on: they move when a model flattens, blurs or repeats its pictures.

They judge nothing. A reward that rises while they stay is less likely to be hacked than one that bends them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gdro_bench.score import Images

NAMES = ("edge_density", "colour_entropy", "diversity")
LEVELS = 4  # a colour channel, in the entropy's histogram
THUMBNAIL = 8  # px a side, for diversity


def statistics(images: Images) -> list[dict[str, float]]:
    """For each image [H, W, 3] of a set: its statistics, by `NAMES`."""
    columns = (edge_density(images), colour_entropy(images), diversity(images))
    return [dict(zip(NAMES, (float(v) for v in row), strict=True)) for row in zip(*columns, strict=True)]


def edge_density(images: Images) -> NDArray[np.float64]:
    """Mean length of the luminance's gradient, in shares of full scale a px: [B]."""
    luminance = images.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    down, across = np.diff(luminance, axis=1)[:, :, :-1], np.diff(luminance, axis=2)[:, :-1]
    lengths: NDArray[np.float64] = np.hypot(down, across).mean(axis=(1, 2))
    return lengths


def colour_entropy(images: Images) -> NDArray[np.float64]:
    """Entropy in bits of each image's histogram of 4x4x4 colours: [B], 0 (one colour) to 6."""
    levels = (images // (256 // LEVELS)).astype(np.int64)
    colours = (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    shares = np.stack([np.bincount(c.ravel(), minlength=LEVELS**3) for c in colours]) / colours[0].size
    bits: NDArray[np.float64] = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1)
    return bits


def diversity(images: Images) -> NDArray[np.float64]:
    """How far each image lies from the others of the set: mean root-mean-square distance of their 8x8 px thumbnails,
    in shares of full scale, [B]; NaN for an image without others."""
    if len(images) < 2:
        return np.full(len(images), np.nan)
    size = (THUMBNAIL, THUMBNAIL)
    small = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BOX)).ravel() for i in images])
    small = small.astype(np.float64) / 255
    squares = (small**2).mean(axis=1)
    apart = np.sqrt(np.clip(squares[:, None] + squares[None] - 2 * small @ small.T / small.shape[1], 0, None))
    np.fill_diagonal(apart, 0.0)
    mean: NDArray[np.float64] = apart.sum(axis=1) / (len(images) - 1)
    return mean
