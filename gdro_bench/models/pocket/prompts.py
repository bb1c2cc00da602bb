"""Words and prompts of the pocket world: the files in `tasks/ocr/` were made so."""

from __future__ import annotations

import numpy as np

from gdro_bench import content
from gdro_bench.models.pocket import world

WORD_FILES = {"train": "words_train.txt", "held-out": "words_held_out.txt", "tuning": "words_train.txt"}


def words(split: str) -> list[str]:
    """The capitalised words of a split; no held-out word is ever seen in training."""
    path = content.find("task", "ocr") / WORD_FILES[split]
    return path.read_text(encoding="utf-8").upper().split()


def ocr_prompts(split: str, seed: int, count: int) -> list[str]:
    """`count` prompts for signs, with words of the split in turn."""
    rng = np.random.default_rng([seed, list(WORD_FILES).index(split)])
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += [str(word) for word in rng.permutation(words(split))]
    return [world.phrase(world.sign_facts(rng, word), rng) for word in drawn[:count]]
