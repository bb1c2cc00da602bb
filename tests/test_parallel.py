"""Runs of several processes over gloo, started as `torchrun` starts them, against the run of one."""

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
from test_run import arguments, folder, recorded

from gdro_bench import record
from gdro_bench.budget import Spent
from gdro_bench.parallel import Team

SMALL_BATCH = {"profile__sampler__batch": 3}


def start(size: int, out: Path, method: str) -> list[subprocess.Popen[str]]:
    """The processes of a run, which do not wait for this test's one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "gdro_bench.cli", *arguments(out, method, **SMALL_BATCH)]
    common = os.environ | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            command, env=common | {"RANK": str(i), "LOCAL_RANK": str(i)}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for i in range(size)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    ended = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, *said) for process, said in zip(processes, ended, strict=True)]


@pytest.fixture(scope="module", params=["gdro", "flow-grpo"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("alone")
    (code, _, errors) = finish(start(1, out, request.param))[0]
    assert code == 0, errors
    return request.param, out


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_number_of_processes_does_not_matter(size: int, alone: tuple[str, Path], tmp_path: Path) -> None:
    method, out = alone
    for code, said, errors in (ended := finish(start(size, tmp_path, method))):
        assert code == 0, said + errors
    assert [bool(said) for _, said, _ in ended] == [True] + [False] * (size - 1)
    one, many = (record.read(folder(where)) for where in (out, tmp_path))
    assert len(one.points) == len(many.points)
    for a, b in zip(one.points, many.points, strict=True):
        assert (a.updates, a.evaluations, a.pool_evaluations, a.reward_calls) == (
            b.updates, b.evaluations, b.pool_evaluations, b.reward_calls,
        )  # fmt: skip
        assert b.reward.mean == pytest.approx(a.reward.mean, abs=1e-6)
    steps = [pd.read_parquet(folder(where) / "steps.parquet") for where in (out, tmp_path)]
    pd.testing.assert_frame_equal(*steps, rtol=1e-3, atol=1e-5, check_like=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gdro", "flow-grpo"])
def test_when_one_dies_the_other_says_so_and_the_run_goes_on(method: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert [code for code, _, _ in finish(start(2, whole, method))] == [0, 0]
    processes = start(2, killed, method)
    while not list(killed.glob("ocr/pocket/*/checkpoint.pt")):
        assert processes[0].poll() is None
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    (code, _, errors), _ = finish(processes)
    assert code == 1
    assert "has lost another" in errors
    assert "goes on from the last checkpoint" in errors
    assert not list(killed.glob("ocr/pocket/*/run.json"))
    assert [code for code, _, _ in finish(start(2, killed, method))] == [0, 0]
    assert recorded(killed) == recorded(whole)


# -- one process


def test_one_process_is_a_team_too() -> None:
    team = Team()
    assert team.own([1, 2, 3]) == [1, 2, 3]
    assert team.tensors([torch.ones(2)], 1)[0].tolist() == [1.0, 1.0]
    assert team.sums({"a": 1.0}) == {"a": 1.0}
    assert team.agreed(True)
    assert Spent(1, 2, 3, 4.0).over(team) == Spent(1, 2, 3, 4.0)


def test_items_are_dealt_out_in_turn() -> None:
    dealt = [Team(rank, 3).own("abcdefg") for rank in range(3)]
    assert dealt == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
