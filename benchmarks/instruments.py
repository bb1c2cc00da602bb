"""How fast pictures are scored here: `python -m benchmarks.instruments pocket --workers 0,1,2 --out FILE`.

Images a second of a profile's reader, by the number of its worker processes, and of its detector and its judge, which
work in the run's own process (in full-scale profiles while the next batches are generated: `score_ahead`). The pictures
are scenes of the pocket world, at the profile's size. An instrument that is missing is named and left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.throughput import machine
from gdro_bench.engine import judging
from gdro_bench.engine.plan import read_profile
from gdro_bench.errors import BenchError
from gdro_bench.instruments import Instruments
from gdro_bench.models import pick_device
from gdro_bench.models.pocket import world
from gdro_bench.profile import Profile
from gdro_bench.score import Images
from gdro_bench.task import Prompt

Work = Callable[[], object]
Opened = tuple[str, int | None, Callable[[], Work]]  # what, worker processes, and what opens it


def scenes(count: int, side: int) -> tuple[Images, list[Prompt]]:
    """Signs and objects in turn, uint8 [count, side, side, 3], and their prompts."""
    rng, pictures, prompts = np.random.default_rng(0), [], []
    for i in range(count):
        facts = world.thing_facts(rng) if i % 2 else world.sign_facts(rng, world.random_letters(rng))
        picture = Image.fromarray(world.render(facts, rng).pixels)
        pictures.append(np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)))
        prompts.append(Prompt(world.phrase(facts, rng), ""))
    return np.stack(pictures), prompts


def instruments(
    profile: Profile, workers: list[int], images: Images, prompts: list[Prompt], device: str
) -> Iterator[Opened]:
    """Each by what it is, with what opens it."""

    def reader(number: int) -> Work:
        opened = Instruments(replace(profile.reader, workers=number), profile.detector, device).reader()
        return lambda: opened(images)

    def detector() -> Work:
        opened = Instruments(profile.reader, profile.detector, device).detector()
        return lambda: opened(images)

    def judge() -> Work:
        opened = judging.open_judges(replace(profile.judge, gold="none", second_reader="none"))["judge"]
        return lambda: opened(images, prompts)

    for number in workers:
        yield "reader", number, partial(reader, number)
    yield "detector", None, detector
    if profile.judge.name != "none":
        yield "judge", None, judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("profile")
    parser.add_argument("--workers", default="0,1,2", help="the reader's processes, with commas between them")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="profile.KEY=VALUE")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    profile = read_profile(arguments.profile, arguments.settings)
    side = profile.pretrained.side if profile.pretrained else world.SIZE
    images, prompts = scenes(arguments.images, side)
    print(f"{arguments.profile}, {side} px, {machine(device)}, torch {torch.__version__}")
    rows = []
    counts = [int(number) for number in arguments.workers.split(",")]
    for what, workers, opened in instruments(profile, counts, images, prompts, device):
        try:
            work = opened()
            work()  # loads
        except BenchError as error:
            print(f"  {what}: {str(error).splitlines()[0]}")
            continue
        start = time.perf_counter()
        work()
        rate = len(images) / (time.perf_counter() - start)
        rows.append({"what": what, "workers": workers, "images_per_second": rate})
        print(f"  {what:10s}{'' if workers is None else f'{workers} worker processes':22s}{rate:8.1f} images/s")
    if arguments.out:
        result = {
            "profile": arguments.profile, "side": side, "images": arguments.images, "machine": machine(device),
            "platform": platform.platform(), "torch": torch.__version__, "rows": rows,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
