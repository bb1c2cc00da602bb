"""Where the time of a GDRO update goes, at pocket size: `python -m benchmarks.gdro_step [updates]`.

Prints a table of the shares of wall time inside the transformer (forward of policy and reference, backward), in the
optimiser with its clipping, and in all else (drawing groups, noise, losses). Makes a small pool first, untimed.
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.throughput import Alternating
from gdro_bench.budget import Ledger
from gdro_bench.engine.plan import make_plan
from gdro_bench.methods import TrainContext, gdro
from gdro_bench.models import open_policy
from gdro_bench.pool import Pool

SPENT: Counter[str] = Counter()


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            SPENT[name] += time.perf_counter() - start

    return call


def main(updates: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan("ocr", "gdro", "pocket", 0, Path(folder), ("method.pool.prompts=16", "method.pool.images=6"))
        policy = open_policy(plan.profile, "cpu", 0)
        pool = Pool(Path(folder) / "pools", Ledger(1))
        context = TrainContext(policy, Alternating(), plan.train, plan.profile.sampler, pool, 0)
        method = gdro.start(plan.config, context)
        while method.step().kind == "collect":  # the first update, too, is a warm-up
            pass
        policy.velocity = timed("forward", policy.velocity)  # type: ignore[method-assign]  # the reference's, too
        torch.Tensor.backward = timed("backward", torch.Tensor.backward)  # type: ignore[method-assign]
        method.trainer.optimiser.step = timed("optimiser", method.trainer.optimiser.step)
        step = timed("whole update", method.step)
        for _ in range(updates):
            step()
    whole = SPENT.pop("whole update")
    inside = SPENT["forward"] + SPENT["backward"]
    images = updates * plan.config.groups * plan.config.k * plan.config.draws
    print(f"{updates} updates, {whole / updates:.2f} s each, {images / whole:.1f} images/s, torch {torch.__version__}")
    for name, seconds in [*SPENT.items(), ("all else", whole - sum(SPENT.values()))]:
        print(f"  {name:20s} {seconds / whole:6.1%}")
    print(f"inside the transformer: {inside / whole:.1%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
