"""Checks before hours are spent: each a tick, or what to do."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.random import default_rng
from rich.console import Console
from rich.table import Table

from gdro_bench.errors import BenchError

PACKAGES = ("torch", "diffusers", "peft", "transformers", "safetensors", "rapidocr", "onnxruntime")


def _packages() -> str:
    missing = [name for name in PACKAGES if not _version(name)]
    if missing:
        raise BenchError(f"Not installed: {', '.join(missing)}.", "Run `make setup`.")
    return ", ".join(f"{name} {_version(name)}" for name in PACKAGES)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads (no CUDA device)"


def _model() -> str:
    from gdro_bench.models.pocket.policy import PocketPolicy

    return PocketPolicy.open("cpu", None, 0).name


def _reader() -> str:
    """Reads a red sign on blue: swapped channels would still read, so `tests/` check those; this checks the engine."""
    from gdro_bench.models.pocket import world
    from gdro_bench.rewards.readers import RapidReader, ReaderConfig

    reader = RapidReader(ReaderConfig(limit_side=128, workers=0))
    facts = world.Facts("blue", "plain", world.SignFacts("CAFE", "red", "top", "large"), ())
    reading = reader(np.stack([world.render(facts, default_rng(0)).pixels]))[0]
    if "".join(reading.lines).lower() != "cafe":
        raise BenchError(f"It read {reading.lines!r} for CAFE.", "Install rapidocr from constraints.txt.")
    return f"{reader.name} reads CAFE"


def _detector() -> str:
    """Looks at a yellow bus: with swapped channels it would be another colour."""
    from gdro_bench.models.pocket import world
    from gdro_bench.models.pocket.detector import PocketDetector

    detector = PocketDetector.open()
    facts = world.Facts("blue", "plain", None, (world.ThingFacts("bus", "yellow"),))
    objects = detector(np.stack([world.render(facts, default_rng(0)).pixels]))[0].objects
    seen = {name: [d.colour for d in found if d.score > 0.5] for name, found in objects.items()}
    if {name: colours for name, colours in seen.items() if colours} != {"bus": ["yellow"]}:
        raise BenchError(f"It saw {seen} for a yellow bus.", "Restore models/pocket/detector_weights/.")
    return f"{detector.name} sees a yellow bus"


CHECKS = {
    "packages": _packages,
    "device": _device,
    "pocket model": _model,
    "reader": _reader,
    "detector": _detector,
}


def print_checks(console: Console) -> bool:
    """Runs every check; whether all passed."""
    table = Table("check", "", "found, or what to do")
    passed = True
    for name, check in CHECKS.items():
        try:
            table.add_row(name, "[green]ok[/]", check())
        except (BenchError, ImportError) as error:
            passed = False
            table.add_row(name, "[red]no[/]", str(error))
    console.print(table)
    return passed
