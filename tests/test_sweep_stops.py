"""A sweep of real processes that is stopped: all of them end within seconds and say no more than that, and the same
command goes on to the records of one that was left alone."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from processes import PATIENCE, descendants, running, started, stopping

from gdro_bench.cli import main
from gdro_bench.commands import children

SETTINGS = {
    "profile.budget.limit": 400,
    "profile.budget.marks": "[0.6,1.0]",
    "profile.sampler.steps": 3,
    "profile.held_out_prompts": 4,
    "profile.kept_images": 4,
    "profile.drift.prompts": 0,
    "profile.health.prompts": 0,
    "profile.reader.workers": 1,
    "profile.judge.name": "none",
    "method.pool.prompts": 8,
    "method.pool.images": 4,
    "method.pool.shard_prompts": 2,
    "method.k": 4,
    "method.groups": 1,
    "method.drop_flat": "false",
}
STOPPED = "Stopped. Type the same command again to go on from here.\n"
SECONDS = children.PATIENCE + 5  # that ending may take, on a busy machine


def words(out: Path, *more: str) -> list[str]:
    flags = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    return ["sweep", "ocr", "--out", str(out), "--device", "cpu", "--over", "method.pool.seed=0,1", *flags, *more]


def wait_until(process: subprocess.Popen[str], out: Path, moment: str) -> None:
    """`starting`: both runs' processes are there, and still importing. `filling`: a shard of two pools of 4 was made.
    `training`: one pool is complete."""
    deadline = time.monotonic() + PATIENCE
    shards = {"starting": 0, "filling": 1, "training": 7}[moment]
    while len(descendants(process.pid)) < 3 or len(list(out.glob("pools/*/shard-*.json"))) < shards:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(process: subprocess.Popen[str], how: str) -> None:
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "SIGTERM to all":  # as a batch system does it
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.Signals[how])


def check_ended(process: subprocess.Popen[str], started: list[int], how: str) -> None:
    before = time.monotonic()
    _, errors = process.communicate(timeout=60)
    while running(started):
        assert time.monotonic() - before < SECONDS, running(started)
        time.sleep(0.05)
    assert time.monotonic() - before < SECONDS
    if how == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
        assert "Traceback" not in errors
    else:
        assert (errors, process.returncode) == (STOPPED, 130)


def stop_at(moment: str, how: str, out: Path) -> None:
    with stopping("-m", "gdro_bench.cli", *words(out, "--jobs", "2")) as process:
        wait_until(process, out, moment)
        there = descendants(process.pid)
        stop(process, how)
        check_ended(process, there, how)


def records(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("ocr/pocket/*/run.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "moment"), [("Ctrl-C", "starting"), ("SIGTERM to all", "filling"), ("SIGKILL", "filling")]
)
def test_all_processes_end_and_print_no_traceback(how: str, moment: str, tmp_path: Path) -> None:
    stop_at(moment, how, tmp_path)


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on_to_the_same_records(tmp_path: Path) -> None:
    torch.set_num_threads(children.threads_of(2))
    left_alone = CliRunner().invoke(main, words(tmp_path / "one"))
    assert left_alone.exit_code == 0, left_alone.output
    for how, moment in (("SIGTERM", "filling"), ("Ctrl-C", "training")):
        stop_at(moment, how, tmp_path / "two")
        assert len(records(tmp_path / "two")) < 2
    process = started("-m", "gdro_bench.cli", *words(tmp_path / "two", "--jobs", "2"))
    output, errors = process.communicate(timeout=PATIENCE)
    assert (errors, process.returncode) == ("", 0), output
    assert records(tmp_path / "two") == records(tmp_path / "one")
