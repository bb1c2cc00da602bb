"""Whole runs through the command line, on the shipped model with the real reader, made short by `--set`."""

import copy
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors import SafetensorError

from gdro_bench import content, version
from gdro_bench.cli import main
from gdro_bench.commands import summary
from gdro_bench.engine import artifacts, divergence, folders, plan, record, runner, samples
from gdro_bench.errors import BenchError
from gdro_bench.instruments import panel, readers
from gdro_bench.methods import Step
from gdro_bench.methods.parts import offline
from gdro_bench.models.pocket import network
from gdro_bench.registry import TABLES

pytestmark = pytest.mark.usefixtures("sketched")

BUDGET = 160
SHORT: dict[str, object] = {
    "profile.budget.limit": BUDGET,
    "profile.sampler.steps": 3,
    "profile.held_out_prompts": 4,
    "profile.kept_images": 2,
    "profile.drift.prompts": 2,
    "profile.drift.images": 2,
    "profile.health.prompts": 2,
    "profile.reader.workers": 0,
    "profile.budget.marks": "[0.6,1.0]",
}
POOL_SHORT = {"method.pool.prompts": 4, "method.pool.images": 4, "method.pool.shard_prompts": 1}
ROLLOUT_SHORT = {"method.prompts": 2, "method.k": 4}
EPOCH_SHORT = {"method.online.prompts": 2, "method.online.k": 4, "method.online.first": 0, "method.online.last": 2}
OFFLINE_SHORT = POOL_SHORT | {"method.mode": "offline", "method.offline.k": 4, "method.offline.groups": 2}
# GDRO: four groups of four in shards of one (48 evaluations), then four updates of 32 evaluations. So short a
# sampling may read nothing in a whole group, hence drop_flat.
METHOD_SHORT: dict[str, dict[str, object]] = {
    "gdro": POOL_SHORT | {"method.k": 4, "method.groups": 2, "method.drop_flat": "false"},
    "dpo": POOL_SHORT | {"method.groups": 4},
    "rft": POOL_SHORT | {"method.groups": 4, "method.best": 2, "method.drop_flat": "false"},
    "flow-grpo": ROLLOUT_SHORT,
    "dance-grpo": ROLLOUT_SHORT,
    **dict.fromkeys(("nft", "awm", "dgpo", "crd"), EPOCH_SHORT),
}


def arguments(out: Path, method: str = "gdro", **changed: object) -> list[str]:
    settings = SHORT | METHOD_SHORT[method] | {name.replace("__", "."): value for name, value in changed.items()}
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return ["run", "ocr", "--method", method, "--out", str(out), "--device", "cpu", *flags]


def call(out: Path, method: str = "gdro", **changed: object) -> Result:
    return CliRunner().invoke(main, arguments(out, method, **changed))


def folder(out: Path) -> Path:
    return next((out / "ocr" / "pocket").iterdir())


def recorded(out: Path) -> str:
    scores = record.read_scores(folder(out)).to_csv()
    whole = (folder(out) / "run.json").read_text() + scores + (folder(out) / "health.json").read_text()
    return whole + "".join(f"{path.name} {digest(path)}" for path in sorted(folder(out).rglob("loras/**/*")))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


@pytest.fixture
def finished(short_run: tuple[Path, str]) -> Path:
    return short_run[0]


def test_a_run_leaves_a_record_a_sheet_and_adapters(finished: Path) -> None:
    run = record.read(folder(finished))
    assert [point.mark for point in run.points] == [0.0, 0.6, 1.0]
    assert run.points[-1].evaluations >= BUDGET
    assert run.points[0].gain.mean == 0
    scores = record.read_scores(folder(finished))
    assert len(scores) == 3 * 4
    assert scores[list(panel.STATISTICS)].notna().all(axis=None)
    assert scores.groupby("mark")[list(divergence.NAMES)].count().eq(2).all(axis=None)
    at = scores.groupby("mark")["path_kl"].mean()
    assert at[0.0] == 0 < at[1.0]
    for mark in (0.0, 0.6, 1.0):
        assert samples.numbers(samples.path_of(folder(finished), mark)) == [0, 1]
    for name in ("sheet.png", "sheet.pdf", "steps.parquet", "timing.json", "lora/pytorch_lora_weights.safetensors"):
        assert (folder(finished) / name).stat().st_size > 0


def test_a_run_says_on_what_it_ran(finished: Path) -> None:
    machine = json.loads((folder(finished) / "machine.json").read_text())
    assert machine["libraries"]["torch"] == metadata.version("torch")
    assert (machine["processes"], machine["threads"]) == (1, torch.get_num_threads())


def test_a_finished_run_is_shown_not_repeated(finished: Path) -> None:
    before = (folder(finished) / "run.json").stat().st_mtime_ns
    result = call(finished)
    assert result.exit_code == 0
    assert "velocity" in result.output
    assert (folder(finished) / "run.json").stat().st_mtime_ns == before


def test_a_ready_pool_is_charged_as_if_made(finished: Path, tmp_path: Path) -> None:
    (finished / "pools").rename(tmp_path / "pools")
    try:
        assert call(tmp_path).exit_code == 0
    finally:
        (tmp_path / "pools").rename(finished / "pools")
    assert recorded(tmp_path) == recorded(finished)


def test_the_pool_is_charged_apart(finished: Path) -> None:
    last = record.read(folder(finished)).points[-1]
    assert last.pool_evaluations == last.collection_evaluations == 4 * 4 * 3
    assert (last.pool_images, last.images_sampled, last.reward_calls) == (4 * 4, 4 * 4, 4 * 4)
    assert last.optimisation_evaluations == 4 * last.images_trained == 4 * 8 * last.updates
    timing = json.loads((folder(finished) / "timing.json").read_text())
    assert [entry["mark"] for entry in timing] == [0.0, 0.6, 1.0]
    assert timing[-1]["pool"] == pytest.approx(timing[-1]["collection"], rel=0.2)
    assert timing[-1]["optimisation"] > timing[0]["optimisation"] == 0


def test_a_mark_before_the_first_update_is_the_base_again(tmp_path: Path) -> None:
    assert call(tmp_path, profile__budget__marks="[0.1,1.0]").exit_code == 0
    base, during_the_pool, last = record.read(folder(tmp_path)).points
    assert (during_the_pool.updates, during_the_pool.reward) == (0, base.reward)
    assert during_the_pool.pool_evaluations > 0
    assert last.updates > 0
    first, second = (samples.path_of(folder(tmp_path), mark) for mark in (0.0, 0.1))
    assert second.read_bytes() == first.read_bytes()
    first, second = (folder(tmp_path) / "loras" / mark / "pytorch_lora_weights.safetensors" for mark in ("0.0", "0.1"))
    assert second.read_bytes() == first.read_bytes()
    base, during_the_pool, last = json.loads((folder(tmp_path) / "health.json").read_text())["points"]
    assert during_the_pool == base | {"mark": 0.1}
    assert last["ratings"] != base["ratings"]


@pytest.mark.slow
def test_close_evaluation_points_keep_pictures_of_their_own(tmp_path: Path) -> None:
    assert call(tmp_path, profile__budget__marks="[0.736,0.744,0.95,1.0]").exit_code == 0
    points = record.read(folder(tmp_path)).points
    kept = [samples.path_of(folder(tmp_path), point.mark).read_bytes() for point in points]
    assert len(set(kept)) == len({point.updates for point in points})


def test_a_folder_in_use_is_left_alone(finished: Path) -> None:
    with folders.locked(folder(finished)):
        result = call(finished)
    assert result.exit_code == 1
    assert f"is being run by process {os.getpid()}" in result.output
    assert call(finished).exit_code == 0


def test_a_killed_run_s_leftovers_go_when_it_is_shown(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path) / runner.CHECKPOINT).write_bytes(b"as if it had been killed with the record just written")
    assert call(tmp_path).exit_code == 0
    assert not (folder(tmp_path) / runner.CHECKPOINT).exists()


def begun(out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a run whose memory was full at its first update."""
    with monkeypatch.context() as patched:
        patched.setattr(offline.OfflineTraining, "step", full_after(offline.OfflineTraining.step))
        result = call(out)
    assert result.exit_code == 1
    assert "The memory of cpu is full: so many GiB. Take fewer images at once" in " ".join(result.output.split())
    assert "Traceback" not in result.output
    return folder(out) / runner.CHECKPOINT


def full_after(step: Callable[[Any], Step]) -> Callable[[Any], Step]:
    def one(training: Any) -> Step:
        done = step(training)
        if done.kind == "optimise":
            raise torch.OutOfMemoryError("so many GiB.\nMore on that.")
        return done

    return one


def test_a_full_memory_is_told_and_both_versions_of_the_code(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path, monkeypatch)
    code = version.of_code()
    monkeypatch.setattr(version, "of_code", lambda: "0.9.9")
    result = call(tmp_path)
    assert result.exit_code == 0, result.output
    assert f"was begun with {code} and goes on with 0.9.9" in " ".join(result.output.split())
    run = record.read(folder(tmp_path))
    assert run.version == f"{code}, then 0.9.9"
    assert run.points == record.read(folder(finished)).points


def test_a_checkpoint_of_another_version_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = begun(tmp_path, monkeypatch)
    saved = torch.load(path, weights_only=True)
    state = json.loads(saved["state"])
    state["ledger"].pop("pool")
    torch.save(saved | {"state": json.dumps(state)}, path)
    result = call(tmp_path)
    assert result.exit_code == 1
    assert "is of another version of this package" in result.output
    assert "Traceback" not in result.output


def test_adapters_on_a_full_disk_end_in_a_sentence_and_leave_nothing(tmp_path: Path) -> None:
    def save(to: Path) -> None:
        to.mkdir()
        (to / "half").write_bytes(b"x")
        raise SafetensorError("No space left on device")

    with pytest.raises(BenchError, match="cannot be written: No space left on device"):
        artifacts.keep_adapters(tmp_path / "loras" / "0.5", save)
    assert list((tmp_path / "loras").iterdir()) == []


def test_judges_and_readers_are_not_part_of_a_run(tmp_path: Path) -> None:
    plans = [
        plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, settings)
        for settings in ((), ("profile.judge.name=none", "profile.reader.workers=0"))
    ]
    assert plans[0].folder == plans[1].folder
    for one in plans:
        folders.claim(one, "model", "reward", True)


def test_passwords_in_a_judge_s_address_are_not_kept(tmp_path: Path) -> None:
    url = "http://me:secret@127.0.0.1:8080/v1"
    made = plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, (f"profile.judge.url={url}",))
    assert made.profile.judge.url == url
    assert "secret" not in repr((made.settings, made.changed, made.folder))


def test_prompts_that_the_model_was_never_taught_are_warned_of(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text('a red sign that reads "TREE" at the top of a blue wall\n\u6d77 "TREE"\na sign "T-R-E-E"\n')
    once = {"profile__budget__limit": 60, "profile__budget__marks": "[1.0]", "profile__health__prompts": 0}
    once |= {"profile__drift__prompts": 0, "method__pool__prompts": 1, "method__pool__images": 4}
    result = CliRunner().invoke(main, [*arguments(tmp_path, **once), "--prompts", str(prompts)])
    assert result.exit_code == 0, result.output
    assert "Warning: 2 of 3 held-out prompts ask for what pocket-" in result.output
    assert "it does not know the word '\u6d77'" in result.output


def test_the_next_command_keeps_what_was_given(tmp_path: Path) -> None:
    made = plan.make_plan("ocr", "rft", "pocket", 3, tmp_path / "a b", ("method.best=3", "method.pool.prompts=8"), 5000)
    command = summary.next_seed(made)
    assert command.startswith("gdro-bench run ocr --method rft --seed 4")
    for words in (f"--out '{tmp_path}/a b'", "--set method.best=3", "--set profile.budget.limit=5000"):
        assert words in command
    own, other = tmp_path / "own.txt", tmp_path / "other.txt"
    own.write_text('a mug that says "TEA"\n')
    other.write_text('a mug that says "MILK"\n')
    small = ["method.pool.prompts=1"]
    made = plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, small, prompts=own, train_prompts=other)
    assert f"--prompts {own} --train-prompts {other}" in summary.next_seed(made)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gdro", "flow-grpo"])
def test_a_budget_of_images_ends_a_run(method: str, tmp_path: Path) -> None:
    assert call(tmp_path, method, profile__budget__kind="images", profile__budget__limit=60).exit_code == 0
    run = record.read(folder(tmp_path))
    assert (run.budget_kind, run.limit) == ("images", 60)
    assert 60 <= run.points[-1].images_sampled + run.points[-1].images_trained < 100


ON_A_POOL = ("nft", "awm", "dgpo", "crd")


@pytest.mark.slow
@pytest.mark.parametrize("method", ON_A_POOL)
def test_a_forward_process_method_runs_on_gdro_s_pool(method: str, finished: Path, tmp_path: Path) -> None:
    offline = {name.replace(".", "__"): value for name, value in OFFLINE_SHORT.items()}
    (finished / "pools").rename(tmp_path / "pools")
    try:
        assert call(tmp_path, method, **offline, method__offline__drop_flat="false").exit_code == 0
        assert len(list((tmp_path / "pools").iterdir())) == 1
    finally:
        (tmp_path / "pools").rename(finished / "pools")
    point, of_gdro = (record.read(folder(out)).points[-1] for out in (tmp_path, finished))
    assert point.pool_evaluations == point.collection_evaluations == of_gdro.pool_evaluations
    assert point.optimisation_evaluations == 4 * point.images_trained


@pytest.mark.slow
@pytest.mark.parametrize("method", ON_A_POOL)
def test_a_forward_process_method_killed_and_resumed_gives_the_same_record(method: str, tmp_path: Path) -> None:
    """Killed in the midst, with copies that lag and an epoch half trained on."""
    half = {"method__online__updates_per_epoch": 2, "method__online__move_copies": "epoch", "method__old__delay": 0}
    half |= {"method__old__start": 0.5, "method__old__ceiling": 0.5}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert call(whole, method, **half).exit_code == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gdro_bench.cli", *arguments(killed, method, **half)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while process.poll() is None and not list(killed.glob(BETWEEN_MARKS)):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert call(killed, method, **half).exit_code == 0
    assert recorded(killed) == recorded(whole)


def test_every_method_is_in_the_tests_of_whole_runs() -> None:
    assert set(METHOD_SHORT) == set(TABLES["method"])


@pytest.mark.slow
def test_dpo_is_gdro_with_pairs_and_hard_targets(tmp_path: Path) -> None:
    limit = {"method__k": 2, "method__tau": 0, "method__gamma": 0, "method__groups": 4, "method__drop_flat": "true"}
    optimiser = {
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "epsilon": 1e-8,
    }
    same = {"method__beta": 20} | {f"method__optimiser__{name}": value for name, value in optimiser.items()}
    assert call(tmp_path / "dpo", "dpo", **same).exit_code == 0
    assert call(tmp_path / "gdro", "gdro", **limit, **same, method__draw="unequal").exit_code == 0
    dpo, gdro = (record.read(folder(tmp_path / name)).points for name in ("dpo", "gdro"))
    assert dpo == gdro


@pytest.mark.parametrize(
    "method",
    [name if name in ("gdro", "flow-grpo") else pytest.param(name, marks=pytest.mark.slow) for name in METHOD_SHORT],
)
def test_geneval_runs_too_and_no_evaluation_goes_uncharged(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted = {"with": 0, "without": 0}  # `reference_velocity` turns gradients off before it comes here
    original = network.velocity

    def counting(transformer: torch.nn.Module, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        counted["with" if torch.is_grad_enabled() else "without"] += len(x)
        return original(transformer, x, *rest)

    monkeypatch.setattr(network, "velocity", counting)
    once = {"profile__budget__marks": "[1.0]"}
    result = CliRunner().invoke(main, ["run", "geneval", *arguments(tmp_path, method, **once)[2:]])
    assert result.exit_code == 0, result.output
    run = record.read(next((tmp_path / "geneval" / "pocket").iterdir()))
    assert re.fullmatch(r"GenEval mended score \(pocket detector [0-9a-f]{8}\)", run.instruments["reward"])
    last = run.points[-1]
    assert {"correct", "strict", "correct counting"} <= set(last.parts)
    held_out, paths, diversity = 4 * 3, 2 * 3 * 2, 2 * 2 * 3  # 3 steps; with the reference; 2 images
    health = 2 * 3 + 2 * 3 * 2  # prompts and steps; the paths of 2 with the reference
    evaluated_on_top = 2 * (held_out + paths + diversity + health)  # at the base and the end
    assert last.evaluations == 3 * counted["with"] + counted["without"] - evaluated_on_top


POOL, BETWEEN_MARKS = "pools/*/shard-{:05d}.json", "ocr/pocket/*/samples/0.6.zip"
MOMENTS = [(POOL.format(1), 0.0), (BETWEEN_MARKS, 0.0)]
MORE_MOMENTS = [(POOL.format(shard), 0.05) for shard in range(4)] + [(BETWEEN_MARKS, 0.3 * i) for i in range(1, 5)]


@pytest.mark.parametrize(
    ("sign", "delay"), [*MOMENTS, *(pytest.param(*moment, marks=pytest.mark.slow) for moment in MORE_MOMENTS)]
)
def test_killed_and_resumed_gives_the_same_record(finished: Path, tmp_path: Path, sign: str, delay: float) -> None:
    command = [sys.executable, "-m", "gdro_bench.cli", *arguments(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # sums of floats depend on the number of threads
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while process.poll() is None and not list(tmp_path.glob(sign)):
        time.sleep(0.02)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob("ocr/pocket/*/run.json"))
    if sign == BETWEEN_MARKS:  # the pool is paid for: what was deleted of it is made again, at no charge
        next(tmp_path.glob(POOL.format(1))).unlink()
    assert call(tmp_path).exit_code == 0
    assert recorded(tmp_path) == recorded(finished)


def test_a_corrupt_shard_stops_the_run_and_loses_nothing(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path) / "run.json").unlink()
    shard = next(tmp_path.glob("pools/*/shard-00002.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"oops")
    result = call(tmp_path)
    assert result.exit_code == 1
    assert "Shard 2 of the pool is damaged" in result.output
    assert f"Delete {shard.with_suffix('.json')}" in result.output.replace("\n", "")


def failing_reader(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real reader, but every so many images its engine breaks down."""
    original, calls = readers._read_one, itertools.count()

    def read(engine: Any, image: NDArray[np.uint8]) -> readers.Reading:
        n = next(calls)
        return original(engine if int((n + 1) * share) == int(n * share) else None, image)

    monkeypatch.setattr(readers, "_read_one", read)


def test_few_unread_images_are_counted_and_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing_reader(0.05, monkeypatch)
    assert call(tmp_path, profile__max_unscored=0.25).exit_code == 0
    run = record.read(folder(tmp_path))
    in_pool = pd.read_parquet(folder(tmp_path) / "steps.parquet")["unscored"].sum()
    assert sum(point.unscored for point in run.points) + in_pool >= 1
    assert all(0 <= point.reward.mean <= 1 for point in run.points)


def test_many_unread_images_stop_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing_reader(0.6, monkeypatch)
    result = call(tmp_path)
    assert result.exit_code == 1
    assert "could not be scored" in result.output
    assert not {"run.json", "checkpoint.pt"} & {path.name for path in tmp_path.rglob("*")}  # it begins anew


def test_another_schema_is_refused(finished: Path, tmp_path: Path) -> None:
    table = json.loads((folder(finished) / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(table | {"schema": 99}))
    with pytest.raises(record.BenchError, match="schema 99"):
        record.read(tmp_path)


@pytest.mark.parametrize(
    ("seed", "of_all", "mode", "changed", "own", "today"),
    [
        (0, 0, None, [], True, []),
        (1, 1, None, ["method.tau=0.1", "method.pool.seed=1"], True, ["method.tau=0.1"]),
        (1, 0, None, [], False, ["method.pool.shared=true"]),
        (1, 2, "offline", ["method.pool.seed=2"], False, ["method.pool.seed=2", "method.pool.shared=true"]),
        (1, 0, "online", [], True, []),  # it has no pool
    ],
)
def test_a_record_from_when_seeds_shared_pools_is_read_in_todays_terms(
    finished: Path, tmp_path: Path, seed: int, of_all: int, mode: str | None, changed: list[str], own: bool, today: list
) -> None:
    """Seeds with a pool of their own are seeds of one method; those that shared one are another entry."""
    table = json.loads((folder(finished) / "run.json").read_text())
    method = copy.deepcopy(table["settings"]["method"])
    method |= {"pool": {"prompts": 4, "seed": of_all}} | ({"mode": mode} if mode else {})
    expected = method | {"pool": {"prompts": 4} | ({"seed": 0} if own else {"seed": of_all, "shared": True})}
    old = {
        "schema": 2,
        "seed": seed,
        "changed": changed,
        "settings": table["settings"] | {"method": method},
        "digests": table["digests"] | {"method": content.digest(method)},
    }
    (tmp_path / "run.json").write_text(json.dumps(table | old))
    read = record.read(tmp_path)
    assert list(read.changed) == today
    assert read.settings["method"] == expected
    assert read.digests == table["digests"] | {"method": content.digest(expected)}
    assert read.schema == record.SCHEMA
