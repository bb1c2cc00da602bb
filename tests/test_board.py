"""Which runs of a sweep may be under way together: those of one pool once one of them has filled it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gdro_bench.commands import side_by_side, sweep
from gdro_bench.commands.board import Board, Message, pool_key
from gdro_bench.engine.plan import Plan

METHODS = ["gdro", "flow-grpo"]


def plans(
    out: Path, over: Sequence[str] = (), settings: Sequence[str] = (), methods: Sequence[str] = METHODS[:1]
) -> list[Plan]:
    return sweep.plans("ocr", methods, over, [0], settings, profile="pocket", out=out, budget=None)


class Listener:
    def __init__(self) -> None:
        self.began: list[str] = []
        self.shares: list[str] = []

    def next_run(self, name: str, done: int, total: int) -> None:
        self.began.append(name)

    def spent(self, spent: float, limit: int, doing: str) -> None:
        self.shares.append(doing)

    def trains(self) -> None: ...
    def evaluating(self, done: int, total: int) -> None: ...
    def warn(self, sentence: str) -> None: ...


class Script:
    """Workers with room for all, whose runs say what is written here, a line a time: `<number of the run> <word>`."""

    def __init__(self, plans: Sequence[Plan], lines: str) -> None:
        self.folders, self.lines = [one.folder for one in plans], lines.split(", ")
        self.under_way: list[int] = []
        self.seen: list[list[int]] = []

    def has_room(self) -> bool:
        return True

    def begin(self, one: Plan) -> None:
        self.under_way.append(self.folders.index(one.folder))

    def listen(self) -> Iterator[tuple[Path, Message]]:
        self.seen.append(sorted(self.under_way))
        number, word = self.lines.pop(0).split()
        if word in ("failed", "done"):
            self.under_way.remove(int(number))
        message: Message = (word, "oops") if word == "failed" else (word, 1, 2, "") if word == "spent" else (word,)
        yield self.folders[int(number)], message


def under_way(plans: Sequence[Plan], lines: str) -> list[list[int]]:
    """The runs under way before each line."""
    script = Script(plans, lines)
    Board(plans, Listener(), script).run()
    return script.seen


def test_runs_of_one_pool_wait_until_it_is_filled(tmp_path: Path) -> None:
    seen = under_way(
        plans(tmp_path, ["method.tau=0.5,0.05,0.005"]), "0 began, 0 filled, 1 began, 0 failed, 2 failed, 1 failed"
    )
    assert seen == [[0], [0], [0, 1, 2], [0, 1, 2], [1, 2], [1]]


def test_a_pool_is_taken_up_by_the_next_when_a_run_fails_before_it_is_filled(tmp_path: Path) -> None:
    seen = under_way(plans(tmp_path, ["method.tau=0.5,0.05"]), "0 failed, 1 failed")
    assert seen == [[0], [1]]


def test_runs_of_other_pools_or_none_do_not_wait(tmp_path: Path) -> None:
    some = plans(tmp_path, ["method.pool.seed=0,1"]) + plans(tmp_path, methods=METHODS[1:])
    assert under_way(some, "0 failed, 1 failed, 2 failed")[0] == [0, 1, 2]


def test_a_filled_pool_lets_no_run_of_another_model_pass(tmp_path: Path) -> None:
    """Such runs have one `pool_key`, and fill two pools."""
    some = plans(tmp_path, ["method.tau=0.5,0.05"]) + plans(tmp_path, ["method.tau=0.5,0.05"], ["profile.model=other"])
    assert len({pool_key(one) for one in some}) == 1
    seen = under_way(some, "0 filled, 0 failed, 2 filled, 1 failed, 2 failed, 3 failed")
    assert seen[:3] == [[0], [0, 1, 2], [1, 2]]
    assert seen[3] == [1, 2, 3]


def test_the_bar_names_a_few_runs_and_counts_the_others(tmp_path: Path) -> None:
    some = plans(tmp_path, ["method.pool.seed=0,1,2,3,4,5"])
    listener = Listener()
    said = [f"{i} {word}" for word in ("spent", "failed") for i in range(6)]
    outcomes = Board(some, listener, Script(some, ", ".join(said))).run()
    assert listener.shares[0] == "gdro-s0 50%"
    assert listener.shares[5].count("50%") == 4
    assert listener.shares[5].endswith(", 2 more")
    assert [outcome.failure for outcome in outcomes] == ["oops"] * 6


def test_a_record_that_is_missing_is_a_failure(tmp_path: Path) -> None:
    some = plans(tmp_path)
    [outcome] = Board(some, Listener(), Script(some, "0 done")).run()
    assert outcome.run is None
    assert "has no run record" in outcome.failure


class Noting(Listener):
    """Notes the shards on disk, and how many runs have ended, whenever a run begins."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out = out
        self.noted: list[tuple[int, int]] = []

    def next_run(self, name: str, done: int, total: int) -> None:
        self.noted.append((len(list(self.out.glob("pools/*/shard-*.json"))), len(list(self.out.rglob("run.json")))))


@pytest.mark.slow
def test_a_run_begins_once_its_pool_is_on_disk_and_before_the_first_has_ended(tmp_path: Path) -> None:
    from test_sweep import SHORT

    settings = [f"{name}={value}" for name, value in (SHORT | {"profile.budget.limit": 2000}).items()]
    some = plans(tmp_path, ["method.tau=0.5,0.05"], settings)
    listener = Noting(tmp_path)
    outcomes = side_by_side.execute(some, listener, "cpu", 2)
    assert [outcome.failure for outcome in outcomes] == ["", ""]
    assert listener.noted == [(0, 0), (2, 0)]
