"""Sweeps: which runs they hold, that they share a pool and resume, and that their runs can be compared."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from gdro_bench import models
from gdro_bench.cli import main
from gdro_bench.commands import sweep
from gdro_bench.engine import record, runner
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.pool_keys import pool_key
from gdro_bench.engine.record import Run
from gdro_bench.errors import BenchError

pytestmark = pytest.mark.usefixtures("sketched")

SHORT = {
    "profile.budget.limit": 200,
    "profile.budget.marks": "[0.6,1.0]",
    "profile.sampler.steps": 3,
    "profile.held_out_prompts": 4,
    "profile.kept_images": 4,
    "profile.drift.prompts": 0,
    "profile.health.prompts": 0,
    "profile.reader.workers": 0,
    "method.pool.prompts": 4,
    "method.pool.images": 4,
    "method.pool.shard_prompts": 2,
    "method.k": 4,
    "method.groups": 1,
    "method.drop_flat": "false",
}


def flags(out: Path) -> list[str]:
    settings = [part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")]
    return ["sweep", "ocr", "--out", str(out), "--device", "cpu", *settings]


def call(out: Path, *more: str) -> Result:
    return CliRunner().invoke(main, [*flags(out), *more])


def test_values_are_combined() -> None:
    assert sweep.combinations(["method.tau=0.5,0.05", "method.k=2, 6"]) == [
        ("method.tau=0.5", "method.k=2"),
        ("method.tau=0.5", "method.k=6"),
        ("method.tau=0.05", "method.k=2"),
        ("method.tau=0.05", "method.k=6"),
    ]
    assert sweep.combinations([]) == [()]


def test_the_profile_s_own_value_is_the_plain_run(tmp_path: Path) -> None:
    plans = sweep.plans(
        "ocr", ["gdro"], ["method.tau=0.5,5e-2,0.05"], [0, 1], profile="pocket", out=tmp_path, budget=None
    )
    assert [plan.folder.name for plan in plans] == ["gdro-tau=0.5-s0", "gdro-tau=0.5-s1", "gdro-s0", "gdro-s1"]


def test_runs_of_other_settings_in_one_folder_are_refused(tmp_path: Path) -> None:
    """A judge moves no number of a run, so it is in no folder's name."""
    with pytest.raises(BenchError, match="would share"):
        sweep.plans("ocr", ["gdro"], ["profile.judge.name=none,pocket"], [0], profile="pocket", out=tmp_path)
    once = sweep.plans("ocr", ["gdro"], ["method.tau=0.05,5e-2"], [0, 0], profile="pocket", out=tmp_path)
    assert len(once) == 1


def test_values_of_one_number_are_given_together() -> None:
    with pytest.raises(BenchError, match=r"twice for method\.tau"):
        sweep.combinations(["method.tau=0.05", "method.k=2,4", "method.tau=0.5"])


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_shares_its_pool_resumes_and_can_be_compared(tmp_path: Path) -> None:
    result = call(tmp_path, "--over", "method.tau=0.5,0.05")
    assert result.exit_code == 0, result.output
    assert "Run 2 of 2" in result.output
    assert "gdro-bench compare --runs" in result.output
    runs = {path.parent: record.read(path.parent) for path in tmp_path.glob("ocr/pocket/*/run.json")}
    assert sorted(len([c for c in run.changed if "tau" in c]) for run in runs.values()) == [0, 1]
    assert len(list((tmp_path / "pools").iterdir())) == 1
    stamps = {folder: (folder / "run.json").stat().st_mtime_ns for folder in runs}
    assert call(tmp_path, "--over", "method.tau=0.5,0.05").exit_code == 0
    assert {folder: (folder / "run.json").stat().st_mtime_ns for folder in runs} == stamps
    compared = CliRunner().invoke(main, ["compare", *map(str, runs)])
    assert compared.exit_code == 0, compared.output


@pytest.mark.filterwarnings("ignore:.*NaN.*")
def test_a_run_that_fails_leaves_the_others_their_turn(tmp_path: Path) -> None:
    result = call(tmp_path, "--over", "method.beta=1e39,50")
    assert result.exit_code == 1
    assert "The loss is" in result.output
    assert len(list(tmp_path.glob("ocr/pocket/*/run.json"))) == 1


def test_a_run_that_meets_a_fault_leaves_the_others_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = runner.execute

    def faulty(plan: Plan, *rest: Any) -> Run:
        if plan.seed == 0:
            raise OSError(5, "Input/output error")
        return execute(plan, *rest)

    monkeypatch.setattr(runner, "execute", faulty)
    result = call(tmp_path, "--seeds", "0,1")
    assert result.exit_code == 1
    assert "OSError: [Errno 5] Input/output error" in " ".join(result.output.split())
    assert len(list(tmp_path.glob("ocr/pocket/*/run.json"))) == 1


def test_processes_side_by_side_have_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [models.own_device("cuda", slot) for slot in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert chosen == [0, 1, 0]
    assert models.own_device("cpu", 1) == "cpu"
    assert models.own_device("cuda:1", 0) == "cuda:1"  # as it was asked for


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*NaN.*")
def test_runs_side_by_side_leave_the_records_of_one_after_another(tmp_path: Path) -> None:
    varied = ("--over", "method.pool.seed=0,1", "--over", "method.beta=5,1e39")
    for folder, jobs in (("one", "1"), ("two", "2")):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
        result = call(tmp_path / folder, *varied, "--jobs", jobs)
        assert result.exit_code == 1, result.output
        assert result.output.count("The loss is") == 2  # these fail and keep no other from its turn
    one, two = (
        {path.parent.name: path.read_bytes() for path in (tmp_path / folder).glob("ocr/pocket/*/run.json")}
        for folder in ("one", "two")
    )
    assert len(one) == 2
    assert one == two


def test_runs_of_one_pool_have_one_key(tmp_path: Path) -> None:
    def keys(method: str, *settings: str) -> list[str | None]:
        over = ["method.optimiser.clip=1,2"]
        chosen = sweep.plans("ocr", [method], over, [0, 1], settings, profile="pocket", out=tmp_path, budget=None)
        return [pool_key(plan) for plan in chosen]

    assert len(set(keys("gdro"))) == 2  # a pool for each seed
    assert len(set(keys("gdro", "method.pool.shared=true"))) == 1
    assert keys("flow-grpo") == [None] * 4
