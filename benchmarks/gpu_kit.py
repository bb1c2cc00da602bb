"""All that only a GPU can show, in one command of ten minutes, and the table of what it saw.

    python -m benchmarks.gpu_kit wheels .whl            # beforehand: what a machine without a package index lacks
    python -m benchmarks.gpu_kit run --out gpu.json     # on the machine with the GPU
    python -m benchmarks.gpu_kit run --out tiny.json --tiny    # a rehearsal on a CPU, with tiny models
    python -m benchmarks.gpu_kit table gpu.json         # Markdown

Parts, the most telling first: the tests marked `cuda`; FLUX.1-dev's throughput at its profile's numbers (pictures in 4
steps, since a picture's time is that of its steps), and without checkpointing; SD3.5-medium's; pocket runs on the GPU;
the others without checkpointing, compiled and in TF32. Throughput rows bring memory, seen and foretold, LoRA's share
and how many ratios rounding alone would clip against log-probabilities kept while sampling (it should be none). Each
part is a process of its own with a limit of its own; what fails or finds no time left is recorded as that. The JSON is
written anew after each part, so that a machine that goes away takes nothing with it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gdro_bench.files import write_atomically

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("torch", "diffusers", "transformers", "peft")
WHEELS = ("diffusers", "importlib_metadata", "zipp", "lazy-importer", "rapidfuzz")  # beside what images with torch hold
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
             "manylinux1_x86_64")  # fmt: skip
POCKET = ("profile.held_out_prompts=64", "profile.kept_images=1", "profile.drift.prompts=0", "profile.health.prompts=0",
          "profile.judge.name=none", "profile.judge.gold=none", "profile.budget.marks=[1.0]",
          "method.pool.prompts=32")  # fmt: skip
TINY = ("profile.held_out_prompts=16", "method.pool.prompts=8")  # for two cores
MINUTES = 9.0  # for all parts
TAIL = 1500  # characters of a failed part's output


@dataclass(frozen=True, slots=True)
class Part:
    """A process of at most `limit` seconds and what reads its result from the folder it wrote to."""

    name: str
    command: Sequence[str]
    limit: float
    read: Callable[[], Any]


def parts(folder: Path, tiny: bool) -> list[Part]:
    flux, sd3 = ("flux-tiny", "sd3-tiny") if tiny else ("flux1-dev", "sd35-medium")
    quick = ("--only", "velocity,GDRO update")
    unchecked, compiled = ("--set", "profile.pretrained.gradient_checkpointing=false"), (
        "--set", "profile.pretrained.compiled=true",
    )  # fmt: skip

    def rates(name: str, model: str, batch: str, limit: float, *more: str) -> Part:
        out, device = folder / f"{len(name)}-{name.replace(' ', '-').replace(',', '')}.json", "cpu" if tiny else "cuda"
        size = ("--side", "64") if tiny else ()
        command = ("-m", "benchmarks.throughput", model, "--batch", batch, "--device", device, "--out", str(out))
        return Part(name, (*command, *size, *more), limit, lambda: json.loads(out.read_text(encoding="utf-8")))

    short = ("--set", "profile.sampler.steps=4")
    return [
        tests(folder, tiny),
        rates("FLUX", flux, "2" if tiny else "6", 120, *short),
        rates("FLUX, not checkpointed", flux, "2" if tiny else "6", 60, *unchecked, *quick),
        rates("SD3.5", sd3, "2" if tiny else "8", 90, *short),
        *(pocket(method, folder, tiny) for method in ("gdro", "flow-grpo")),
        rates("SD3.5, not checkpointed", sd3, "2" if tiny else "8", 60, *unchecked, *quick),
        rates("FLUX, compiled", flux, "2" if tiny else "6", 120, *compiled, *quick),
        rates("SD3.5, compiled", sd3, "2" if tiny else "8", 120, *compiled, *quick),
        rates("FLUX, TF32", flux, "2" if tiny else "6", 60, "--tf32", *quick),
    ]


def tests(folder: Path, tiny: bool) -> Part:
    """In a rehearsal the same tests, on their other device."""
    out = folder / "tests.xml"
    chosen = ("-m", "not cuda and not slow", "-k", "on_a_device") if tiny else ("-m", "cuda")
    command = ("-m", "pytest", "-q", *chosen, "-p", "no:cacheprovider", "-o", "filterwarnings=default",
               "--junitxml", str(out), str(REPOSITORY / "tests" / "test_full_scale.py"))  # fmt: skip

    def counted() -> dict[str, int]:
        suite = next(ElementTree.parse(out).getroot().iter("testsuite"))
        return {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}

    return Part("tests", command, 120, counted)


def pocket(method: str, folder: Path, tiny: bool) -> Part:
    """A short GenEval run, whose detector needs no package of its own."""
    device, budget = ("cpu", "2500") if tiny else ("cuda", "10000")
    out = folder / f"{method}-{device}"
    chosen = (*POCKET, *TINY) if tiny else POCKET
    wanted = [setting for setting in chosen if method == "gdro" or not setting.startswith("method.")]
    settings = [word for setting in wanted for word in ("--set", setting)]
    command = ("-m", "gdro_bench.cli", "run", "geneval", "--method", method, "--device", device, "--budget", budget,
               *settings, "--out", str(out))  # fmt: skip

    def read() -> Any:
        (written,) = out.rglob("run.json")
        record = json.loads(written.read_text(encoding="utf-8"))
        return [{name: point[name] for name in ("mark", "updates", "reward")} for point in record["points"]]

    return Part(f"pocket {method} {device}", command, 60, read)


def run_part(part: Part, limit: float) -> dict[str, Any]:
    """What it gave, or why it gave nothing, and how long it took."""
    start = time.monotonic()
    places = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, *part.command], cwd=REPOSITORY, start_new_session=True, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": places},
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=limit)
        why = "" if process.returncode == 0 else f"ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        why = f"took longer than {limit:.0f} s"
    ended: dict[str, Any] = {"name": part.name, "seconds": round(time.monotonic() - start, 1)}
    try:
        ended["result"] = part.read()  # also what a part had written before it failed
    except (OSError, ValueError, KeyError, StopIteration, ElementTree.ParseError) as error:
        why = why or f"left no result: {error}"
    return ended | ({"failed": why, "output": said[-TAIL:]} if why else {})


def run(arguments: argparse.Namespace) -> None:
    end, patience = time.monotonic() + 60 * arguments.minutes, arguments.minutes / MINUTES
    found: dict[str, Any] = {"tiny": arguments.tiny, "versions": versions(), "parts": []}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(Path(folder), arguments.tiny):
            left = end - time.monotonic()
            done = (
                run_part(part, min(part.limit * patience, left))
                if left > 0
                else {"name": part.name, "failed": "no time left"}
            )
            found["parts"].append(done)
            write_atomically(arguments.out, (json.dumps(found, indent=1) + "\n").encode())
            print(f"{part.name:26s} {done.get('seconds', 0):6.1f} s  {done.get('failed', 'done')}", flush=True)


def versions() -> dict[str, str]:
    seen = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            seen[package] = version(package)
        except PackageNotFoundError:
            seen[package] = "not installed"
    return seen


def table(arguments: argparse.Namespace) -> None:
    found = json.loads(arguments.file.read_text(encoding="utf-8"))
    done = [part for part in found["parts"] if "result" in part]
    rates = [part for part in done if isinstance(part["result"], dict) and "rows" in part["result"]]
    machine = rates[0]["result"]["machine"] if rates else "no throughput seen"
    print(f"{machine}; " + ", ".join(f"{name} {number}" for name, number in found["versions"].items()) + "\n")
    print("| setting | work | images a pass | images/s | share of products | GB | foretold | rounding clips |")
    print("| --- | --- " + "| ---: " * 6 + "|")
    for part in rates:
        for row in part["result"]["rows"]:
            clips = f"{row['kept_clipped']:.3g}" if "kept_clipped" in row else ""
            print(
                f"| {part['name']} | {row['what']} | {row['images_a_pass']} | {row['images_per_second']:.3g} | "
                f"{row['share_of_peak']:.0%} | {row['peak_memory_gb']:.1f} | {row['foretold_gb']:.1f} | {clips} |"
            )
    print()
    for part in done:
        if part["name"] == "tests":
            print("- tests: " + ", ".join(f"{count} {name}" for name, count in part["result"].items()))
        elif isinstance(part["result"], list):
            last = part["result"][-1]
            reward = last["reward"]
            print(
                f"- {part['name']}: {reward['mean']:.3f} [{reward['low']:.3f}, {reward['high']:.3f}] after "
                f"{last['updates']} updates, {part['seconds']:.0f} s"
            )
    for part in found["parts"]:
        if "failed" in part:
            print(f"- {part['name']}: {part['failed']}")


def wheels(arguments: argparse.Namespace) -> None:
    """Downloads what is missing there, for Linux on x86-64 and the Python that is asked for."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp",
               "--python-version", arguments.python, *platforms, "--constraint", str(REPOSITORY / "constraints.txt"),
               "--dest", str(arguments.folder), *WHEELS)  # fmt: skip
    if code := subprocess.run(command).returncode:
        sys.exit(code)
    size = sum(path.stat().st_size for path in arguments.folder.glob("*.whl"))
    print(
        f"{size / 2**20:.1f} MiB. There: pip install --no-index --no-deps --target SITE {arguments.folder}/*.whl, and "
        "SITE on PYTHONPATH."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="run all parts")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--tiny", action="store_true", help="a rehearsal on a CPU")
    running.add_argument("--minutes", type=float, default=MINUTES, help="for all; each part's limit grows alike")
    running.set_defaults(command=run)
    shown = commands.add_parser("table", help="print what a run saw")
    shown.add_argument("file", type=Path)
    shown.set_defaults(command=table)
    fetched = commands.add_parser("wheels", help="fetch what a machine lacks")
    fetched.add_argument("folder", type=Path)
    fetched.add_argument("--python", default="3.12")
    fetched.set_defaults(command=wheels)
    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
