"""How much ink signs have: the share that gold calls faded, by the steps of the sampler and the adapters, on the
held-out prompts of the OCR task or, for trials of `tune`, on its tuning prompts, from one noise.

python -m benchmarks.ink                  # the base with 8 and 64 steps, a minute on one core
python -m benchmarks.ink --steps 8 --tuning --lora tuned/leads/brake/ocr/pocket/gdro/trial-002/lora
"""

import math
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from gdro_bench import sampling
from gdro_bench.engine import plan
from gdro_bench.models import open_model
from gdro_bench.models.pocket.gold import Gold


@click.command()
@click.option("--steps", default="8,64", show_default=True)
@click.option("--prompts", default=120, show_default=True, help="The first ones of their file.")
@click.option("--tuning", is_flag=True, help="Those that settings are searched on.")
@click.option("--lora", type=click.Path(path_type=Path, exists=True), help="Adapters; without it, the base.")
@torch.no_grad()
def main(steps: str, prompts: int, tuning: bool, lora: Path | None) -> None:
    settings = [f"profile.held_out_prompts={prompts}", *(["profile.prompts=pocket-tuning"] if tuning else [])]
    made = plan.make_plan("ocr", "gdro", "pocket", 0, Path("runs"), settings)
    policy = open_model(made.profile, None, lora, "cpu")
    for each in steps.split(","):
        sampler = replace(made.profile.sampler, steps=int(each))
        scores = Gold()(sampling.held_out_images(policy, made.held_out, "ocr", sampler), made.held_out)
        faded = np.array([score.parts.get("error fading", math.nan) for score in scores])
        print(f"{each} steps: {np.nanmean(faded):.3f} of {np.isfinite(faded).sum()} signs have faded")


if __name__ == "__main__":
    main()
