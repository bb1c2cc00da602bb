"""Text for the pocket model: prompts as plain strings -> token features, letter hints and rotary positions.

Outside quotes a token is a word; inside, a letter. A quoted word's letters stand in slots centred on the middle of
the picture, and their rotary positions are those of the columns where centred type puts them. The same columns are
hinted to the image tokens (GlyphControl, arXiv 2305.18259, does so with a drawn line of text), because attention
alone was slow to find them. Words that the vocabulary does not know, and articles, are dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gdro_bench.models.pocket import world
from gdro_bench.rewards.geneval_prompts import plural

LETTER_SLOTS = 2 * world.MAX_LETTERS - 1  # half-letter steps, so that odd and even lengths are both centred
WORD_SLOTS = 17
SLOTS = LETTER_SLOTS + WORD_SLOTS
COLUMNS_PER_LETTER = 1.25  # an ordinary letter advances about 10 px; an image token is 8 px wide
GRID = 8  # image tokens a side
MIDDLE = (GRID - 1) / 2  # row and column of the picture's middle, in image tokens
ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Knows the words of the world; a token id is an index into `words`, then `letters`."""

    words: tuple[str, ...]
    letters: str

    @classmethod
    def of_the_world(cls) -> Tokenizer:
        grammar = "that reads at of with and sign saying word wall photo left right above below two three four"
        names = " ".join(f"{name} {plural(name)}" for name in world.THINGS)
        vocabulary = f"{grammar} {names} {' '.join(world.COLOURS)} {' '.join(world.TEXTURES)} top bottom small large"
        return cls(tuple(sorted(set(vocabulary.split()))), world.LETTERS)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls(tuple(saved["words"]), saved["letters"])

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"words": self.words, "letters": self.letters}, indent=1) + "\n", encoding="utf-8")

    @property
    def features(self) -> int:
        """Length of a token's feature vector: which token, and in which slot."""
        return len(self.words) + len(self.letters) + SLOTS

    def slots(self, prompt: str) -> dict[int, int]:
        """Slot -> token id. The first double-quoted span gives the letters; what does not fit is left out."""
        quoted, words = _parts(prompt)
        letters = [c for c in quoted.upper() if c in self.letters][: world.MAX_LETTERS]
        first = LETTER_SLOTS // 2 - (len(letters) - 1)
        filled = {first + 2 * i: len(self.words) + self.letters.index(c) for i, c in enumerate(letters)}
        known = [self.words.index(w) for w in words if w in self.words][:WORD_SLOTS]
        return filled | {LETTER_SLOTS + i: token for i, token in enumerate(known)}

    def unknown(self, prompt: str) -> str | None:
        """What of the prompt has no token, in words; None if all of it has one."""
        quoted, words = _parts(prompt)
        letters = [c for c in quoted.upper() if c not in self.letters and c != " "]
        new = [word for word in words if word not in self.words]
        if letters or len(quoted) > world.MAX_LETTERS:
            return f"the text {quoted[:40]!r} is not of 1 to {world.MAX_LETTERS} letters A to Z"
        named = ", ".join(map(repr, new[:3]))
        return f"it does not know {'the word' if len(new) == 1 else 'the words'} {named}" if new else None

    def letter_columns(self, prompts: Sequence[str]) -> Tensor:
        """Which letter stands at which column of image tokens, float32 [B, GRID, letters], as the model is hinted.

        A letter fades out over the width of one; where its centre falls between two columns it shows in both.
        """
        hints = torch.zeros(len(prompts), GRID, len(self.letters))
        columns = torch.arange(GRID)
        for row, prompt in enumerate(prompts):
            for slot, token in self.slots(prompt).items():
                if slot < LETTER_SLOTS:
                    distance = (columns - letter_column(slot)).abs() / COLUMNS_PER_LETTER
                    hints[row, :, token - len(self.words)] += (1 - distance).clamp_min(0)
        return hints

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> one-hot features, float32 [B, SLOTS, features]; an empty slot is all zeros."""
        encoded = torch.zeros(len(prompts), SLOTS, self.features)
        for row, prompt in enumerate(prompts):
            for slot, token in self.slots(prompt).items():
                encoded[row, slot, token] = 1.0
                encoded[row, slot, len(self.words) + len(self.letters) + slot] = 1.0
        return encoded


def _parts(prompt: str) -> tuple[str, list[str]]:
    """The first double-quoted span, and the words around it without articles; other scripts count as words."""
    before, quote, rest = prompt.partition('"')
    quoted, _, after = rest.partition('"') if quote else ("", "", "")
    around = f"{before} {after}".lower()
    return quoted, [word for word in re.findall(r"[a-z]+|[^\x00-\x7f]+", around) if word not in ARTICLES]


def letter_column(slot: int) -> float:
    """The column, in image tokens, where a letter slot stands."""
    return MIDDLE + (slot - LETTER_SLOTS // 2) / 2 * COLUMNS_PER_LETTER


def text_positions() -> Tensor:
    """Rotary positions [SLOTS, 3] (kind, row, column): letters stand at their columns, words at the origin."""
    positions = torch.zeros(SLOTS, 3)
    positions[:LETTER_SLOTS, 0] = 1.0
    positions[:LETTER_SLOTS, 1] = MIDDLE
    positions[:LETTER_SLOTS, 2] = torch.tensor([letter_column(slot) for slot in range(LETTER_SLOTS)])
    return positions
