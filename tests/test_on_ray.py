"""Sweeps on a Ray cluster of this machine: the records of one after another; what goes wrong is told. Needs Ray."""

import signal
import time
from pathlib import Path

import pytest
import torch
from processes import PATIENCE, descendants, running, started, stopping
from test_sweep import call, flags

from gdro_bench.commands import children

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*NaN.*")]
STOPPED = "Stopped. Type the same command again to go on from here.\n"
SHARED = ("--over", "method.tau=0.5,0.05")  # one pool
FAILS = ("--over", "method.beta=5,1e39")


def command(out: Path, *more: str) -> list[str]:
    pytest.importorskip("ray")
    return ["-m", "gdro_bench.cli", *flags(out), "--ray", "local", "--jobs", "2", *more]


def records(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("ocr/pocket/*/run.json")}


def test_records_are_those_of_one_after_another_and_a_failure_stops_no_other(tmp_path: Path) -> None:
    process = started(*command(tmp_path / "two", *SHARED, *FAILS))
    output, errors = process.communicate(timeout=500)
    assert (errors, process.returncode) == ("", 1), output
    torch.set_num_threads(children.threads_of(2))
    assert call(tmp_path / "one", *SHARED, *FAILS).exit_code == 1
    assert output.count("The loss is") == 2
    assert "Run 4 of 4" in output
    assert len(records(tmp_path / "two")) == 2
    assert records(tmp_path / "two") == records(tmp_path / "one")
    assert list((tmp_path / "two").glob(".shared*")) == []


def test_a_sweep_that_is_stopped_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    more = ("--set", "method.pool.seed=1", "--set", "profile.reader.workers=1")
    deadline = time.monotonic() + PATIENCE
    with stopping(*command(tmp_path, *more)) as process:
        while not list(tmp_path.glob("pools/*/shard-*.json")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        there = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (errors, process.returncode) == (STOPPED, 130)
    while running(there):
        assert time.monotonic() < deadline, running(there)
        time.sleep(0.05)
    output, _ = started(*command(tmp_path, *more)).communicate(timeout=500)
    assert len(records(tmp_path)) == 1, output


def test_an_address_that_cannot_be_is_told(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for address in ("nonsense", "127.0.0.1:1", ""):
        result = call(tmp_path, "--ray", address)
        assert result.exit_code == 2, result.output
        assert "No Ray cluster answers" in result.output
        assert "Traceback" not in result.output


def test_a_cluster_without_what_a_run_takes_is_told(tmp_path: Path) -> None:
    output, errors = started(*command(tmp_path, "--device", "cuda")).communicate(timeout=PATIENCE)
    assert errors.startswith("Error: No machine of the Ray cluster has "), output
    assert "and a GPU" in errors
    assert "Traceback" not in errors
