"""How the weights that come with the package are made: the bases, the detector and the judge, each with its card."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from gdro_bench.distributed import ProcessGroup
from gdro_bench.errors import BenchError, unknown


def pretrain(
    model: str, folder: Path, seed: int, images: int | None, console: Console, processes: ProcessGroup
) -> None:
    """Trains one of them anew and writes weights and card under `folder`; a base that was killed goes on, and several
    processes share its batches.

    Raises:
        BenchError: there is no such model, or it has no number of images to change.
    """
    from gdro_bench.models.pocket.training import base_card, detector_card, judge_card

    instruments = {"pocket-detector": detector_card.pretrain, "pocket-judge": judge_card.pretrain}
    if model == "pocket":
        base_card.pretrain(folder, seed, images, console, processes)
    elif model in instruments:
        if images is not None:
            raise BenchError("--train-images is of the base alone.", "Leave it out.", 2)
        if processes.is_main:
            instruments[model](folder, seed, console)
    else:
        raise unknown("model to pretrain called", model, ["pocket", *instruments])
