"""Runs under one folder -> the groups that share a figure each, and what keeps the groups apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gdro_bench import content
from gdro_bench.comparison.entries import LoadedRun, distinct, finished_and_begun, identity, load
from gdro_bench.engine import record

LONGEST = 60  # characters of a folder's suffix


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that share a figure. `name` is that of their report's folder; `remark` says in a sentence what keeps them
    apart from the main group of their task and profile, if they are not that group."""

    name: str
    runs: list[LoadedRun]
    remark: str = ""


def groups(named: Sequence[Path], runs: Path) -> tuple[list[Group], list[Path]]:
    """The runs to compare in groups, and the folders of unfinished ones.

    Args:
        named: folders that hold runs and must share one figure. runs: where to look if none is named; there, runs of
            one task and profile that differ in more than method and seed come apart. First comes the group that
            leaves the profile as it is, or the largest one.

    Raises:
        BenchError: there is nothing to compare, or a named folder is of no use.
    """
    folders, unfinished = finished_and_begun(named, runs)
    loaded = [load(folder) for folder in folders]
    if named:
        return [Group(_base_name(loaded[0]), loaded)], unfinished
    return apart(loaded), unfinished


def apart(loaded: Sequence[LoadedRun]) -> list[Group]:
    """Runs of any task and profile, in groups that may share a figure. Of a record in two folders one copy counts."""
    kept = set(distinct([run.folder for run in loaded]))
    by_task: dict[str, list[LoadedRun]] = {}
    for run in (run for run in loaded if run.folder in kept):
        by_task.setdefault(_base_name(run), []).append(run)
    return [group for name, of_task in by_task.items() for group in _split(name, of_task)]


def _base_name(run: LoadedRun) -> str:
    return _safe(f"{run.run.task}-{run.run.profile}")  # a folder's name; the record may be anybody's


def _split(name: str, runs: Sequence[LoadedRun]) -> list[Group]:
    """Runs of one task and profile by their identity: the main group, then the others."""
    by_identity: dict[str, list[LoadedRun]] = {}
    for run in runs:
        by_identity.setdefault(json.dumps(identity(run.run), sort_keys=True), []).append(run)
    main, *others = sorted(by_identity.values(), key=lambda runs: (bool(changes(runs)), -len(runs)))
    apart = [_apart(name, main[0], other) for other in others]
    names = [group.name for group in apart]
    return [Group(name, main), *(g if names.count(g.name) == 1 else _digested(g) for g in apart)]


def changes(runs: Sequence[LoadedRun]) -> set[str]:
    """What was changed for these runs that moves results, besides settings of their methods: names such as
    `profile.budget.limit`."""
    names = {setting.partition("=")[0] for run in runs for setting in run.run.changed}
    return {name for name in names if not name.startswith("method.") and record.moves_results(name)}


def _apart(name: str, main: LoadedRun, runs: list[LoadedRun]) -> Group:
    """Named by the first field in which its runs differ from the main group's."""
    reference, own = identity(main.run), identity(runs[0].run)
    field = next(f for f in reference | own if reference.get(f) != own.get(f))
    suffix = f"{field.removeprefix('digest of ').removeprefix('profile.')}-{own.get(field)}"
    remark = (
        f"Apart from {name}: {_counted(runs)} with {field} {own.get(field)}, where the others have "
        f"{reference.get(field)}."
    )
    return Group(f"{name}-{_safe(suffix)}", runs, remark)


def _counted(runs: Sequence[LoadedRun]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"


def _safe(text: str) -> str:
    """In letters that are safe in a path; what is too long is digested."""
    short = text if len(text) <= LONGEST else content.digest(text)[:12]
    return content.safe_name(short)


def _digested(group: Group) -> Group:
    """Of groups whose first difference is the same, each with the digest of all that it is."""
    return Group(f"{group.name}-{content.digest(identity(group.runs[0].run))[:8]}", group.runs, group.remark)
