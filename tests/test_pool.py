"""The pool keeps groups bit for bit, charges every run the same, and notices damage."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gdro_bench.budget import Cost, Ledger
from gdro_bench.errors import BenchError
from gdro_bench.pool import ABANDONED, Pool, Sampled, Shard
from gdro_bench.score import Score

PROMPTS, IMAGES, SHAPE = 2, 3, (4, 5)
RECIPE = {"model": "pocket-0", "reward": "OCR"}
PAID = {"evaluations": 48, "images": 6, "reward_calls": 6}


def open_pool(folder: Path, digest: str = "d1") -> Pool:
    pool = Pool(folder, Ledger(limit=1000))
    pool.open(digest, RECIPE)
    return pool


def sampled(seed: int = 0) -> Sampled:
    latents = torch.randn(PROMPTS, IMAGES, *SHAPE, generator=torch.Generator().manual_seed(seed))
    unread = Score(math.nan, {"exact": math.nan, "text_area": math.nan}, "not read: it died")
    scores = [[Score(0.1 * (seed + i) / 3, {"exact": i / 7, "text_area": 1e-17}, f'"né" {i}') for i in range(IMAGES)]]
    return latents, [*scores, [Score(1.0, {"exact": 1.0, "text_area": 0.5}), unread, unread]]


def making(pool: Pool, seed: int = 0) -> Callable[[], Sampled]:
    def make() -> Sampled:
        for name, amount in PAID.items():
            setattr(pool.ledger.collection, name, getattr(pool.ledger.collection, name) + amount)
        return sampled(seed)

    return make


def never() -> Sampled:
    raise AssertionError("a stored shard was made again")


def amounts(spent: Cost) -> dict[str, int]:
    return {name: getattr(spent, name) for name in PAID}


def damage(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def test_a_shard_comes_back_bit_for_bit(tmp_path):
    pool = open_pool(tmp_path)
    pool.shard(0, making(pool))
    found, (latents, scores) = open_pool(tmp_path).shard(0, never), sampled()
    assert found.latents.dtype == torch.float32
    assert torch.equal(found.latents.view(torch.int32), latents.view(torch.int32))
    assert repr(found.scores) == repr(scores)  # repr: NaN equals NaN, and floats are written to the last bit


def test_a_shard_costs_the_same_made_or_reused(tmp_path):
    maker = open_pool(tmp_path)
    maker.shard(0, making(maker))
    reuser = open_pool(tmp_path)
    reuser.ledger.collection.images = 1
    reuser.shard(0, never)
    reuser.ledger.collection.images -= 1
    assert amounts(maker.ledger.collection) == amounts(reuser.ledger.collection) == PAID
    assert maker.ledger.optimisation == reuser.ledger.optimisation == Cost()


def test_a_shard_costs_only_what_its_making_cost(tmp_path):
    pool = open_pool(tmp_path)
    first, second = pool.shard(0, making(pool)), pool.shard(1, making(pool))
    assert amounts(first.cost) == amounts(second.cost) == PAID


def test_another_recipe_is_another_pool(tmp_path):
    pool = open_pool(tmp_path)
    pool.shard(0, making(pool))
    assert 0 in open_pool(tmp_path)
    assert 0 not in open_pool(tmp_path, "d2")


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_noticed_and_the_remedy_works(tmp_path, suffix, place):
    pool = open_pool(tmp_path)
    for index in range(2):
        pool.shard(index, making(pool))
    damage(pool.path / f"shard-00001{suffix}", place)
    with pytest.raises(BenchError, match="Shard 1 of the pool is damaged") as caught:
        pool.shard(1, never)
    entry = pool.path / "shard-00001.json"
    assert f"Delete {entry}" in caught.value.remedy
    entry.unlink()
    assert repr(pool.shard(1, making(pool)).scores) == repr(sampled()[1])
    pool.groups(2)


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_a_missing_file_is_damage(tmp_path, suffix):
    pool = open_pool(tmp_path)
    pool.shard(0, making(pool))
    (pool.path / f"shard-00000{suffix}").unlink()
    with pytest.raises(BenchError, match="Shard 0"):
        pool.read(0)


@pytest.mark.parametrize("written", ["", "{", "{}", '{"checksums": {}}'])
def test_a_damaged_entry_is_damage(tmp_path, written):
    pool = open_pool(tmp_path)
    pool.shard(0, making(pool))
    (pool.path / "shard-00000.json").write_text(written)
    with pytest.raises(BenchError, match="Shard 0"):
        pool.read(0)


def test_without_its_entry_a_shard_does_not_exist(tmp_path):
    pool = open_pool(tmp_path)
    pool.shard(0, making(pool))
    (pool.path / "shard-00000.json").unlink()
    assert 0 not in pool
    pool.shard(0, making(pool, seed=1))
    assert torch.equal(pool.read(0).latents, sampled(1)[0])


def test_making_that_fails_leaves_no_shard(tmp_path):
    pool = open_pool(tmp_path)
    with pytest.raises(AssertionError):
        pool.shard(0, never)
    assert 0 not in pool


def test_a_shard_that_is_gone_is_made_again_at_no_charge(tmp_path):
    pool = open_pool(tmp_path)
    pool.shard(0, making(pool))
    paid = pool.ledger.accounts()
    pool.restore(0, never)
    (pool.path / "shard-00000.json").unlink()
    pool.restore(0, making(pool))
    assert repr(pool.read(0).scores) == repr(sampled()[1])
    assert amounts(pool.read(0).cost) == PAID
    assert pool.ledger.accounts() == paid


def test_of_two_runs_that_make_a_shard_at_once_one_wins_whole(tmp_path):
    """Files of two machines may differ in their last bits; a shard's files are all of one."""
    pool, other = open_pool(tmp_path), open_pool(tmp_path)
    pool.write(0, Shard(*sampled(0), Cost(images=1)))
    other.write(0, Shard(*sampled(1), Cost(images=2)))
    kept = pool.read(0)
    assert torch.equal(kept.latents, sampled(0)[0])
    assert kept.cost.images == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_groups_are_all_shards_in_order(tmp_path):
    pool = open_pool(tmp_path)
    for index in (1, 0, 2):
        pool.shard(index, making(pool, seed=index))
    groups = pool.groups(3)
    assert torch.equal(torch.stack(list(groups.latents)), torch.cat([sampled(seed)[0] for seed in range(3)]))
    expected = torch.tensor([[score.value for score in row] for seed in range(3) for row in sampled(seed)[1]])
    torch.testing.assert_close(groups.rewards, expected, rtol=0, atol=0, equal_nan=True)
    assert amounts(groups.cost) == {name: 3 * amount for name, amount in PAID.items()}


def test_a_pool_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BenchError, match="cannot be written"):
        open_pool(tmp_path / "file")


def test_what_a_killed_run_left_behind_is_cleared_away(tmp_path):
    pool = open_pool(tmp_path)
    old, new = (pool.path / f"shard-00000.{pid}.partial" for pid in (1, 2))
    for partial in (old, new):
        partial.write_bytes(b"half a shard")
    hours_ago = time.time() - 2 * ABANDONED
    os.utime(old, (hours_ago, hours_ago))
    open_pool(tmp_path)
    assert not old.exists()
    assert new.exists()  # a run may be writing it
