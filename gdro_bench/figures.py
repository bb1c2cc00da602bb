"""Records and images -> figures. Knows nothing of torch."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def sample_sheet(
    path: Path, columns: dict[str, NDArray[np.uint8]], captions: dict[str, list[str]], prompts: list[str]
) -> None:
    """Rows of a prompt and one image a column, each captioned with what was read; written as PNG and PDF.

    Args:
        path: without ending. columns: title -> images [N, H, W, 3]. captions: title -> N captions. prompts: N.
    """
    width = len(columns) + 1
    beside = max(1, 6 // width)  # prompts beside each other
    rows = -(-len(prompts) // beside)
    figure, axes = plt.subplots(rows, beside * width, figsize=(2.0 * beside * width, 2.15 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, prompt in enumerate(prompts):
        row, first = i // beside, (i % beside) * width
        wrapped = "\n".join(textwrap.wrap(prompt.replace("$", r"\$"), 24))
        axes[row, first].text(0.98, 0.5, wrapped, ha="right", va="center", fontsize=8)
        for j, (title, images) in enumerate(columns.items(), first + 1):
            axes[row, j].imshow(images[i], interpolation="nearest")
            caption = captions[title][i].replace("$", r"\$") or "(nothing read)"
            axes[row, j].set_title(f"{title}\n{caption}", fontsize=8)
    save(figure, path)


def loss_curve(path: Path, losses: pd.DataFrame) -> None:
    """Training loss against images seen, a panel a stage; `losses` has columns stage, images, loss."""
    stages = list(dict.fromkeys(losses["stage"]))
    figure, axes = plt.subplots(1, len(stages), figsize=(4.2 * len(stages), 2.8), squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        of_stage = losses[losses["stage"] == stage]
        axis.plot(of_stage["images"] / 1000, of_stage["loss"], color="#0072B2")
        axis.set(title=stage, xlabel="images seen (thousands)", ylabel="training loss", ylim=(0, None))
        axis.grid(alpha=0.3)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """PNG and PDF without a date, so that the same data give the same file."""
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    plt.close(figure)
