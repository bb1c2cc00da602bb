"""Whether a reward teaches all prompts alike: `python -m benchmarks.agreement TASK [method.KEY=VALUE ...]`.

Fills GDRO's pool on pocket under runs/ (or finds it there), and takes at the base model the gradient that every method
with a pool follows first, sum_i A_i grad |v - v_theta(x_t, t)|^2 with A_i the group's standardised rewards, once over
each of two disjoint halves of the prompts. Prints their cosine by t. Near 1, what one half teaches serves the other;
near 0, every prompt teaches something of its own, or the pool is too small to tell.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from gdro_bench.budget import Ledger
from gdro_bench.engine.plan import make_plan
from gdro_bench.instruments import open_reward
from gdro_bench.methods import TrainContext
from gdro_bench.methods.parts.grpo import advantages
from gdro_bench.methods.parts.offline import Source, squared_error
from gdro_bench.models import open_policy
from gdro_bench.pool import Pool

TIMES = (0.97, 0.9, 0.8, 0.6, 0.35, 0.1)
GROUPS = 48  # in each half, at most
PASS = 4  # groups that go through the model together


def gradient(source: Source, groups: Tensor, t: float) -> Tensor:
    """Of the weighted errors of these groups, each at a noise of its own that its images share: [parameters]."""
    policy, images = source.context.policy, source.config.images
    parameters = list(policy.parameters())
    for parameter in parameters:
        parameter.grad = None
    for some in groups.split(PASS):
        x0, r, prompts = source.taken(some, [torch.arange(images)] * len(some))
        eps = torch.randn((len(some), 1, *x0.shape[2:]), generator=torch.Generator().manual_seed(int(some[0])))
        cond, times = policy.encode(prompts).repeat_each(images), torch.full((len(some) * images,), t)
        error = squared_error(policy.velocity, x0.flatten(0, 1), times, eps.expand_as(x0).flatten(0, 1), cond)
        (advantages(r, "group", 5.0).flatten() * error.flatten(1).mean(1)).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])


def main(task: str, *settings: str) -> None:
    plan = make_plan(task, "gdro", "pocket", 0, Path("runs"), settings)
    reward = open_reward(plan.task, plan.profile, "cpu")
    pool = Pool(Path("runs") / "pools", Ledger(1))
    policy = open_policy(plan.profile, "cpu", 0)
    source = Source(plan.config.pool, TrainContext(policy, reward, plan.train, plan.profile.sampler, pool, 0))
    while not source.complete:
        print(source.collect().progress, file=sys.stderr)
    usable = source.usable(2, drop_flat=True)
    usable = usable[torch.randperm(len(usable), generator=torch.Generator().manual_seed(0))]
    size = min(GROUPS, len(usable) // 2)
    print(f"{task} on {policy.name}: cosine between the gradients of two halves of {size} prompts")
    for t in TIMES:
        one, other = (gradient(source, half, t) for half in (usable[:size], usable[size : 2 * size]))
        print(f"  t = {t:<5}{torch.nn.functional.cosine_similarity(one, other, dim=0):6.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
