"""Reading in worker processes: however the parent ends, its workers end with it, and print nothing."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from processes import running, started, wait_for_children

SCRIPT = """
import sys
import numpy as np
from gdro_bench.profile import ReaderConfig
from gdro_bench.instruments.readers import EngineReader

if __name__ == "__main__":
    reader = EngineReader(ReaderConfig(limit_side=128, workers=2))
    print("starting", flush=True)
    while True:
        reader(np.zeros((16, 64, 64, 3), np.uint8))
        print("read", flush=True)
"""


DROPPED = """
import gc
import multiprocessing
import numpy as np
from gdro_bench.profile import ReaderConfig
from gdro_bench.instruments.readers import EngineReader

if __name__ == "__main__":
    reader = EngineReader(ReaderConfig(limit_side=128, workers=2))
    reader(np.zeros((16, 64, 64, 3), np.uint8))
    before = len(multiprocessing.active_children())
    del reader
    gc.collect()
    print(before, len(multiprocessing.active_children()))
"""


def test_workers_have_ended_when_their_reader_is_gone(tmp_path: Path) -> None:
    script = tmp_path / "drops.py"
    script.write_text(DROPPED)
    output, errors = started(script).communicate(timeout=120)
    assert (output.split(), errors) == (["2", "0"], "")


CHILD = """
import multiprocessing
import numpy as np
from gdro_bench.profile import ReaderConfig
from gdro_bench.instruments.readers import EngineReader

def reads():
    reader = EngineReader(ReaderConfig(limit_side=128, workers=2))
    reader.itself = reader  # as a run's parts may hold each other
    reader(np.zeros((16, 64, 64, 3), np.uint8))

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=reads)
    child.start()
    child.join(60)
    print(child.exitcode)
    child.kill()
"""


def test_a_child_process_ends_though_its_reader_is_still_held(tmp_path: Path) -> None:
    """At its end Python waits for a child's children before it tells them to end: `--jobs 2` hung."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    output, errors = started(script).communicate(timeout=120)
    assert (output.split(), errors) == (["0"], "")


def check_ended(process: subprocess.Popen[str], workers: list[int], begun: bool = True) -> None:
    """begun: whether the workers had all that they need from their parent; else Python itself tells of each."""
    _, errors = process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while running(workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(workers) == []
    for of_a_worker in ("Process SpawnProcess", "spawn_main") if begun else ():
        assert of_a_worker not in errors


@pytest.mark.parametrize(
    ("number", "early"),
    [
        *((signal.SIGINT, early) for early in (True, False)),
        *((signal.SIGTERM, False), (signal.SIGKILL, True)),  # to the workers both are a parent that is gone
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((signal.SIGTERM, True), (signal.SIGKILL, False))),
    ],
)
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals, early: bool) -> None:
    script = tmp_path / "reads.py"
    script.write_text(SCRIPT)
    process = started(script)
    assert process.stdout is not None
    process.stdout.readline()
    workers = wait_for_children(process, 3)  # two, and Python's own tracker of resources
    if not early:
        process.stdout.readline()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # Ctrl-C reaches the whole group
    else:
        process.send_signal(number)
    check_ended(process, workers, begun=(number, early) != (signal.SIGKILL, True))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_command_that_is_stopped_says_so_in_one_sentence(tmp_path: Path, number: signal.Signals) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,prompt\n" + 20000 * 'a.png,"a sign ""CAFE"""\n')
    process = started("-m", "gdro_bench.cli", "eval", "ocr", "--images", tmp_path / "list.csv", "--device", "cpu")
    workers = wait_for_children(process, 3)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert errors == "Stopped.\n"  # nothing of it is kept
    assert process.returncode == 130
    deadline = time.monotonic() + 20
    while running(workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(workers) == []
