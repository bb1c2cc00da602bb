"""The prompt files in tasks/ are what the commands in tasks/README.md write."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from gdro_bench import content, task
from gdro_bench.cli import main
from gdro_bench.engine import plan
from gdro_bench.engine.pool_keys import exact_key, pool_key
from gdro_bench.errors import BenchError
from gdro_bench.methods.parts.groups import epoch_prompts
from gdro_bench.rewards.geneval_prompts import TAGS
from gdro_bench.task import Prompt, interleave_kinds

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
    prompt_of = plan.prompt_reader(task.load(name))
    splits = ("train", "tuning", "held-out") if name == "ocr" else ("train", "held-out")
    texts = [{p.text for p in task.read_prompts(shipped(name, world, split), prompt_of)} for split in splits]
    assert all(not a & b for a, b in combinations(texts, 2))


def test_kinds_take_turns_by_their_shares():
    listed = [Prompt(f"{kind} {i}", "", kind) for kind, n in (("a", 2), ("b", 8), ("c", 4)) for i in range(n)]
    mixed = interleave_kinds(listed)
    assert sorted(prompt.text for prompt in mixed) == sorted(prompt.text for prompt in listed)
    assert [prompt.kind for prompt in mixed[:7]].count("b") == 4
    assert {prompt.kind for prompt in mixed[:4]} == {"a", "b", "c"}
    for kind in "abc":
        texts = [prompt.text for prompt in mixed if prompt.kind == kind]
        assert texts == sorted(texts)


def test_prompts_of_one_kind_keep_their_order():
    held_out = plan.make_plan("ocr", "gdro", "pocket", 0, Path("runs")).held_out
    path = content.find("task", "ocr") / "pocket_held_out.txt"
    assert [prompt.text for prompt in held_out] == path.read_text(encoding="utf-8").splitlines()[: len(held_out)]


def test_a_few_of_geneval_s_prompts_have_all_its_tags():
    held_out = plan.make_plan("geneval", "gdro", "pocket", 0, Path("runs")).held_out
    assert {prompt.kind for prompt in held_out[:12]} == set(TAGS)


def test_geneval_paints_a_prompt_four_times_each_from_noise_of_its_own():
    """As published; on the pocket's own prompts once."""
    photo = ("profile.prompts=photo", "profile.held_out_prompts=191")
    held_out = plan.make_plan("geneval", "gdro", "pocket", 0, Path("runs"), photo).held_out
    quarter = len(held_out) // 4
    assert [len({p.text for p in held_out}), quarter] == [191, 191]
    assert [p.text for p in held_out[:quarter]] == [p.text for p in held_out[quarter : 2 * quarter]]
    assert len({(p.text, p.draw) for p in held_out}) == len(held_out)
    for name in ("ocr", "geneval"):
        assert {p.draw for p in plan.make_plan(name, "gdro", "pocket", 0, Path("runs")).held_out} == {0}


OWN = 'A storefront with "Grand Opening" on the glass\nA mug that says "Monday Again"\n'


def test_one_s_own_training_prompts_are_part_of_a_run_s_identity(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text(OWN, encoding="utf-8")
    small = ["method.pool.prompts=2"]
    made = plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, small, train_prompts=file)
    plain = plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, small)
    assert [prompt.target for prompt in made.train] == ["Grand Opening", "Monday Again"]
    assert made.held_out == plain.held_out
    assert made.digests["train"] != plain.digests["train"]
    assert made.folder != plain.folder
    assert "train_prompts=" in made.folder.name


def test_metadata_of_the_same_text_is_part_of_a_run_s_and_its_pool_s_identity(tmp_path: Path) -> None:
    made = []
    for count in (2, 3):
        held_out, train = tmp_path / f"held-out{count}.jsonl", tmp_path / f"train{count}.jsonl"
        for file, some in ((held_out, "some buses"), (train, "many buses")):
            clause = f'{{"class": "bus", "count": {count}}}'
            file.write_text(f'{{"tag": "counting", "include": [{clause}], "prompt": "a photo of {some}"}}\n')
        own = {"prompts": held_out, "train_prompts": train, "settings": ["method.pool.prompts=1"]}
        made.append(plan.make_plan("geneval", "gdro", "pocket", 0, tmp_path, **own))  # type: ignore[arg-type]
    assert made[0].held_out[0].text == made[1].held_out[0].text
    assert made[0].folder != made[1].folder
    assert pool_key(made[0]) != pool_key(made[1])
    ocr = [Prompt('a sign that reads "CAT"', "CAT")]
    assert task.digest_with_targets(ocr) == task.digest(ocr)  # what a text tells is in its digest


@pytest.mark.parametrize(("text", "said"), [("\n", "is empty"), ("no quotes here\n", "no text in straight double")])
def test_bad_training_prompts_are_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["run", "ocr", "--out", str(tmp_path), "--train-prompts", str(file)])
    assert result.exit_code != 0
    assert said in result.output


def test_a_pool_takes_lines_in_the_order_of_its_seed() -> None:
    """A text that comes again is another draw: else it would be the same images again, from the same noise."""
    listed = [Prompt(text, text) for text in "abcdefabcghij"]
    orders = [task.pool_order(listed, seed) for seed in range(3)]
    assert "".join(p.text for p in orders[0]) == "abcdefabcghij"
    assert [p.draw for p in orders[0]] == [0] * 6 + [1] * 3 + [0] * 4
    for order in orders:
        assert sorted(p.text for p in order) == sorted(p.text for p in listed)
        assert [p.draw for p in order if p.text == "a"] == [0, 1]
        assert len({(p.text, p.draw) for p in order}) == len(listed)
    assert len({tuple(p.text for p in order) for order in orders}) == 3
    assert task.pool_order(listed[::-1], 1) == orders[1]


@pytest.mark.parametrize("profile", ["pocket", "flux1-dev"])
def test_pools_of_all_seeds_and_epochs_have_the_file_s_mix(profile: str) -> None:
    """What is trained on must not hang on whether a method has a pool, or on the seed."""
    train = plan.make_plan("geneval", "gdro", profile, 0, Path("runs")).train
    share = sum(prompt.kind == "counting" for prompt in train) / len(train)
    assert share == pytest.approx(5 / 17, abs=0.02)  # Flow-GRPO's mix is 7 : 5 : 3 : 1 : 1
    for seed in range(4):
        pool = task.pool_order(train, seed)[:400]
        assert sum(prompt.kind == "counting" for prompt in pool) / len(pool) == pytest.approx(share, abs=0.06)
    generator = torch.Generator().manual_seed(0)
    epochs = [epoch_prompts(train, 12, generator) for _ in range(200)]
    assert all(len({train[line].text for line in lines.tolist()}) == 12 for lines in epochs)
    counting = [train[line].kind == "counting" for lines in epochs for line in lines.tolist()]
    assert sum(counting) / len(counting) == pytest.approx(share, abs=0.04)


def test_an_epoch_draws_no_text_twice() -> None:
    listed = [Prompt(text, text) for text in "abcab"]
    for seed in range(20):
        drawn = epoch_prompts(listed, 3, torch.Generator().manual_seed(seed)).tolist()
        assert sorted(listed[line].text for line in drawn) == ["a", "b", "c"]
    unique = [Prompt(text, text) for text in "abcde"]
    drawn = epoch_prompts(unique, 4, torch.Generator().manual_seed(1))
    assert drawn.equal(torch.randperm(5, generator=torch.Generator().manual_seed(1))[:4])
    with pytest.raises(BenchError, match="An epoch takes 4 prompts of 3"):
        epoch_prompts(listed, 4, torch.Generator().manual_seed(0))


def test_a_pool_is_not_larger_than_the_file(tmp_path: Path) -> None:
    own = tmp_path / "train.txt"
    own.write_text('a sign that says "A"\na sign that says "B"\n', encoding="utf-8")
    with pytest.raises(BenchError, match=r"takes 24 prompts; there are 2.*pool\.prompts=2"):
        plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, train_prompts=own)
    plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, ["method.pool.prompts=2"], train_prompts=own)


@pytest.mark.parametrize("settings", [(), ("method.pool.prompts=48", "method.online.rounds=2")])
def test_runs_of_two_seeds_have_pools_of_other_prompts(settings: tuple[str, ...], tmp_path: Path) -> None:
    plans = [plan.make_plan("ocr", "gdro", "pocket", seed, tmp_path, settings) for seed in (0, 1)]
    count = plans[0].config.pool.prompts
    first, second = ({p.text for p in one.all_prompts[:count]} for one in plans)
    assert len(first) == len(second) == count
    assert len(first & second) < count / 4
    assert first == {p.text for p in plans[0].train[:count]}
    assert len({exact_key(one) for one in plans}) == 2
    assert plans[0].digests == plans[1].digests  # two seeds of one method, for all that


def test_methods_share_a_seeds_pool_and_all_seeds_one_that_is_asked_for(tmp_path: Path) -> None:
    def key(method: str, seed: int, *settings: str) -> str:
        return exact_key(plan.make_plan("ocr", method, "pocket", seed, tmp_path, settings))

    same = "method.pool.prompts=24", "method.pool.shard_prompts=8"
    assert key("gdro", 1, *same) == key("dpo", 1, *same) == key("gdro", 0, *same, "method.pool.seed=1")
    shared = *same, "method.pool.shared=true"
    assert key("gdro", 0) == key("gdro", 0, *shared) == key("gdro", 1, *shared) == key("gdro", 2, *shared)


def test_other_numbers_keep_the_pool_of_the_runs_seed(tmp_path: Path) -> None:
    made = plan.make_plan("ocr", "gdro", "pocket", 3, tmp_path)
    assert plan.with_settings(made, {"tau": 0.1}).config.pool == made.config.pool
    assert plan.with_settings(made, {"pool.seed": 2}).config.pool.seed == 5
