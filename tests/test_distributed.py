"""Runs of several processes over gloo, started as `torchrun` starts them, against the run of one."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_run import arguments, call, folder, recorded

from gdro_bench import distributed
from gdro_bench.budget import Cost
from gdro_bench.distributed import ProcessGroup, batches
from gdro_bench.engine import folders, record, samples
from gdro_bench.errors import BenchError

SMALL_BATCH = {"profile__sampler__batch": 3, "profile__kept_images": 100}


@pytest.mark.parametrize("local_rank", ["2", "7", "-1", "one"])
def test_a_process_without_a_gpu_is_told(local_rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed._own_gpu("1") == "cuda:1"
    with pytest.raises(BenchError, match=rf"LOCAL_RANK {local_rank} has no GPU: there are 2 here.*--nproc-per-node 2"):
        distributed._own_gpu(local_rank)


@pytest.mark.parametrize("written", ["0", "-5", "nan", "inf", "long"])
def test_a_wait_that_is_none_is_told(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(distributed.TIMEOUT_SECONDS, written)
    with pytest.raises(BenchError, match=f"GDRO_BENCH_TIMEOUT is '{written}'.*such as 1800"):
        distributed.patience()


def command(out: Path, method: str) -> list[str]:
    return [sys.executable, "-m", "gdro_bench.cli", *arguments(out, method, **SMALL_BATCH)]


def start(size: int, command: list[str]) -> list[subprocess.Popen[str]]:
    """The processes of a run, which do not wait for this test's one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(size), "PYTHONPATH": str(Path(__file__).parent)}
    return [
        subprocess.Popen(
            command, env=common | {"RANK": str(i), "LOCAL_RANK": str(i)}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for i in range(size)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    ended = [process.communicate(timeout=600) for process in processes]
    return [(process.returncode, *said) for process, said in zip(processes, ended, strict=True)]


@pytest.fixture(scope="module", params=["gdro", pytest.param("flow-grpo", marks=pytest.mark.slow)])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("alone")
    result = call(out, request.param, **SMALL_BATCH)
    assert result.exit_code == 0, result.output
    return request.param, out


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_number_of_processes_does_not_matter(size: int, alone: tuple[str, Path], tmp_path: Path) -> None:
    method, out = alone
    for code, said, errors in (ended := finish(start(size, command(tmp_path, method)))):
        assert code == 0, said + errors
    assert [bool(said) for _, said, _ in ended] == [True] + [False] * (size - 1)
    assert_alike(folder(out), folder(tmp_path))


GUARDED = [
    'auxiliary.rewards=["compressibility","objects"]', "kl_weight=0.04", "regulariser.gate.sign=paper",
    "regulariser.gate.ranks=epoch", "regulariser.gate.share=0.2", "regulariser.gate.adaptive=true",
    "regulariser.diversity=pixels", "regulariser.reference.kl_threshold=1e-9", "regulariser.reference.epochs=9",
]  # fmt: skip


@pytest.mark.slow
def test_guards_do_not_see_the_number_of_processes(tmp_path: Path) -> None:
    settings = [part for setting in GUARDED for part in ("--set", f"method.{setting}")]
    for size in (1, 2):
        for code, said, errors in finish(start(size, command(tmp_path / str(size), "flow-grpo") + settings)):
            assert code == 0, said + errors
    assert_alike(folder(tmp_path / "1"), folder(tmp_path / "2"))


def painted_alike(a_folder: Path, b_folder: Path, mark: float) -> bool:
    """Whether the pictures of two runs are the same at a mark. They may differ by a level of 255 in a value or two,
    rounded here up and there down, and then a reader may read an R for a P."""
    paths = [samples.path_of(folder, mark) for folder in (a_folder, b_folder)]
    a, b = (samples.read(path, samples.numbers(path)).astype(int) for path in paths)
    assert abs(a - b).max() <= 1
    return bool((a == b).all())


def assert_alike(
    a_folder: Path, b_folder: Path, reward: float = 1e-6, steps: float = 1e-3, cancelling: float = 1e-5
) -> None:
    """Two runs of one plan, but for the order of sums: rewards may differ by so much, what was measured on the way by
    such a share. A policy loss at ratios near 1 is a mean of advantages of order 1 that cancel; `cancelling` is what
    may be left of them, where a group's rewards lie so close together that a picture's last bit moves them."""
    one, many = record.read(a_folder), record.read(b_folder)
    assert len(one.points) == len(many.points)
    for a, b in zip(one.points, many.points, strict=True):
        assert (a.updates, a.evaluations, a.pool_evaluations, a.reward_calls) == (
            b.updates, b.evaluations, b.pool_evaluations, b.reward_calls,
        )  # fmt: skip
        if painted_alike(a_folder, b_folder, a.mark):
            assert b.reward.mean == pytest.approx(a.reward.mean, abs=reward)
    measured = [pd.read_parquet(where / "steps.parquet") for where in (a_folder, b_folder)]
    losses = [frame.pop("policy_loss") for frame in measured if "policy_loss" in frame]
    pd.testing.assert_frame_equal(*measured, rtol=steps, atol=1e-5, check_like=True)
    assert len(losses) in (0, 2)
    if losses:
        pd.testing.assert_series_equal(*losses, rtol=steps, atol=cancelling)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gdro", "flow-grpo"])
def test_when_one_dies_the_other_says_so_and_the_run_goes_on(method: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert [code for code, _, _ in finish(start(2, command(whole, method)))] == [0, 0]
    processes = start(2, command(killed, method))
    while not list(killed.glob("ocr/pocket/*/checkpoint.pt")):
        assert processes[0].poll() is None
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    (code, _, errors), _ = finish(processes)
    assert code == 1
    assert "has lost another" in errors
    assert "goes on from the last checkpoint" in errors
    assert not list(killed.glob("ocr/pocket/*/run.json"))
    assert [code for code, _, _ in finish(start(2, command(killed, method)))] == [0, 0]
    assert recorded(killed) == recorded(whole)


@pytest.mark.slow
def test_two_processes_search_and_sweep_together(tmp_path: Path) -> None:
    """Those that write nothing go on to the next trial or run only when this one is on disk."""
    flags = arguments(tmp_path, "flow-grpo", **SMALL_BATCH)[1:]
    for words in (["tune", *flags, "--trials", "2"], ["sweep", *flags, "--over", "method.clip_range=1e-4,1e-3"]):
        for code, said, errors in finish(start(2, [sys.executable, "-m", "gdro_bench.cli", *words])):
            assert code == 0, said + errors
    assert len(list(tmp_path.rglob("run.json"))) == 4


@pytest.mark.slow
def test_a_folder_that_is_in_use_stops_all_processes(tmp_path: Path) -> None:
    words = ["sweep", *arguments(tmp_path, "gdro", **SMALL_BATCH)[1:], "--seeds", "0,1"]
    assert finish(start(1, [sys.executable, "-m", "gdro_bench.cli", *words]))[0][0] == 0
    one = sorted((tmp_path / "ocr" / "pocket").iterdir())[0]
    with folders.locked(one):
        ended = finish(start(2, [sys.executable, "-m", "gdro_bench.cli", *words]))
    assert [code for code, _, _ in ended] == [1, 1]
    assert all("is being run by process" in errors for _, _, errors in ended)


# -- one process


def test_one_process_is_a_team_too() -> None:
    processes = ProcessGroup()
    assert processes.own([1, 2, 3]) == [1, 2, 3]
    assert processes.gather_rows([torch.ones(2)], [slice(0, 2)]).tolist() == [1.0, 1.0]
    assert processes.all_reduce_dict({"a": 1.0}) == {"a": 1.0}
    assert processes.broadcast(True)
    assert Cost(1, 2, 3, 4.0).summed_over(processes) == Cost(1, 2, 3, 4.0)


def test_items_are_dealt_out_in_turn() -> None:
    dealt = [ProcessGroup(rank, 3).own("abcdefg") for rank in range(3)]
    assert dealt == [["a", "d", "g"], ["b", "e"], ["c", "f"]]


@pytest.mark.parametrize(
    ("count", "most", "processes"), [(1000, 8, 8), (553, 6, 4), (200, 64, 8), (10, 3, 4), (7, 100, 2), (5, 2, 1)]
)
def test_batches_are_whole_or_one_a_process(count: int, most: int, processes: int) -> None:
    rows = batches(count, most, processes)
    assert [i for one in rows for i in range(count)[one]] == list(range(count))
    assert math.ceil(len(rows) / processes) == math.ceil(count / (processes * most))  # no round more than it takes
    sizes = [one.stop - one.start for one in rows]
    if count > processes * most:
        assert set(sizes[:-1]) == {most}
        assert rows == batches(count, most)
    else:
        assert len(rows) == processes
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1


def test_fewer_images_than_processes() -> None:
    assert len(ProcessGroup(0, 4).batches(3, 8)) == 3
    assert [len(list(ProcessGroup(rank, 4, lockstep=True).passes([slice(0, 3)]))) for rank in range(4)] == [1] * 4


@pytest.mark.parametrize(("count", "most", "size"), [(85, 1, 2), (85, 1, 8), (3, 2, 4), (510, 6, 3), (8, 2, 4)])
def test_in_lockstep_all_make_equally_many_passes_and_each_counts_once(count: int, most: int, size: int) -> None:
    rows, passes = batches(count, most, size), set()
    counted: list[int] = []
    for rank in range(size):
        processes = ProcessGroup(rank, size, lockstep=True)
        made = [(one, processes.padding) for one in processes.passes(rows)]
        counted += [i for one, padding in made if not padding for i in range(count)[one]]
        passes.add(len(made))
        assert not processes.padding
    assert len(passes) == 1
    assert sorted(counted) == list(range(count))


EXCHANGE = """
import datetime, json, os, time, torch
from gdro_bench.distributed import process_group, batches
from gdro_bench.errors import BenchError
with process_group("cpu") as processes:
    rows = batches(7, 2, processes.size)
    own = [torch.arange(14, dtype=torch.uint8).view(7, 2)[one] for one in processes.own(rows)]
    whole = processes.gather_rows(own, rows)
    few = processes.gather_rows([torch.ones(1)] if processes.is_main else [], [slice(0, 1)])
    total = processes.all_reduce_dict({"all": 1.0, str(processes.rank): float("nan")})
    try:
        processes.check_same({"weights": str(processes.rank // 2)})
        same = ""
    except BenchError as error:
        same = str(error)
    first = processes.broadcast(processes.rank)

    os.environ["GDRO_BENCH_TIMEOUT"] = "6"  # from here on: they did not start in one moment
    torch.distributed.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=6))

    def work(tick):  # longer than that
        for _ in range(16):
            time.sleep(0.5)
            tick()
        raise BenchError("Too long.", "Rest.")
    try:
        processes.first_alone(work)
        refused = ""
    except BenchError as error:
        refused = str(error)
    processes.first_alone(lambda tick: None)
    print(json.dumps([whole.tolist(), few.tolist(), total["all"], first, same, refused]))
"""


def test_processes_exchange_rows_and_objects() -> None:
    for code, output, errors in finish(start(3, [sys.executable, "-c", EXCHANGE])):
        assert code == 0, errors
        whole, few, total, first, same, refused = json.loads(output)
        assert whole == torch.arange(14).view(7, 2).tolist()
        assert (few, total, first) == ([1.0], 3.0, 0)
        assert "differ in their weights" in same
        assert "Too long." in refused


UNSHARED = """
import sys
from pathlib import Path
from gdro_bench.distributed import process_group
from gdro_bench.engine.folders import check_shared
with process_group("cpu") as processes:
    folder = Path(sys.argv[1]) / str(processes.rank)
    folder.mkdir()
    check_shared(folder, processes)
"""


def test_processes_that_share_no_folder_say_so(tmp_path: Path) -> None:
    for code, _, errors in finish(start(2, [sys.executable, "-c", UNSHARED, str(tmp_path)])):
        assert code == 1
        assert "Processes 1 do not see" in errors
