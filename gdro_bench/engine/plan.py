"""What a run will do, fixed before it starts: every number, from the TOML files and the command line.

Names and settings of the profile are checked before anything heavy is imported.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdro_bench import content, registry
from gdro_bench import task as tasks
from gdro_bench.engine import record
from gdro_bench.engine.uses import uses_of
from gdro_bench.errors import BenchError, unknown
from gdro_bench.instruments import check_auxiliaries
from gdro_bench.judges.address import check_judge, without_credentials
from gdro_bench.profile import Profile
from gdro_bench.task import Prompt, PromptOf, PromptSet, Task

if TYPE_CHECKING:
    from gdro_bench.budget import Cost
    from gdro_bench.methods import CostModel, Method
    from gdro_bench.methods.parts.offline import PoolConfig


JUDGE_URL = "profile.judge.url"


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
    prompts: Path | None = None  # one's own held-out prompts
    track: tuple[str, ...] = ()  # trackers that are told how it goes; they move nothing
    train_prompts: Path | None = None

    @property
    def pool(self) -> PoolConfig | None:
        """The pool that the method trains on; None for one that samples anew."""
        return uses_of(self.config).pool

    @property
    def out(self) -> Path:
        """The folder that the run's task has its folder in: `--out`; of a trial, what all trials of a task are in."""
        return self.folder.parents[2]

    @property
    def pools(self) -> Path:
        """Where pools lie that runs may share."""
        return self.out / "pools"

    @property
    def all_prompts(self) -> list[Prompt]:
        """All that the run may show the model: those of its pool, or all training prompts, the held-out ones, the
        health prompts and, where anything is guided, the empty one."""
        pool = self.pool
        train = tasks.pool_order(self.train, pool.seed)[: pool.prompts] if pool else self.train
        guided = {self.profile.sampler.guidance, *uses_of(self.config).guidances} != {1}
        return [*train, *self.held_out, *([Prompt("", "")] if guided else []), *self.health]

    @property
    def health(self) -> list[Prompt]:
        """Training prompts that every evaluation point paints, spread over all; the same for any method and seed."""
        known = list({prompt.text: prompt for prompt in self.train}.values())
        count = min(self.profile.health.prompts, len(known)) if self.profile.health else 0
        return [known[i * len(known) // count] for i in range(count)]

    @property
    def auxiliaries(self) -> tuple[str, ...]:
        """Names of the rewards that watch the task's own."""
        return uses_of(self.config).auxiliaries

    @property
    def digests(self) -> dict[str, str]:
        """Of all that moves a number, as it was written: a setting that only a later version has changes none."""
        return {
            "task": content.digest(self.task.name, self.task.reward),
            "profile": content.digest(record.identity_settings(self.settings["profile"])),
            "method": content.digest(self.settings["method"]),
            "train": tasks.digest(self.train),
            "held_out": tasks.digest(self.held_out),
        }


LIMIT = "profile.budget.limit"  # what --budget sets


def make_plan(
    task: str,
    method: str,
    profile: str,
    seed: int,
    out: Path,
    settings: Sequence[str] = (),
    budget: int | None = None,
    prompts: Path | None = None,
    train_prompts: Path | None = None,
    track: Sequence[str] = (),
) -> Plan:
    """Reads and checks everything a run depends on.

    Args:
        task, method, profile: names. out: folder that runs are kept in. settings: `group.key=value` each, which change
            the TOML files' settings. budget: instead of the profile's. prompts, train_prompts: one's own files. track:
            names of trackers.

    Raises:
        BenchError: an unknown name or setting, a value of the wrong type, a bad prompt file.
    """
    task_ = tasks.load(task)
    folder = content.find("profile", profile)
    path = _file_of_settings(method, profile)
    _check_trackers(track)
    tables = {"profile": read_settings(folder / "profile.toml", task), "method": read_settings(path, task)}
    kinds = {"profile": lambda: Profile, "method": lambda: registry.lookup("method", method).config_type}
    changed = content.apply_settings(tables, [*settings, *_budget_setting(budget, settings)], kinds)
    profile_ = content.build(Profile, tables["profile"], "profile.toml")
    _check(profile_)
    train = _training_prompts(task_, profile_, train_prompts)
    held_out = _held_out_prompts(task_, profile_, prompts)
    _check_apart(train, held_out, own=bool(prompts or train_prompts))
    method_ = registry.lookup("method", method)
    config = _config(method_, tables["method"], path.name, seed)
    check_auxiliaries(uses_of(config).auxiliaries, task_, profile_)
    _check_method(method_, config, train, profile_)
    changed += (f"prompts={tasks.digest_with_targets(held_out)[:8]}",) if prompts else ()
    changed += (f"train_prompts={tasks.digest_with_targets(train)[:8]}",) if train_prompts else ()
    changed = tuple(map(_shareable, changed))
    tables["profile"]["judge"]["url"] = without_credentials(profile_.judge.url)
    run_folder = out / task / profile / folder_name(method, changed, seed)
    shared = (train, held_out, tables, changed, run_folder, prompts, tuple(dict.fromkeys(track)))
    return Plan(task_, profile, profile_, method, config, seed, *shared, train_prompts)


def _shareable(setting: str) -> str:
    """As records and folders, which others see, may show it: without a password."""
    name, _, value = setting.partition("=")
    return f"{name}={without_credentials(value)}" if name == JUDGE_URL else setting


def _check_trackers(names: Sequence[str]) -> None:
    """Raises:
    BenchError: one is not known."""
    for name in names:
        registry.check("tracker", name)


def _file_of_settings(method: str, profile: str) -> Path:
    """The file of a method's settings.

    Raises:
        BenchError: there is no such method, the profile has no settings for it, or two files of them differ.
    """
    registry.check("method", method)
    path = content.method_file(profile, method)
    if path is None:
        remedy = f"Write baselines/{profile}/{method}.toml in the current folder."
        raise BenchError(f"Profile {profile!r} has no settings for {method!r}.", remedy, 2)
    return path


def with_settings(made: Plan, settings: Mapping[str, Any]) -> Plan:
    """A plan with other settings of its method, by their dotted names; what these touch is checked as in `make_plan`.

    Raises:
        BenchError: an unknown name, a value of the wrong type or out of its range, a pool that takes the whole budget.
    """
    tables = copy.deepcopy(made.settings)
    changed = content.apply_settings(tables, [f"method.{k}={json.dumps(value)}" for k, value in settings.items()])
    method: Method = registry.lookup("method", made.method)
    config = _config(method, tables["method"], f"{made.method}.toml", made.seed)
    _check_method(method, config, made.train, made.profile)
    by_name = {setting.partition("=")[0]: setting for setting in (*made.changed, *changed)}
    return replace(made, config=config, settings=tables, changed=tuple(by_name.values()))


def _config(method: Method, table: Mapping[str, Any], where: str, seed: int) -> Any:
    """A method's settings, with the pool of a run of this seed."""
    config = content.build(method.config_type, table, where)
    pool = uses_of(config).pool
    return config if pool is None else replace(config, pool=pool.of_run(seed))


def costs_of(
    profile_name: str, profile: Profile, task: str | None = None, only: str | None = None, settings: Sequence[str] = ()
) -> dict[str, CostModel]:
    """Of each method that the profile has settings of, and that foretells its costs; for a task, or none in particular.
    `only`: of this method alone, with what `settings`, `method.key=value` each, change in its settings.

    Raises:
        BenchError: a file of settings or a setting is not in order; the profile has no settings for `only`.
    """
    here = registry.names("method")  # a plug-in's file may be there without it
    names = [only] if only else sorted(name for name in content.method_files(profile_name) if name in here)
    configs = {name: config_of(profile_name, name, task, settings) for name in names}
    costs = {name: registry.lookup("method", name).costs for name in names}
    return {name: costs[name](config, profile.sampler) for name, config in configs.items() if costs[name] is not None}


def config_of(profile_name: str, method: str, task: str | None, settings: Sequence[str] = ()) -> Any:
    """A method's settings for a task, or none in particular, as a run of seed 0 has them.

    Raises:
        BenchError: as `costs_of`.
    """
    path, method_ = _file_of_settings(method, profile_name), registry.lookup("method", method)
    tables = {"method": read_settings(path, task)}
    content.apply_settings(tables, settings, {"method": lambda: method_.config_type})
    return _config(method_, tables["method"], path.name, seed=0)


def read_settings(path: Path, task: str | None) -> dict[str, Any]:
    """A profile's or a method's settings for a task: the file's, with those of its table `[tasks.<task>]` in the place
    of general ones; the general ones alone for no task.

    Raises:
        BenchError: the file cannot be read, or such a table names no task or no setting of the file.
    """
    table = content.read(path)
    by_task = content.tables_in(table.pop("tasks", {}), f"[tasks] in {path}")
    for name in by_task:
        content.find("task", name)
    of = (tasks.load(task).settings or task) if task else ""
    for name, value in content.flatten(by_task.get(of, {})).items():
        content.set_value({path.stem: table}, f"{path.stem}.{name}", value)
    return table


def evaluation_inputs(
    task: str, profile: str, settings: Sequence[str], prompts: Path | None
) -> tuple[Task, Profile, list[Prompt]]:
    """What an evaluation without training depends on: task, profile, and the held-out prompts or one's own.

    Raises:
        BenchError: as for `make_plan`.
    """
    task_, profile_ = tasks.load(task), read_profile(profile, settings, task)
    return task_, profile_, _held_out_prompts(task_, profile_, prompts)


def read_profile(name: str, settings: Sequence[str] = (), task: str | None = None) -> Profile:
    """A profile by itself or for a task, with what the command line changes in it.

    Raises:
        BenchError: as for `make_plan`.
    """
    tables = {"profile": read_settings(content.find("profile", name) / "profile.toml", task)}
    content.apply_settings(tables, settings, {"profile": lambda: Profile})
    return content.build(Profile, tables["profile"], "profile.toml")


def folder_name(method: str, changed: Sequence[str], seed: int) -> str:
    """A name that says what differs from the profile, in letters that are safe in a path; many changes are digested.

    How the work is done is not in it, nor who judges it later: a run may go on with other ones.
    """
    moving = [setting for setting in changed if record.moves_results(setting.split("=")[0])]
    name = "-".join(setting.split(".", 1)[-1] for setting in moving)
    name = name if len(name) <= 60 else content.digest(name)[:12]
    return "-".join(part for part in (method, content.safe_name(name), f"s{seed}") if part)


def _check(profile: Profile) -> None:
    marks = profile.budget.marks
    if profile.budget.limit <= 0:
        raise BenchError(f"The budget must be above 0 {profile.budget.kind}.", "Try --budget 20000.", 2)
    if not marks or list(marks) != sorted(set(marks)) or marks[0] <= 0 or marks[-1] != 1.0:
        raise BenchError(f"The marks are {list(marks)}.", "They must rise from above 0 to 1.", 2)
    judges = profile.judge  # asked when the run has ended: a name that is not known is told before it starts
    watches = profile.health.judge if profile.health is not None else "none"
    for name in (judges.name, judges.gold, judges.second_reader, watches):
        if name not in (known := [*registry.names("judge"), "none"]):
            raise unknown("judge", name, known)
    check_judge(judges.name, judges.url)


def _check_method(method: Method, config: Any, train: list[Prompt], profile: Profile) -> None:
    """Raises:
    BenchError: the method refuses a number, or the budget ends before its pools are trained on."""
    if method.check is not None:
        method.check(config, train, profile.sampler)
    _check_pool_size(config, train)
    _check_pool(method, config, profile)


def _budget_setting(budget: int | None, settings: Sequence[str]) -> list[str]:
    """Raises:
    BenchError: the settings name a budget, too."""
    if budget is not None and any(setting.startswith(f"{LIMIT}=") for setting in settings):
        raise BenchError(f"Both --budget and {LIMIT} are given.", "Leave one of them out.", 2)
    return [] if budget is None else [f"{LIMIT}={budget}"]


def _check_apart(train: list[Prompt], held_out: list[Prompt], own: bool) -> None:
    """Of one's `own` prompts; the task's are apart.

    Raises:
        BenchError: prompts that are trained on are among those that are evaluated on.
    """
    if not own:
        return
    seen, texts = {prompt.text for prompt in train}, {prompt.text for prompt in held_out}
    if both := texts & seen:
        raise BenchError(
            f"{len(both)} of {len(texts)} held-out prompts are trained on, such as {min(both)[:60]!r}.",
            "Take them out of --prompts or of --train-prompts: what was trained on tells nothing of other prompts.",
            2,
        )


def _check_pool_size(config: Any, train: list[Prompt]) -> None:
    """Raises:
    BenchError: a pool that is filled once would be smaller than its settings say."""
    uses = uses_of(config)
    if (pool := uses.pool) is not None and uses.rounds == 1 and pool.prompts > len(train):
        raise BenchError(
            f"The pool takes {pool.prompts} prompts; there are {len(train)} to train on.",
            f"Set method.pool.prompts={len(train)}, or give more with --train-prompts.",
            2,
        )


def _check_pool(method: Method, config: Any, profile: Profile) -> None:
    """Raises:
    BenchError: filling the pool would take the whole budget, so that nothing would be trained, or it would end before
        the last round of a pool that grows."""
    budget, costs = profile.budget, None if method.costs is None else method.costs(config, profile.sampler)
    filled = _pool_cost(config, profile) if costs is None else costs.pool
    if filled is None or budget.kind == "seconds":
        return
    pool = getattr(filled, budget.kind)
    if pool >= budget.limit:
        raise BenchError(
            f"The pool takes {pool:,} {budget.kind}, the whole budget of {budget.limit:,}.",
            "Lower method.pool.prompts or raise --budget.",
            2,
        )
    if costs is None:
        return
    collected, update, measured = (
        getattr(part, budget.kind) for part in (costs.collected, costs.update, costs.measured)
    )
    if costs.rounds is None and pool + collected >= budget.limit:
        raise BenchError(
            f"The budget of {budget.limit:,} {budget.kind} ends before the first update, which {pool + collected:,} of "
            "sampling precede.",
            "Raise --budget.",
            2,
        )
    later = (costs.rounds or 1) - 1
    if later and pool + later * (collected + measured + costs.updates * update) >= budget.limit:
        raise BenchError(
            f"The budget of {budget.limit:,} {budget.kind} ends before the last of {costs.rounds} rounds is trained.",
            "Lower method.online.updates, or raise --budget.",
            2,
        )


def _pool_cost(config: Any, profile: Profile) -> Cost | None:
    """Of the pool of a method that does not foretell its costs, if it has one."""
    from gdro_bench.methods.parts.offline import pool_cost  # with torch, as the method's own module

    pool = uses_of(config).pool
    return None if pool is None else pool_cost(pool, profile.sampler)


def all_prompts(task: Task, profile: Profile) -> list[Prompt]:
    """All that a run of any method may show the model, but for one's own files and the empty prompt.

    Raises:
        BenchError: the task has no such prompts, or their file is not in order.
    """
    return [*_training_prompts(task, profile, None), *_held_out_prompts(task, profile, None)]


def _training_prompts(task: Task, profile: Profile, own: Path | None) -> list[Prompt]:
    path = own or content.find("task", task.name) / _prompt_set(task, profile).train
    return tasks.read_prompts(path, prompt_reader(task))


def _held_out_prompts(task: Task, profile: Profile, own: Path | None) -> list[Prompt]:
    """The profile's, or all of one's own, as often as the task generates them. The first of them are kept and shown, so
    their kinds take turns."""
    prompt_set = _prompt_set(task, profile)
    path = own or content.find("task", task.name) / prompt_set.held_out
    prompts = tasks.interleave_kinds(tasks.read_prompts(path, prompt_reader(task)))
    return tasks.repeat_draws(prompts if own else prompts[: profile.held_out_prompts], prompt_set.images or 1)


def _prompt_set(task: Task, profile: Profile) -> PromptSet:
    if profile.prompts not in task.prompts:  # a set that is called nearly so is another: no guess
        raise BenchError(
            f"The task {task.name!r} has no prompt set {profile.prompts!r}; it has: {', '.join(task.prompts)}.",
            f"Add [prompts.{profile.prompts}] with train and held_out to its task.toml.",
            2,
        )
    return task.prompts[profile.prompts]


def prompt_reader(task: Task) -> PromptOf:
    """What makes the task's prompts of text and metadata.

    Raises:
        BenchError: the task's reward is not known, or has no reader of prompts.
    """
    registry.check("reward", task.reward)
    if task.reward not in registry.names("prompt"):
        raise BenchError(
            f"The reward {task.reward!r} has no reader of prompt lines.",
            f'Register one: "gdro_bench.prompts".{task.reward} = "gdro_bench.task:plain_prompt", say.',
            2,
        )
    reader: PromptOf = registry.lookup("prompt", task.reward)
    return reader
