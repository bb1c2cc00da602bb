"""Trackers of a run: TensorBoard's files hold what the record holds, killed or not; none of them ends a run or moves a
number. Trackio and Weights & Biases (offline), where they are installed, likewise."""

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from test_run import arguments, folder, recorded

from gdro_bench.cli import main
from gdro_bench.engine import plan, record, tracking
from gdro_bench.engine.tracking import Event

pytestmark = pytest.mark.usefixtures("sketched")

BETWEEN_MARKS = "ocr/pocket/*/samples/0.6.zip"
tensorboard = pytest.importorskip("tensorboard", reason="needs the extra tensorboard")


def call(out: Path, *track: str) -> Result:
    return CliRunner().invoke(main, [*arguments(out), *(part for name in track for part in ("--track", name))])


@pytest.fixture
def untracked(short_run: tuple[Path, str]) -> Path:
    return short_run[0]


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's, by name: (number of the event, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder(out) / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    read.Reload()
    assert len(read.Images("samples")) == 3
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def check(out: Path, found: dict[str, list[tuple[int, float]]]) -> None:
    """Against the record: every step and every point once, in order, to the last digit that a float32 has."""
    steps, points = pd.read_parquet(folder(out) / "steps.parquet"), record.read(folder(out)).points
    numbers = [number for number, _ in found["cost/evaluations"]]
    assert numbers == list(range(1, len(steps) + len(points) + 1))
    at_points = {number for number, _ in found["held_out/reward"]}
    of_steps = [value for number, value in found["cost/evaluations"] if number not in at_points]
    assert of_steps == pytest.approx(steps["evaluations"].tolist())
    for name in steps.columns.difference(["kind", "update", "evaluations"]):
        known = steps[name].dropna()
        values = [value for _, value in found.get(f"train/{name}", []) if not np.isnan(value)]
        assert values == pytest.approx(known.tolist(), rel=1e-6), name
    for name, of in {"reward": "mean", "reward_low": "low", "reward_high": "high"}.items():
        assert [value for _, value in found[f"held_out/{name}"]] == pytest.approx(
            [getattr(point.reward, of) for point in points], rel=1e-6
        )
    assert [value for _, value in found["cost/mark"]] == pytest.approx([point.mark for point in points])
    spent = [value for number, value in found["cost/evaluations"] if number in at_points]
    assert spent == pytest.approx([point.evaluations for point in points])


def test_tensorboard_s_curves_are_the_record_s_and_move_no_number(untracked: Path, tmp_path: Path) -> None:
    assert call(tmp_path, "tensorboard").exit_code == 0
    assert recorded(tmp_path) == recorded(untracked)
    check(tmp_path, scalars(tmp_path))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_in_the_same_curves(untracked: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gdro_bench.cli", *arguments(tmp_path), "--track", "tensorboard"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while process.poll() is None and not list(tmp_path.glob(BETWEEN_MARKS)):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert call(tmp_path, "tensorboard").exit_code == 0
    assert recorded(tmp_path) == recorded(untracked)
    check(tmp_path, scalars(tmp_path))


@pytest.mark.parametrize(
    "method", ["add_scalar", *(pytest.param(name, marks=pytest.mark.slow) for name in ("add_image", "close"))]
)
def test_a_tracker_that_raises_is_told_no_more_and_the_run_goes_on(
    method: str, untracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is\nfull")

    monkeypatch.setattr(SummaryWriter, method, fails)
    result = call(tmp_path, "tensorboard")
    assert result.exit_code == 0
    told = "tensorboard failed and is not told any more: RuntimeError: the disk is. The run goes on."
    assert result.output.count(told) == 1
    assert recorded(tmp_path) == recorded(untracked)


class Broken:
    def __init__(self, plan: Any) -> None:
        raise OSError("no protocol")


@pytest.mark.slow
def test_a_tracker_that_does_not_open_ends_no_run(
    untracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "TensorBoard", Broken)
    result = call(tmp_path, "tensorboard")
    assert result.exit_code == 0
    assert "tensorboard failed and is not told any more: OSError: no protocol. The run goes on." in result.output
    assert recorded(tmp_path) == recorded(untracked)


def test_a_run_made_again_is_another_one_to_a_tracker_and_one_that_goes_on_is_not(tmp_path: Path) -> None:
    made = plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path)
    made.folder.mkdir(parents=True)
    names = []
    for anew in (True, False, True):
        tracking._name_anew(made, anew)
        names.append(tracking._name(made))
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("ocr-pocket-gdro-s0-")


def test_a_tracker_that_is_not_there_is_a_sentence_and_a_remedy(tmp_path: Path) -> None:
    unknown = call(tmp_path, "tensorbord")
    assert unknown.exit_code == 2
    assert "tensorboard" in unknown.output
    missing = [name for name in ("trackio", "wandb") if not _installed(name)]
    for name in missing:
        result = call(tmp_path / name, name)
        assert result.exit_code == 2
        assert f"{name} is not installed." in result.output
        assert f"pip install 'gdro-bench[{name}]'" in result.output


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def test_events_are_numbered_alike_when_told_one_by_one_and_afterwards(untracked: Path, tmp_path: Path) -> None:
    """By a tracker that keeps what it is told, one that is asked at every turn what there was before."""
    told: list[Event] = []
    again: list[list[Event]] = []

    class Keeps:
        def begin(self, past: Any) -> None:
            told.extend(past)

        def log(self, event: Event) -> None:
            told.append(event)

        def close(self) -> None: ...

    class Watches(tracking.Tracking):
        def step(self) -> None:
            super().step()
            again.append(list(tracking.events(self.plan, self.state)))

        def point(self) -> None:
            super().point()
            again.append(list(tracking.events(self.plan, self.state)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "TensorBoard", lambda plan: Keeps())
        patch.setattr("gdro_bench.engine.runner.Tracking", Watches)
        assert call(tmp_path, "tensorboard").exit_code == 0
    for n, past in enumerate(again, 1):
        assert [(e.number, e.values) for e in past] == [(e.number, e.values) for e in told[:n]]
        for one, other in zip(past, told, strict=False):
            assert (one.pictures is None) == (other.pictures is None)
    assert told[0].pictures is not None
    assert told[0].pictures.shape == (64, 4 * 64, 3)


# ---------------------------------------------------------------------------------------------------------------
# Trackio, whose pins do not go with ours everywhere, and Weights & Biases, without a server


def killed_and_resumed(runs: Path, tracker: str, **environment: str) -> dict[str, str]:
    """Its environment."""
    known = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "gdro_bench.cli", *arguments(runs), "--track", tracker]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=known)
    while process.poll() is None and not list(runs.glob(BETWEEN_MARKS)):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, env=known, check=True, stdout=subprocess.DEVNULL)
    return known


def test_trackio_s_curves_are_the_record_s_killed_or_not(untracked: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="needs the extra trackio")
    environment = killed_and_resumed(tmp_path / "runs", "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    assert recorded(tmp_path / "runs") == recorded(untracked)
    read = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; "
        f"project = {tracking.PROJECT!r}; names = S.get_runs(project); "
        "print(json.dumps([names, S.get_logs(project, names[0])], default=str))"
    )
    output = subprocess.run([sys.executable, "-c", read], env=environment, check=True, capture_output=True, text=True)
    names, logs = json.loads(output.stdout.splitlines()[-1])
    mark = (folder(tmp_path / "runs") / tracking.OWN_NAME).read_text()
    assert names == [f"ocr-pocket-{folder(tmp_path / 'runs').name}-{mark}"]
    found: dict[str, list[tuple[int, float]]] = {}
    for row in logs:
        for name, value in row.items():
            if isinstance(value, int | float) and "/" in name:
                found.setdefault(name, []).append((row["step"], value))
    check(tmp_path / "runs", found)


def test_weights_and_biases_offline_keeps_the_whole_run_in_its_last_folder(untracked: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    (tmp_path / "wandb").mkdir()
    killed_and_resumed(tmp_path / "runs", "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    assert recorded(tmp_path / "runs") == recorded(untracked)
    first, last = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert first.name == last.name, "one run, twice begun"
    found: dict[str, list[tuple[int, float]]] = {}
    for number, row in history(last):
        for name, value in row.items():
            if "/" in name:
                found.setdefault(name, []).append((number, value))
    check(tmp_path / "runs", found)
    assert len(list(last.parent.glob("files/media/images/samples_*.png"))) == 3


def history(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a `.wandb` file: after seven bytes, protocol buffers in the format of LevelDB's log. Its blocks have
    32 KiB, and each part of a message begins with checksum, length and kind (1 whole, 2 first, 3 middle, 4 last)."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            told, whole = wandb_internal_pb2.Record.FromString(whole), b""
            if told.WhichOneof("record_type") == "history":
                items = told.history.item
                yield told.history.step.num, {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}
