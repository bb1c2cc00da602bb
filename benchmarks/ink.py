"""How much ink the signs of pocket's base have, by the steps of its sampler: the share that gold calls faded, on the
held-out prompts of the OCR task, from one noise.

python -m benchmarks.ink                  # 8 and 64 steps, a minute on one core
python -m benchmarks.ink --steps 8,16,64
"""

import math
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from gdro_bench import sampling
from gdro_bench.engine import plan
from gdro_bench.models import open_policy
from gdro_bench.models.pocket.gold import Gold


@click.command()
@click.option("--steps", default="8,64", show_default=True)
@click.option("--prompts", default=120, show_default=True, help="The first ones of the held-out file.")
@torch.no_grad()
def main(steps: str, prompts: int) -> None:
    made = plan.make_plan("ocr", "gdro", "pocket", 0, Path("runs"), [f"profile.held_out_prompts={prompts}"])
    policy = open_policy(made.profile, "cpu", 0)
    for each in steps.split(","):
        sampler = replace(made.profile.sampler, steps=int(each))
        scores = Gold()(sampling.held_out_images(policy, made.held_out, "ocr", sampler), made.held_out)
        faded = np.array([score.parts.get("error fading", math.nan) for score in scores])
        print(f"{each} steps: {np.nanmean(faded):.3f} of {np.isfinite(faded).sum()} signs have faded")


if __name__ == "__main__":
    main()
