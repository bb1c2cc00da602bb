"""What a full-scale profile holds in memory, counted from shapes: `python -m benchmarks.memory flux1-dev sd35-medium`.

A row a method, at the numbers of its TOML file: GB saved for one image and at the peak of each phase on one GPU, with
gradient checkpointing and without. Nothing is measured; see `gdro_bench.models.memory`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from gdro_bench import content, registry
from gdro_bench.engine.plan import read_numbers, read_profile
from gdro_bench.models import memory
from gdro_bench.profile import Profile

HEADINGS = ("profile", "method", "checkpointed", "images together", "an image", "of it in float32", "encoding",
            "sampling", "training", "peak")  # fmt: skip


def rows(name: str, profile: Profile, processes: int) -> list[tuple[str, ...]]:
    assert profile.pretrained is not None
    counted, files, made = memory.count(profile), content.method_files(name), []
    for method in sorted(files.keys() - {"profile"}):
        one = registry.lookup("method", method)
        config = content.build(one.config_type, read_numbers(files[method], None), files[method].name)
        images = memory.images_together(config, one.costs(config, profile.sampler), profile.sampler)
        for checkpointed in (True, False):
            changed = replace(profile, pretrained=replace(profile.pretrained, gradient_checkpointing=checkpointed))
            needs = memory.foretell(changed, counted, images, processes)
            saved = counted.checkpointed if checkpointed else counted.unchecked
            wide = 0.0 if checkpointed else counted.float32
            numbers = (saved, wide, needs.encoding, needs.sampling, needs.training, needs.peak)
            written = (f"{number / 1e9:.2f}" for number in numbers)
            made.append((name, method, "yes" if checkpointed else "no", str(images), *written))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("profiles", nargs="+")
    parser.add_argument("--processes", type=int, default=1, help="among which a sharded model is spread")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="as in gdro-bench run")
    arguments = parser.parse_args()
    print("| " + " | ".join(HEADINGS) + " |")
    print("| --- " * 3 + "| ---: " * 7 + "|")
    for name in arguments.profiles:
        for row in rows(name, read_profile(name, arguments.settings), arguments.processes):
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
