"""How far a policy has moved from its reference: statistics that need the model itself and not its pictures alone.

They are taken at the marks from fixed noise, so that a value moves only because the policy did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gdro_bench import content, sampling
from gdro_bench.distributed import batches
from gdro_bench.instruments import panel
from gdro_bench.policy import Policy
from gdro_bench.profile import DivergenceConfig, Sampler
from gdro_bench.sampling import SdeConfig
from gdro_bench.task import Prompt

NAMES = ("velocity_ratio", "path_kl", "vendi")


@dataclass(frozen=True, slots=True)
class Paths:
    """Of sampled paths: mean of |v| / |v_ref| over steps, [B], and the KL of the path in nats, [B]."""

    velocity_ratio: Tensor
    kl: Tensor


def measure(
    policy: Policy, prompts: Sequence[Prompt], task_name: str, sampler: Sampler, config: DivergenceConfig
) -> list[dict[str, float]]:
    """For each prompt its values by `NAMES`: NaN for those beyond the first `config.prompts`; none at all if that is
    0."""
    some = prompts[: config.prompts]
    if not some:
        return [{} for _ in prompts]
    along = paths(policy, some, task_name, sampler, config.noise_level)
    columns = (along.velocity_ratio.tolist(), along.kl.tolist(), _vendi(policy, some, task_name, sampler, config))
    found = [dict(zip(NAMES, row, strict=True)) for row in zip(*columns, strict=True)]
    return found + [dict.fromkeys(NAMES, np.nan)] * (len(prompts) - len(some))


@torch.no_grad()
def paths(policy: Policy, prompts: Sequence[Prompt], task_name: str, sampler: Sampler, noise_level: float) -> Paths:
    """Follows Flow-GRPO's SDE under the policy and sees what the reference would have done in the same states.

    The KL of the path is the sum over steps of those of two Gaussians, |mu - mu_ref|^2 / (2 std^2), summed over the
    latent's elements: exact for this path, and its mean over paths is the KL of the sampled process. The last step
    injects no noise and is left out.
    """
    x = sampling.noise_for([(task_name, "drift", p.text) for p in prompts], policy.latent_shape)
    generator = torch.Generator().manual_seed(content.seed(task_name, "drift"))
    eps = torch.stack([torch.randn(x.shape, generator=generator) for _ in range(sampler.steps - 1)])
    noising = SdeConfig("flow", noise_level)
    found = [
        _follow(policy, prompts[rows], x[rows], eps[:, rows], sampler, noising)
        for rows in batches(len(prompts), sampler.batch)
    ]
    return Paths(torch.cat([one.velocity_ratio for one in found]), torch.cat([one.kl for one in found]))


def _follow(
    policy: Policy, prompts: Sequence[Prompt], x: Tensor, eps: Tensor, sampler: Sampler, noising: SdeConfig
) -> Paths:
    """The paths from noise x [B, *latent_shape], with eps [S - 1, B, *latent_shape] injected on the way."""
    schedule = policy.timesteps(sampler.steps, sampler.shift)
    cond = policy.encode(prompts)
    device = cond.tensors[0].device
    x = x.to(device)
    new, old = (sampling.conditioned(policy, cond, sampler.guidance, reference) for reference in (False, True))
    ratio, kl = torch.zeros(len(x), device=device), torch.zeros(len(x), device=device)
    for step in range(sampler.steps):
        t, t_next = (torch.full((len(x),), float(schedule[step + i]), device=device) for i in (0, 1))
        v, v_ref = new(x, t).float(), old(x, t).float()
        ratio += v.flatten(1).norm(dim=1) / v_ref.flatten(1).norm(dim=1) / sampler.steps
        if step < sampler.steps - 1:
            here, there = (sampling.transition(u, x, t, t_next, schedule, noising) for u in (v, v_ref))
            kl += (here.mean - there.mean).square().flatten(1).sum(1) / (2 * here.std.square())
            x = here.mean + here.std.view(-1, *[1] * (x.ndim - 1)) * eps[step].to(device)
    return Paths(ratio, kl)


def _vendi(
    policy: Policy, prompts: Sequence[Prompt], task_name: str, sampler: Sampler, config: DivergenceConfig
) -> list[float]:
    """How many different pictures a prompt has, of `config.images`."""
    keys = [(task_name, "diversity", p.text, i) for p in prompts for i in range(config.images)]
    noise = sampling.noise_for(keys, policy.latent_shape)
    each = [p for p in prompts for _ in range(config.images)]
    images = sampling.decoded(policy, sampling.sample(policy, noise, each, sampler, reference=False), sampler.batch)
    groups: NDArray[np.uint8] = images.reshape(len(prompts), config.images, *images.shape[1:])
    return [panel.vendi(group) for group in groups]
