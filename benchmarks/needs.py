"""What a full-scale profile needs, counted without a GPU: `python -m benchmarks.needs flux1-dev sd35-medium`.

The transformer is built without memory (torch's meta device) and its operations are counted; nothing is measured.
Hours are those of one card at a share of its peak: by default a third of an H100's 989 TFLOP/s in bfloat16, which is
what a good implementation reaches. Texts, decoding and rewards are left out. Memory is that of the weights in bfloat16,
and of the adapters in float32 with gradient, two moments and average; activations come on top.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.throughput import MODELS, PROMPTS, opened, operations, profile_name, profile_of
from gdro_bench.commands import dry_run
from gdro_bench.engine.plan import make_plan

ADAPTER_BYTES = 5 * 4  # value, gradient, two moments and average, in float32
PEAK, SHARE = 989e12, 1 / 3


def evaluations(task: str, profile: str) -> int:
    """Velocity evaluations of a run: the budget's, and those at its evaluation points, which no budget pays for."""
    plan = make_plan(task, "gdro", profile, 0, Path("runs"))
    return plan.profile.budget.limit + dry_run.at_marks(plan).evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--side", type=int, default=512, help="px of a picture")
    parser.add_argument("--flops", type=float, default=PEAK * SHARE, help="FLOP/s that the card reaches")
    arguments = parser.parse_args()
    print("| profile | TFLOP an evaluation | weights, GB | adapters, GB | hours, ocr | hours, geneval |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for model in arguments.models:
        policy = opened(model, profile_of(model, arguments.side), "meta")
        noise, t = torch.empty(1, *policy.latent_shape, device="meta"), torch.ones(1, device="meta")
        cond = policy.encode(PROMPTS[:1])
        with torch.no_grad():
            work = operations(lambda policy=policy, noise=noise, t=t, cond=cond: policy.velocity(noise, t, cond))
        weights = list(policy.transformer.parameters())
        held, learnt = (sum(w.numel() for w in weights if w.requires_grad is grad) for grad in (False, True))
        each = work / arguments.flops / 3600
        hours = [evaluations(task, profile_name(model)) * each for task in ("ocr", "geneval")]
        print(
            f"| {model} | {work / 1e12:.2f} | {2 * held / 1e9:.1f} | {ADAPTER_BYTES * learnt / 1e9:.1f} | "
            f"{hours[0]:.0f} | {hours[1]:.0f} |"
        )


if __name__ == "__main__":
    main()
