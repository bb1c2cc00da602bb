"""Slips of one sign, index or key that no other test would notice: each was tried, and these tests noticed it."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import test_forward_loop as loop
import test_forward_process as forward
import test_grpo
import test_online
import test_regularise as guarded
import torch
from known_runs import make_run

from gdro_bench import content, sampling, stats
from gdro_bench.budget import Ledger
from gdro_bench.comparison import entries
from gdro_bench.comparison.claims.measures import MEASURES
from gdro_bench.engine import plan
from gdro_bench.engine.held_out import point_of
from gdro_bench.engine.run_state import RunState
from gdro_bench.methods import gdro, rft
from gdro_bench.methods.parts import aggregation
from gdro_bench.methods.parts.adaptive_beta import covariance
from gdro_bench.methods.parts.offline import Times, draw_noise, draw_t
from gdro_bench.methods.parts.regularise import PoolRegulariser
from gdro_bench.methods.parts.rollout_regulariser import paying, shaped
from gdro_bench.methods.parts.trainer import OptimiserConfig, rate
from gdro_bench.sampling import timesteps
from gdro_bench.task import Prompt


def fill(made: Any) -> None:
    """Its pool."""
    while not made.source.complete:
        made.step()


def moved(made: Any) -> None:
    """Its adapters, off where they began."""
    with torch.no_grad():
        for i, p in enumerate(made.trainer.parameters):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)), alpha=0.05)


@pytest.mark.parametrize("trusting", [False, True])
def test_gdro_loss_is_ranking_plus_gamma_times_the_best_image_plus_what_gated_ones_pay(
    tmp_path: Path, trusting: bool
) -> None:
    guard = PoolRegulariser(gate=guarded.POOL_GATE, velocity_kl=0.5, trusted_top1=trusting)
    made = guarded.pools(tmp_path, auxiliary=guarded.WATCHED, regulariser=guard, gamma=3.0)
    fill(made)
    moved(made)
    drawn = made.objective.draw(torch.Generator().manual_seed(0))
    order = drawn.r.argsort(dim=1, descending=True)
    pay = torch.zeros_like(drawn.r).scatter(1, order[:, :1], 3.0)  # the best image of each group is gated
    drawn = replace(drawn, paying=pay)
    c, e = made.objective.config, made.objective.errors(drawn, slice(None))
    best = order[:, 1:2] if trusting else order[:, :1]
    s = gdro.implicit_reward(e.policy, e.reference, c.beta)
    expected = gdro.gdro_loss(s, drawn.r, c.tau, c.ties, c.drop_flat).mean()
    expected = expected + 3.0 * e.policy.gather(1, best).mean() + 0.5 * (e.kappa * pay).mean()
    loss, seen = made.objective.loss(drawn)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(seen["margin"], (s.gather(1, order[:, :1]) - s.gather(1, order[:, -1:])).mean().item())
    margins = made.objective._margins(e, drawn.r)
    torch.testing.assert_close(margins, (s.gather(1, order[:, :1]) - s.gather(1, order[:, -1:])).squeeze(1).detach())
    steps = -covariance(e.slope, drawn.r).sign().mean().item()
    assert seen["slope_step"] == pytest.approx(steps)
    assert steps != 0


def test_drawn_images_carry_their_own_marks(tmp_path: Path) -> None:
    made = guarded.pools(tmp_path, auxiliary=guarded.WATCHED, regulariser=guarded.POOL_GUARDS["gated"])
    fill(made)
    groups = made.source.groups
    object.__setattr__(groups, "paying", torch.arange(groups.rewards.numel()).float().view_as(groups.rewards))
    latents = torch.stack(list(groups.latents)).flatten(0, 1)
    drawn = made.objective.draw(torch.Generator().manual_seed(0))
    for x0, pay in zip(drawn.x0.flatten(0, 1), drawn.paying.flatten(), strict=True):
        assert torch.equal(latents[int(pay)], x0)


def test_the_kl_is_added_and_gated_images_alone_pay_it(tmp_path: Path) -> None:
    made = test_grpo.method(tmp_path, test_grpo.numbers(kl_weight=0.1))
    made.step()
    moved(made)
    pairs = torch.tensor([[0, 0], [1, 0]])
    made.rollout.paying = torch.tensor([2.0, *[0.0] * (len(made.rollout.advantage) - 1)])
    whole, _ = made._loss(made.rollout, pairs, True)
    made.config = replace(made.config, kl_weight=0.0)
    without, _ = made._loss(made.rollout, pairs, True)
    made.config = replace(made.config, kl_weight=0.1)
    made.rollout.paying = None
    _, seen = made._loss(made.rollout, pairs[:1], True)
    assert seen["kl"] > 0
    assert (whole - without).item() == pytest.approx(0.1 * seen["kl"], rel=1e-2)  # (2 KL_0 + 0 KL_1) / 2


def test_payers_follow_the_kept_images() -> None:
    gated = torch.tensor([[True, False], [False, True]])
    assert paying(gated, torch.tensor([1, 3])).tolist() == [0.0, 2.0]


def test_shaped_advantages_are_clipped_anew() -> None:
    assert shaped(torch.tensor([[2.0, -2.0]]), torch.tensor([[9.0, 1.0]]), 5.0).tolist() == [[5.0, -2.0]]


def averaged(made: Any) -> None:
    assert not test_online.same([p.detach() for p in made.trainer.parameters], made.trainer.ema.averages)
    with made.evaluation_weights():
        assert test_online.same([p.detach() for p in made.trainer.parameters], made.trainer.ema.averages)


def test_what_is_evaluated_is_the_average(tmp_path: Path) -> None:
    made = [
        test_grpo.method(tmp_path, test_grpo.numbers(ema_slope=0.1)),
        loop.made(tmp_path / "nft", "nft", loop.numbers("nft", optimiser={"ema_slope": 0.1})),
    ]
    for one in made:
        test_online.steps_to(one, 2)
        averaged(one)


def test_the_pull_to_old_is_added_with_its_weight() -> None:
    v, old, ref, target = (forward.draw(i) for i in (0, 2, 6, 1))
    a = forward.advantages(forward.rewards(), "group", forward.CLIP)
    without, _ = forward.rule("awm").loss(forward.seen(v, old, ref, a, target))
    some, _ = forward.rule("awm", old_weight=0.5).loss(forward.seen(v, old, ref, a, target))
    torch.testing.assert_close(some - without, 0.5 * (v - old).square().mean())


def test_crd_s_kl_holds_most_to_images_of_high_reward() -> None:
    v, old, ref, target = (forward.draw(i) for i in (0, 2, 6, 1))
    a = forward.advantages(forward.rewards(), "group", forward.CLIP)
    without, _ = forward.rule("crd").loss(forward.seen(v, old, ref, a, target))
    some, _ = forward.rule("crd", kl_weight=0.5, kl_floor=0.1).loss(forward.seen(v, old, ref, a, target))
    y = (a / (2 * forward.CLIP) + 0.5).clamp(0, 1)
    torch.testing.assert_close(some - without, ((0.1 + 0.4 * y) * (v - ref).square().flatten(2).mean(2)).mean())


def seeded(made: Any, seed: int) -> Any:
    made.context = replace(made.context, seed=seed)
    return made


def test_offline_updates_and_seeds_draw_anew(tmp_path: Path) -> None:
    made = guarded.pools(tmp_path)
    fill(made)
    drawn, original = [], made.objective.draw

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(original.__self__, name)

        def draw(self, generator: torch.Generator) -> Any:
            drawn.append(original(generator))
            return drawn[-1]

    made.objective = Spy()
    made.step()
    made.step()
    seeded(made, 1).step()
    assert len({d.eps[0, 0, 0].sum().item() for d in drawn}) == 3
    made.trainer.updates -= 1
    seeded(made, 2).step()
    assert len({d.eps[0, 0, 0].sum().item() for d in drawn}) == 4  # one update, another seed


def test_rollouts_of_every_epoch_and_seed_begin_from_noise_of_their_own(tmp_path: Path) -> None:
    starts = []
    for seed in (0, 1):
        made = seeded(test_grpo.method(tmp_path, test_grpo.numbers()), seed)
        for epoch in (0, 1):
            made.rollout, made.epoch = None, epoch
            made.step()
            starts += [round(x.sum().item(), 4) for x in made.rollout.chains[:, 0]]
    assert len(set(starts)) == len(starts) == 32


def test_forward_rollouts_and_their_noise_are_new_in_every_epoch_and_seed(tmp_path: Path) -> None:
    x0, eps, ids = [], [], set()
    for seed in (0, 1):
        many = [Prompt(f'a sign that reads "{w}"', w) for w in ("CAT", "DOG", "SUN", "MAP", "TREE", "FOLD")]
        config = loop.numbers("nft", online={"prompts": 6, "updates_per_epoch": 1})
        made = loop.made(tmp_path / str(seed), "nft", config, many)
        made.data.context = replace(made.data.context, seed=seed)
        for _ in range(2):
            made.data.epoch = None
            made.data.collect()
            ids.add(tuple(made.data.epoch.prompts.tolist()))
            lesson = made.data.lesson(0)
            x0 += [round(x.sum().item(), 4) for x in made.data.epoch.x0.flatten(0, 1)]
            eps += [round(lesson.noise(g, d)[0].sum().item(), 4) for g, d in lesson.pairs()]
    assert len(set(x0)) == len(x0)
    assert len(set(eps)) == len(eps)
    assert len(ids) == 4


def test_rft_trains_on_the_best(tmp_path: Path) -> None:
    table = plan.read_settings(content.find("profile", "pocket") / "rft.toml", None)
    small = {"best": 2, "groups": 3, "pool": {"prompts": 3, "images": 6, "seed": 0, "shard_prompts": 3}}
    made = rft.start(content.build(rft.Config, table | small, "rft"), guarded.context(tmp_path, watched=False))
    made.step()
    drawn, groups = made.objective.draw(torch.Generator().manual_seed(0)), made.source.groups
    for r, prompt in zip(drawn.r, drawn.prompts, strict=True):
        of = groups.rewards[made.source.prompts.index(prompt)]
        assert sorted(r.tolist()) == sorted(of.topk(2).values.tolist())


def test_mean_less_std_of_two_is_the_minimum() -> None:
    r = guarded.draw(2, 4, 6)
    low = aggregation.aggregated(r, aggregation.AggregationConfig("min"))
    found = aggregation.aggregated(r, aggregation.AggregationConfig("mean-std", None, 1.0))
    torch.testing.assert_close(found, low)


def test_implicit_rises_where_the_policy_fits_better(tmp_path: Path) -> None:
    made = guarded.pools(tmp_path)
    fill(made)
    moved(made)
    drawn = made.objective.draw(torch.Generator().manual_seed(0))
    e = made.objective.errors(drawn, slice(None))
    torch.testing.assert_close(made.objective.implicit(drawn), (e.reference - e.policy).detach())


def test_an_epoch_s_images_keep_their_prompts(tmp_path: Path) -> None:
    made = test_grpo.method(tmp_path, test_grpo.numbers(updates_per_epoch=1))
    made.step()
    r = made.rollout
    i = torch.arange(len(r.prompts))
    with torch.no_grad():
        cond = made.context.policy.encode([made.context.prompts[int(p)] for p in r.prompts])
        step = r.steps[:, 0]
        new = made._transition(sampling.conditioned(made.context.policy, cond, 1.0), r.chains[i, step], step)
    torch.testing.assert_close(new.log_p(r.chains[i, step + 1]), r.log_p[i, step], rtol=1e-3, atol=1e-4)


def test_the_learning_rate_warms_up_and_stays_and_gradients_are_clipped(tmp_path: Path) -> None:
    made = test_grpo.method(tmp_path, test_grpo.numbers(warmup_steps=2, learning_rate=1e-3, clip=0.5))
    rates: list[float] = []
    seen: list[float] = []

    def after(optimiser: Any, *_: Any) -> None:
        rates.append(optimiser.param_groups[0]["lr"])
        seen.append(math.sqrt(sum(p.grad.square().sum().item() for p in made.trainer.parameters)))

    made.trainer.optimiser.register_step_pre_hook(after)
    for _ in range(4):
        made.trainer.backward(sum(p.sum() for p in made.trainer.parameters))
        assert made.trainer.update() > 0.5
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])
    assert seen == pytest.approx([0.5] * 4, rel=1e-4)


def test_an_update_in_parts_is_the_whole_one(tmp_path: Path) -> None:
    norms = []
    for batch in (None, 3):
        made = guarded.pools(tmp_path)
        made.trainer.config = replace(made.trainer.config, batch=batch)
        fill(made)
        moved(made)
        norms.append(made.step().metrics["gradient_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_rate_rises_stands_and_falls_as_one_over_updates() -> None:
    plain = OptimiserConfig(2.0, 4, 0.0, 1e-8, 1.0, 0.0, 0.0)
    assert [rate(plain, u) for u in (1, 2, 4, 1000)] == [0.5, 1.0, 2.0, 2.0]
    falling = replace(plain, steady_steps=10)
    assert [rate(falling, u) for u in (1, 4, 10, 20, 1000)] == [0.5, 2.0, 2.0, 1.0, 0.02]


def test_t_and_noise_are_shared_each_as_asked() -> None:
    for of_t, of_noise in ((True, False), (False, True)):
        numbers = SimpleNamespace(share_t=of_t, share_noise=of_noise, t_distribution="uniform", t_min=None)
        t, eps = draw_noise(numbers, (2, 3), 2, (4,), torch.ones(1), torch.Generator().manual_seed(0))
        assert bool((t == t[..., :1]).all()) == of_t
        assert bool((eps == eps[:, :, :1]).all()) == of_noise


@pytest.mark.parametrize("distribution", ["uniform", "logit-normal", "sampler"])
def test_times_are_drawn_as_asked(distribution: Times) -> None:
    """Mean and spread of each; those of the sampler are its own, each as often."""
    own = timesteps(8, 2.0)[:-1]
    t = draw_t((20_000,), distribution, own, torch.Generator().manual_seed(0))
    logistic = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    density = (-logistic.square() / 2).exp() / math.sqrt(2 * math.pi)
    expected = {
        "uniform": (0.5, 1 / 3),
        "logit-normal": tuple(float((logistic.sigmoid() ** p * density).sum() * 1e-4) for p in (1, 2)),
        "sampler": (own.mean().item(), own.square().mean().item()),
    }[distribution]
    assert (t.mean().item(), t.square().mean().item()) == pytest.approx(expected, abs=0.01)
    if distribution == "sampler":
        values, counts = t.unique(return_counts=True)
        assert values.equal(own.flip(0))
        assert counts.tolist() == pytest.approx([2500] * 8, rel=0.1)


@pytest.mark.parametrize("distribution", ["uniform", "logit-normal", "sampler"])
def test_no_time_is_drawn_below_the_least_and_those_above_are_as_likely_as_without_it(distribution: Times) -> None:
    own = timesteps(8, 2.0)[:-1]

    def drawn(t_min: float) -> torch.Tensor:
        return draw_t((20_000,), distribution, own, torch.Generator().manual_seed(0), t_min)

    late, whole = drawn(0.7), drawn(0.0)
    assert late.min() >= 0.7
    assert late.shape == whole.shape
    assert late.mean().item() == pytest.approx(whole[whole >= 0.7].mean().item(), abs=0.005)
    assert late.std().item() == pytest.approx(whole[whole >= 0.7].std().item(), abs=0.005)


def test_errors_are_means_over_draws(tmp_path: Path) -> None:
    made = guarded.pools(tmp_path, draws=2)
    fill(made)
    moved(made)
    o = made.objective
    drawn = o.draw(torch.Generator().manual_seed(0))
    both, one, two = (o.errors(drawn, part).policy for part in (slice(None), slice(0, 1), slice(1, 2)))
    torch.testing.assert_close(both, (one + two) / 2)


def test_extra_draws_measure_the_variance_of_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = guarded.pools(tmp_path, draws=2).objective.config
    noise = torch.randn(3, 4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rewards = torch.rand(4000, 3, generator=torch.Generator().manual_seed(1))

    def errors(x: torch.Tensor) -> gdro.Errors:
        return gdro.Errors(x, torch.zeros_like(x), x, x, x)

    monkeypatch.setattr(gdro, "replace", lambda drawn, **_: drawn)
    objective: Any = SimpleNamespace(config=config, errors=lambda drawn, draws: errors(noise[2]))
    drawn: Any = SimpleNamespace(t=torch.zeros(4000, 3, 3))
    seen = gdro.Objective._measure_draws(objective, drawn, errors((noise[0] + noise[1]) / 2), rewards)
    assert seen["draw_variance"] == pytest.approx(0.5, rel=0.1)  # unit variance a draw, of the mean of two half


# -- statistics


def test_seeds_of_an_entry_are_drawn_once_less(tmp_path: Path) -> None:
    tops = (0.5, 0.6, 0.9)
    runs = [
        entries.load(make_run(tmp_path / f"{i}", seed=i, rewards=(0.4, 0.4, 0.4, 0.4, top)))
        for i, top in enumerate(tops)
    ]
    compared = entries.compare(runs, False)
    one = np.full((stats.RESAMPLES, 40), 1 / 40)
    found = compared.entries[0].replicates("reward", one)[:, -1]
    assert found.var() == pytest.approx(np.var(tops, ddof=1) / 3, rel=0.1)


def test_a_comparison_draws_pictures_of_one_prompt_together(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    scores = pd.read_parquet(folder / "scores.parquet")
    scores["text"] = scores["prompt"].map(lambda n: f"prompt {n % 10}")
    scores.to_parquet(folder / "scores.parquet")
    weights = entries.compare([entries.load(folder)], False).prompt_weights
    assert (weights[:, :10] == weights[:, 10:20]).all()


def test_held_out_pictures_of_one_prompt_have_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    monkeypatch.setattr(sampling, "noise_for", lambda k, shape: keys.extend(k) or torch.zeros(len(k), *shape))
    monkeypatch.setattr(sampling, "sample", lambda *a, **k: None)
    monkeypatch.setattr(sampling, "decoded", lambda *_: None)
    policy: Any = SimpleNamespace(latent_shape=(1,))
    sampler: Any = SimpleNamespace(batch=4)
    sampling.held_out_images(policy, [Prompt("a", "", draw=i) for i in range(4)], "geneval", sampler)
    assert len(set(keys)) == 4
    assert keys[0] == ("geneval", "held out", "a")


def test_the_gain_of_a_point_is_over_the_base_and_by_prompt() -> None:
    rng = np.random.default_rng(0).random(20)
    rows = [{"value": 0.25 + rng[i % 5], "text": f"p{i % 5}"} for i in range(20)]
    base = [{"value": rng[i % 5], "text": f"p{i % 5}"} for i in range(20)]
    point = point_of(1.0, rows, base, RunState(Ledger(1)))
    assert point.gain.mean == pytest.approx(0.25)
    assert point.reward == stats.bootstrap_mean(np.array([r["value"] for r in rows]), prompts=[r["text"] for r in rows])


def test_measures_have_their_signs(tmp_path: Path) -> None:
    a = entries.load(make_run(tmp_path / "a", rewards=(0.4, 0.4, 0.6, 0.7, 0.8), pool=300))
    b = entries.load(make_run(tmp_path / "b", "flow-grpo", rewards=(0.4, 0.45, 0.5, 0.55, 0.6), pool=0))
    for run, value in ((a, 0.6), (b, 0.3)):
        run.parts["gold"] = np.full_like(run.parts["reward"], value)
    found = entries.compare([a, b], False)
    pair = entries.Comparison((found.entries[0], found.entries[1]), found.entries[1], found.prompt_weights, {})

    def of(name: str, part: str = "gold") -> float:
        return MEASURES[name].measured(pair, pair.entries[0], part).mean

    assert of("relative-difference") == pytest.approx(1.0)
    assert of("at-reward") == pytest.approx(0.3)
    assert of("difference") == pytest.approx(0.3)
    peak = np.array([0.1, 0.2, 0.9, 0.5, 0.4])[:, None] * np.ones(40)
    a.parts["gold"] = peak
    assert of("reward-since-best") == pytest.approx(0.2)  # 0.8 at the end, 0.6 where gold was highest
    assert of("fall") == pytest.approx(0.4 / 0.9 - 1)
    assert of("mean-cost-ratio", "") > 1 > of("mean-cost-ratio-without-pools", "")


def test_an_interval_leaves_out_a_fortieth_at_each_end() -> None:
    found = stats.estimate(0.0, np.arange(1001.0))
    assert (found.low, found.high) == pytest.approx((25, 975))
