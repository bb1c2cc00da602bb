"""The score that a reward or a judge gives to one image."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gdro_bench import registry
from gdro_bench.errors import BenchError
from gdro_bench.task import Correction, Prompt

AUXILIARY = "auxiliary "  # parts that so begin are rewards that watch another one
BY_ERROR = "error "  # parts of a gold score that so begin are 1 where a picture has an error of this kind, else 0
Images = NDArray[np.uint8]  # [B, H, W, 3], RGB


@dataclass(frozen=True, slots=True)
class Score:
    """One image, judged. `value` is NaN if it could not be judged, never 0; `note` says what was read or seen."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def scored(self) -> bool:
        return not math.isnan(self.value)

    def plain(self) -> tuple[float, dict[str, float], str]:
        """What `Score(*...)` takes, as JSON can say it."""
        return self.value, dict(self.parts), self.note


class Scorer(Protocol):
    """A task's reward or a judge. `name` names the instrument and its version; axis labels and records use it."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]: ...


OF_TABLES = {  # columns that stand beside a score's parts, of rewards and judges alike
    *(
        "mark",
        "prompt",
        "reward",
        "u",
        "gold",
        "second_reader",
        "corrected",
        "corrected_each",
        "source",
        "read",
        "scale",
    )
}
RESERVED = {
    "reward": OF_TABLES | {"image", "value", "text", "note", "agreement"},
    "judge": OF_TABLES | {"judge_note", "gold_note", "second_reader_note"},
}


class Checked:
    """A scorer of another package, whose slips are told in a sentence: no name, no list of a `Score` an image."""

    def __init__(self, scorer: Any, kind: Literal["reward", "judge"], name: str) -> None:
        """Raises:
        BenchError: it has no name of its own."""
        what = f"{kind} {name!r}"
        if not isinstance(getattr(scorer, "name", None), str):
            raise BenchError(f"The {what} has no name.", 'Give its class one: name = "what it is, and its version".', 2)
        self.scorer, self.what, self.name, self.reserved = scorer, what, scorer.name, RESERVED[kind]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        """Raises:
        BenchError: what it gives are no scores, or not one an image; or a part has a name of the tables' own."""
        scores = self.scorer(images, prompts)
        if not isinstance(scores, list) or len(scores) != len(images) or not all(isinstance(s, Score) for s in scores):
            raise BenchError(
                f"The {self.what} gave {len(images)} images {_told(scores)}.",
                "It must return a list with a gdro_bench.score.Score for each.",
            )
        return [self._plain(one) for one in scores]

    def _plain(self, one: Score) -> Score:
        """With Python's own numbers, which records and other processes can be told."""
        try:
            value, parts = float(one.value), {name: float(part) for name, part in one.parts.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise BenchError(
                f"The {self.what} gave a score that is no number: {one!r}.", "Give NaN where there is none.", 2
            ) from error
        if taken := self.reserved & parts.keys():
            raise BenchError(
                f"The {self.what} gave a part called {min(taken)!r}, as a column of the tables is.", "Rename it.", 2
            )
        if math.isinf(value) or any(map(math.isinf, parts.values())):
            raise BenchError(f"The {self.what} gave an infinite score: {one!r}.", "Give NaN where there is none.", 2)
        return Score(value, parts, str(one.note))


def _told(scores: Any) -> str:
    """What was given instead of scores, in words."""
    if not isinstance(scores, list):
        return f"a {type(scores).__name__}"
    other = next((type(score).__name__ for score in scores if not isinstance(score, Score)), None)
    return f"a list with a {other}" if other else f"{len(scores)} scores"


def open_scorer(kind: Literal["reward", "judge"], name: str, argument: Any) -> Scorer:
    """A reward of `Instruments`, or a judge of a `JudgeConfig`, by name; one of another package is `Checked`.

    Raises:
        BenchError: there is none of that name, or it cannot be had.
    """
    scorer: Scorer = registry.lookup(kind, name)(argument)
    return scorer if name in registry.TABLES[kind] else Checked(scorer, kind, name)


GeneratedBatch = tuple[Images, Sequence[Prompt]]  # a batch of pictures, each with what it was to show


def score_batches(generated: Iterable[GeneratedBatch], scorer: Scorer, ahead: int) -> list[list[Score]]:
    """Scores batches as they are generated, in order. With `ahead` a thread does it while the next are generated; at
    most so many batches wait: reading on CPUs then costs no time of a GPU."""
    if not ahead:
        return [scorer(images, prompts) for images, prompts in generated]
    scores: list[list[Score]] = []
    waiting: deque[Future[list[Score]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            for images, prompts in generated:
                while len(waiting) >= ahead:
                    scores.append(waiting.popleft().result())
                waiting.append(thread.submit(scorer, images, prompts))
            return scores + [future.result() for future in waiting]
        except KeyboardInterrupt:
            thread.shutdown(wait=False, cancel_futures=True)  # what waits is not scored any more
            raise


def check(scores: Sequence[Score], max_unscored: float) -> None:
    """Of a shard, an epoch or an evaluation; a batch of a few images would stop a run for two failures.

    Raises:
        BenchError: more than a share `max_unscored` of the images could not be scored.
    """
    failed = [score for score in scores if not score.scored]
    if len(failed) > max_unscored * len(scores):
        raise BenchError(
            f"{len(failed)} of {len(scores)} images could not be scored ({failed[-1].note}).",
            "Mend the reader (`gdro-bench doctor`) and run the same command again: it goes on from here.",
        )


def check_axes(judge: Scorer, judgements: Sequence[Score], correction: Correction) -> None:
    """Raises:
    BenchError: the judge does not rate what the task's corrected score is made of."""
    rated = part_names(judgements)
    told = bool(rated) or any(judgement.scored for judgement in judgements)  # of failures alone nothing is known
    missing = [axis for axis in correction.axes if told and axis not in rated]
    if missing:
        raise BenchError(
            f"{judge.name} does not rate {', '.join(missing)}, of which the corrected score is made.",
            "Choose another judge; this one is for `gdro-bench judge --gold` or --second-reader.",
        )


def part_names(scores: Sequence[Score]) -> list[str]:
    """Of all parts that any of them has."""
    return list(dict.fromkeys(name for score in scores for name in score.parts))


def column(scores: Sequence[Score], part: str) -> NDArray[np.float64]:
    """A part of scores, [N]; NaN where one has none."""
    return np.array([score.parts.get(part, math.nan) for score in scores])


def judge_mean(judgements: Sequence[Score], correction: Correction) -> NDArray[np.float64]:
    """u: the mean of the task's axes of judgements, [N], each axis in 1..5; NaN where one is not known."""
    mean: NDArray[np.float64] = np.mean([column(judgements, axis) for axis in correction.axes], axis=0)
    return mean


def corrected_score(reward: NDArray[np.float64], u: NDArray[np.float64], correction: Correction) -> NDArray[np.float64]:
    """The corrected score r (u - pivot) + shift (arXiv 2601.02036, section 4.1), elementwise.

    Of each image's r and u, then averaged; or of their means: which one the paper takes is not known. Of means is the
    default here, because the paper's own table is consistent with it.
    """
    return reward * (u - correction.pivot) + correction.shift
