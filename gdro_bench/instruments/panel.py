"""Statistics of pictures that no method is trained on: they move when a model flattens, blurs or repeats its pictures.

They judge nothing. A reward that rises while they stay is less likely to be hacked than one that bends them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gdro_bench.score import Images

LEVELS = 4  # a colour channel, in the entropy's histogram
THUMBNAIL = 8  # px a side, for distances between pictures
DARK = 0.15  # luminance below which a pixel is dark
JPEG_QUALITY = 95
AT_ONCE = 2**25  # bytes of images whose statistics are computed together
KERNEL_WIDTH = 0.1  # of the Vendi score's Gaussian kernel, in root-mean-square distance

Values = NDArray[np.float64]  # [B], one an image


def statistics(images: Images) -> list[dict[str, float]]:
    """For each image [H, W, 3] of a set: its statistics, by the names in `STATISTICS`."""
    return with_those_of_the_set(alone(images), images)


def alone(images: Images) -> list[dict[str, float]]:
    """For each image what it is by itself: processes may share this. Some images at a time: as numbers of 8 bytes,
    which a statistic needs, a thousand large ones would take gigabytes."""
    most = max(1, AT_ONCE // images[0].nbytes) if len(images) else 1
    parts = [images[start : start + most] for start in range(0, len(images), most)]
    columns = {name: np.concatenate([of(part) for part in parts]) for name, of in ALONE.items() if parts}
    return [{name: float(columns[name][i]) for name in ALONE} for i in range(len(images))]


def with_those_of_the_set(each: Sequence[dict[str, float]], images: Images) -> list[dict[str, float]]:
    """And what it is among all images of the set."""
    columns = {name: of(images) for name, of in OF_A_SET.items()}
    return [one | {name: float(columns[name][i]) for name in OF_A_SET} for i, one in enumerate(each)]


def luminance(images: Images) -> NDArray[np.float64]:
    """In shares of full scale: [B, H, W]."""
    grey: NDArray[np.float64] = images.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    return grey


def dark_share(images: Images) -> Values:
    """Share of pixels that are nearly black."""
    shares: Values = (luminance(images) < DARK).mean(axis=(1, 2))
    return shares


def edge_density(images: Images) -> Values:
    """Mean length of the luminance's gradient, in shares of full scale a px."""
    means: Values = gradient_lengths(images).mean(axis=(1, 2))
    return means


def gradient_lengths(images: Images) -> NDArray[np.float64]:
    """Of the luminance's gradient at each pixel, in shares of full scale a px: [B, H - 1, W - 1]."""
    grey = luminance(images)
    down, across = np.diff(grey, axis=1)[:, :, :-1], np.diff(grey, axis=2)[:, :-1]
    lengths: NDArray[np.float64] = np.hypot(down, across)
    return lengths


def saturation(images: Images) -> Values:
    """Mean saturation, (max - min) / max of a pixel's channels, as in HSV."""
    most, least = images.max(axis=3).astype(np.float64), images.min(axis=3)
    shares: Values = ((most - least) / np.maximum(most, 1)).mean(axis=(1, 2))
    return shares


def colour_entropy(images: Images) -> Values:
    """Entropy in bits of each image's histogram of 4x4x4 colours: 0 (one colour) to 6."""
    levels = (images // (256 // LEVELS)).astype(np.int64)
    colours = (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    shares = np.stack([np.bincount(c.ravel(), minlength=LEVELS**3) for c in colours]) / colours[0].size
    bits: Values = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1)
    return bits


def jpeg_bytes(images: Images) -> Values:
    """Length of each image as a JPEG file: what detail it has."""
    lengths = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
        lengths.append(float(buffer.tell()))
    return np.array(lengths)


def diversity(images: Images) -> Values:
    """How far each image lies from the others of the set: mean root-mean-square distance of their 8x8 px thumbnails,
    in shares of full scale; NaN for an image without others."""
    if len(images) < 2:
        return np.full(len(images), np.nan)
    mean: Values = distances(images).sum(axis=1) / (len(images) - 1)
    return mean


def vendi(images: Images) -> float:
    """The Vendi score (arXiv 2210.02410): how many different pictures there are among these, 1 to B.

    exp of the entropy of the eigenvalues of K / B, for a Gaussian kernel K of their thumbnails' distances.
    """
    kernel = np.exp(-np.square(distances(images) / KERNEL_WIDTH) / 2)
    shares = np.clip(np.linalg.eigvalsh(kernel / len(images)), 1e-12, None)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def distances(images: Images) -> NDArray[np.float64]:
    """Root-mean-square distances of 8x8 px thumbnails, in shares of full scale: [B, B]."""
    size = (THUMBNAIL, THUMBNAIL)
    small = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BOX)).ravel() for i in images])
    small = small.astype(np.float64) / 255
    squares = (small**2).mean(axis=1)
    apart = np.sqrt(np.clip(squares[:, None] + squares[None] - 2 * small @ small.T / small.shape[1], 0, None))
    np.fill_diagonal(apart, 0.0)
    found: NDArray[np.float64] = apart
    return found


ALONE = {
    "dark_share": dark_share,
    "edge_density": edge_density,
    "saturation": saturation,
    "colour_entropy": colour_entropy,
    "jpeg_bytes": jpeg_bytes,
}
OF_A_SET = {"diversity": diversity}
STATISTICS = ALONE | OF_A_SET
