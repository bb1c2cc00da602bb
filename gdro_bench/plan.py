"""What a run will do, fixed before it starts: every number, from the TOML files and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdro_bench import content, record, registry, task
from gdro_bench.budget import BudgetKind
from gdro_bench.drift import DriftConfig
from gdro_bench.errors import BenchError, unknown
from gdro_bench.judging import JudgeConfig
from gdro_bench.methods import METHODS
from gdro_bench.models.lora import Lora
from gdro_bench.models.pretrained import Pretrained
from gdro_bench.rewards import PROMPTS
from gdro_bench.rewards.instruments import DetectorConfig
from gdro_bench.rewards.readers import ReaderConfig
from gdro_bench.sampling import Sampler
from gdro_bench.task import Prompt, PromptOf, PromptSet, Task


@dataclass(frozen=True, slots=True)
class Budget:
    """`limit` of one `kind` that a run may spend, and `marks`, shares of it at which a run is evaluated.

    Kinds: velocity `evaluations`, `images` (sampled or trained on), or `seconds`, which no machine repeats exactly.
    """

    kind: BudgetKind
    limit: int
    marks: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """`baselines/<profile>/profile.toml`: model, instruments and budget, the same for every method."""

    model: str
    prompts: str
    held_out_prompts: int
    kept_images: int  # of the held-out prompts' pictures, at each mark: grids and judges see only these
    max_unscored: float
    sampler: Sampler
    drift: DriftConfig
    lora: Lora
    reader: ReaderConfig
    judge: JudgeConfig
    budget: Budget
    pretrained: Pretrained | None  # for models that do not come with the package
    detector: DetectorConfig | None  # of objects; without it, the pocket's
    score_ahead: int | None  # batches that may wait for their scores while the next are painted; without it, none


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. `settings` are the tables behind `profile` and `config`, as the record keeps them."""

    task: Task
    profile_name: str
    profile: Profile
    method: str
    config: Any
    seed: int
    train: list[Prompt]
    held_out: list[Prompt]
    settings: dict[str, Any]
    changed: tuple[str, ...]  # what the command line changed in them
    folder: Path

    @property
    def digests(self) -> dict[str, str]:
        """Of all that moves a number, as it was written: a setting that only a later version has changes none."""
        return {
            "task": content.digest(self.task.name, self.task.reward),
            "profile": content.digest(record.measured(self.settings["profile"])),
            "method": content.digest(self.settings["method"]),
            "train": task.digest(self.train),
            "held_out": task.digest(self.held_out),
        }


def make(
    task_name: str,
    method: str,
    profile: str,
    seed: int,
    out: Path,
    settings: tuple[str, ...] = (),
    budget: int | None = None,
    prompts: Path | None = None,
) -> Plan:
    """Reads and checks everything a run depends on.

    Raises:
        BenchError: an unknown name or setting, a value of the wrong type, a bad prompt file.
    """
    chosen = task.load(task_name)
    folder = content.find("profile", profile)
    cls = registry.lookup("method", method, METHODS)
    path = folder / f"{method}.toml"
    if not path.exists():
        raise BenchError(f"Profile {profile!r} has no numbers for {method!r}.", f"Write {path.name} beside it.", 2)
    tables = {"profile": numbers(folder / "profile.toml", task_name), "method": numbers(path, task_name)}
    asked = [*settings, *([f"profile.budget.limit={budget}"] if budget is not None else [])]
    changed = content.override(tables, asked)
    settled = content.build(Profile, tables["profile"], "profile.toml")
    config = content.build(cls.config_type, tables["method"], path.name)
    _check(settled)
    train, held_out = _training_prompts(chosen, settled), _held_out_prompts(chosen, settled, prompts)
    changed += (f"prompts={task.digest(held_out)[:8]}",) if prompts else ()
    run_folder = out / task_name / profile / folder_name(method, changed, seed)
    return Plan(chosen, profile, settled, method, config, seed, train, held_out, tables, changed, run_folder)


def numbers(path: Path, task_name: str | None) -> dict[str, Any]:
    """A profile's or a method's numbers for a task: the file's, with those of its table `[tasks.<task>]` in the place
    of general ones; the general ones alone for no task.

    Raises:
        BenchError: the file cannot be read, or such a table names no task or no number of the file.
    """
    table = content.read(path)
    by_task = table.pop("tasks", {})
    for name in by_task:
        content.find("task", name)
    for name, value in content.flat(by_task.get(task_name or "", {})).items():
        content.assign({path.stem: table}, f"{path.stem}.{name}", value)
    return table


def to_evaluate(
    task_name: str, profile: str, settings: Sequence[str], prompts: Path | None
) -> tuple[Task, Profile, list[Prompt]]:
    """What an evaluation without training depends on: task, profile, and the held-out prompts or one's own.

    Raises:
        BenchError: as for `make`.
    """
    chosen, settled = task.load(task_name), read_profile(profile, settings, task_name)
    return chosen, settled, _held_out_prompts(chosen, settled, prompts)


def read_profile(name: str, settings: Sequence[str] = (), task_name: str | None = None) -> Profile:
    """A profile by itself or for a task, with what the command line changes in it.

    Raises:
        BenchError: as for `make`.
    """
    tables = {"profile": numbers(content.find("profile", name) / "profile.toml", task_name)}
    content.override(tables, settings)
    return content.build(Profile, tables["profile"], "profile.toml")


def folder_name(method: str, changed: Sequence[str], seed: int) -> str:
    """A name that says what differs from the profile, in letters that are safe in a path; many changes are digested.

    How the work is done is not in it: a run may go on with its weights sharded over more devices.
    """
    moving = [setting for setting in changed if setting.split("=")[0].removeprefix("profile.") not in record.EXECUTION]
    said = "-".join(setting.split(".", 1)[-1] for setting in moving)
    said = said if len(said) <= 60 else content.digest(said)[:12]
    said = "".join(c if c.isalnum() or c in "._=-" else "_" for c in said)
    return "-".join(part for part in (method, said, f"s{seed}") if part)


def _check(profile: Profile) -> None:
    marks = profile.budget.marks
    if profile.budget.limit <= 0:
        raise BenchError(f"The budget must be above 0 {profile.budget.kind}.", "Try --budget 20000.", 2)
    if not marks or list(marks) != sorted(set(marks)) or marks[0] <= 0 or marks[-1] != 1.0:
        raise BenchError(f"The marks are {list(marks)}.", "They must rise from above 0 to 1.", 2)


def _training_prompts(chosen: Task, profile: Profile) -> list[Prompt]:
    return task.read_prompts(content.find("task", chosen.name) / _prompt_set(chosen, profile).train, prompt_of(chosen))


def _held_out_prompts(chosen: Task, profile: Profile, own: Path | None) -> list[Prompt]:
    """The profile's, or all of one's own, as often as the task paints them. The first of them are kept and shown, so
    their kinds take turns."""
    path = own or content.find("task", chosen.name) / _prompt_set(chosen, profile).held_out
    prompts = task.in_turn(task.read_prompts(path, prompt_of(chosen)))
    return task.repeated(prompts if own else prompts[: profile.held_out_prompts], chosen.images or 1)


def _prompt_set(chosen: Task, profile: Profile) -> PromptSet:
    if profile.prompts not in chosen.prompts:
        raise unknown(f"prompt set of task {chosen.name!r} called", profile.prompts, chosen.prompts)
    return chosen.prompts[profile.prompts]


def prompt_of(measured: Task) -> PromptOf:
    """What makes the task's prompts of text and metadata."""
    found: PromptOf = registry.lookup("prompt", measured.reward, PROMPTS)
    return found
