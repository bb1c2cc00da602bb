"""What Flow-GRPO and DanceGRPO share: rollouts of a stochastic sampler, group advantages, the clipped update.

An epoch samples a group of images for each of some prompts, keeps every state of their chains, and makes
`updates_per_epoch` optimiser updates on them, each on its share of the images:

    A   = (r - mean of the prompt's group) / (std + std_epsilon), clipped to +-advantage_clip
    rho = exp(log p_theta(x_next | x) - log p_old(x_next | x))
    L   = mean over images and trained steps of max(-A rho, -A clip(rho, 1 - c, 1 + c)) + kl_weight * KL
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gdro_bench import content, distributed, sampling, score
from gdro_bench.budget import GRADIENT_COST, Cost
from gdro_bench.content import Count, Natural, NonNegative, Positive, Share
from gdro_bench.distributed import gather_scores
from gdro_bench.errors import BenchError
from gdro_bench.methods import CostModel, Step, TrainContext
from gdro_bench.methods.parts import regularise
from gdro_bench.methods.parts.groups import Std, advantages, epoch_prompts, flat_groups
from gdro_bench.methods.parts.regularise import AuxiliaryConfig, RolloutRegulariser
from gdro_bench.methods.parts.rollout_regulariser import RolloutGuard, paying, shaped
from gdro_bench.methods.parts.trainer import OptimiserConfig, Trainer
from gdro_bench.policy import Cond
from gdro_bench.profile import Sampler
from gdro_bench.rewards.auxiliary import watched
from gdro_bench.sampling import Chain, SdeConfig
from gdro_bench.score import GeneratedBatch, Score
from gdro_bench.task import Prompt


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/flow-grpo.toml` and `dance-grpo.toml`."""

    prompts: Count  # an epoch
    k: Count  # images a prompt
    noising: SdeConfig
    window: Natural  # steps that are stochastic and all trained, as in Flow-GRPO-Fast; 0 is all, or a share of them
    window_range: Natural  # the window lies in the first so many steps
    noisy_last: bool  # whether the last step gets noise as well; if not, it ends at x0_hat = x - t v and is not trained
    timesteps: Literal["first", "random"]  # which of the stochastic steps are trained
    timestep_fraction: Share  # of the stochastic steps, rounded down, one at least
    shared_noise: bool  # whether a group starts from one noise
    std: Std  # what advantages are divided by
    std_unbiased: bool  # divides by n - 1, not by n
    std_epsilon: Positive  # is added to the std
    drop_zero: bool  # whether images of advantage 0 leave the updates' shares
    shuffle: bool  # whether images are dealt to an epoch's updates at random, or prompt by prompt
    advantage_clip: Positive
    clip_range: Positive
    kl_weight: NonNegative
    kl_form: Literal["rate", "step"]
    updates_per_epoch: Count
    optimiser: OptimiserConfig
    rollout_steps: Count | None = None  # of the sampler while training; without it, the profile's
    rollout_shift: NonNegative | None = None  # likewise; 0 is the model's own schedule
    auxiliary: AuxiliaryConfig | None = None
    regulariser: RolloutRegulariser | None = None


# ---------------------------------------------------------------------------------------------------------------
# The mathematics, as functions of tensors


def clipped_loss(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """PPO's pessimistic surrogate, elementwise (arXiv 1707.06347, eq. 7, as a loss)."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range))


def stochastic_steps(config: Config, steps: int, generator: torch.Generator) -> list[int]:
    """The steps of this epoch's chains that inject noise."""
    last = steps if config.noisy_last else steps - 1
    if not config.window:
        return list(range(last))
    first = int(torch.randint(min(config.window_range, last) - config.window + 1, (1,), generator=generator))
    return list(range(first, first + config.window))


def trained_steps(config: Config, noisy: list[int], images: int, generator: torch.Generator) -> Tensor:
    """Which steps each image is trained on, int64 [images, n]."""
    if config.window:
        return torch.tensor(noisy).expand(images, -1)
    count = max(1, int(len(noisy) * config.timestep_fraction))
    if config.timesteps == "first":
        return torch.tensor(noisy[:count]).expand(images, -1)
    order = torch.rand((images, len(noisy)), generator=generator).argsort(dim=1)[:, :count]
    return torch.tensor(noisy)[order]


# ---------------------------------------------------------------------------------------------------------------
# The method


@dataclass(slots=True)
class Rollout:
    """An epoch's images that are trained on: chains [N, T + 1, *latent_shape], log-probabilities [N, T] under the
    policy that sampled them, advantages [N], prompt indices [N] and the steps to train each on, [N, n]; where only some
    pay the KL, what each pays [N]."""

    chains: Tensor
    log_p: Tensor
    advantage: Tensor
    prompts: Tensor
    steps: Tensor
    paying: Tensor | None = None

    def state(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in self.__slots__}


def costs(config: Config, sampler: Sampler) -> CostModel:
    c, images, steps = config, config.prompts * config.k, config.rollout_steps or sampler.steps
    noisy = c.window or (steps if c.noisy_last else steps - 1)
    trained = images * (c.window or max(1, int(noisy * c.timestep_fraction)))
    each: float = GRADIENT_COST + (1 if c.kl_weight else 0)  # the reference is asked for the KL
    moving = c.regulariser is not None and c.regulariser.reference is not None
    each += 1 / c.updates_per_epoch if moving else 0  # the base is asked in an epoch's first update
    passes = sampler.passes * trained // c.updates_per_epoch
    scored = images * (1 + (len(c.auxiliary.rewards) if c.auxiliary else 0))
    collected = Cost(images * steps * sampler.passes, images, scored)
    update = Cost(int(each * passes), passes)
    return CostModel(
        Cost(), collected, update, c.updates_per_epoch, sampler.batch, copies=int(moving), states=steps + 1
    )


class RolloutTraining:
    """Samples an epoch, then trains on it, an update a step; `name` is the key of its random numbers."""

    def __init__(self, name: str, config: Config, context: TrainContext) -> None:
        """Raises:
        BenchError: settings that do not go together."""
        check(config, context.prompts, context.sampler)
        self.name, self.config, self.context = name, config, context
        self.trainer = Trainer(context.policy, config.optimiser, context.processes)
        shift = context.sampler.shift if config.rollout_shift is None else config.rollout_shift
        self.schedule = context.policy.timesteps(config.rollout_steps or context.sampler.steps, shift)
        self.epoch = 0
        self.rollout: Rollout | None = None
        self.guard = RolloutGuard(config.regulariser, config.auxiliary, context, self.trainer.parameters)

    def step(self) -> Step:
        return self._collect() if self.rollout is None else self._optimise(self.rollout)

    def _generator(self, what: str, n: int) -> torch.Generator:
        return torch.Generator().manual_seed(content.seed(self.name, what, self.context.seed, n))

    # -- rollouts

    @torch.no_grad()
    def _collect(self) -> Step:
        c, context, generator = self.config, self.context, self._generator("rollout", self.epoch)
        prompt_ids = epoch_prompts(context.prompts, c.prompts, generator).repeat_interleave(c.k)
        noisy = stochastic_steps(c, len(self.schedule) - 1, generator)
        reference = self.guard.begin_epoch()
        states, log_p, scores, features = self._sample(prompt_ids, noisy, generator)
        r = torch.tensor([score.value for score in scores]).view(-1, c.k)
        lesson = self.guard.lesson(r, scores, features)
        advantage = advantages(lesson.r, c.std, c.advantage_clip, c.std_unbiased, c.std_epsilon)
        advantage = shaped(advantage, lesson.factors, c.advantage_clip).flatten()
        steps = trained_steps(c, noisy, len(prompt_ids), generator)
        kept = torch.nonzero(advantage).flatten() if c.drop_zero else torch.arange(len(prompt_ids))
        if c.shuffle:
            kept = kept[torch.randperm(len(kept), generator=generator)]
        self.epoch += 1
        if len(kept) >= c.updates_per_epoch:
            chosen = states[kept], log_p[kept], advantage[kept], prompt_ids[kept], steps[kept]
            self.rollout = Rollout(*chosen, paying(lesson.gated, kept))
        reward = r.nanmean().item()
        metrics = {
            "rollout_reward": reward,
            "unscored": float(r.isnan().sum()),
            "flat_groups": float(flat_groups(r).sum()),
            "dropped": float(len(prompt_ids) - len(kept)),
        }
        metrics |= {**lesson.measured, **reference}
        return Step("collect", metrics, f"epoch {self.epoch}: rollout reward {reward:.3f}")

    def _sample(
        self, prompt_ids: Tensor, noisy: list[int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, list[Score], Tensor | None]:
        """Chains, their log-probabilities, their last states' scores and, if asked for, what novelty is measured on.
        Each process takes some batches."""
        context, prompts = self.context, [self.context.prompts[int(p)] for p in prompt_ids]
        noise = self._first_noise(len(prompt_ids), generator)
        eps = self._step_noise(noise, noisy, generator)
        batches = context.processes.batches(len(prompt_ids), context.sampler.batch)
        chains: list[Chain] = []
        features: list[Tensor] = []

        def generated() -> Iterator[GeneratedBatch]:
            for rows in context.processes.passes(batches):
                drawn = {step: unit[rows] for step, unit in eps.items()}
                cond = context.policy.encode(prompts[rows])
                velocity = sampling.conditioned(context.policy, cond, context.sampler.guidance)
                chain = sampling.sde_sample(velocity, noise[rows], self.schedule, self.config.noising, drawn)
                if not context.processes.padding:
                    chains.append(Chain(chain.states.cpu(), chain.log_p.cpu()))
                    images = context.policy.decode(chain.states[:, -1])
                    seen = self.guard.features(images, chain.states[:, -1])
                    features.extend([] if seen is None else [seen])
                    yield images, prompts[rows]

        scored = score.score_batches(generated(), watched(context.scorer, context.auxiliaries), context.ahead)
        scores = gather_scores(context.processes, scored, len(batches), context.max_unscored)
        states = context.processes.gather_rows([chain.states for chain in chains], batches)
        log_p = context.processes.gather_rows([chain.log_p for chain in chains], batches)
        return states, log_p, scores, context.processes.gather_rows(features, batches) if self._novel else None

    @property
    def _novel(self) -> bool:
        return self.guard.config.diversity is not None

    def _first_noise(self, images: int, generator: torch.Generator) -> Tensor:
        shape, c = self.context.policy.latent_shape, self.config
        drawn = torch.randn((images // c.k, 1 if c.shared_noise else c.k, *shape), generator=generator)
        return drawn.expand(-1, c.k, *shape).flatten(0, 1).to(self.trainer.device)

    def _step_noise(self, noise: Tensor, noisy: list[int], generator: torch.Generator) -> dict[int, Tensor]:
        """Unit noise for all images at each noisy step, drawn batch by batch, whatever the processes."""
        rows = distributed.batches(len(noise), self.context.sampler.batch)
        drawn = [sampling.step_noise(noise[some].shape, noisy, generator) for some in rows]
        return {step: torch.cat([unit[step] for unit in drawn]) for step in noisy}

    # -- training

    def _optimise(self, rollout: Rollout) -> Step:
        c = self.config
        part = self.trainer.updates % c.updates_per_epoch
        rows = torch.tensor_split(torch.arange(len(rollout.advantage)), c.updates_per_epoch)[part]
        sums: dict[str, float] = {}
        pairs = [(int(i), j) for j in range(rollout.steps.shape[1]) for i in rows]
        share, pairs = len(pairs), self._with_gradient(pairs, rollout)
        processes = self.context.processes
        for batch in processes.passes(processes.batches(len(pairs), self.context.sampler.batch)) if pairs else ():
            some = pairs[batch]
            loss, metrics = self._loss(rollout, torch.tensor(some), on_policy=part == 0)
            count = 0 if processes.padding else len(some)
            self.trainer.backward(loss * count / share)
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value * count / len(pairs)
        sums = processes.all_reduce_dict(sums) | {"gradient_norm": self.trainer.update()}
        self.guard.see(sums)
        if part + 1 == c.updates_per_epoch:
            self.rollout = None
        clipped = f"clipped {sums['clipped']:.0%}" if pairs else "no image has an advantage"
        return Step("optimise", sums, f"update {self.trainer.updates}: {clipped}")

    def _with_gradient(self, pairs: list[tuple[int, int]], rollout: Rollout) -> list[tuple[int, int]]:
        """Those (image, step) pairs that can have a gradient: without a KL, an advantage of 0 has none."""
        return [pair for pair in pairs if self.config.kl_weight or rollout.advantage[pair[0]]]

    def _loss(self, rollout: Rollout, pairs: Tensor, on_policy: bool) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of (image, index of trained step) pairs [B, 2].

        In an epoch's first update the policy is the one that sampled, so its ratio is 1. Against the kept
        log-probabilities it would carry bfloat16's rounding in a batch of another size or in a graph compiled for
        gradients, which is as large as a clip range of 1e-4.
        """
        c, policy, guidance = self.config, self.context.policy, self.context.sampler.guidance
        images = pairs[:, 0]
        step = rollout.steps[images, pairs[:, 1]]
        device = self.trainer.device
        x, x_next = (rollout.chains[images, s].to(device) for s in (step, step + 1))
        cond = policy.encode([self.context.prompts[int(p)] for p in rollout.prompts[images]])
        new = self._transition(sampling.conditioned(policy, cond, guidance), x, step)
        log_p = new.log_p(x_next)
        old = log_p.detach() if on_policy else rollout.log_p[images, step].to(device)
        ratio = (log_p - old).exp()
        advantage = rollout.advantage[images].to(device)
        loss = clipped_loss(ratio, advantage, c.clip_range).mean()
        metrics = {
            "policy_loss": loss.item(),
            "clipped": ((ratio - 1).abs() > c.clip_range).float().mean().item(),
            "approx_kl": 0.5 * ratio.detach().log().square().mean().item(),
        }
        if c.kl_weight:
            kl, measured = self._measured_kl(new, x, step, cond, on_policy)
            paid = kl if rollout.paying is None else kl * rollout.paying[images].to(device)
            metrics |= measured | ({} if rollout.paying is None else {"paid_kl": paid.mean().item()})
            loss = loss + c.kl_weight * paid.mean()
        return loss, metrics

    def _measured_kl(
        self, new: sampling.Transition, x: Tensor, step: Tensor, cond: Cond, with_base: bool
    ) -> tuple[Tensor, dict[str, float]]:
        """The KL to the reference, [B], and its mean; where that one moves also to the base, with `with_base`."""
        adapters = self.guard.adapters
        kl = self._kl(new, x, step, cond, adapters)
        measured = {"kl": kl.mean().item()}
        if self.guard.reference and with_base:
            measured["kl_base"] = measured["kl"] if adapters is None else self._kl(new, x, step, cond).mean().item()
        return kl, measured

    def rounding(self) -> dict[str, float]:
        """Of an epoch that was sampled and not trained on yet: what rounding alone does to its ratios against the
        log-probabilities kept while sampling. The weights have not moved, so all are 0 where a forward with gradient
        equals one without, and an epoch's later updates rely on that.

        Returns:
            `kept_clipped`, the share that would be clipped, and `kept_kl`, half the mean square of the log ratio.
        """
        assert self.rollout is not None
        images, steps = self.rollout.steps.shape
        pairs = torch.tensor([(i, j) for j in range(steps) for i in range(images)])
        batches = distributed.batches(len(pairs), self.context.sampler.batch)
        seen = [(len(pairs[rows]), self._loss(self.rollout, pairs[rows], on_policy=False)[1]) for rows in batches]
        names = {"kept_clipped": "clipped", "kept_kl": "approx_kl"}
        return {name: sum(n * one[of] for n, one in seen) / len(pairs) for name, of in names.items()}

    def _transition(self, velocity: sampling.Velocity, x: Tensor, step: Tensor) -> sampling.Transition:
        schedule = self.schedule.to(x.device)
        t, t_next = schedule[step], schedule[step + 1]
        return sampling.transition(velocity(x, t), x, t, t_next, self.schedule, self.config.noising)

    def _kl(
        self, new: sampling.Transition, x: Tensor, step: Tensor, cond: Cond, adapters: list[Tensor] | None = None
    ) -> Tensor:
        """KL [B] to the transition of the base, or of the policy with these adapters: mean over elements of
        (mu - mu_ref)^2 / (2 sigma^2), with sigma the rate (`rate`, Flow-GRPO's later form) or the step's std (`step`,
        the exact KL)."""
        policy, guidance = self.context.policy, self.context.sampler.guidance
        reference = sampling.conditioned(policy, cond, guidance, reference=True, adapters=adapters)
        old = self._transition(reference, x, step)
        sigma = new.std if self.config.kl_form == "step" else new.rate
        return (new.mean - old.mean).square().flatten(1).mean(1) / (2 * sigma.square())

    # -- what the runner needs

    def evaluation_weights(self) -> AbstractContextManager[None]:
        return self.trainer.evaluation_weights()

    def state_dict(self) -> dict[str, Any]:
        rollout = None if self.rollout is None else self.rollout.state()
        guard = self.guard.state_dict()
        own = {"epoch": self.epoch, "rollout": rollout, "trainer": self.trainer.state_dict()}
        return own | ({"guard": guard} if guard else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.rollout = None if state["rollout"] is None else Rollout(**state["rollout"])
        self.trainer.load_state_dict(state["trainer"])
        self.guard.load_state_dict(state.get("guard", {}))


def check(config: Config, prompts: Sequence[Prompt], sampler: Sampler) -> None:
    """Raises:
    BenchError: settings that do not go together."""
    c, steps = config, config.rollout_steps or sampler.steps
    regularise.check(c.regulariser, c.auxiliary)
    regularise.check_paid(c.regulariser, c.kl_weight)
    if c.k < 2:
        raise BenchError(f"k is {c.k}.", "A group needs at least 2 images.", 2)
    if c.optimiser.batch:
        raise BenchError("Rollouts are trained in passes of the sampler's batch.",
                         "Leave method.optimiser.batch out, and set profile.sampler.batch.", 2)  # fmt: skip
    known = len({prompt.text for prompt in prompts})
    if c.prompts > known:
        raise BenchError(f"An epoch takes {c.prompts} prompts of {known}.", "Lower method.prompts.", 2)
    last = steps if c.noisy_last else steps - 1
    if c.window and not c.window <= min(c.window_range, last):
        remedy = f"Set method.window to at most {last} and method.window_range to no less."
        raise BenchError(f"A window of {c.window} steps does not fit.", remedy, 2)
    if c.window and c.timestep_fraction != 1:
        remedy = "Set method.timestep_fraction=1, or method.window=0."
        raise BenchError("All steps of a window are trained; no timestep_fraction of them.", remedy, 2)
    if c.noising.kind == "cps" and c.noisy_last:
        raise BenchError("CPS injects no noise in the last step.", "Set method.noisy_last=false.", 2)
