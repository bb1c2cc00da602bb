"""The benchmarks run; what they measure is not judged here."""

import importlib
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_pipelines import SIDE, save_sd3

FOLDER = Path(__file__).parents[1] / "benchmarks"


JOBS = ["velocity", "without adapters", "pool", "GDRO update", "Flow-GRPO epoch"]


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_module(f"benchmarks.{Path(name).stem}", run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "batch"),
    [("flux-tiny", "1"), *(pytest.param(model, "1,2", marks=pytest.mark.slow) for model in ("flux-tiny", "sd3-tiny"))],
)
def test_throughput(
    model: str, batch: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    run("throughput.py", monkeypatch, model, "--batch", batch, "--side", "32", "--device", "cpu", "--out", str(out),
        "--set", "profile.sampler.steps=2")  # fmt: skip
    found = json.loads(out.read_text())
    passes = len(batch.split(","))
    assert [row["what"] for row in found["rows"]] == JOBS * passes
    assert [row["images_a_pass"] for row in found["rows"] if row["what"] == "GDRO update"] == [2] * passes
    assert all(row["foretold_gb"] > 0 for row in found["rows"])
    assert [row["kept_clipped"] for row in found["rows"] if "kept_clipped" in row] == [0] * passes
    assert all(row["images_per_second"] > 0 and row["tflop_per_second"] > 0 for row in found["rows"])
    assert "images/s" in capsys.readouterr().out


def test_pockets_pictures_with_adapters_merged_and_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, wanted = tmp_path / "found.json", ["adapters merged", "adapters apart"]
    run("throughput.py", monkeypatch, "pocket", "--batch", "2", "--only", ",".join(wanted), "--out", str(out))
    merged, apart = json.loads(out.read_text())["rows"]
    assert [merged["what"], apart["what"]] == wanted
    flop = [row["tflop_per_second"] / row["images_per_second"] for row in (merged, apart)]  # of a picture
    assert flop[0] < flop[1]
    assert "adapters merged" in capsys.readouterr().out


def test_how_fast_pictures_are_scored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    run("instruments.py", monkeypatch, "pocket", "--workers", "0,1", "--images", "4", "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert [(row["what"], row["workers"]) for row in rows] == [
        ("reader", 0), ("reader", 1), ("detector", None), ("judge", None),
    ]  # fmt: skip
    assert all(row["images_per_second"] > 0 for row in rows)
    assert "1 worker processes" in capsys.readouterr().out


def test_an_instrument_that_cannot_be_had_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"reader.models": tmp_path / "a", "detector.source": tmp_path / "b", "judge.name": "none"}
    settings = [part for name, value in gone.items() for part in ("--set", f"profile.{name}={value}")]
    run("instruments.py", monkeypatch, "flux1-dev", "--workers", "0", "--images", "2", *settings)
    _, reader, detector = capsys.readouterr().out.splitlines()
    assert reader.startswith("  reader: PaddleOCR")
    assert detector.startswith("  detector: Mask2Former cannot be loaded")


def test_what_a_profile_needs_is_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("needs.py", monkeypatch, "work", "flux-tiny", "sd3-tiny", "--side", "32", "--flops", "1e6")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == ["flux-tiny", "sd3-tiny"]
    assert all(0 < float(ocr) < float(geneval) for *_, ocr, geneval in rows[2:])
    evaluations = importlib.import_module("benchmarks.needs").evaluations
    painted = 553 * 28 * 10
    assert painted < evaluations("ocr", "flux1-dev") - 2_000_000 < 1.2 * painted


@pytest.mark.slow
def test_the_readme_says_what_profiles_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("needs.py", monkeypatch, "work", "flux1-dev", "sd35-medium")
    assert capsys.readouterr().out in (FOLDER.parent / "baselines" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_whether_a_reward_teaches_all_prompts_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("method.pool.prompts=8", "method.pool.images=4", "method.k=4", "profile.reader.workers=0")
    run("agreement.py", monkeypatch, "geneval", *small)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 7
    assert all(-1 <= float(line.split()[-1]) <= 1 for line in said[1:])


@pytest.mark.slow
def test_the_gpu_kit_keeps_what_each_part_gave_and_why_one_gave_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = importlib.import_module("benchmarks.gpu_kit")

    def parts(folder: Path, tiny: bool) -> list[Any]:
        made = [part for part in real(folder, tiny) if part.name in ("pocket gdro cpu", "SD3.5")]
        less = ["--budget", "150", "--set", "method.pool.prompts=4", "--set", "method.pool.images=4"]
        less += ["--set", "method.k=4", "--set", "method.groups=2", "--set", "profile.held_out_prompts=4"]
        quick = [replace(part, command=(*part.command, *more), limit=400) for part, more in zip(
            made, (less, ("--only", "velocity")), strict=True)]  # fmt: skip
        gone = kit.Part("gone", ("-c", "print('nobody here'); raise SystemExit(3)"), 60, dict)
        hung = kit.Part("hung", ("-c", "import time; time.sleep(600)"), 1, lambda: json.loads(""))
        return [*quick, gone, hung]

    real = kit.parts
    monkeypatch.setattr(kit, "parts", parts)
    out = tmp_path / "gpu.json"
    for words in (["run", "--out", str(out), "--tiny"], ["table", str(out)]):
        monkeypatch.setattr(sys, "argv", ["gpu_kit", *words])
        kit.main()
    pocket, rates, gone, hung = json.loads(out.read_text())["parts"]
    assert "failed" not in pocket, pocket
    assert "failed" not in rates, rates
    assert [point["mark"] for point in pocket["result"]] == [0, 1]
    assert [row["what"] for row in rates["result"]["rows"]] == ["velocity"]
    assert gone["failed"] == "ended with 3"
    assert "nobody here" in gone["output"]
    assert hung["failed"] == "took longer than 1 s"
    said = capsys.readouterr().out
    assert "| SD3.5 | velocity | 2 | " in said
    assert "- gone: ended with 3" in said


def test_the_gpu_kit_names_a_part_once() -> None:
    kit = importlib.import_module("benchmarks.gpu_kit")
    for tiny in (True, False):
        names = [part.name for part in kit.parts(Path("folder"), tiny)]
        assert len(set(names)) == len(names)
        assert sum(part.limit for part in kit.parts(Path("folder"), tiny)[:4]) < 540  # the most telling fit


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gdro", "flow-grpo"])
def test_the_true_size_rehearsal_tells_the_memory_foretold_and_seen(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsal = importlib.import_module("benchmarks.true_size")
    pipeline, out = save_sd3(tmp_path / "tiny"), tmp_path / "found.json"
    monkeypatch.setitem(rehearsal.SETTINGS, "pretrained.side", SIDE)
    monkeypatch.setattr(sys, "argv", ["true_size", str(pipeline), "--method", method, "--out", str(out)])
    rehearsal.main()
    rows = json.loads(out.read_text())
    assert [(row["method"], row["checkpointed"], row["updates"]) for row in rows] == [
        (method, True, 1), (method, False, 1),
    ]  # fmt: skip
    assert all(0 < row["foretold_gb"] < 0.1 for row in rows)
    assert all(row["seen_gb"] > 0 for row in rows)
    assert capsys.readouterr().out.count(f"| {method} |") == 2


def test_ink_by_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("ink.py", monkeypatch, "--steps", "2,4", "--prompts", "6")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" steps: ")[0] for line in lines] == ["2", "4"]
    for line in lines:
        assert 0 <= float(line.split()[2]) <= 1
        assert 0 < int(line.split()[4]) <= 6
