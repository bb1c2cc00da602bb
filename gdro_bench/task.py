"""A task: what is measured, on which prompts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gdro_bench import content
from gdro_bench.content import Count
from gdro_bench.errors import BenchError


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text` goes to the model; `target` is what the reward looks for (for OCR, `first_quoted`); prompts of one
    `kind` ask for the same sort of thing (GenEval's tag); `draw` counts the pictures of one prompt."""

    text: str
    target: str
    kind: str = ""
    draw: int = 0

    @property
    def key(self) -> tuple[str | int, ...]:
        """Of its random numbers. The first draw has no number: what was drawn before there were others stays."""
        return (self.text, self.draw) if self.draw else (self.text,)


LONGEST_LINE = 4_000  # characters: no text encoder takes more
PromptOf = Callable[[str, str, str], Prompt]  # (text, metadata or "", where it stands) -> a task's prompt


@dataclass(frozen=True, slots=True)
class Correction:
    """The corrected score's numbers and the judge's axes that it averages (arXiv 2601.02036, section 4.1)."""

    axes: tuple[str, ...]
    pivot: float
    shift: float


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Two files beside task.toml. A held-out prompt gives `images` pictures, one if that is left out."""

    train: str
    held_out: str
    images: Count | None


@dataclass(frozen=True, slots=True)
class Task:
    """`tasks/<name>/task.toml`."""

    name: str
    title: str
    reward: str
    correction: Correction
    settings: str | None  # another task, whose settings (`[tasks.<task>]` in baselines/) are taken; its own if left out
    prompts: dict[str, PromptSet]


def load(name: str) -> Task:
    """Raises:
    BenchError: there is no such task, or its file is not in order."""
    path = content.find("task", name) / "task.toml"
    task = content.load(path, Task)
    if task.name != path.parent.name:  # its prompts would be looked for in that other task's folder
        raise BenchError(f"{path} has the name {task.name!r}.", f'Write name = "{path.parent.name}", as its folder.', 2)
    return task


def first_quoted(line: str) -> str | None:
    """What stands behind the first straight double quote, up to the next one or, without another, to the line's end: as
    Flow-GRPO takes it. None if there is nothing but spaces; there its code fails."""
    parts = line.strip().split('"')
    return parts[1] if len(parts) >= 2 and parts[1].replace(" ", "") else None


def quoted_prompt(text: str, metadata: str, where: str) -> Prompt:
    """A prompt whose target is its first quoted span (see `first_quoted`).

    Raises:
        BenchError: it has no text behind a straight double quote.
    """
    target = first_quoted(text)
    if target is None:
        raise BenchError(
            f"{where} has no text in straight double quotes: {text.strip()[:80]!r}.",
            'The OCR reward needs to know what to read: write the words to draw as "WORDS".',
        )
    return Prompt(text.strip(), target)


def plain_prompt(text: str, metadata: str, where: str) -> Prompt:
    """A prompt for a reward that looks for nothing but what the text says."""
    return Prompt(text.strip(), "")


def read_prompts(path: Path, prompt_of: PromptOf = quoted_prompt) -> list[Prompt]:
    """Prompts from a file, one a line; blank lines are passed over.

    Raises:
        BenchError: the file cannot be read or is empty, or the task cannot use a line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # other separators may stand in a prompt
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"The prompt file {path} cannot be read: {error}.", "Give a UTF-8 text file.") from error
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_LINE:
            raise BenchError(
                f"{path}, line {number}, has {len(line):,} characters.", f"Give a prompt of at most {LONGEST_LINE:,}."
            )
    prompts = [prompt_of(line, "", f"{path}, line {n},") for n, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise BenchError(f"The prompt file {path} is empty.", "Give one prompt a line.")
    return prompts


def interleave_kinds(prompts: list[Prompt]) -> list[Prompt]:
    """The same, with kinds taking turns by their shares, so that the first ones of the list stand for all of it."""
    shares = Counter(prompt.kind for prompt in prompts)
    before: Counter[str] = Counter()
    place = []
    for prompt in prompts:
        place.append((before[prompt.kind] + 0.5) / shares[prompt.kind])
        before[prompt.kind] += 1
    return [prompts[i] for i in sorted(range(len(prompts)), key=place.__getitem__)]


def pool_order(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """The order in which a pool of this seed takes lines: the file's for 0, else the seed's own. A text that stands in
    several lines comes as often, so a pool has the file's mix; it is another draw each time, with noise of its own."""
    lines = _numbered(prompts)
    ordered = sorted(lines, key=lambda line: content.seed("pool order", seed, *line.key)) if seed else lines
    return _numbered(ordered)


def _numbered(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same, `draw` counting how often a text has come before."""
    before: Counter[str] = Counter()
    lines = []
    for prompt in prompts:
        lines.append(replace(prompt, draw=before[prompt.text]))
        before[prompt.text] += 1
    return lines


def repeat_draws(prompts: list[Prompt], images: int) -> list[Prompt]:
    """All prompts, then all once more, until each has so many pictures."""
    return [replace(prompt, draw=draw) for draw in range(images) for prompt in prompts]


def digest_with_targets(prompts: Sequence[Prompt]) -> str:
    """Names a list of prompts by its texts and by those targets that the texts do not tell."""
    lines = (p.text if p.target in p.text else f"{p.text}\n{p.target}" for p in prompts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def digest(prompts: Sequence[Prompt]) -> str:
    """Names a list of prompts by its texts."""
    return hashlib.sha256("\n".join(p.text for p in prompts).encode()).hexdigest()[:16]
