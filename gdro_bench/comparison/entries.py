"""Finished runs -> methods with their scores, judgements and costs. Knows nothing of torch.

An entry is one method with one set of settings, and all its seeds. Entries share a figure only if their runs were made
for the same task, model, instruments, prompts and budget.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gdro_bench import content, stats, task
from gdro_bench.engine import judging, record
from gdro_bench.engine.record import Point, Run
from gdro_bench.errors import BenchError, unknown
from gdro_bench.score import corrected_score
from gdro_bench.task import Correction

Floats = NDArray[np.float64]
Setting = tuple[str, str]  # (method, name): a setting of a method that runs differ in
CORRECTED = "corrected"  # the part that is made of the means of two others
FIRST_RUNS = "Type: gdro-bench sweep ocr --method gdro --method flow-grpo --seeds 0,1,2"
AXES = {
    "evaluations": "velocity evaluations",
    "seconds": "device seconds",
    "images": "images sampled or trained on",
    "updates": "optimiser updates",
}


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A finished run with its scores.

    `parts` holds the reward (as `reward`), its parts and the judgements, [M, N] at M evaluation points (the base's
    first) of N prompts; `notes`, [M][N], what was read or detected; `seconds` what was spent until each point; `judges`
    the instruments that judged it, `to_judge` how many pictures they were shown, `unjudged` how many got no rating.
    """

    run: Run
    folder: Path
    prompts: tuple[str, ...]
    parts: dict[str, Floats]
    notes: list[list[str]]
    seconds: list[dict[str, float]]
    judges: dict[str, str]
    correction: Correction
    to_judge: int = 0
    unjudged: int = 0


@dataclass(frozen=True, eq=False)
class Entry:
    """One method with one set of settings; its runs by seed. No two are equal but one and itself."""

    label: str
    runs: tuple[LoadedRun, ...]

    @property
    def method(self) -> str:
        return self.runs[0].run.method

    @property
    def points(self) -> tuple[Point, ...]:
        """Of the first seed: all seeds have the same evaluation points."""
        return self.runs[0].run.points

    @property
    def seeds(self) -> list[int]:
        return [run.run.seed for run in self.runs]

    @cached_property
    def seed_weights(self) -> stats.Weights:
        """As many seeds of one method are drawn alike, whatever its settings and its label: see `same_seeds`."""
        return stats.draws_of_few(len(self.runs), content.seed("seeds", self.method))

    def values(self, part: str) -> Floats:
        """[S, M, N]."""
        stacked: Floats = np.stack([run.parts[part] for run in self.runs])
        return stacked

    def mean(self, part: str) -> Floats:
        """[M], over seeds and scored prompts; of the corrected score, that of the means."""
        if part == CORRECTED:
            reward, u = self._judged()
            return corrected_score(
                stats.known_mean(reward, (0, 2)), stats.known_mean(u, (0, 2)), self.runs[0].correction
            )
        return stats.known_mean(self.values(part), (0, 2))

    def replicates(self, part: str, prompts: stats.Weights) -> Floats:
        """[R, M]; the last ones of each part are kept, since tables and curves ask for the same."""
        known = self._replicates.get(part)
        if known is None or known[0] is not prompts:
            known = self._replicates[part] = (prompts, self._resampled(part, prompts))
        return known[1]

    @cached_property
    def _replicates(self) -> dict[str, tuple[stats.Weights, Floats]]:
        return {}

    def _resampled(self, part: str, prompts: stats.Weights) -> Floats:
        if part == CORRECTED:
            reward, u = (stats.replicates(values, self.seed_weights, prompts) for values in self._judged())
            return corrected_score(reward, u, self.runs[0].correction)
        return stats.replicates(self.values(part), self.seed_weights, prompts)

    def _judged(self) -> tuple[Floats, Floats]:
        """Reward and judge's mean, [S, M, N] each, where there are both."""
        reward, u = self.values("reward"), self.values("u")
        lacking = np.isnan(reward) | np.isnan(u)
        return np.where(lacking, np.nan, reward), np.where(lacking, np.nan, u)

    def lacking(self, part: str, mark: int) -> NDArray[np.bool_]:
        """Which prompts have no score of a part at the evaluation point of this index, [S, N]."""
        values = self._judged()[0] if part == CORRECTED else self.values(part)
        missing: NDArray[np.bool_] = np.isnan(values[:, mark])
        return missing

    def without(self, prompts: NDArray[np.bool_]) -> Entry:
        """The same, with no scores of these prompts, [N]."""
        parts = [{n: np.where(prompts, np.nan, values) for n, values in run.parts.items()} for run in self.runs]
        return Entry(self.label, tuple(replace(run, parts=p) for run, p in zip(self.runs, parts, strict=True)))

    def cost(self, axis: str, with_pool: bool) -> Floats:
        """Spent until each evaluation point, mean over seeds: [M]."""
        per_seed = [[_cost(run, i, axis, with_pool) for i in range(len(self.points))] for run in self.runs]
        mean: Floats = np.mean(per_seed, axis=0)
        return mean

    @property
    def first_update(self) -> int:
        """The first evaluation point after an update."""
        return next((i for i, point in enumerate(self.points) if point.updates), len(self.points))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Entries that share a figure, the one that the others are held against, and the prompts' bootstrap weights."""

    entries: tuple[Entry, ...]
    reference: Entry
    prompt_weights: stats.Weights
    ablations: dict[Setting, tuple[Entry, ...]]  # what one setting does

    @property
    def first(self) -> Run:
        return self.reference.runs[0].run

    @property
    def all_entries(self) -> list[Entry]:
        """Those of the main figures, then those that are in ablations only."""
        varied = {entry.label: entry for entries in self.ablations.values() for entry in entries}
        return [*self.entries, *(entry for entry in varied.values() if entry not in self.entries)]

    @property
    def parts(self) -> list[str]:
        return parts_of(self.entries)

    @property
    def instruments(self) -> dict[str, str]:
        runs = [run for entry in self.entries for run in entry.runs]
        judges = self.reference.runs[0].judges
        of_all = {role: name for role, name in judges.items() if all(role in run.judges for run in runs)}
        return self.first.instruments | of_all


def parts_of(entries: Sequence[Entry]) -> list[str]:
    """What all runs of these entries have besides the reward, the corrected score first if they were judged."""
    runs = [run for entry in entries for run in entry.runs]
    shared = [name for name in runs[0].parts if name != "reward" and all(name in run.parts for run in runs)]
    return [CORRECTED, *shared] if "u" in shared else shared


@lru_cache(maxsize=256)
def same_seeds(entry: Entry, other: Entry) -> tuple[Entry, Entry]:
    """Two entries as one is held against the other. Variants of one method: over the seeds that both have, which are
    then drawn together, since runs of one seed share its luck: the pool and all that is drawn first."""
    both = set(entry.seeds) & set(other.seeds)
    if entry.method != other.method or not both:
        return entry, other
    one, two = (
        of if len(both) == len(of.runs) else Entry(of.label, tuple(run for run in of.runs if run.run.seed in both))
        for of in (entry, other)
    )
    return one, two


# ---------------------------------------------------------------------------------------------------------------
# From folders to entries


def find(folder: Path) -> tuple[set[Path], set[Path]]:
    """The folders of finished and of unfinished runs under this one."""
    finished, begun = ({path.parent for path in folder.rglob(name)} for name in ("run.json", "plan.json"))
    return finished, begun - finished


def finished(named: Sequence[Path], runs: Path) -> list[Path]:
    """The folders of finished runs in those that were named, or under `runs` if none was.

    Raises:
        BenchError: one of them holds no finished run.
    """
    return finished_and_begun(named, runs)[0]


def finished_and_begun(named: Sequence[Path], runs: Path) -> tuple[list[Path], list[Path]]:
    """The folders of finished and of unfinished runs in those that were named, or under `runs` if none was.

    Raises:
        BenchError: one of them holds no finished run.
    """
    ended: set[Path] = set()
    begun: set[Path] = set()
    for folder in named or [runs]:
        if named and not folder.is_dir():
            raise BenchError(f"There is no folder {folder}.", "Name folders of runs, or one that holds them.", 2)
        here, unfinished = find(folder)
        if unfinished and not here:
            raise BenchError(f"The run in {min(unfinished)} is not finished.", "Type its command again to finish it.")
        if not here:
            raise BenchError(f"There is no finished run in {folder}.", FIRST_RUNS)
        ended |= here
        begun |= unfinished
    return sorted(ended), sorted(begun)


def distinct(folders: Sequence[Path]) -> list[Path]:
    """Of a record in two folders one copy counts: the first."""
    once: dict[bytes, Path] = {}
    for folder in folders:
        once.setdefault((folder / "run.json").read_bytes(), folder)
    return list(once.values())


def load(folder: Path) -> LoadedRun:
    """A finished run.

    Raises:
        BenchError: it is not finished, of another schema, or one of its files is missing or damaged.
    """
    run = record.read(folder)
    shape = (len(run.points), -1)
    try:
        scores = record.read_scores(folder)
        names = [name for name in scores if name not in record.SCORE_COLUMNS]
        parts = {name: scores[name].to_numpy(float).reshape(shape) for name in ("value", *names)}
        notes, texts = scores["note"].to_numpy().reshape(shape), scores["text"]
    except (OSError, ValueError, KeyError) as error:
        raise BenchError(
            f"{folder / 'scores.parquet'} cannot be read: {error}.", f"Delete {folder} and run it again."
        ) from error
    value = parts.pop("value")
    parts = {"reward": value} | {name: part for name, part in parts.items() if name != "reward"}
    seconds, correction = _seconds(folder, run), _correction(folder, run)
    judges, judged = _judgements(run, folder)
    if judged is not None:
        parts |= _judged_parts(run, judged, parts["reward"], correction)
    to_judge, unjudged = (0, 0) if judged is None or "u" not in judged else (len(judged), int(judged["u"].isna().sum()))
    prompts = tuple(texts[: notes.shape[1]])
    return LoadedRun(run, folder, prompts, parts, notes.tolist(), seconds, judges, correction, to_judge, unjudged)


def _correction(folder: Path, run: Run) -> Correction:
    """Of the run's task.

    Raises:
        BenchError: the task is not to be found from here, or its file is not in order."""
    try:
        return task.load(run.task).correction
    except BenchError as error:
        raise BenchError(
            f"{folder} is of the task {run.task!r}, which cannot be had here. {error.problem}",
            "Type the command where the task's folder tasks/ lies, or name other runs.", 2,
        ) from error  # fmt: skip


TIMED = ("pool", "collection", "optimisation")


def _seconds(folder: Path, run: Run) -> list[dict[str, float]]:
    """Seconds spent until each evaluation point; NaN if the run's timing was not kept.

    Raises:
        BenchError: the file is damaged.
    """
    path = folder / "timing.json"
    if not path.exists():
        return [dict.fromkeys(TIMED, np.nan)] * len(run.points)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        seconds = [{name: float(row[name]) for name in TIMED} for row in rows]
        if len(seconds) != len(run.points):
            raise ValueError(f"{len(seconds)} rows for {len(run.points)} evaluation points")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{path} cannot be read: {error}.", "Delete that file: nothing but the axis of seconds needs it."
        ) from error
    return seconds


def _judgements(run: Run, folder: Path) -> tuple[dict[str, str], pd.DataFrame | None]:
    """The instruments that judged a run and their table; none if it was not judged, or not at every evaluation point.

    Raises:
        BenchError: a file of theirs is damaged.
    """
    try:
        if not judging.is_complete(run, folder):
            return {}, None
        return judging.instruments(folder), judging.read(folder)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BenchError(
            f"The judgements in {folder} cannot be read: {error}.",
            f"Delete {judging.TABLE} there, then: gdro-bench judge {folder}",
        ) from error


def _judged_parts(run: Run, table: pd.DataFrame, reward: Floats, correction: Correction) -> dict[str, Floats]:
    """The judgements, [M, N] each, NaN where no picture was kept; and each picture's own corrected score."""
    marks = {point.mark: i for i, point in enumerate(run.points)}
    at = table["mark"].map(marks).to_numpy(), table["prompt"].to_numpy()
    parts: dict[str, Floats] = {}
    for name in table.select_dtypes("number"):
        if name not in ("mark", "prompt"):
            parts[name] = np.full(reward.shape, np.nan)
            parts[name][at] = table[name]
    if "u" in parts:
        parts["corrected_each"] = corrected_score(reward, parts["u"], correction)
    if "second_reader" in parts:
        parts["agreement"] = 1 - np.abs(reward - parts["second_reader"])
    return parts


def identity(run: Run) -> dict[str, Any]:
    """All that must be equal for runs to share a figure, by name; single settings before the digests of many."""
    settings = content.flatten({"profile": record.identity_settings(run.settings["profile"])})
    digests = {f"digest of {name}": value for name, value in run.digests.items() if name not in ("method", "profile")}
    own = {"task": run.task, "profile": run.profile, "budget kind": run.budget_kind, "budget": run.limit}
    return own | run.instruments | settings | digests


def check_judges(runs: Sequence[LoadedRun]) -> None:
    """An instrument that has not seen all runs tells nothing of any.

    Raises:
        BenchError: in one role, two runs were judged by different instruments."""
    first: dict[str, LoadedRun] = {}
    for run in runs:
        for role, name in run.judges.items():
            other = first.setdefault(role, run)
            if other.judges[role] != name:
                raise BenchError(
                    f"The {role} of {other.folder} was {other.judges[role]!r}, that of {run.folder} {name!r}.",
                    "Judge them alike: gdro-bench judge FOLDER FOLDER ...",
                )


def check_comparable(runs: Sequence[LoadedRun]) -> None:
    """Raises:
    BenchError: naming the first field in which two runs differ, and both values."""
    first = identity(runs[0].run)
    for other in runs[1:]:
        for field, value in identity(other.run).items():
            if first.get(field) != value:
                raise BenchError(
                    f"{runs[0].folder} and {other.folder} cannot share a figure: "
                    f"{field} is {first.get(field)} in one, {value} in the other.",
                    "Name the folders that belong together: gdro-bench compare FOLDER FOLDER ...; or none, for a "
                    "report of each setting: gdro-bench compare --runs FOLDER",
                )


def compare(runs: Sequence[LoadedRun], variants: bool, reference: str | None = None) -> Comparison:
    """Runs that may share a figure as a comparison.

    Args:
        variants: whether methods with changed settings are entries of their own even where the unchanged one is there.
        reference: label of the entry that the others are held against; GDRO's if None, or the first without it.

    Raises:
        BenchError: the runs differ in what they must share, two are of one seed, two methods are called alike, or there
            is no such reference.
    """
    check_comparable(runs)
    check_judges(runs)
    entries = _entries(runs)
    _check_labels(entries)
    plain = {entry.method for entry in entries if not _changed(entry)}
    shown = [e for e in entries if variants or not _changed(e) or e.method not in plain]
    labelled = {entry.label: entry for entry in shown}
    if reference is not None and reference not in labelled:
        raise unknown("method to compare with called", reference, labelled)
    held_against = shown[0] if reference is None else labelled[reference]
    weights = stats.draws_of(runs[0].prompts, seed=0)
    return Comparison(tuple(shown), held_against, weights, _ablations(entries))


def named(compared: Comparison, names: Mapping[str, str]) -> Comparison:
    """The same comparison, with names in place of labels: label, or method if it has one entry, -> name; other entries
    keep theirs.

    Raises:
        BenchError: a name is empty, or two entries would have it.
    """
    labels = [entry.label for entry in compared.all_entries]
    for name in list(names):  # a method alone will do, where it has one entry
        of_method = [entry.label for entry in compared.all_entries if entry.method == name]
        if name not in labels and len(of_method) == 1:
            names = {of_method[0] if label == name else label: given for label, given in names.items()}
    of = {entry.label: replace(entry, label=names.get(entry.label, entry.label)) for entry in compared.all_entries}
    called = [entry.label for entry in of.values()]
    for name in names.values():
        if not name.strip():
            raise BenchError("A method's name is empty.", "Give it one: --name METHOD NAME.", 2)
        if called.count(name) > 1:
            raise BenchError(f"Two methods would be called {name!r}.", "Give each its own: --name METHOD NAME.", 2)
    ablations = {number: tuple(of[e.label] for e in varied) for number, varied in compared.ablations.items()}
    shown = tuple(of[entry.label] for entry in compared.entries)
    return Comparison(shown, of[compared.reference.label], compared.prompt_weights, ablations)


def _entries(runs: Sequence[LoadedRun]) -> list[Entry]:
    groups: dict[tuple[str, str], dict[int, LoadedRun]] = {}
    for run in runs:
        seeds = groups.setdefault((run.run.method, run.run.digests["method"]), {})
        if run.run.seed in seeds:
            raise BenchError(
                f"{seeds[run.run.seed].folder} and {run.folder} are both seed {run.run.seed} of {run.run.method}.",
                "Leave one out.",
            )
        seeds[run.run.seed] = run
    made = [Entry(label_of(next(iter(g.values())).run), tuple(g[s] for s in sorted(g))) for g in groups.values()]
    return sorted(made, key=lambda entry: (entry.method != "gdro", _natural(entry.label)))


def _check_labels(entries: Sequence[Entry]) -> None:
    """Raises:
    BenchError: two entries have one label, since a file of settings was changed between their runs."""
    known: dict[str, LoadedRun] = {}
    for entry in entries:
        run = entry.runs[0]
        other = known.setdefault(entry.label, run)
        if other is not run:
            ours, theirs = (content.flatten(one.run.settings["method"]) for one in (other, run))
            name = next((name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)), "its file")
            raise BenchError(
                f"{other.folder} and {run.folder} are both called {entry.label}, but their settings are not the same: "
                f"{name} is {ours.get(name)} in one, {theirs.get(name)} in the other.",
                "Leave one out, or run it again with today's settings.",
            )


def _natural(label: str) -> list[tuple[float, str]]:
    """A key that sorts a label's settings by their size: `pool.prompts=48` before `pool.prompts=192`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)  # text and numbers in turn
    return [(float(part), "") if i % 2 else (0.0, part) for i, part in enumerate(parts)]


def label_of(run: Run) -> str:
    """What its entry is called: the method, and the settings of it that were changed."""
    changes = ", ".join(setting.removeprefix("method.") for setting in run.changed if setting.startswith("method."))
    return f"{run.method} ({changes})" if changes else run.method


def _changed(entry: Entry) -> list[str]:
    return [setting for setting in entry.runs[0].run.changed if setting.startswith("method.")]


def _ablations(entries: Sequence[Entry]) -> dict[Setting, tuple[Entry, ...]]:
    """For each setting of a method that alone was changed: the entries, the unchanged one among them, by its value."""
    varied_by: dict[Setting, list[Entry]] = {}
    for entry in entries:
        if len(_changed(entry)) == 1:
            name = _changed(entry)[0].split("=")[0].removeprefix("method.")
            varied_by.setdefault((entry.method, name), []).append(entry)
    for (method, name), varied in varied_by.items():
        varied += [entry for entry in entries if entry.method == method and not _changed(entry)]
        varied.sort(key=lambda entry: _order(setting_of(entry, name)))
    return {key: tuple(varied) for key, varied in sorted(varied_by.items()) if len(varied) > 1}


def setting_of(entry: Entry, name: str) -> Any:
    """The value that an entry has for a setting of its method, such as `optimiser.learning_rate`; "default" where its
    file leaves it out."""
    return content.flatten(entry.runs[0].run.settings["method"]).get(name, "default")


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by their size, then all else by how it is written."""
    is_number = isinstance(value, int | float)
    return (not is_number, float(value) if is_number else 0.0, str(value))


def _cost(run: LoadedRun, i: int, axis: str, with_pool: bool) -> float:
    point, seconds = run.run.points[i], run.seconds[i]
    total, pool = {
        "evaluations": (point.collection_evaluations + point.optimisation_evaluations, point.pool_evaluations),
        "images": (point.images_sampled + point.images_trained, point.pool_images),
        "seconds": (seconds["collection"] + seconds["optimisation"], seconds["pool"]),
        "updates": (point.updates, 0),
    }[axis]
    return float(total if with_pool else total - pool)
