"""Checks before hours are spent: each a tick, or what to do."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gdro_bench import content
from gdro_bench.engine.plan import read_profile
from gdro_bench.errors import BenchError
from gdro_bench.profile import PretrainedConfig, Profile
from gdro_bench.rewards.instruments import Instruments
from gdro_bench.task import Prompt

PACKAGES = ("torch", "diffusers", "peft", "transformers", "safetensors", "rapidocr", "onnxruntime")
ROOM = 1.2  # what is needed, times this, should be free


def _packages(name: str, profile: Profile) -> str:
    missing = [package for package in PACKAGES if not _version(package)]
    if missing:
        raise BenchError(f"Not installed: {', '.join(missing)}.", "Run `make setup`.")
    return ", ".join(f"{package} {_version(package)}" for package in PACKAGES)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# ---------------------------------------------------------------------------------------------------------------
# The model and what it needs


def _weights(name: str, profile: Profile) -> str:
    """That they are here: nothing large is loaded."""
    if profile.pretrained is None:
        from gdro_bench.models.pocket.policy import PocketPolicy

        return PocketPolicy.open("cpu", None, 0).name
    sizes = _sizes(_folder(profile.pretrained))
    return f"{profile.pretrained.source}, {sum(sizes.values()) / 1e9:.1f} GB"


def _folder(config: PretrainedConfig) -> Path:
    """Where the pipeline lies, as a folder or in the hub's cache.

    Raises:
        BenchError: it is in neither; says whether a licence is to be accepted, if the hub can be asked.
    """
    from huggingface_hub import auth_check, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    source, index = config.source, "model_index.json"
    if (Path(source) / index).is_file():
        return Path(source)
    if not Path(source).exists() and source.count("/") == 1:
        cached = try_to_load_from_cache(source, index)
        if isinstance(cached, str):
            return Path(cached).parent
        try:
            auth_check(source)
        except GatedRepoError as error:
            remedy = f"Accept its licence at https://huggingface.co/{source} and log in (`hf auth login`)."
            raise BenchError(f"{source} is gated.", remedy) from error
        except RepositoryNotFoundError as error:
            raise BenchError(f"The hub has no {source}.", "Set profile.pretrained.source.") from error
        except Exception as error:  # offline, in as many ways as there are
            remedy = "Bring a copy here and set profile.pretrained.source to its folder."
            raise BenchError(f"{source} is not here and the hub cannot be reached.", remedy) from error
        raise BenchError(f"{source} is not downloaded.", f"Run `hf download {source}`.")
    raise BenchError(f"{source} is no folder of a pipeline: it lacks {index}.", "Set profile.pretrained.source.")


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each part of a pipeline that has weights.

    Raises:
        BenchError: a part lacks its weights.
    """
    sizes = {}
    for part, (library, kind) in _parts(folder).items():
        if library is None or not kind.endswith(("Model", "WithProjection", "AutoencoderKL")):
            continue
        files = list((folder / part).glob("*.safetensors"))
        if not files:
            raise BenchError(f"{folder / part} has no *.safetensors.", "Download the whole pipeline again.")
        sizes[part] = sum(file.stat().st_size for file in files)
    return sizes


def _parts(folder: Path) -> dict[str, tuple[str | None, str]]:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {part: (what[0], what[1] or "") for part, what in index.items() if isinstance(what, list)}


def _device(name: str, profile: Profile) -> str:
    """Whether weights and device go together; the text encoders are there only while they work."""
    import torch

    if torch.cuda.is_available():
        found, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    else:
        found = f"CPU, {torch.get_num_threads()} threads (no CUDA device)"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    said = f"{found}, {memory / 1e9:.0f} GB"
    if profile.pretrained is None:
        return said
    try:
        sizes = _sizes(_folder(profile.pretrained))
    except BenchError:  # which the model's own check tells
        return f"{said}; without the weights, what they take is not known"
    held = sizes["transformer"] / (2 if profile.pretrained.float8 else 1)
    need = max(held + sizes["vae"], *(size for part, size in sizes.items() if "encoder" in part))
    if ROOM * need > memory:
        raise BenchError(
            f"{said}: the weights take {need / 1e9:.0f} GB.",
            "Use a larger device, or set profile.pretrained.float8, or profile.pretrained.sharded for several devices.",
        )
    return f"{said}; weights take {need / 1e9:.1f} GB"


def _disk(name: str, profile: Profile) -> str:
    """Room for the largest pool of the profile's methods."""
    tables = [content.read(path) for path in content.find("profile", name).glob("*.toml")]
    images = max((t["pool"]["prompts"] * t["pool"]["images"] for t in tables if "pool" in t), default=0)
    need, free = images * _latent_bytes(profile), shutil.disk_usage(Path.cwd()).free
    said = f"{free / 1e9:.1f} GB free here, a pool takes {need / 1e9:.2f} GB"
    if ROOM * need > free:
        raise BenchError(f"{said}.", "Free some, or give --out on a larger disk.")
    return said


def _latent_bytes(profile: Profile) -> int:
    if profile.pretrained is not None:
        return profile.pretrained.latent_elements * 4
    from gdro_bench.models.pocket.network import LATENT_SHAPE

    return int(np.prod(LATENT_SHAPE)) * 4


# ---------------------------------------------------------------------------------------------------------------
# The instruments, each on a picture whose answer is known


def _picture(profile: Profile, *, sign: bool) -> NDArray[np.uint8]:
    """A red sign that says CAFE, or a yellow bus, each on a blue wall; as large as the profile's pictures."""
    from gdro_bench.models.pocket import world

    saying = world.SignFacts("CAFE", "red", "top", "large") if sign else None
    things = () if sign else (world.ThingFacts("bus", "yellow"),)
    pixels = world.render(world.Facts("blue", "plain", saying, things), default_rng(0)).pixels
    if profile.pretrained is None:
        return pixels
    side = profile.pretrained.side
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def _instruments(profile: Profile) -> Instruments:
    return Instruments(replace(profile.reader, workers=0), profile.detector, "cpu")


def _reader(name: str, profile: Profile) -> str:
    """Reads a red sign on blue: swapped channels would still read, so `tests/` check those; this checks the engine."""
    reader = _instruments(profile).reader()
    reading = reader(_picture(profile, sign=True)[None])[0]
    if "".join(reading.lines).lower() != "cafe":
        raise BenchError(
            f"{reader.name} read {reading.lines!r} for CAFE. {reading.failure}".strip(),
            "Install the versions of constraints.txt, or check profile.reader.models.",
        )
    return f"{reader.name} reads CAFE"


def _detector(name: str, profile: Profile) -> str:
    """The pocket detector looks at a yellow bus, which swapped channels would give another colour; of others, who see
    no drawn bus, the colours alone are asked."""
    from gdro_bench.rewards.geneval_rules import Detection

    detector, picture = _instruments(profile).detector(), _picture(profile, sign=False)
    seen = detector(picture[None])[0]
    if profile.detector is None:
        found = {what: [d.colour for d in each if d.score > 0.5] for what, each in seen.objects.items()}
        if {what: colours for what, colours in found.items() if colours} != {"bus": ["yellow"]}:
            raise BenchError(f"It saw {found} for a yellow bus.", "Restore models/pocket/detector_weights/.")
        return f"{detector.name} sees a yellow bus"
    whole = Detection((0.0, 0.0, float(picture.shape[1]), float(picture.shape[0])), 1.0)
    flat = np.full_like(picture, (220, 20, 20))
    told = detector(flat[None])[0].colours("car", [whole])
    if told != ["red"]:
        raise BenchError(f"{detector.name} calls a red picture {told}.", "Check profile.detector.clip.")
    return f"{detector.name} tells red"


def _judge(name: str, profile: Profile) -> str:
    """Asks for one opinion."""
    from gdro_bench.engine import judging

    judges = judging.open_judges(profile.judge)
    if not judges:
        return "none"
    prompt = Prompt('a red sign that reads "CAFE" at the top of a blue wall', "CAFE")
    picture = _picture(profile, sign=True)
    said = {judge.name: judge(picture[None], [prompt])[0] for judge in judges.values()}
    for judge, score in said.items():
        if not score.scored:
            raise BenchError(f"{judge} gives no score: {score.note}.", "Check profile.judge.")
    return ", ".join(f"{judge} gives {score.value:.2f}" for judge, score in said.items())


CHECKS: dict[str, Callable[[str, Profile], str]] = {
    "packages": _packages,
    "model": _weights,
    "device": _device,
    "disk": _disk,
    "reader": _reader,
    "detector": _detector,
    "judge": _judge,
}


def print_checks(console: Console, name: str, settings: Sequence[str] = ()) -> bool:
    """Runs every check of a profile, with what the command line changes in it; whether all passed.

    Raises:
        BenchError: there is no such profile or setting.
    """
    profile = read_profile(name, settings)
    from huggingface_hub.utils.logging import set_verbosity

    set_verbosity(logging.ERROR)  # its retries are no news to who is offline; imported first, because that sets it back
    table = Table("check", "", "found, or what to do", title=f"profile {name}", title_justify="left")
    passed = True
    for what, check in CHECKS.items():
        try:
            table.add_row(what, "[green]ok[/]", escape(check(name, profile)))
        except (BenchError, ImportError) as error:
            passed = False
            table.add_row(what, "[red]no[/]", escape(str(error)))
    console.print(table)
    return passed
