"""The prompt files in tasks/ are what the commands in tasks/README.md write."""

from itertools import combinations
from pathlib import Path

import pytest
from click.testing import CliRunner

from gdro_bench import content, plan, task
from gdro_bench.cli import main

SETS = [(name, world, split) for name in ("ocr", "geneval") for world in ("pocket", "photo")
        for split in ("train", "tuning", "held-out")]  # fmt: skip


def shipped(name: str, world: str, split: str) -> Path:
    ending = "txt" if name == "ocr" else "jsonl"
    return content.find("task", name) / f"{world}_{split.replace('-', '_')}.{ending}"


@pytest.mark.parametrize(("name", "world", "split"), SETS)
def test_a_shipped_file_is_what_its_command_writes(name: str, world: str, split: str) -> None:
    made = CliRunner().invoke(main, ["prompts", name, "--world", world, "--split", split])
    assert made.output == shipped(name, world, split).read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "world"), [("ocr", "pocket"), ("ocr", "photo"), ("geneval", "photo")])
def test_splits_share_no_prompt(name: str, world: str) -> None:
    prompt_of = plan.prompt_of(task.load(name))
    splits = ("train", "tuning", "held-out") if name == "ocr" else ("train", "held-out")
    texts = [{p.text for p in task.read_prompts(shipped(name, world, split), prompt_of)} for split in splits]
    assert all(not a & b for a, b in combinations(texts, 2))
