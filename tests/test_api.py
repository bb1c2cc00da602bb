"""The Python interface: the commands' code as functions, and the examples of their docstrings, run as they stand."""

import json
import math
import re
import shutil
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard
from PIL import Image
from processes import started
from test_run import POOL_SHORT, SHORT

import gdro_bench
from gdro_bench import api, content, stats
from gdro_bench.cli import main
from gdro_bench.engine import record
from gdro_bench.errors import BenchError
from gdro_bench.stats import Estimate

pytestmark = pytest.mark.usefixtures("sketched")

NUMBERS = SHORT | POOL_SHORT | {"method.k": 4, "method.groups": 2, "method.drop_flat": False}
NUMBERS["profile.budget.marks"] = [0.6, 1.0]


def test_a_run_is_the_command_s_and_its_points_are_the_record_s(short_run: tuple[Path, str], tmp_path: Path) -> None:
    """Before `place` has settings of its own, which are no changes. The command's run has ended: it is read."""
    shutil.copytree(short_run[0], tmp_path, dirs_exist_ok=True)
    (here,) = (path.parent for path in tmp_path.rglob("run.json"))
    before = (here / "run.json").stat().st_mtime_ns
    points = gdro_bench.run("ocr", "gdro", settings=NUMBERS, out=tmp_path, device="cpu", quiet=True)
    assert len(list(here.parent.iterdir())) == 1
    assert (here / "run.json").stat().st_mtime_ns == before
    known = record.read(here).points
    assert points["mark"].tolist() == [point.mark for point in known]
    assert points["evaluations"].tolist() == [point.evaluations for point in known]
    assert points["reward"].to_numpy() == pytest.approx([point.reward.mean for point in known])
    assert (points["reward_low"] <= points["reward"]).all()
    assert {"corrected", "corrected_low", "gold", "gold_high", "text_area"} <= set(points)
    assert points["folder"].unique().tolist() == [str(here)]
    pd.testing.assert_frame_equal(gdro_bench.runs(tmp_path), points)


def toml(tables: dict[str, object]) -> str:
    """A table as a file; nested tables are spelt with dots."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in content.flatten(tables).items())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder where pocket's runs are short, by numbers of its own, and one has ended."""
    folder = tmp_path_factory.mktemp("place")
    local, source = folder / "baselines" / "pocket", content.find("profile", "pocket")
    local.mkdir(parents=True)
    for group, name in (("profile", "profile"), ("method", "gdro")):
        tables = {group: content.read(source / f"{name}.toml")}
        settings = {k: v for k, v in NUMBERS.items() if k.startswith(f"{group}.")}
        content.apply_settings(tables, [f"{k}={json.dumps(v)}" for k, v in settings.items()])
        (local / f"{name}.toml").write_text(toml(tables[group]))
    before = content.roots()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(content, "roots", lambda: [folder, *before])  # its settings go before the package's
        gdro_bench.run("ocr", quiet=True)
        yield folder


def examples(function: object) -> str:
    """The code in a docstring: its lines that stand four columns further in than the text, before `Args:`."""
    text = textwrap.dedent((function.__doc__ or "").split("Args:")[0].split("Columns:")[0])
    body = re.split(r"\n", text)
    return textwrap.dedent("\n".join(line for line in body[1:] if line.startswith("        ") or not line.strip()))


@pytest.mark.parametrize("name", ["run", "runs", "evaluate", "compare"])
def test_the_examples_run_as_they_stand(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code = examples(getattr(gdro_bench, name))
    assert f"gdro_bench.{name}(" in code
    exec(code, {"gdro_bench": gdro_bench, "pd": pd})


def test_the_first_example_runs_as_it_stands(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    lines = [line[4:] for line in (gdro_bench.api.__doc__ or "").splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})


def test_a_run_s_adapters_have_a_card_and_judging_writes_it_again(place: Path) -> None:
    (folder,) = (path.parent for path in (place / "runs").rglob("gdro-s0/run.json"))
    path = folder / "lora" / "README.md"
    written = path.read_text()
    assert ModelCard.load(path).data.library_name == "diffusers"
    path.unlink()
    assert CliRunner().invoke(main, ["judge", str(folder)]).exit_code == 0
    assert path.read_text() == written


def test_runs_tells_methods_seeds_and_changes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 100)  # nobody looks at an interval
    table = gdro_bench.runs(Path(__file__).parents[1] / "reports")
    ends = table[table["mark"] == 1.0]
    assert not ends.duplicated(["task", "profile", "method", "changed", "seed", "budget"]).any()
    assert {"gdro", "flow-grpo"} <= set(ends["method"])


def test_an_evaluation_is_returned_and_written(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "list.csv").write_text('path,prompt\nblack.png,"a sign that says ""HAT"""\n')
    settings = {"profile.reader.workers": 0}
    result = gdro_bench.evaluate(
        "ocr", images=tmp_path / "list.csv", settings=settings, out=tmp_path / "out", quiet=True
    )
    written = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert result.reward == Estimate(**written["reward"])
    assert (result.pictures, result.unscored) == (1, 0)


def test_bad_input_is_a_sentence_and_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="flow-grpo"):
        gdro_bench.run("ocr", "flow-gpro", out=tmp_path)
    with pytest.raises(BenchError, match="no finished run"):
        gdro_bench.runs(tmp_path)
    with pytest.raises(BenchError, match="unit of cost"):
        gdro_bench.compare(runs=tmp_path, axis="evaluation")


UNGUARDED = """
import sys
import gdro_bench

print("read", flush=True)
result = gdro_bench.evaluate("ocr", images=sys.argv[1], quiet=True)
print(result.pictures, flush=True)
"""


def test_settings_say_in_python_what_they_say_in_a_command() -> None:
    given = {
        "method.a": np.float32(0.5), "method.b": np.int64(3), "method.c": math.inf, "method.d": True,
        "method.e": ["x", 'y"z'], "method.f": "naïve 😀", "method.g": 1e-05,
    }  # fmt: skip
    for setting, value in zip(api._written(given), given.values(), strict=True):
        assert tomllib.loads(setting.replace("method.", ""))[setting[7]] == value
    for value in (None, {"a": 1}):
        with pytest.raises(BenchError, match=r"The setting method\.a is"):
            api._written({"method.a": value})


def test_a_script_without_a_guard_is_not_run_again_by_the_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # not where other tests have put numbers before the package's
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "list.csv").write_text('path,prompt\nblack.png,"a sign that says ""HAT"""\n')
    (tmp_path / "script.py").write_text(UNGUARDED)
    output, errors = started(tmp_path / "script.py", tmp_path / "list.csv").communicate(timeout=300)
    assert (output.split(), errors) == (["read", "1"], "")


def test_the_notebook_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 100)
    path = Path(__file__).parents[1] / "reports" / "figures.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    monkeypatch.chdir(path.parent)
    names: dict[str, object] = {}
    for cell in code:
        exec(cell, names)
    drawn = [line.get_label() for line in names["axis"].get_lines()]
    kept = {path.name.rsplit("-s", 1)[0] for path in Path("ocr-pocket/runs").iterdir()}
    assert len(drawn) == len(kept)  # a method with other settings is a curve of its own
    assert {str(label).split()[0] for label in drawn} == {
        record.read(run).method for run in Path("ocr-pocket/runs").iterdir()
    }
    plt.close(names["figure"])
