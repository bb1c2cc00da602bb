"""Scores pictures without training anything: those of a folder or a list, or those that a model generates."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rich.console import Console

from gdro_bench import progress, sampling, stats, version
from gdro_bench.commands import summary
from gdro_bench.commands.results import Result
from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import judging, record
from gdro_bench.engine.plan import evaluation_inputs, prompt_reader
from gdro_bench.errors import BenchError
from gdro_bench.files import strict_json, write_atomically
from gdro_bench.instruments import open_reward
from gdro_bench.models import open_model, pick_device
from gdro_bench.policy import Policy
from gdro_bench.profile import DEFAULT_JUDGE_MODEL, DetectorConfig, JudgeConfig, Profile
from gdro_bench.score import Images, Score, Scorer, check, check_axes, column, corrected_score, judge_mean, part_names
from gdro_bench.stats import Estimate
from gdro_bench.task import Correction, Prompt, PromptOf, Task

BATCH = 64
Done = Callable[[int, int], None]  # pictures scored, of how many


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures to be scored: where each came from, its pixels [H, W, 3], and its prompt."""

    sources: list[str]
    images: list[NDArray[np.uint8]]
    prompts: list[Prompt]


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What to score and to judge by, where it is not the profile's.

    `images` are pictures on disk; without them pictures are generated. `weights` is a folder of a model, `lora` one of
    adapters; `mask2former` and `clip` are folders, hub ids or files; `judge` is a name, `none` for none; its
    address and model are the profile's if they are empty.
    """

    images: Path | None
    weights: Path | None
    lora: Path | None
    mask2former: str | None
    clip: str | None
    judge: str
    judge_url: str
    judge_model: str
    device: str

    def check(self, prompts: Path | None, out: Path | None) -> None:
        """And makes the folder: what cannot be written is told before pictures are scored.

        Raises:
            BenchError: options that exclude each other.
        """
        if self.images and (self.weights or self.lora or prompts):
            raise BenchError(
                "With --images nothing is generated.", "Leave out --weights, --lora and --prompts, or --images.", 2
            )
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)

    def inputs(self, task: str, profile: str, settings: Sequence[str], prompts: Path | None) -> dict[str, Any]:
        """What is scored, as `eval.json` keeps it."""
        files = {"images": self.images, "weights": self.weights, "lora": self.lora, "prompts": prompts}
        named = {name: str(path) for name, path in files.items() if path is not None}
        moving = [setting for setting in settings if record.moves_results(setting.partition("=")[0])]
        return {"task": task, "profile": profile, "settings": moving, **named}


def execute(
    console: Console,
    request: EvalRequest,
    task_name: str,
    profile_name: str,
    settings: Sequence[str],
    prompts: Path | None,
    out: Path | None,
) -> Result:
    """Scores, prints, writes what came out under `out`, and returns it.

    Raises:
        BenchError: bad input, an instrument that cannot be had, too many pictures without a score; a judge that stops
            answering, once the rewards are written.
    """
    request.check(prompts, out)
    inputs = request.inputs(task_name, profile_name, settings, prompts)
    check_free(out, inputs)
    task, profile, held_out = evaluation_inputs(task_name, profile_name, settings, prompts)
    scorer, judge = instruments(task, profile, request)
    if request.images:
        pictures = read(request.images, prompt_reader(task))
    else:
        pictures = generate(profile, held_out, task_name, request)
    with progress.EvaluationBar(console) as bar:
        scores = score(pictures, scorer, bar.evaluating)
        keep_and_check(out, pictures, scores, profile.max_unscored)
        asked, refusal = ask([pictures], judge, task.correction, bar.evaluating)
    evaluation = result(scorer, pictures.prompts, scores)
    judgements = asked[0] if asked else None
    if judge is not None and judgements is not None:
        evaluation = with_judge(evaluation, pictures.prompts, scores, judge, judgements, task.correction)
    summary.print_evaluation(console, evaluation)
    if out is not None:
        write(out, pictures, scores, judgements, evaluation, inputs)
        written = f"Written: {out / 'eval.json'}, {out / 'scores.csv'}"
        console.print(written, soft_wrap=True, markup=False)
    if refusal is not None:
        raise refusal
    check_judged(evaluation.judge, judgements or [], profile.max_unscored)
    return evaluation


def check_free(out: Path | None, inputs: dict[str, Any]) -> None:
    """Raises:
    BenchError: the folder holds an evaluation of something else, which would be lost."""
    if out is None or not (path := out / "eval.json").exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8")).get("inputs", inputs)
    except (OSError, ValueError, AttributeError):
        return  # no evaluation of ours
    other = [name for name in {**before, **inputs} if before.get(name) != inputs.get(name)]
    if other:
        told = f"{before.get(other[0], 'none')}, now {inputs.get(other[0], 'none')}"
        raise BenchError(f"{out} holds an evaluation with another {other[0]} ({told}).", "Give another --out.", 2)


def keep_and_check(out: Path | None, pictures: Pictures, scores: Sequence[Score], max_unscored: float) -> None:
    """The rewards are written before the judge is asked, and before they may be refused.

    Raises:
        BenchError: more than a share `max_unscored` of the pictures could not be scored.
    """
    if out is not None:
        write_scores(out, table(pictures, scores, None))
    check(scores, max_unscored)


def write_scores(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_atomically(folder / "scores.csv", pd.DataFrame(rows).to_csv(index=False).encode())


def ask(
    lots: Sequence[Pictures], judge: Scorer | None, correction: Correction, done: Done
) -> tuple[list[list[Score]] | None, BenchError | None]:
    """What a judge says of each lot of pictures. Nothing without a judge, or if it stops answering or rates none of the
    task's axes: then its error, to be raised when the rewards, which were dear, are written."""
    if judge is None:
        return None, None
    judged: list[list[Score]] = []
    try:
        for lot in lots:
            judged.append(score(lot, judge, done, lambda first: check_axes(judge, first, correction)))
    except BenchError as error:
        return None, error
    return judged, None


def check_judged(judge: str, judgements: Sequence[Score], max_unscored: float) -> None:
    """Raises:
    BenchError: the judge gave no judgement on more than a share `max_unscored` of the pictures."""
    failed = [judgement for judgement in judgements if not judgement.scored]
    if len(failed) > max_unscored * len(judgements):
        raise BenchError(
            f"{judge} gave no judgement on {len(failed)} of {len(judgements)} pictures "
            f"({failed[-1].note.removeprefix('not judged: ')}).",
            "The rewards above stand; mend the judge and type the same command again.",
        )


def instruments(task: Task, profile: Profile, request: EvalRequest) -> tuple[Scorer, Scorer | None]:
    """The reward, and the judge if one is named.

    Raises:
        BenchError: an instrument cannot be had.
    """
    url = request.judge_url or profile.judge.url
    model = request.judge_model or profile.judge.model or DEFAULT_JUDGE_MODEL
    config = JudgeConfig(request.judge, "none", "none", url, model)
    judge = judging.open_judges(config).get("judge")
    if not (request.mask2former or request.clip):
        return open_reward(task, profile, pick_device(request.device)), judge
    if not (request.mask2former and request.clip):
        raise BenchError("--mask2former and --clip go together.", "Give both, or neither.", 2)
    profile = replace(profile, detector=DetectorConfig("mask2former", request.mask2former, request.clip))
    scorer = open_reward(task, profile, pick_device(request.device))
    if not hasattr(scorer, "detector"):
        raise BenchError(
            f"The reward {task.reward!r} detects no objects.",
            "Leave out --mask2former and --clip, or choose the task geneval.",
            2,
        )
    return scorer, judge


def encode(policy: Policy, prompts: Sequence[Prompt]) -> None:
    """All texts before all pictures: an encoder may be larger than the model, and would travel for every batch."""
    policy.encode_ahead([*prompts, Prompt("", "")], ProcessGroup())


def generate(profile: Profile, prompts: list[Prompt], task_name: str, request: EvalRequest) -> Pictures:
    """The prompts' pictures, from the noise that a run's evaluation points use."""
    policy = open_model(profile, request.weights, request.lora, pick_device(request.device))
    encode(policy, prompts)
    images = sampling.held_out_images(policy, prompts, task_name, profile.sampler)
    return Pictures([policy.name] * len(prompts), list(images), prompts)


def read(path: Path, prompt_of: PromptOf) -> Pictures:
    """Pictures from disk: a CSV file with columns `path` and `prompt` (for GenEval also `metadata`), or a folder as
    GenEval lays it out (`00000/metadata.jsonl` with a prompt, `00000/samples/0000.png`).

    Raises:
        BenchError: nothing is there, a picture cannot be read, or the task cannot use a prompt.
    """
    if not path.exists():
        raise BenchError(f"There is no {path}.", "Give --images a folder or a CSV file that is there.")
    listed = list(_from_csv(path) if path.is_file() else _from_folders(path))
    if not listed:
        raise BenchError(
            f"There are no pictures in {path}.",
            "Give a CSV file with the columns path and prompt, or a folder with 00000/metadata.jsonl and samples/.",
        )
    images = [_open(picture) for picture, _, _ in listed]
    prompts = [prompt_of(text, metadata, f"The prompt of {picture}") for picture, text, metadata in listed]
    return Pictures([str(picture) for picture, _, _ in listed], images, prompts)


def _from_csv(path: Path) -> Iterator[tuple[Path, str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # a spreadsheet's byte-order mark is no part of a name
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"The list {path} cannot be read: {error}.", "Save it as a CSV file in UTF-8.") from error
    table = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows, columns = [(table.line_num, row) for row in table], table.fieldnames or []
    except csv.Error as error:  # such as a cell of more than 131,072 characters
        raise BenchError(f"{path}, line {table.line_num}, is no CSV: {error}.", "Mend that line.") from error
    for name in ("path", "prompt"):
        if columns and name not in columns:
            raise BenchError(
                f"{path} has no column {name!r}; it has: {', '.join(map(repr, columns))}.",
                "Name the columns path and prompt in its first line, with commas between them.",
            )
    for number, row in rows:
        if not row.get("path") or not row.get("prompt"):
            raise BenchError(f"{path}, line {number}, lacks a path or a prompt.", "Give both columns a value.")
        yield path.parent / row["path"], row["prompt"], row.get("metadata") or ""


def _from_folders(path: Path) -> Iterator[tuple[Path, str, str]]:
    for metadata in sorted(path.glob("*/metadata.jsonl")):
        try:
            line = metadata.read_text(encoding="utf-8").strip()
            prompt = str(json.loads(line)["prompt"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{metadata} gives no prompt: {error}.", "It must be one JSON object with one.") from error
        pictures = sorted((metadata.parent / "samples").glob("*.png"))
        if not pictures:
            raise BenchError(f"{metadata.parent} has no samples/*.png.", "Add the missing pictures.")
        yield from ((picture, prompt, line) for picture in pictures)


def _open(path: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(path).convert("RGB"))
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BenchError(f"The picture {path} cannot be read: {error}.", "Mend or remove it.") from error


def score(
    pictures: Pictures, scorer: Scorer, done: Done, check_batch: Callable[[list[Score]], None] | None = None
) -> list[Score]:
    """Scores all pictures, in batches of one size; what a batch may be refused for costs no second one."""
    scores: list[Score] = []
    pairs = zip(pictures.images, pictures.prompts, strict=True)
    for _, same in itertools.groupby(pairs, lambda pair: pair[0].shape):
        alike = list(same)
        for start in range(0, len(alike), BATCH):
            batch = alike[start : start + BATCH]
            images: Images = np.stack([image for image, _ in batch])
            scores += scorer(images, [prompt for _, prompt in batch])
            if check_batch is not None:
                check_batch(scores)
            done(len(scores), len(pictures.images))
    return scores


def result(scorer: Scorer, prompts: Sequence[Prompt], scores: Sequence[Score]) -> Result:
    """Means over pictures with 95 % intervals over prompts."""
    values = np.array([score.value for score in scores])
    texts = [prompt.text for prompt in prompts]

    def mean(of: NDArray[np.float64]) -> Estimate:
        return stats.bootstrap_mean(of, prompts=texts)

    parts = {name: mean(column(scores, name)) for name in part_names(scores)}
    return Result(scorer.name, len(scores), int(np.isnan(values).sum()), mean(values), parts)


def with_judge(
    evaluation: Result,
    prompts: Sequence[Prompt],
    scores: Sequence[Score],
    judge: Scorer,
    judgements: Sequence[Score],
    correction: Correction,
) -> Result:
    """The result with a judge's axes and the corrected score, both its orders of averaging, with 95 % intervals."""
    texts = [prompt.text for prompt in prompts]
    parts = {name: column(judgements, name) for name in part_names(judgements)}
    reward, u = np.array([score.value for score in scores]), judge_mean(judgements, correction)
    corrected = {
        "of the means": judging.corrected_mean(reward, u, texts, correction),
        "mean": stats.bootstrap_mean(corrected_score(reward, u, correction), prompts=texts),
    }
    axes = {name: stats.bootstrap_mean(values, prompts=texts) for name, values in parts.items()}
    unjudged = sum(not judgement.scored for judgement in judgements)
    return replace(evaluation, judge=judge.name, unjudged=unjudged, axes=axes, corrected=corrected)


def write(
    folder: Path,
    pictures: Pictures,
    scores: Sequence[Score],
    judgements: Sequence[Score] | None,
    evaluation: Result,
    inputs: dict[str, Any],
) -> None:
    """`eval.json`, what was scored and the result, where null is unknown, and `scores.csv`, a row for each picture."""
    rows = table(pictures, scores, judgements)
    told = {"inputs": inputs, "version": version.of_code()} | dataclasses.asdict(evaluation)
    write_atomically(folder / "eval.json", strict_json(told))
    write_scores(folder, rows)


def table(pictures: Pictures, scores: Sequence[Score], judgements: Sequence[Score] | None) -> list[dict[str, Any]]:
    """A row for each picture: where it came from, its prompt, reward, reading and parts, and a judge's axes."""
    rows = [
        {"source": source, "prompt": prompt.text, "reward": score.value, "read": score.note, **score.parts}
        for source, prompt, score in zip(pictures.sources, pictures.prompts, scores, strict=True)
    ]
    if judgements is None:
        return rows
    return [row | dict(judgement.parts) for row, judgement in zip(rows, judgements, strict=True)]
