"""How fast a model is sampled and trained here: `python -m benchmarks.throughput flux1-dev --batch 6,12 --out FILE`.

Models: `flux1-dev` and `sd35-medium`, their published shapes with random weights (speed does not depend on values);
`flux-tiny` and `sd3-tiny`, the same classes at a size for a CPU; `pocket`, as shipped. For each number of images a pass
it measures velocities with adapters and without (what LoRA costs), pictures of a pool, on pocket pictures of the policy
with its adapters merged and apart, images of GDRO updates and of Flow-GRPO epochs a second, with FLOP/s counted by
torch, the share of this device's own matrix products, and peak memory beside what `gdro_bench.models.memory` foretells.
A group of GDRO is never split, because its loss couples its images: a GDRO row's images a pass are at least 2. Prints a
table and writes JSON, anew after each row.

    --set profile.pretrained.compiled=true                 # as in gdro-bench run
    --set profile.pretrained.gradient_checkpointing=false
    --tf32                                                 # what is left of float32 products, in TF32
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gdro_bench.budget import Ledger
from gdro_bench.engine.plan import make_plan, read_profile
from gdro_bench.files import write_atomically
from gdro_bench.methods import TrainContext, flow_grpo, gdro
from gdro_bench.models import memory, open_policy, pick_device, shapes
from gdro_bench.pool import Pool
from gdro_bench.profile import Profile, Sampler
from gdro_bench.sampling import conditioned, euler, noise_for, sample
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
Row = dict[str, Any]
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


def profile_of(model: str, side: int, settings: Sequence[str] = ()) -> Profile:
    profile = read_profile(profile_name(model), settings)
    pretrained = profile.pretrained and replace(profile.pretrained, side=side)
    return replace(profile, pretrained=pretrained)


def opened(model: str, profile: Profile, device: str) -> Any:
    """The policy with fresh adapters; texts are random embeddings."""
    if profile.pretrained is None:
        return open_policy(profile, device, 0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if model in TINY:
        return shapes.open_shapes(profile, TINY[model], device, dtype, SMALL_AUTOENCODER)
    published = shapes.transformer_config(profile.pretrained)
    return shapes.open_shapes(profile, published, device, dtype, shapes.AUTOENCODER)


def clocked(device: str, work: Callable[[], object]) -> float:
    """Seconds of one call; it has been called before."""
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
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    products = lambda: [a @ b for _ in range(10)]  # noqa: E731
    products()
    return 2 * n**3 * 10 / clocked(device, products)


def peak_memory(device: str) -> float:
    """GB; of the whole process where there is no GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def machine(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work on `images`, `together` of them in a pass, in a `phase` whose memory is foretold; its first call
    may report something."""

    work: Callable[[], object]
    images: int
    together: int
    phase: str = "sampling"
    reported: dict[str, float] = field(default_factory=dict)


def jobs(profile: Profile, name: str, policy: Any, batch: int, folder: Path) -> dict[str, Callable[[], Job]]:
    """What is measured, by name: each is prepared when it is asked for."""
    sampler = replace(profile.sampler, batch=batch)
    prompts = PROMPTS[:batch]
    noise = noise_for([("benchmark", i) for i in range(batch)], policy.latent_shape)
    t, cond = torch.full((batch,), 0.5), policy.encode(prompts)

    def forward(velocity: Callable[..., object]) -> Job:
        return Job(torch.no_grad()(lambda: velocity(noise.to(policy.device), t, cond)), batch, batch)

    def painted(reference: bool) -> Job:
        work = lambda: policy.decode(sample(policy, noise, prompts, sampler, reference))  # noqa: E731
        return Job(torch.no_grad()(work), batch, batch)

    def apart() -> Job:
        def work() -> None:
            velocity = conditioned(policy, policy.encode(prompts), sampler.guidance)
            policy.decode(euler(velocity, noise.to(policy.device), policy.timesteps(sampler.steps, sampler.shift)))

        return Job(torch.no_grad()(work), batch, batch)

    # float32 weights alone are merged: the models that come with the package
    rollouts = {"adapters merged": partial(painted, False), "adapters apart": apart}
    return {
        "velocity": partial(forward, policy.velocity),
        "without adapters": partial(forward, policy.reference_velocity),
        "pool": partial(painted, True),
        **(rollouts if profile.pretrained is None else {}),
        "GDRO update": partial(_gdro, name, policy, max(2, batch), folder),
        "Flow-GRPO epoch": partial(_flow_grpo, name, policy, sampler, folder),
    }


def _gdro(name: str, policy: Any, k: int, folder: Path) -> Job:
    """An update of two groups of k, one a pass, its pool made."""
    groups = 2
    values = {"pool.prompts": 2, "pool.images": k, "groups": groups, "k": k, "optimiser.batch": k}
    settings = tuple(f"method.{key}={value}" for key, value in values.items())
    config, once = make_plan("ocr", "gdro", name, 0, folder, settings).config, Sampler(1, 1.0, 1.0, k)
    pool = Pool(folder / str(k), Ledger(1))
    training = gdro.start(config, TrainContext(policy, Alternating(), PROMPTS, once, pool, 0))
    while training.step().kind == "collect":
        pass
    return Job(training.step, groups * k, k, "training")


def _flow_grpo(name: str, policy: Any, sampler: Sampler, folder: Path) -> Job:
    """An epoch of two groups; the first one tells what rounding alone would clip, of log-probabilities that were kept
    while sampling."""
    k = max(2, sampler.batch)
    config = make_plan("ocr", "flow-grpo", name, 0, folder, ("method.prompts=2", f"method.k={k}")).config
    pool = Pool(folder, Ledger(1))
    training = flow_grpo.start(config, TrainContext(policy, Alternating(), PROMPTS, sampler, pool, 0))
    reported: dict[str, float] = {}

    def epoch() -> None:
        training.step()
        if not reported:
            reported.update(training.rounding())
        for _ in range(config.updates_per_epoch):
            training.step()

    return Job(epoch, 2 * k, sampler.batch * sampler.passes, "training", reported)


def measured(job: Job, device: str, compiled: bool) -> tuple[float, int]:
    """Seconds and operations, after a first call: the one that is counted, unless compiled graphs hide its operations
    from the counter."""
    flop = 0 if compiled else operations(job.work)
    if compiled:
        job.work()
    seconds = clocked(device, job.work)
    if compiled:
        with torch.compiler.set_stance("force_eager"):
            flop = operations(job.work)
    return seconds, flop


def row_of(what: str, job: Job, batch: int, device: str, compiled: bool, foretold: float, peak: float) -> Row:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, flop = measured(job, device, compiled)
    rate = flop / seconds
    return {
        "batch": batch, "what": what, "images_a_pass": job.together, "images_per_second": job.images / seconds,
        "tflop_per_second": rate / 1e12, "share_of_peak": rate / peak, "peak_memory_gb": peak_memory(device),
        "foretold_gb": foretold, **job.reported,
    }  # fmt: skip


def foreteller(profile: Profile, policy: Any) -> Callable[[Job], float]:
    """GB that a job should hold on its device; NaN for a model that comes with the package."""
    if profile.pretrained is None:
        return lambda job: math.nan
    configs = (policy.transformer.config, policy.vae.config)
    counted = memory.count(profile, *({key: value for key, value in c.items() if key[0] != "_"} for c in configs))

    def foretold(job: Job) -> float:
        chosen = replace(profile, sampler=replace(profile.sampler, batch=job.together))
        return float(getattr(memory.foretell(chosen, counted, job.together), job.phase)) / 1e9

    return foretold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["pocket", *MODELS])
    parser.add_argument("--batch", default="1,2,4", help="images a pass, with commas between them")
    parser.add_argument("--side", type=int, default=512, help="px of a picture")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="profile.KEY=VALUE")
    parser.add_argument("--tf32", action="store_true", help="float32 products in TF32, where the device has it")
    parser.add_argument("--only", default="", help="names of the rows wanted, with commas between them")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    if arguments.tf32:
        torch.set_float32_matmul_precision("high")
    profile, name = profile_of(arguments.model, arguments.side, arguments.settings), profile_name(arguments.model)
    policy = opened(arguments.model, profile, device)
    compiled = profile.pretrained is not None and profile.pretrained.compiled
    peak, foretold = peak_products(device), foreteller(profile, policy)
    result: dict[str, Any] = {
        "model": arguments.model, "side": arguments.side, "settings": arguments.settings, "tf32": arguments.tf32,
        "machine": machine(device), "platform": platform.platform(), "torch": torch.__version__,
        "products_tflop_per_second": peak / 1e12, "rows": [],
    }  # fmt: skip
    print(f"{arguments.model}, {machine(device)}, torch {torch.__version__}: {peak / 1e12:.2f} TFLOP/s of products")
    with tempfile.TemporaryDirectory() as folder:
        for batch in (int(part) for part in arguments.batch.split(",")):
            for what, prepared in jobs(profile, name, policy, batch, Path(folder)).items():
                if arguments.only and what not in arguments.only.split(","):
                    continue
                job = prepared()
                row = row_of(what, job, batch, device, compiled, foretold(job), peak)
                result["rows"].append(row)
                print(
                    f"  {row['images_a_pass']:3d} a pass  {what:16s} {row['images_per_second']:9.3f} images/s  "
                    f"{row['tflop_per_second']:8.3f} TFLOP/s ({row['share_of_peak']:4.0%} of products)  "
                    f"{row['peak_memory_gb']:6.1f} GB, foretold {row['foretold_gb']:.1f}",
                    flush=True,
                )
                if arguments.out:
                    write_atomically(arguments.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
