"""A reward, a method and a judge of another package, installed by its entry points and used from the command line."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from test_run import SHORT

from gdro_bench import content
from gdro_bench.cli import main
from gdro_bench.engine import judging, plan
from gdro_bench.errors import BenchError
from gdro_bench.methods import Method
from gdro_bench.registry import TABLES, lookup

PLUGIN = Path(__file__).parent / "plugin"
ROOT = PLUGIN.parents[1]
METHOD = {"method.pool.prompts": 4, "method.pool.images": 4, "method.pool.shard_prompts": 2, "method.groups": 2}
NO_JUDGE = {"profile.judge.name": "none", "profile.judge.gold": "none"}
SETTINGS = SHORT | METHOD | NO_JUDGE | {"profile.budget.limit": 150, "profile.held_out_prompts": 4}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path as pip would leave it, and the user's tasks/ and baselines/ beside it."""
    folder = tmp_path_factory.mktemp("user")
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    info = folder / f"plugin_example-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    shutil.copy(PLUGIN / "plugin_example.py", folder)
    for part in ("tasks", "baselines"):
        shutil.copytree(PLUGIN / part, folder / part)
    return folder


def call(folder: Path, *arguments: str) -> None:
    """The real command line, in a process and a folder of its own."""
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gdro_bench.cli", *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def run_arguments(settings: dict[str, object]) -> list[str]:
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return ["run", "redness", "--method", "best-half", "--device", "cpu", *flags]


@pytest.fixture(scope="module")
def finished(installed: Path) -> Path:
    call(installed, *run_arguments(SETTINGS))
    return next((installed / "runs" / "redness" / "pocket").iterdir())


def test_another_packages_reward_and_method_make_a_run(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["instruments"] == {"reward": "redness (share of red light)"}
    assert run["method"] == "best-half"
    assert run["points"][-1]["updates"] > 0
    values = pd.read_parquet(finished / "scores.parquet")["value"]
    assert values.between(0.0, 1.0, inclusive="neither").all()


@pytest.fixture
def here(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in this process, which saves importing torch once more."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.chdir(installed)
    return installed


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("undrawn")
def test_another_packages_judge_judges_it_and_compare_shows_it(here: Path, finished: Path) -> None:
    invoke("judge", "--judge", "contrast", "--gold", "none")
    assert judging.instruments(finished) == {"judge": "contrast (1-5)"}
    judged = pd.read_parquet(finished / "judged.parquet")
    assert (judged["u"] == judged["style"]).all()
    assert judged["u"].between(1.0, 5.0).all()
    invoke("compare", "--out", "report")
    assert "contrast (1-5)" in next((here / "report").rglob("page.html")).read_text(encoding="utf-8")


def test_eval_takes_its_reward_and_judge(here: Path) -> None:
    settings = ("--set", "profile.held_out_prompts=4", "--set", "profile.sampler.steps=2")
    output = invoke("eval", "redness", "--judge", "contrast", "--device", "cpu", "--out", "scores", *settings)
    assert "redness (share of red light)" in output
    assert json.loads((here / "scores" / "eval.json").read_text())["judge"] == "contrast (1-5)"


def test_list_and_doctor_know_its_parts(here: Path) -> None:
    row = next(line for line in invoke("list").splitlines() if "redness" in line)
    assert "best-half" in row
    invoke("doctor", "--set", "profile.judge.name=contrast")


def test_a_method_without_costs_says_so(here: Path) -> None:
    result = CliRunner().invoke(main, [*run_arguments(SETTINGS), "--out", "elsewhere", "--dry-run"])
    assert result.exit_code == 1
    assert "The method 'best-half' does not foretell its cost." in result.output


def test_a_pool_that_takes_the_whole_budget_is_refused_without_costs_too(here: Path) -> None:
    small = run_arguments(SETTINGS | {"profile.budget.limit": 8})
    result = CliRunner().invoke(main, [*small, "--out", "elsewhere"])
    assert result.exit_code == 2
    assert "the whole budget of 8" in result.output


def test_a_reward_without_a_reader_of_prompts_is_told(here: Path) -> None:
    for reward, said in (("contrast", "no reward 'contrast'"), ("unread", "no reader of prompt lines")):
        own = here / "tasks" / reward
        shutil.copytree(here / "tasks" / "redness", own)
        text = (own / "task.toml").read_text().replace('"redness"', f'"{reward}"')
        (own / "task.toml").write_text(text)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(TABLES["reward"], "unread", "plugin_example:open_redness")
                with pytest.raises(BenchError, match=said):
                    plan.make_plan(reward, "best-half", "pocket", 0, here)
        finally:
            shutil.rmtree(own)


def test_a_name_of_the_package_stays_its_own(here: Path) -> None:
    own = here / "tasks" / "ocr"
    own.mkdir()
    (own / "task.toml").write_text("")
    try:
        with pytest.raises(BenchError, match="is not read: the package has a task 'ocr'"):
            content.find("task", "ocr")
    finally:
        shutil.rmtree(own)


@pytest.mark.parametrize("name", TABLES["method"])
def test_every_method_keeps_the_contract(name: str) -> None:
    method = lookup("method", name)
    assert isinstance(method, Method)
    assert dataclasses.is_dataclass(method.config_type)
    assert callable(method.start)
    assert callable(method.costs)


def parts() -> dict[str, str]:
    """The example's code by the names in its `# -- NAME` lines, as README may show it."""
    text = (PLUGIN / "plugin_example.py").read_text(encoding="utf-8").split("# -- ")[1:]
    return {part.split("\n", 1)[0]: " ".join(part.split("\n", 1)[1].split()) for part in text}


@pytest.mark.parametrize("name", ["reward", "method", "judge"])
def test_the_readme_shows_the_code_that_runs_here(name: str) -> None:
    shown = " ".join(line for line in (ROOT / "README.md").read_text(encoding="utf-8").split())
    assert parts()[name] in shown


def test_the_readme_shows_the_entry_points() -> None:
    table = (PLUGIN / "pyproject.toml").read_text(encoding="utf-8").split("[project.entry-points]")[1].split("[tool")[0]
    assert table.strip() in (ROOT / "README.md").read_text(encoding="utf-8")
