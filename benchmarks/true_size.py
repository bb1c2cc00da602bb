"""SD3.5-medium at its true size on a CPU, and whether it takes the memory that was foretold.

    python -m benchmarks.true_size FOLDER [--method gdro] [--method flow-grpo] [--out FILE]

Writes the published shapes with random bfloat16 weights to FOLDER as a pipeline, 5 GB, unless they are there. Then
`gdro-bench run ocr` opens them, samples 2 steps at 256 px and makes one update, each method with gradient checkpointing
and without, in a process of its own. The reward is brightness, since nothing can be read in noise. Memory seen is the
process's largest resident set less what it held before the model was opened. On a CPU without bfloat16, products are
made in float32 (see `bfloat16`), which moves no memory that stays.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bfloat16 import products_in_float32
from gdro_bench.engine.plan import make_plan
from gdro_bench.files import write_atomically
from gdro_bench.instruments import Instruments
from gdro_bench.methods import Method
from gdro_bench.models import memory
from gdro_bench.registry import TABLES, lookup
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

SETTINGS = {
    "pretrained.side": 256, "sampler.steps": 2, "sampler.batch": 2, "held_out_prompts": 1, "kept_images": 1,
    "drift.prompts": 0, "health.prompts": 0, "score_ahead": 0, "reader.engine": "rapidocr",
    "reader.workers": 0, "judge.name": "none", "budget.marks": "[1.0]",
}  # fmt: skip
METHODS = {
    "gdro": {"pool.prompts": 1, "pool.images": 2, "k": 2, "groups": 1, "optimiser.batch": 2},
    "flow-grpo": {"prompts": 1, "k": 2, "updates_per_epoch": 1, "rollout_steps": 2},
}
TRAINED_ON = 'a sign that says "Open"\n'  # the shipped prompts are thousands to encode
STARTED = "from benchmarks import true_size; true_size.run_brightness()"
BEFORE = "GDRO_BENCH_BEFORE"  # file for the bytes held before the model is opened


class Brightness:
    name = "brightness"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(image.mean() / 255)) for image in images]


def open_brightness(instruments: Instruments) -> Brightness:
    return Brightness()


def run_brightness() -> None:
    """`gdro-bench` with another reward; notes first what the process holds once its libraries are loaded."""
    import diffusers
    import peft  # noqa: F401

    from gdro_bench.cli import main

    _ = diffusers.StableDiffusion3Pipeline, diffusers.SD3Transformer2DModel, diffusers.AutoencoderKL
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    Path(os.environ[BEFORE]).write_text(str(pages * os.sysconf("SC_PAGESIZE")))
    TABLES["reward"]["ocr"] = "benchmarks.true_size:open_brightness"
    with products_in_float32():
        main()


def settings_of(method: str, source: Path, texts: Path, checkpointed: bool) -> tuple[str, ...]:
    profile = SETTINGS | {
        "pretrained.source": source, "pretrained.text_cache": texts,
        "pretrained.gradient_checkpointing": str(checkpointed).lower(),
    }  # fmt: skip
    return (
        *(f"profile.{name}={value}" for name, value in profile.items()),
        *(f"method.{name}={value}" for name, value in METHODS[method].items()),
    )


def rehearse(method: str, source: Path, checkpointed: bool, folder: Path) -> dict[str, object]:
    """One run of one update, and what it held."""
    settings = settings_of(method, source, folder / "texts", checkpointed)
    plan = make_plan("ocr", method, "sd35-medium", 0, folder, settings)
    described: Method = lookup("method", method)
    assert described.costs is not None
    costs = described.costs(plan.config, plan.profile.sampler)
    budget = sum(one.evaluations for one in (costs.pool, costs.collected, costs.update))
    images = memory.images_together(costs, plan.profile.sampler)
    foretold = memory.foretell(plan.profile, memory.count(plan.profile), images)
    flags = [word for setting in settings for word in ("--set", setting)]
    command = ["run", "ocr", "--profile", "sd35-medium", "--method", method, "--device", "cpu", "--out", str(folder),
               "--budget", str(budget), "--train-prompts", str(folder / "prompts"), *flags]  # fmt: skip
    before, start = folder / "before", time.monotonic()
    (folder / "prompts").write_text(TRAINED_ON, encoding="utf-8")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", STARTED, *command], stdout=log, stderr=log, env=os.environ | {BEFORE: str(before)}
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit((folder / "log").read_text(errors="replace")[-2000:])
    record = json.loads(next(folder.rglob("run.json")).read_text(encoding="utf-8"))
    seen = used.ru_maxrss * 1024 - int(before.read_text())
    return {
        "method": method, "checkpointed": checkpointed, "images_together": images,
        "updates": record["points"][-1]["updates"],
        "foretold_gb": foretold.peak / 1e9, "seen_gb": seen / 1e9, "seconds": time.monotonic() - start,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    arguments = parser.parse_args()
    if not (arguments.folder / "model_index.json").exists():
        from tests.tiny_pipelines import save_true_size_sd3

        save_true_size_sd3(arguments.folder)
    print("| method | checkpointed | images together | updates | foretold, GB | seen, GB | seen / foretold | s |")
    print("| --- | --- " + "| ---: " * 6 + "|")
    rows = []
    for method in arguments.method or METHODS:
        for checkpointed in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                row = rehearse(method, arguments.folder.absolute(), checkpointed, Path(folder))
            rows.append(row)
            print(
                f"| {method} | {'yes' if checkpointed else 'no'} | {row['images_together']} | {row['updates']} | "
                f"{row['foretold_gb']:.2f} | {row['seen_gb']:.2f} | {row['seen_gb'] / row['foretold_gb']:.2f} | "
                f"{row['seconds']:.0f} |",
                flush=True,
            )
            if arguments.out:
                write_atomically(arguments.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
