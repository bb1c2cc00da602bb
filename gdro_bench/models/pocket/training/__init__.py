"""How the weights that come with the package are made: the bases, the detector and the judge, each with its card."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from gdro_bench.distributed import ProcessGroup
from gdro_bench.errors import unknown


def pretrain(
    model: str, folder: Path, seed: int, images: int | None, console: Console, processes: ProcessGroup
) -> None:
    """Trains one of them anew and writes weights and card under `folder`; a base that was killed goes on, and several
    processes share its batches.

    Raises:
        BenchError: there is no such model.
    """
    from gdro_bench.models.pocket.training import base_card, detector_card, judge_card

    instruments = {"pocket-detector": detector_card.pretrain, "pocket-judge": judge_card.pretrain}
    if model == "pocket":
        base_card.pretrain(folder, seed, images, console, processes)
    elif model in instruments:
        if processes.is_main:
            instruments[model](folder, seed, console)
    else:
        raise unknown("model to pretrain called", model, ["pocket", *instruments])
