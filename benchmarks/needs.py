"""What full-scale profiles need, counted without a GPU and before anything is loaded.

    python -m benchmarks.needs work flux1-dev sd35-medium      # operations, weights, hours
    python -m benchmarks.needs memory flux1-dev sd35-medium    # GB on one GPU, a row a method

The transformer is built without memory (torch's meta device) and its operations are counted; nothing is measured.
Hours are those of one card at a share of its peak: by default a third of an H100's 989 TFLOP/s in bfloat16, which is
what a good implementation reaches. Texts, decoding and rewards are left out. Adapters are float32, with gradient, two
moments and average. Memory is that of each method's TOML file, with gradient checkpointing and without: GB saved for
one image and at the peak of each phase; see `gdro_bench.models.memory`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.throughput import MODELS, PROMPTS, opened, operations, profile_name, profile_of
from gdro_bench.commands import dry_run
from gdro_bench.engine.plan import costs_of, make_plan, read_profile
from gdro_bench.models import memory
from gdro_bench.profile import Profile

PEAK, SHARE = 989e12, 1 / 3
HEADINGS = ("profile", "method", "checkpointed", "images together", "an image", "of it in float32", "encoding",
            "sampling", "training", "peak")  # fmt: skip


def evaluations(task: str, profile: str) -> int:
    """Velocity evaluations of a run: the budget's, and those at its evaluation points, which no budget pays for."""
    plan = make_plan(task, "gdro", profile, 0, Path("runs"))
    return plan.profile.budget.limit + sum(spent.evaluations for spent in dry_run.at_marks(plan))


def rows(name: str, profile: Profile, processes: int) -> list[tuple[str, ...]]:
    assert profile.pretrained is not None
    counted, costs, made = memory.count(profile), costs_of(name, profile), []
    by_checkpointing = {
        checkpointed: memory.of_methods(
            costs,
            replace(profile, pretrained=replace(profile.pretrained, gradient_checkpointing=checkpointed)),
            counted,
            processes,
        )
        for checkpointed in (True, False)
    }
    for method in costs:
        for checkpointed, of_methods in by_checkpointing.items():
            images, needs = of_methods[method]
            saved = counted.checkpointed if checkpointed else counted.unchecked
            wide = 0.0 if checkpointed else counted.float32
            numbers = (saved, wide, needs.encoding, needs.sampling, needs.training, needs.peak)
            written = (f"{number / 1e9:.2f}" for number in numbers)
            made.append((name, method, "yes" if checkpointed else "no", str(images), *written))
    return made


def work(arguments: argparse.Namespace) -> None:
    print("| profile | TFLOP an evaluation | weights, GB | adapters, GB | hours, ocr | hours, geneval |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for model in arguments.models:
        policy = opened(model, profile_of(model, arguments.side), "meta")
        noise, t = torch.empty(1, *policy.latent_shape, device="meta"), torch.ones(1, device="meta")
        cond = policy.encode(PROMPTS[:1])
        with torch.no_grad():
            flop = operations(lambda policy=policy, noise=noise, t=t, cond=cond: policy.velocity(noise, t, cond))
        weights = list(policy.transformer.parameters())
        frozen = [*(w for w in weights if not w.requires_grad), *policy.transformer.buffers()]
        held, learnt = sum(map(torch.numel, frozen)), sum(w.numel() for w in weights if w.requires_grad)
        each = flop / arguments.flops / 3600
        hours = [evaluations(task, profile_name(model)) * each for task in ("ocr", "geneval")]
        adapters = memory.ADAPTER_COPIES * memory.FLOAT * learnt
        print(
            f"| {model} | {flop / 1e12:.2f} | {2 * held / 1e9:.1f} | {adapters / 1e9:.1f} | "
            f"{hours[0]:.0f} | {hours[1]:.0f} |"
        )


def memory_of_a_gpu(arguments: argparse.Namespace) -> None:
    print("| " + " | ".join(HEADINGS) + " |")
    print("| --- " * 3 + "| ---: " * 7 + "|")
    for name in arguments.profiles:
        for row in rows(name, read_profile(name, arguments.settings), arguments.processes):
            print("| " + " | ".join(row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("work", help="operations, weights, hours")
    one.add_argument("models", nargs="+", choices=MODELS)
    one.add_argument("--side", type=int, default=512, help="px of a picture")
    one.add_argument("--flops", type=float, default=PEAK * SHARE, help="FLOP/s that the card reaches")
    one.set_defaults(run=work)
    other = commands.add_parser("memory", help="GB on one GPU")
    other.add_argument("profiles", nargs="+")
    other.add_argument("--processes", type=int, default=1, help="among which a sharded model is spread")
    other.add_argument("--set", dest="settings", action="append", default=[], help="as in gdro-bench run")
    other.set_defaults(run=memory_of_a_gpu)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
