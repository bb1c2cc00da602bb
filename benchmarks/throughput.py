"""How fast a model is sampled and trained here: `python -m benchmarks.throughput flux1-dev --batch 1,2,4 --out FILE`.

Models: `flux1-dev` and `sd35-medium`, their published shapes with random weights (speed does not depend on values);
`flux-tiny` and `sd3-tiny`, the same classes at a size for a CPU; `pocket`, as shipped. For each batch size it measures
pictures of a pool, images of GDRO updates and images of Flow-GRPO epochs a second, with FLOP/s counted by torch, the
share of this device's own matrix products, and peak memory. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gdro_bench.budget import Ledger
from gdro_bench.engine.plan import make_plan, read_profile
from gdro_bench.methods import TrainContext, flow_grpo, gdro
from gdro_bench.models import open_policy, pick_device, shapes
from gdro_bench.pool import Pool
from gdro_bench.profile import Profile, Sampler
from gdro_bench.sampling import noise_for, sample
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

PROMPTS = [Prompt(f'a sign that reads "{i}"', str(i)) for i in range(64)]
TINY: dict[str, dict[str, Any]] = {
    "flux-tiny": {
        "guidance_embeds": True, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 32,
        "num_attention_heads": 4, "joint_attention_dim": 64, "pooled_projection_dim": 32, "axes_dims_rope": (8, 12, 12),
    },
    "sd3-tiny": {
        "sample_size": 16, "in_channels": 16, "out_channels": 16, "num_layers": 2, "attention_head_dim": 32,
        "num_attention_heads": 4, "joint_attention_dim": 64, "caption_projection_dim": 128,
        "pooled_projection_dim": 32, "pos_embed_max_size": 64, "qk_norm": "rms_norm",
    },
}  # fmt: skip
SMALL_AUTOENCODER = shapes.AUTOENCODER | {
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
MODELS = ("flux1-dev", "sd35-medium", *TINY)


class Alternating:
    """Rewards 0, 1, 0, 1, over all calls: what they are does not matter to the time of an update, but no group may be
    flat, even if pictures come one by one."""

    name = "alternating"

    def __init__(self) -> None:
        self.seen = count()

    def __call__(self, images: Images, prompts: list[Prompt]) -> list[Score]:
        return [Score(float(next(self.seen) % 2)) for _ in images]


def profile_name(model: str) -> str:
    return "flux1-dev" if model.startswith("flux") else "sd35-medium" if model.startswith("sd3") else model


def profile_of(model: str) -> Profile:
    return read_profile(profile_name(model))


def opened(model: str, side: int, device: str) -> Any:
    """The policy with fresh adapters; texts are random embeddings."""
    profile = profile_of(model)
    if profile.pretrained is None:
        return open_policy(profile, device, 0)
    profile = replace(profile, pretrained=replace(profile.pretrained, side=side))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if model in TINY:
        return shapes.open_shapes(profile, TINY[model], device, dtype, SMALL_AUTOENCODER)
    published = shapes.transformer_config(profile.pretrained)
    return shapes.open_shapes(profile, published, device, dtype, shapes.AUTOENCODER)


def clocked(device: str, work: Callable[[], object]) -> float:
    """Seconds of one call after a warm-up."""
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def operations(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_products(device: str) -> float:
    """FLOP/s of plain matrix products in the dtype that is trained in."""
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 * 10 / clocked(device, lambda: [a @ b for _ in range(10)])


def peak_memory(device: str) -> float:
    """GB; of the whole process where there is no GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def machine(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def jobs(model: str, policy: Any, batch: int, folder: Path) -> dict[str, tuple[Callable[[], object], int]]:
    """What is measured, by name: the work, and how many images it is."""
    profile = profile_of(model)
    sampler = Sampler(profile.sampler.steps, profile.sampler.shift, profile.sampler.guidance, batch)
    name = profile_name(model)
    prompts = PROMPTS[:batch]
    noise = noise_for([("benchmark", i) for i in range(batch)], policy.latent_shape)

    def paint() -> None:
        with torch.no_grad():
            policy.decode(sample(policy, noise, prompts, sampler, reference=True))

    k, groups = 6, 2
    settings = (
        f"method.pool.prompts={groups}", f"method.pool.images={k}", f"method.groups={groups}", f"method.k={k}",
    )  # fmt: skip
    config = make_plan("ocr", "gdro", name, 0, folder, settings).config
    once = Sampler(1, 0.0 if profile.pretrained else 1.0, 1.0, batch)
    config = replace(config, optimiser=replace(config.optimiser, batch=batch))
    offline = gdro.start(
        config, TrainContext(policy, Alternating(), PROMPTS, once, Pool(folder / str(batch), Ledger(1)), 0)
    )
    while offline.step().kind == "collect":
        pass

    epoch = make_plan("ocr", "flow-grpo", name, 0, folder, ("method.prompts=2", f"method.k={max(2, batch)}")).config
    flow = flow_grpo.start(epoch, TrainContext(policy, Alternating(), PROMPTS, sampler, Pool(folder, Ledger(1)), 0))

    def one_epoch() -> None:
        for _ in range(1 + epoch.updates_per_epoch):
            flow.step()

    return {
        "pool": (paint, batch),
        "GDRO update": (offline.step, groups * k),
        "Flow-GRPO epoch": (one_epoch, 2 * max(2, batch)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=["pocket", *MODELS])
    parser.add_argument("--batch", default="1,2,4", help="images a pass, with commas between them")
    parser.add_argument("--side", type=int, default=512, help="px of a picture")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    policy = opened(arguments.model, arguments.side, device)
    peak = peak_products(device)
    print(
        f"{arguments.model}, {machine(device)}, torch {torch.__version__}: {peak / 1e12:.2f} TFLOP/s of matrix products"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for batch in (int(part) for part in arguments.batch.split(",")):
            for what, (work, images) in jobs(arguments.model, policy, batch, Path(folder)).items():
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds, flop = clocked(device, work), operations(work)
                rate = flop / seconds
                row = {
                    "batch": batch, "what": what, "images_per_second": images / seconds,
                    "tflop_per_second": rate / 1e12, "share_of_peak": rate / peak,
                    "peak_memory_gb": peak_memory(device),
                }  # fmt: skip
                rows.append(row)
                print(
                    f"  batch {batch:3d}  {what:16s} {images / seconds:9.3f} images/s  {rate / 1e12:8.3f} TFLOP/s "
                    f"({rate / peak:4.0%} of products)  {row['peak_memory_gb']:6.1f} GB"
                )
    if arguments.out:
        result = {
            "model": arguments.model, "side": arguments.side, "machine": machine(device),
            "platform": platform.platform(),
            "torch": torch.__version__, "products_tflop_per_second": peak / 1e12, "rows": rows,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
