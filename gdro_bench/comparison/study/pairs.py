"""Which pictures a study shows: of the same prompt and noise, by two methods, at matched budget or matched reward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from gdro_bench import content
from gdro_bench.comparison import matched
from gdro_bench.comparison.entries import Comparison, Entry, identity
from gdro_bench.engine import samples
from gdro_bench.errors import BenchError
from gdro_bench.files import write_atomically
from gdro_bench.score import Images

KEY = "key.json"  # which side is whose: not for raters


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of one prompt, a method's on the left and another's on the right, of runs with one seed."""

    number: int  # in the order in which they are shown
    prompt: int
    text: str
    seed: int
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Study:
    """What is asked about which pairs.

    `name` is a digest of all that is shown and of the runs; `runs` of what those were (`runs_of`). `at` is what is
    matched, budget or reward; every pair is of the `reference` and another method; `marks` the evaluation point of each
    method's pictures, as a share of the budget.
    """

    name: str
    task: str
    profile: str
    runs: str
    question: str
    at: str
    seed: int
    reference: str
    marks: dict[str, float]
    pairs: tuple[Pair, ...]

    @property
    def others(self) -> list[str]:
        """The methods that the reference is held against."""
        return [label for label in self.marks if label != self.reference]


def draw(compared: Comparison, at: str, count: int, seed: int, question: str) -> Study:
    """Pairs of the reference's pictures with those of every other method, `count` prompts each; prompts, runs, sides
    and order are drawn from the seed.

    Raises:
        BenchError: there is nothing to compare with, no reward is matched, or no prompt's pictures were kept by both.
    """
    others = [entry for entry in compared.entries if entry is not compared.reference]
    if not others:
        raise BenchError("A study needs two methods.", "Name the runs of another one, too.", 2)
    points = _points(compared, at)
    rng = np.random.default_rng((content.seed("study", compared.first.task, at), seed))
    drawn = [pair for other in others for pair in _against(compared.reference, other, points, count, rng)]
    order = rng.permutation(len(drawn)).tolist()
    pairs = tuple(Pair(number, *drawn[i]) for number, i in enumerate(order))
    marks = {entry.label: entry.points[points[entry.label]].mark for entry in compared.entries}
    runs = runs_of(compared, list(marks))
    run, reference = compared.first, compared.reference.label
    study = Study("", run.task, run.profile, runs, question, at, seed, reference, marks, pairs)
    painted = [hashlib.sha256(image.tobytes()).hexdigest() for pair in pictures(compared, study) for image in pair]
    return replace(study, name=content.digest(asdict(study), painted)[:12])


def runs_of(compared: Comparison, labels: Sequence[str]) -> str:
    """A digest of what the entries with these labels were trained for and with; empty if one of them is not here. Seeds
    are not in it: a report may have more of them than the study."""
    entries = {entry.label: entry for entry in compared.entries}
    if not all(label in entries for label in labels):
        return ""
    methods = {label: entries[label].runs[0].run.digests["method"] for label in labels}
    return content.digest(identity(compared.first), methods)


def _points(compared: Comparison, at: str) -> dict[str, int]:
    """The evaluation point whose pictures each entry shows."""
    if at == "budget":
        return {entry.label: len(entry.points) - 1 for entry in compared.entries}
    level = matched.common_level(compared)
    rows = [] if level is None else matched.at_reward(compared, level, "evaluations")
    missing = [row.entry.label for row in rows if row.mark is None]
    if not rows or missing:
        raise BenchError(
            f"No reward is matched{': it is not reached by ' + ', '.join(missing) if missing else ''}.",
            "Compare at matched budget: --at budget.",
        )
    return {row.entry.label: row.mark for row in rows if row.mark is not None}


Drawn = tuple[int, str, int, str, str]  # a Pair without its number


def _against(ours: Entry, theirs: Entry, points: dict[str, int], count: int, rng: np.random.Generator) -> list[Drawn]:
    """Pairs of two entries; each prompt with the runs of one seed that both have."""
    seeds = sorted({run.run.seed for run in ours.runs} & {run.run.seed for run in theirs.runs})
    kept = {seed: _kept(ours, seed, points) & _kept(theirs, seed, points) for seed in seeds}
    prompts = sorted(set.union(set(), *kept.values()))
    if not prompts:
        raise BenchError(
            f"{ours.label} and {theirs.label} have no pictures of the same prompt and seed.",
            "Train both with the same seeds, and keep pictures (profile.kept_images).",
        )
    drawn: list[Drawn] = []
    for prompt in sorted(rng.permutation(prompts)[:count].tolist()):
        seed = int(rng.choice([seed for seed in seeds if prompt in kept[seed]]))
        sides = [ours.label, theirs.label]
        rng.shuffle(sides)
        drawn.append((prompt, ours.runs[0].prompts[prompt], seed, *sides))
    return drawn


def _kept(entry: Entry, seed: int, points: dict[str, int]) -> set[int]:
    return set(samples.numbers(_path(entry, seed, points[entry.label])))


def _path(entry: Entry, seed: int, point: int) -> Path:
    (run,) = (run for run in entry.runs if run.run.seed == seed)
    return samples.path_of(run.folder, entry.points[point].mark)


def pictures(compared: Comparison, study: Study) -> list[tuple[Images, Images]]:
    """Each pair's left and right picture, [H, W, 3]."""
    entries = {entry.label: entry for entry in compared.entries}
    points = {label: [p.mark for p in entries[label].points].index(mark) for label, mark in study.marks.items()}

    def of(label: str, pair: Pair) -> Images:
        picture: Images = samples.read(_path(entries[label], pair.seed, points[label]), [pair.prompt])[0]
        return picture

    return [(of(pair.left, pair), of(pair.right, pair)) for pair in study.pairs]


def write_key(study: Study, folder: Path) -> None:
    """Raises:
    BenchError: the folder holds the key of another study, without which its raters' answers would be lost."""
    if (folder / KEY).exists() and read_key(folder).name != study.name:
        raise BenchError(
            f"{folder} holds another study, whose answers need its {KEY}.", "Give another --out, or delete it.", 2
        )
    write_atomically(folder / KEY, json.dumps(asdict(study), indent=1).encode())


def read_key(folder: Path) -> Study:
    """Raises:
    BenchError: there is no study in that folder, or its key is damaged."""
    path = folder / KEY
    if not path.exists():
        raise BenchError(f"There is no study in {folder}.", "Give the folder that `gdro-bench study` wrote: --out.")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return content.build(Study, table, path.name)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is damaged: {error}.", "Write the study again with the same seed.") from error
