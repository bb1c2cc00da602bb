"""Judgements of a finished run's pictures by instruments that no method ever sees: a table beside the record, made when
the run ends or at any time later from the pictures that it kept.

`judged.parquet` has a row for each kept picture of every evaluation point: `mark`, `prompt`, the judge's mean `u` over
the task's axes and the axes themselves, `gold` where a gold score is known and its parts (`error ...`: 1 where the
picture has an error of this kind, NaN where the prompt does not allow it), `second_reader`, the reward by another
reader, and the instruments' notes. Its schema metadata name the instruments.

New judgements are collected in `judged.partial.parquet`, saved after every evaluation point, and take the place of the
old ones when they are complete: until then nothing is lost. A judgement that failed is NaN and is asked for again when
the same command is given again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gdro_bench import content, stats, task
from gdro_bench.engine import record, samples
from gdro_bench.engine.plan import prompt_reader
from gdro_bench.engine.record import Point, Run
from gdro_bench.errors import BenchError, first_line
from gdro_bench.files import write_atomically
from gdro_bench.profile import JudgeConfig
from gdro_bench.score import Score, Scorer, check_axes, corrected_score, judge_mean, open_scorer
from gdro_bench.stats import Estimate
from gdro_bench.task import Correction, Prompt, Task

BATCH = 64
TABLE, PARTIAL = "judged.parquet", "judged.partial.parquet"
METADATA = b"gdro-bench instruments"
OUTSIDE = "not a prompt of"  # in the note of a judge that does not know this kind of prompt, which is no failure
VALUES = {"judge": "u", "second reader": "second_reader"}  # the column of each instrument that can fail
Done = Callable[[int, int], None]  # pictures judged, of how many
Row = dict[str, Any]


class PicturesGone(BenchError):
    """A run whose pictures were deleted; others can be judged all the same."""


def open_judges(config: JudgeConfig) -> dict[str, Scorer]:
    """The instruments by role: `judge`, `gold` and `second reader`, those that the profile names.

    Raises:
        BenchError: an unknown name, or an instrument that cannot be had.
    """
    return {role: open_scorer("judge", name, config) for role, name in _named(config).items()}


def _named(config: JudgeConfig) -> dict[str, str]:
    named = {"judge": config.name, "gold": config.gold, "second reader": config.second_reader}
    return {role: name for role, name in named.items() if name != "none"}


def judge_run(folder: Path, judges: Mapping[str, Scorer], done: Done) -> None:
    """Judges those of a finished run's pictures that these very instruments have not judged yet.

    Raises:
        PicturesGone: they were deleted.
        BenchError: the run is not finished, ratings would be lost, a judge does not answer, or it failed on more than
            the profile's share `max_unscored` of an evaluation point.
    """
    run, names = record.read(folder), _names(judges)
    _check_asked(folder, judges)
    rows, begun = _rows_by(folder, names)
    if not begun and not any(_is_missing(folder, point, rows) for point in run.points):
        return
    evaluation = _Judging(folder, run, judges, _prompts(run, folder), task.load(run.task).correction, done)
    complete: list[Row] = []
    for before, point in zip((None, *run.points), run.points, strict=False):
        if before is not None and before.updates == point.updates:  # the same model, the same pictures
            complete += [row | {"mark": point.mark} for row in complete if row["mark"] == before.mark]
        else:
            at_point = evaluation.rows(point, [row for row in rows if row["mark"] == point.mark])
            complete += at_point
            later = [row for row in rows if row["mark"] > point.mark]
            _write(folder / PARTIAL, complete + later, names)
            evaluation.check(at_point)
    _check_any(folder, judges, complete)
    _write(folder / PARTIAL, complete, names)
    (folder / PARTIAL).replace(folder / TABLE)


def _has_ratings(folder: Path) -> bool:
    return (folder / TABLE).exists() and bool(read(folder).get("u", pd.Series(dtype=float)).notna().any())


def _check_asked(folder: Path, judges: Mapping[str, Scorer]) -> None:
    """Raises:
    BenchError: no judge is asked, and what the others say would take the place of ratings."""
    if "judge" not in judges and _has_ratings(folder):
        problem = f"{folder} has a judge's ratings, which would be lost: no judge was asked."
        raise BenchError(problem, f"Name the judge, too, or delete {folder / TABLE}.")


def _check_any(folder: Path, judges: Mapping[str, Scorer], rows: list[Row]) -> None:
    """Raises:
    BenchError: the judge rated nothing, and would take the place of one that did."""
    rated = "judge" not in judges or any(not np.isnan(row["u"]) for row in rows)
    if rated or not _has_ratings(folder):
        return
    (folder / PARTIAL).unlink(missing_ok=True)
    raise BenchError(
        f"{judges['judge'].name} rated none of the pictures of {folder}: {rows[0]['judge_note']}.",
        "The ratings that are there stand. Choose a judge that knows these prompts.",
    )


def _rows_by(folder: Path, names: Mapping[str, str]) -> tuple[list[Row], bool]:
    """What these instruments have judged so far, and whether that is a table that they have not finished."""
    for table in (PARTIAL, TABLE):
        if (folder / table).exists() and _instruments(folder, table) == names:
            return _read(folder / table).to_dict("records"), table == PARTIAL
    return [], False


def _is_missing(folder: Path, point: Point, rows: list[Row]) -> bool:
    """Whether a picture of an evaluation point has not been judged."""
    at_point = [row for row in rows if row["mark"] == point.mark]
    kept = len(samples.numbers(samples.path_of(folder, point.mark)))
    return len(at_point) < max(kept, 1) or any(map(failures, at_point))


def finish(run: Run, folder: Path, config: JudgeConfig, done: Done) -> None:
    """Has a finished run judged by its profile's judges; does nothing if the profile names none, if the run is judged,
    or if other instruments have begun to."""
    if not _named(config) or _is_judged(run, folder):
        return
    judges = open_judges(config)
    if all(_instruments(folder, table) in ({}, _names(judges)) for table in (TABLE, PARTIAL)):
        judge_run(folder, judges, done)


def _is_judged(run: Run, folder: Path) -> bool:
    """Whether every evaluation point is, but for as few failures as the profile allows."""
    if not is_complete(run, folder):
        return False
    rows = read(folder)
    shares = (
        rows.assign(failed=[bool(failures(row)) for row in rows.to_dict("records")]).groupby("mark")["failed"].mean()
    )
    return bool((shares <= _max_unjudged(run)).all())


def _max_unjudged(run: Run) -> float:
    return float(run.settings["profile"].get("max_unscored", 1.0))


def _names(judges: Mapping[str, Scorer]) -> dict[str, str]:
    return {role: judge.name for role, judge in judges.items()}


def failures(row: Mapping[str, Any]) -> dict[str, str]:
    """The instruments that were asked and gave no judgement, by role, with the reason. A gold score may be unknown, and
    a judge may not know this kind of prompt: these are no failures, and asking again would not help."""
    notes = {role: str(row.get(f"{role.replace(' ', '_')}_note", "")) for role in VALUES if VALUES[role] in row}
    return {role: note for role, note in notes.items() if np.isnan(row[VALUES[role]]) and OUTSIDE not in note}


# ---------------------------------------------------------------------------------------------------------------
# The table


def instruments(folder: Path) -> dict[str, str]:
    """Which instruments judged a run, by role; none if it was not judged.

    Raises:
        BenchError: the table is damaged.
    """
    return _instruments(folder, TABLE)


def _instruments(folder: Path, table: str) -> dict[str, str]:
    path = folder / table
    if not path.exists():
        return {}
    try:
        text = (pq.read_schema(path).metadata or {}).get(METADATA, b"{}")
        return {str(role): str(name) for role, name in json.loads(text).items()}
    except (OSError, ValueError, AttributeError) as error:  # pyarrow's own errors are ValueErrors
        raise _damaged(path, error) from error


def read(folder: Path) -> pd.DataFrame:
    """Raises:
    BenchError: the table is damaged."""
    return _read(folder / TABLE)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BenchError:
    reason = first_line(error).rstrip(".")
    return BenchError(
        f"{path} cannot be read: {reason}.", f"Delete that file, then run `gdro-bench judge {path.parent}`."
    )


def _write(path: Path, rows: list[Row], names: Mapping[str, str]) -> None:
    table = pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)
    table = table.replace_schema_metadata((table.schema.metadata or {}) | {METADATA: json.dumps(dict(names)).encode()})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    write_atomically(path, buffer.getvalue().to_pybytes())


def corrected_mean(
    reward: NDArray[np.float64], u: NDArray[np.float64], texts: Sequence[str], correction: Correction
) -> Estimate:
    """The corrected score of the means of reward [N] and u [N], over the pictures that have both, with its 95 %
    interval over prompts; all NaN if none has."""
    both = ~np.isnan(reward) & ~np.isnan(u)
    if not both.any():
        return Estimate(np.nan, np.nan, np.nan)
    r, v = reward[both], u[both]
    weights = stats.draws_of([text for text, there in zip(texts, both, strict=True) if there], seed=0)
    weights /= weights.sum(axis=1, keepdims=True)
    whole = corrected_score(np.array([r.mean()]), np.array([v.mean()]), correction)[0]
    return stats.estimate(float(whole), corrected_score(weights @ r, weights @ v, correction))


def is_complete(run: Run, folder: Path) -> bool:
    """Whether every evaluation point has been judged, by whatever instruments."""
    if not (folder / TABLE).exists():
        return False
    return set(read(folder)["mark"]) == {point.mark for point in run.points}


# ---------------------------------------------------------------------------------------------------------------
# Asking the judges


def _prompts(run: Run, folder: Path) -> list[Prompt]:
    """The held-out prompts as the task reads them, by number. Of a user's own file the record keeps the texts alone:
    these get their quoted text as target."""
    scores = record.read_scores(folder)
    texts = scores[scores["mark"] == 0.0].sort_values("prompt")["text"]
    known = _known_prompts(task.load(run.task), run.settings["profile"].get("prompts", ""))
    return [known.get(text) or Prompt(text, task.first_quoted(text) or "") for text in texts]


def _known_prompts(of: Task, prompt_set: str) -> dict[str, Prompt]:
    """The task's own held-out prompts by their text."""
    if prompt_set not in of.prompts:
        return {}
    path = content.find("task", of.name) / of.prompts[prompt_set].held_out
    return {prompt.text: prompt for prompt in task.read_prompts(path, prompt_reader(of))}


@dataclass(frozen=True, slots=True)
class _Judging:
    """A run being judged."""

    folder: Path
    run: Run
    judges: Mapping[str, Scorer]
    prompts: list[Prompt]
    correction: Correction
    done: Done

    def rows(self, point: Point, old: list[Row]) -> list[Row]:
        """A row for each picture of an evaluation point; those of `old` that did not fail are kept as they are. Stops
        asking once too many have failed.

        Raises:
            PicturesGone: they were deleted.
            BenchError: a judge does not answer.
        """
        path = samples.path_of(self.folder, point.mark)
        kept = samples.numbers(path)
        if not kept and old:
            return old
        if not kept:
            raise PicturesGone(
                f"The pictures of {self.folder} at {point.mark:.0%} are gone.",
                "Its record stands. To judge it, repeat the run with another --out; leave it out here.",
            )
        rows = {row["prompt"]: row for row in old if not failures(row)}
        missing = [number for number in kept if number not in rows]
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            rows |= {row["prompt"]: {"mark": point.mark} | row for row in self._ask(path, batch)}
            self.done(len(rows), len(kept))
            if len([row for row in rows.values() if failures(row)]) > _max_unjudged(self.run) * len(kept):
                break
        return [rows[number] for number in kept if number in rows]

    def _ask(self, path: Path, numbers: list[int]) -> list[Row]:
        images, prompts = samples.read(path, numbers), [self.prompts[number] for number in numbers]
        scores = {role: judge(images, prompts) for role, judge in self.judges.items()}
        if "judge" in scores:
            check_axes(self.judges["judge"], scores["judge"], self.correction)
        return [
            {"prompt": number} | _columns({role: each[i] for role, each in scores.items()}, self.correction)
            for i, number in enumerate(numbers)
        ]

    def check(self, rows: list[Row]) -> None:
        """Raises:
        BenchError: the judge failed on too many pictures of an evaluation point."""
        failed = [next(iter(failures(row).items())) for row in rows if failures(row)]
        kept = max(len(rows), len(samples.numbers(samples.path_of(self.folder, rows[0]["mark"]))))
        if len(failed) > _max_unjudged(self.run) * kept:
            role, note = failed[-1]
            raise BenchError(
                f"{self.judges[role].name} gave no judgement on {len(failed)} of {kept} pictures of {self.folder} at "
                f"{rows[0]['mark']:.0%} ({note.removeprefix('not judged: ')}).",
                "Mend it and type the same command again: what was judged is kept, and only the rest is asked again.",
            )


def _columns(scores: Mapping[str, Score], correction: Correction) -> Row:
    columns: Row = {f"{role.replace(' ', '_')}_note": score.note for role, score in scores.items()}
    if "judge" in scores:
        columns |= {"u": float(judge_mean([scores["judge"]], correction)[0]), **scores["judge"].parts}
    if "gold" in scores:
        columns |= {"gold": scores["gold"].value, **scores["gold"].parts}
    if "second reader" in scores:
        columns["second_reader"] = scores["second reader"].value
    return columns
