"""What a run will cost, before it is run: counted from the plan, and timed by a short calibration on this machine."""

from __future__ import annotations

import io
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from PIL import Image

from gdro_bench import registry, sampling
from gdro_bench.budget import GRADIENT_COST, Cost, Ledger
from gdro_bench.commands import stored
from gdro_bench.engine import runner
from gdro_bench.engine.plan import Plan
from gdro_bench.errors import BenchError
from gdro_bench.instruments import open_reward
from gdro_bench.methods import CostModel, Method
from gdro_bench.models import memory, open_policy
from gdro_bench.policy import Policy
from gdro_bench.score import Scorer

ASSUMED_FLOPS = 989e12 / 3  # of an H100 in bfloat16, where nothing can be measured


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds an image: of a velocity evaluation without gradient, of one with it, of decoding, of the reward. `memory`
    is the peak in bytes while they were measured (of the GPU, if there is one), `picture` the bytes of a PNG."""

    evaluation: float
    gradient: float
    decoding: float
    reward: float
    memory: float
    picture: float
    basis: str = "Times come from a short calibration on this machine."
    warnings: tuple[str, ...] = ()

    def of(self, processes: int) -> Speed:
        """Of so many processes together, which share all work."""
        names = ("evaluation", "gradient", "decoding", "reward")
        return replace(self, **{name: getattr(self, name) / processes for name in names})

    def seconds(self, spent: Cost, *, trained: bool) -> float:
        """For images sampled and scored, or trained on."""
        if trained:
            plain = spent.evaluations - GRADIENT_COST * spent.images
            return spent.images * self.gradient + plain * self.evaluation
        return spent.evaluations * self.evaluation + spent.images * self.decoding + spent.reward_calls * self.reward


@dataclass(frozen=True, slots=True)
class Forecast:
    """Work by what it is for, with its seconds; `pool` is collected, too, but apart from `rollouts`. `marks` are
    evaluations on held-out prompts, which the budget does not pay for. `disk` in bytes."""

    pool: Cost
    rollouts: Cost
    optimisation: Cost
    marks: Cost
    updates: int
    memory: float
    disk: float
    processes: int
    basis: str
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(spent.seconds for spent in (self.pool, self.rollouts, self.optimisation, self.marks))


def forecast(plan: Plan, device: str, processes: int) -> Forecast:
    """Follows the plan to the end of its budget, at the speed of one batch here or, where a pretrained model or its
    reward is not here, at that of its shapes on an assumed card.

    Raises:
        BenchError: the method does not foretell its cost, or nothing is known of the model.
    """
    method: Method = registry.lookup("method", plan.method)
    if method.costs is None:
        raise BenchError(
            f"The method {plan.method!r} does not foretell its cost.",
            "Give its Method a function `costs` (as in gdro_bench/methods/rft.py), or run it with a small --budget.",
        )
    costs = method.costs(plan.config, plan.profile.sampler)
    alone, latent, adapters = _speed(plan, costs, device, processes)
    speed = alone.of(processes)
    ledger, updates = follow(plan, costs, speed)
    shared, alike = at_marks(plan)
    marks = shared + alike
    marks.seconds = speed.seconds(shared, trained=False) + alone.seconds(alike, trained=False)
    rollouts = ledger.collection - ledger.pool
    disk = _disk(plan, latent, adapters, speed, ledger, costs)
    told = (speed.basis, speed.warnings)
    return Forecast(ledger.pool, rollouts, ledger.optimisation, marks, updates, speed.memory, disk, processes, *told)


def _speed(plan: Plan, costs: CostModel, device: str, processes: int) -> tuple[Speed, float, float]:
    """The speed, and the bytes of a latent and of the adapters."""
    try:
        policy = open_policy(plan.profile, device, plan.seed)
        scorer = open_reward(plan.task, plan.profile, device)
    except BenchError:
        if plan.profile.pretrained is None:
            raise
        return _counted(plan, costs, processes)
    adapters = sum(parameter.numel() for parameter in policy.parameters()) * stored.FLOAT
    return measure(plan, policy, scorer, costs), math.prod(policy.latent_shape) * stored.FLOAT, adapters


def _counted(plan: Plan, costs: CostModel, processes: int) -> tuple[Speed, float, float]:
    """From shapes alone; a gradient takes the forward anew where it is checkpointed."""
    profile, config = plan.profile, plan.profile.pretrained
    assert config is not None
    counted = memory.count(profile)
    together = memory.images_together(costs, profile.sampler)
    evaluation = counted.forward_flop / ASSUMED_FLOPS
    gradient = evaluation * (GRADIENT_COST + (1 if config.gradient_checkpointing else 0))
    peak = memory.foretell(profile, counted, together, processes, costs.copies).peak
    basis = (
        "Not measured: the model or its reward is not here (`gdro-bench doctor` says what). Times are those of the "
        f"transformer's operations at {ASSUMED_FLOPS / 1e12:.0f} TFLOP/s, a third of an H100's bfloat16 peak; texts, "
        "decoding and rewards are left out. Memory is counted from shapes."
    )
    speed = Speed(evaluation, gradient, 0.0, 0.0, peak, stored.PIXEL * config.side**2, basis)
    return speed, config.latent_elements * stored.FLOAT, counted.adapters


def follow(plan: Plan, costs: CostModel, speed: Speed) -> tuple[Ledger, int]:
    """The ledger at the end of the budget, and the updates made by then."""
    budget = plan.profile.budget
    ledger, updates = Ledger(budget.limit, budget.kind), 0

    def timed(spent: Cost, trained: bool) -> Cost:
        return Cost(spent.evaluations, spent.images, spent.reward_calls, speed.seconds(spent, trained=trained))

    ledger.pool = timed(costs.pool, trained=False)
    ledger.collection = ledger.pool.copy()
    collected, update = timed(costs.collected, trained=False), timed(costs.update, trained=True)
    measured, cycles = timed(costs.measured, trained=False), 0
    while ledger.spent < ledger.limit:
        if costs.rounds is None or 0 < cycles < costs.rounds:
            ledger.collection += collected
        for _ in range(costs.updates):
            if ledger.spent < ledger.limit:
                ledger.optimisation += update
                updates += 1
        ledger.collection += measured if ledger.spent < ledger.limit else Cost()
        cycles += 1
    return ledger, updates


def measure(plan: Plan, policy: Policy, scorer: Scorer, costs: CostModel) -> Speed:
    """Each part once to warm up and once by the clock: an update's batch with gradient, guided where the method trains
    so, with a step of AdamW; and the sampler's batch without."""
    batch, guided = costs.batch, costs.rollouts and costs.guided
    guidance = plan.profile.sampler.guidance if guided else 1.0
    optimiser = torch.optim.AdamW(policy.parameters(), lr=0.0, weight_decay=0.0)
    device = next(iter(policy.parameters())).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def clock(work: Callable[[], object], images: int) -> float:
        work()
        start = _now(device)
        work()
        return (_now(device) - start) / images

    def drawn(count: int, guidance: float) -> tuple[torch.Tensor, torch.Tensor, sampling.Velocity]:
        prompts = [plan.train[i % len(plan.train)] for i in range(count)]
        x = sampling.noise_for([("calibration", i) for i in range(count)], policy.latent_shape).to(device)
        cond = policy.encode(prompts)
        return x, torch.full((count,), 0.5, device=device), sampling.conditioned(policy, cond, guidance)

    def train() -> None:
        velocity(x, t).square().mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()

    x, t, velocity = drawn(batch, guidance)
    gradient = clock(train, batch * (1 if guidance == 1 else 2))
    count = min(plan.profile.sampler.batch, len(plan.train))
    x, t, velocity = drawn(count, 1.0)
    with torch.no_grad():
        evaluation = clock(lambda: velocity(x, t), count)
        decoding = clock(lambda: policy.decode(x), count)
        images = policy.decode(x)
    reward = clock(lambda: scorer(images, plan.train[:count]), count)
    picture = io.BytesIO()
    Image.fromarray(images[0]).save(picture, "PNG")
    seconds, warnings = (evaluation, gradient, decoding, reward), tuple(runner.unsupported(plan, policy))
    return Speed(*seconds, _peak(device), picture.tell(), warnings=warnings)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def at_marks(plan: Plan) -> tuple[Cost, Cost]:
    """The base and every mark: a picture a held-out prompt and a health prompt, which processes share, and what `drift`
    samples and follows, which every process computes alike."""
    sampler, drift = plan.profile.sampler, plan.profile.drift
    pictures, health = len(plan.held_out), len(plan.health)
    looked_at, followed = min(drift.prompts, pictures), min(drift.prompts, health)
    times = len(plan.profile.budget.marks) + 1
    shared = Cost(times * (pictures + health) * sampler.evaluations, times * (pictures + health), times * pictures)
    followed_too = looked_at * (2 + drift.images) + 2 * followed
    return shared, Cost(times * followed_too * sampler.evaluations, times * looked_at * drift.images)


def _disk(plan: Plan, latent: float, adapters: float, speed: Speed, ledger: Ledger, costs: CostModel) -> float:
    collected = ledger.collection.images if costs.rounds else ledger.pool.images
    of_run = stored.by_run(plan.profile, costs, collected, len(plan.held_out), latent, adapters, speed.picture)
    return of_run + stored.by_texts(plan.profile, plan.all_prompts)
