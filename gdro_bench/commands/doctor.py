"""`doctor`: checks of this machine before hours are spent. Each passes, or says what to do."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gdro_bench import content
from gdro_bench import task as tasks
from gdro_bench.commands import stored
from gdro_bench.engine.plan import all_prompts, config_of, costs_of, read_profile
from gdro_bench.engine.uses import uses_of
from gdro_bench.errors import BenchError
from gdro_bench.instruments import Instruments
from gdro_bench.profile import PretrainedConfig, Profile
from gdro_bench.rewards.geneval_rules import Detection, Detector
from gdro_bench.score import open_scorer
from gdro_bench.task import Prompt, Task

if TYPE_CHECKING:
    from gdro_bench.methods import CostModel
    from gdro_bench.models.memory import Counted
    from gdro_bench.policy import Policy

PACKAGES = ("torch", "diffusers", "peft", "transformers", "safetensors", "rapidocr", "onnxruntime")
PICTURE = 64  # px, a side of pocket's pictures
ROOM = 1.2  # what is needed, times this, should be free
FAILURES = (BenchError, ImportError, OSError, ValueError)  # a broken file of a pipeline is one check's
SEEN_OVER_FORETOLD = 1.125  # memory, at most; measured in baselines/full-scale.md
NOT_NEEDED = "not needed by the task"
CGROUP = Path("/sys/fs/cgroup/memory.max")  # what a container may have


@dataclass(frozen=True)
class Subject:
    """What is checked: a profile by its name, with what the command line changes in it; for one task or all, for one
    method, with its changed settings, or all; and how many processes are to run on this machine."""

    name: str
    profile: Profile
    task: Task | None = None
    method: str | None = None
    settings: tuple[str, ...] = ()
    processes: int = 1

    def __str__(self) -> str:
        parts = [f"profile {self.name}", f"task {self.task.name}" if self.task else "", self.method or ""]
        return ", ".join([*filter(None, parts), *([f"{self.processes} processes"] if self.processes > 1 else [])])

    @cached_property
    def costs(self) -> dict[str, CostModel]:
        """Of the method, or of all."""
        task = self.task.name if self.task else None
        return costs_of(self.name, self.profile, task, self.method, self.settings)

    @cached_property
    def counted(self) -> Counted:
        """What the shapes of the profile's pretrained model tell.

        Raises:
            BenchError: they are not known."""
        from gdro_bench.models import memory

        return memory.count(self.profile)

    @cached_property
    def adapter_bytes(self) -> float:
        """Of a pretrained model's adapters, 0 where its shapes are not known; of others, which are small, 0."""
        with suppress(BenchError):
            return self.counted.adapters if self.profile.pretrained is not None else 0.0
        return 0.0

    @cached_property
    def needs(self) -> frozenset[str]:
        """Names of the instruments that the task's reward and those that watch it open; all where that is not known:
        for no task in particular, or if a reward wants more of them than a name."""
        if self.task is None:
            return ALL
        noting = _Noting(self.profile.reader, self.profile.detector, "cpu")
        try:
            for name in (self.task.reward, *self.auxiliaries()):
                open_scorer("reward", name, noting)
        except Exception:  # a reward of another package may do anything
            return ALL
        return frozenset(noting.opened)

    def auxiliaries(self) -> tuple[str, ...]:
        """Names of the rewards that watch the task's own, with the method that is meant."""
        if self.method is None or self.task is None:
            return ()
        return uses_of(config_of(self.name, self.method, self.task.name, self.settings)).auxiliaries


ALL = frozenset({"reader", "detector"})


class _StandIn:
    """For an instrument, which need not be here to be asked for."""

    name, classes = "stand-in", ()


@dataclass(frozen=True)
class _Noting(Instruments):
    """Instruments that note which of them a reward asks for, and give it a stand-in."""

    opened: set[str] = field(default_factory=set)

    def reader(self) -> Any:
        self.opened.add("reader")
        return _StandIn()

    def detector(self) -> Any:
        self.opened.add("detector")
        return _StandIn()


def _packages(subject: Subject) -> str:
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


def _weights(subject: Subject) -> str:
    """That they are here. Of a pretrained pipeline the files are counted, because it is large; others are opened."""
    profile = subject.profile
    if profile.pretrained is not None:
        sizes = _sizes(_folder(profile.pretrained))
        return f"{profile.pretrained.source}, {sum(sizes.values()) / 1e9:.1f} GB"
    opened = (_open(replace(profile, model=model)) for model in _models(subject))
    return ", ".join(model.name for model in opened)


def _open(profile: Profile) -> Policy:
    from gdro_bench.models import open_model  # here, because it needs torch, and a typo should not wait for that

    return open_model(profile, None, None, "cpu")


def _models(subject: Subject) -> list[str]:
    """The profile's model and, for no task in particular, those that it names for single tasks."""
    by_task = content.read(content.find("profile", subject.name) / "profile.toml").get("tasks", {})
    others = [table["model"] for table in by_task.values() if "model" in table and subject.task is None]
    return list(dict.fromkeys([subject.profile.model, *others]))


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
    """Library and class of each part of a pipeline."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {part: (kind[0], kind[1] or "") for part, kind in index.items() if isinstance(kind, list)}


def _device(subject: Subject) -> str:
    """Whether the device can hold what the method, or the most demanding of all, needs by shapes."""
    import torch

    if torch.cuda.is_available():
        device, (memory, total) = torch.cuda.get_device_name(), torch.cuda.mem_get_info()
        description = f"{device}, {memory / 1e9:.0f} of {total / 1e9:.0f} GB free"
    else:
        memory = _machine_bytes() // subject.processes  # which share it
        description = f"CPU, {torch.get_num_threads()} threads (no CUDA device), {memory / 1e9:.0f} GB a process"
    if subject.profile.pretrained is None:
        return description
    try:
        method, need = _largest_need(subject)
    except BenchError as error:
        return f"{description}; what a run takes is not known: {error.problem}"
    if need * SEEN_OVER_FORETOLD > memory:
        raise BenchError(
            f"{description}: {method} takes {need / 1e9:.0f} GB at its peak, or an eighth more.",
            "End what else uses the device, such as a judge's server; use a larger one; or set "
            "profile.pretrained.gradient_checkpointing or float8, a smaller profile.sampler.batch or "
            "method.optimiser.batch, or profile.pretrained.sharded for several devices.",
        )
    most = "" if subject.method else ", the most of all methods"
    return f"{description}; {method} takes {need / 1e9:.1f} GB at its peak{most}"


def _largest_need(subject: Subject) -> tuple[str, float]:
    """Of the methods that are meant, the one that takes most memory on one device, and the bytes."""
    from gdro_bench.models import memory

    needs = memory.of_methods(subject.costs, subject.profile, subject.counted, subject.processes)
    if not needs:
        raise BenchError("No method foretells its cost.", "Give its Method a function `costs`.")
    return max(((method, need.peak) for method, (_, need) in needs.items()), key=lambda item: item[1])


def _machine(subject: Subject) -> str:
    """Whether the machine's own memory can hold what its processes open: each reads the whole pipeline, before parts
    of it go to the device and the text encoders are let go."""
    memory = _machine_bytes()
    description = f"{memory / 1e9:.0f} GB of memory"
    if subject.profile.pretrained is None:
        return description
    each = sum(_sizes(_folder(subject.profile.pretrained)).values())
    chains = _chains(subject)
    need = max(each, chains) * subject.processes
    description += f"; {subject.processes} x {each / 1e9:.1f} GB while the model is opened"
    description += f", {chains / 1e9:.1f} GB for an epoch's chains" if chains else ""
    if ROOM * need > memory:
        raise BenchError(f"{description}.", "Start fewer processes on this machine, or use a larger one.")
    return description


def _chains(subject: Subject) -> float:
    """Bytes of the chains of an epoch and their noise, which every process holds, of the method that has most."""
    latents = [cost.chains(subject.profile.sampler.steps) for cost in subject.costs.values()]
    return 2 * max(latents, default=0) * _latent_bytes(subject.profile)


def _machine_bytes() -> int:
    """Of this machine, or of the container that it is."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such file, or "max"
        return min(whole, int(CGROUP.read_text(encoding="utf-8")))
    return whole


def _disk(subject: Subject) -> str:
    """Room for what a run of the methods that are meant needs here: of its task, so many texts as it has at most."""
    latent = _latent_bytes(subject.profile)
    runs = {method: _run_bytes(subject, costs, latent) for method, costs in subject.costs.items()}
    method, need = max(runs.items(), key=lambda item: item[1], default=("", 0.0))
    texts = stored.by_texts(subject.profile, all_prompts(subject.task, subject.profile)) if subject.task else 0.0
    free = shutil.disk_usage(Path.cwd()).free
    most = "" if subject.method or not method else f" ({method}, the most of all methods)"
    description = f"{free / 1e9:.1f} GB free here, a run takes up to {need / 1e9:.2f} GB{most}"
    description += f", its encoded texts {texts / 1e9:.1f} GB" if texts else ""
    if ROOM * (need + texts) > free:
        raise BenchError(f"{description}.", "Free some, or give --out on a larger disk.")
    return description


def _run_bytes(subject: Subject, costs: CostModel, latent: int) -> float:
    side = subject.profile.pretrained.side if subject.profile.pretrained else PICTURE
    collected = costs.pool.images + ((costs.rounds or 1) - 1) * costs.collected.images
    pictures, picture = subject.profile.kept_images, stored.PIXEL * side**2
    return stored.by_run(subject.profile, costs, collected, pictures, latent, subject.adapter_bytes, picture)


def _latent_bytes(profile: Profile) -> int:
    if profile.pretrained is not None:
        return profile.pretrained.latent_elements * stored.FLOAT
    return int(np.prod(_open(profile).latent_shape)) * stored.FLOAT


# ---------------------------------------------------------------------------------------------------------------
# The instruments, each on a picture whose right answer is known


def _picture(profile: Profile, *, sign: bool) -> NDArray[np.uint8]:
    """A red sign that says CAFE, or a yellow bus, each on a blue wall; as large as the profile's pictures."""
    from gdro_bench.models.pocket import world

    cafe = world.SignFacts("CAFE", "red", "top", "large") if sign else None
    things = () if sign else (world.ThingFacts("bus", "yellow"),)
    pixels = world.render(world.Facts("blue", "plain", cafe, things), default_rng(0)).pixels
    if profile.pretrained is None:
        return pixels
    side = profile.pretrained.side
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def _instruments(profile: Profile) -> Instruments:
    return Instruments(replace(profile.reader, workers=0), profile.detector, "cpu")


def _reader(subject: Subject) -> str:
    """Reads a red sign on blue: swapped channels would still read, so `tests/` check those; this checks the engine."""
    if "reader" not in subject.needs:
        return NOT_NEEDED
    reader = _instruments(subject.profile).reader()
    reading = reader(_picture(subject.profile, sign=True)[None])[0]
    if "".join(reading.lines).lower() != "cafe":
        raise BenchError(
            f"{reader.name} read {reading.lines!r} for CAFE. {reading.failure}".strip(),
            "Install the versions that pyproject.toml and constraints.txt name, or check profile.reader.models.",
        )
    return f"{reader.name} reads CAFE"


def _detector(subject: Subject) -> str:
    """The pocket detector must find a yellow bus, which swapped channels would give another colour. Others find no bus
    in a drawing, so they are only asked for the colour of a red picture."""
    if "detector" not in subject.needs:
        return NOT_NEEDED
    profile = subject.profile
    detector = _instruments(profile).detector()
    if profile.detector is None or profile.detector.name == "pocket":
        return _pocket_detector(detector, _picture(profile, sign=False))
    side = profile.pretrained.side if profile.pretrained else PICTURE
    red = np.full((1, side, side, 3), (220, 20, 20), dtype=np.uint8)
    thing = "car" if "car" in detector.classes else detector.classes[0]
    colours = detector(red)[0].colours(thing, [Detection((0.0, 0.0, float(side), float(side)), 1.0)])
    if colours != ["red"]:
        raise BenchError(f"{detector.name} calls a red picture {colours}.", "Check profile.detector.clip.")
    return f"{detector.name} tells red"


def _pocket_detector(detector: Detector, picture: NDArray[np.uint8]) -> str:
    objects = detector(picture[None])[0].objects
    colours = {name: [d.colour for d in detections if d.score > 0.5] for name, detections in objects.items()}
    if {name: each for name, each in colours.items() if each} != {"bus": ["yellow"]}:
        raise BenchError(f"It saw {colours} for a yellow bus.", "Restore models/pocket/detector_weights/.")
    return f"{detector.name} sees a yellow bus"


def _judge(subject: Subject) -> str:
    """Asks each of the profile's judges about one picture."""
    from gdro_bench.engine import judging

    judges = judging.open_judges(subject.profile.judge)
    prompt = Prompt('a red sign that reads "CAFE" at the top of a blue wall', "CAFE")
    picture = _picture(subject.profile, sign=True)
    scores = {judge.name: judge(picture[None], [prompt])[0] for judge in judges.values()}
    for judge, score in scores.items():
        if not score.scored:
            raise BenchError(f"{judge} gives no score: {score.note}.", "Check profile.judge.")
    return ", ".join(f"{judge} gives {score.value:.2f}" for judge, score in scores.items()) or "none"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "packages": _packages,
    "model": _weights,
    "device": _device,
    "machine": _machine,
    "disk": _disk,
    "reader": _reader,
    "detector": _detector,
    "judge": _judge,
}


def print_checks(
    console: Console,
    name: str,
    settings: Sequence[str] = (),
    task: str | None = None,
    method: str | None = None,
    processes: int = 1,
) -> bool:
    """Runs every check of a profile, with what the command line changes in it; whether all passed.

    Raises:
        BenchError: there is no such profile, task, method or setting.
    """
    subject = _subject(name, settings, task, method, processes)
    from huggingface_hub.utils.logging import set_verbosity

    set_verbosity(logging.ERROR)  # offline, its retries are only noise; imported first, because importing resets it
    table = Table("check", "", "found, or what to do", title=escape(str(subject)), title_justify="left")
    passed = True
    for what, check in CHECKS.items():
        try:
            table.add_row(what, "[green]ok[/]", escape(check(subject)))
        except FAILURES as error:
            passed = False
            table.add_row(what, "[red]no[/]", escape(str(error)))
    console.print(table)
    return passed


def _subject(name: str, settings: Sequence[str], task: str | None, method: str | None, processes: int) -> Subject:
    """Raises:
    BenchError: as `print_checks`; a setting of a method, and none is named."""
    of_method = tuple(setting for setting in settings if setting.startswith("method."))
    if of_method and method is None:
        raise BenchError(f"--set {of_method[0]} is of no method in particular.", "Add --method.", 2)
    others = [setting for setting in settings if setting not in of_method]
    loaded = tasks.load(task) if task else None
    subject = Subject(name, read_profile(name, others, task), loaded, method, of_method, processes)
    _ = subject.costs  # so that a wrong name ends the command instead of a check
    return subject
