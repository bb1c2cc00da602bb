"""GDRO in rounds: one round is the offline method, ages never mix, and a killed round goes on to the same numbers."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from test_run import arguments, folder, recorded

from gdro_bench import content
from gdro_bench.budget import Ledger, MeteredPolicy, MeteredScorer
from gdro_bench.cli import main
from gdro_bench.commands import dry_run
from gdro_bench.engine import plan, record, runner
from gdro_bench.errors import BenchError
from gdro_bench.methods import Step, TrainContext, Training, gdro
from gdro_bench.methods.parts.adaptive_beta import Controller
from gdro_bench.methods.parts.online import ONCE, OnlineTraining
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.pool import Pool
from gdro_bench.profile import LoraConfig, Sampler
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

pytestmark = pytest.mark.usefixtures("sketched")

WORDS = ("CAT", "DOG", "SUN", "MAP", "TREE", "FOLD", "RAIN", "LAKE")
PROMPTS = [Prompt(f'a red sign that reads "{word}" at the top of a blue wall', word) for word in WORDS]
SAMPLER = Sampler(2, 2.0, 1.0, 8)


class Brightness:
    """A reward that any model can learn at once: how bright the picture is."""

    name = "brightness"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(image.mean()) / 255, {}, "") for image in images]


def numbers(
    online: dict[str, Any] | None = None, adaptive: dict[str, Any] | None = None, **changed: Any
) -> gdro.Config:
    """Four rounds of two groups of four, two updates each."""
    read = content.read(content.find("profile", "pocket") / "gdro.toml")
    small = {"beta": 5.0, "k": 3, "groups": 2, "pool": {"prompts": 8, "images": 4, "seed": 0, "shard_prompts": 1}}
    read["optimiser"] |= {"warmup_steps": 0, "learning_rate": 5e-3, "ema_slope": 0.1}
    read["online"] |= {"rounds": 4, "updates": 2, "fresh_groups": 1} | (online or {})
    read["adaptive_beta"] |= adaptive or {}
    return content.build(gdro.Config, read | small | changed, "gdro.toml")


def opened(path: Path, config: gdro.Config, seed: int = 0) -> tuple[Training, Ledger]:
    policy, ledger = PocketPolicy.open("cpu", LoraConfig(4, 4.0, ("to_q", "to_v")), 0), Ledger(1)
    pools = Pool(path / "pools", ledger), Pool(path / "rounds", ledger, shared=False)
    context = TrainContext(
        MeteredPolicy(policy, ledger), MeteredScorer(Brightness(), ledger), PROMPTS, SAMPLER, pools[0], seed,
        own_pool=pools[1],
    )  # fmt: skip
    return gdro.start(config, context), ledger


def online(path: Path, config: gdro.Config) -> OnlineTraining:
    made, _ = opened(path, config)
    assert isinstance(made, OnlineTraining)
    return made


def steps_to(made: Training, updates: int) -> list[Step]:
    """Its steps until so many updates are made."""
    steps: list[Step] = []
    while sum(step.kind == "optimise" for step in steps) < updates:
        steps.append(made.step())
    return steps


def weights(made: Training) -> list[torch.Tensor]:
    saved: list[torch.Tensor] = made.state_dict().get("offline", made.state_dict())["trainer"]["parameters"]
    return [tensor.clone() for tensor in saved]


def same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


# -- one round


FIXED = ({}, {"rule": "slope", "epsilon": 0.0}, {"rule": "batch", "strength": 0.0, "keep": 1.0})


@pytest.mark.parametrize(
    ("adaptive", "warmup"),
    [
        *zip(FIXED, (0, 3, 0), strict=True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in zip(FIXED, (3, 0, 3), strict=True)),
    ],
)
def test_one_round_and_a_beta_that_cannot_move_are_the_offline_method(
    adaptive: dict[str, Any], warmup: int, tmp_path: Path
) -> None:
    optimiser = content.read(content.find("profile", "pocket") / "gdro.toml")["optimiser"] | {"warmup_steps": warmup}
    config = numbers({"rounds": 1}, optimiser=optimiser)
    offline, ledger = opened(tmp_path, config)
    context = offline.context  # type: ignore[attr-defined]
    assert not isinstance(offline, OnlineTraining)
    before = [dict(step.metrics) for step in steps_to(offline, 4)]
    made, other = (
        opened(tmp_path, numbers({"rounds": 1}, adaptive, optimiser=optimiser)) if adaptive else (None, Ledger(1))
    )
    if made is None:
        controller = Controller(None, config.beta, config.tau, 0)
        fresh, other = opened(tmp_path, config)
        made = gdro.begin_rounds(config, ONCE, controller, fresh.context)  # type: ignore[attr-defined]
    after = [dict(step.metrics) for step in steps_to(made, 4) if "round_reward" not in step.metrics]
    assert same(weights(made), weights(offline))
    for one, two in zip(before, after, strict=True):
        assert repr(one) == repr({name: two[name] for name in one})  # repr: NaN equals NaN
    assert (other.pool.images, other.total.evaluations) == (ledger.pool.images, ledger.total.evaluations)
    assert context.own_pool is not None
    assert not context.own_pool.folder.exists()


def test_without_its_tables_gdro_is_the_same(tmp_path: Path) -> None:
    with_tables, _ = opened(tmp_path, numbers({"rounds": 1}))
    bare, _ = opened(tmp_path, replace(numbers({"rounds": 1}), online=None, adaptive_beta=None))
    steps_to(with_tables, 3)
    steps_to(bare, 3)
    assert same(weights(bare), weights(with_tables))


# -- rounds


def test_rounds_come_after_their_updates_and_training_goes_on(tmp_path: Path) -> None:
    made, ledger = opened(tmp_path, numbers())
    steps = steps_to(made, 10)
    rounds = [step.metrics["round"] for step in steps if step.kind == "optimise"]
    assert rounds == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
    assert [step.keep for step in steps if step.kind == "optimise"] == [False, True] * 3 + [False] * 4
    assert ledger.collection.images == 8 * 4
    assert ledger.pool.images == 2 * 4  # round 0: only those could have been bought before
    assert ledger.collection.evaluations == 8 * 4 * 2 + 3 * 2 * 4  # and the fresh groups, twice over
    seen = [step.metrics for step in steps if "round_reward" in step.metrics]
    assert [one["round"] for one in seen] == [0, 1, 2, 3]
    assert all(-1 <= one["fresh_agreement"] <= 1 for one in seen[1:])
    assert "fresh_agreement" not in seen[0]


def test_a_round_is_sampled_from_the_weights_in_training(tmp_path: Path) -> None:
    made = online(tmp_path, numbers())
    steps_to(made, 3)
    source = made.rounds.sources[1]
    assert [prompt.text for prompt in source.prompts] == [prompt.text for prompt in PROMPTS[2:4]]
    rewards = {}
    for name, parameters in (("now", None), ("base", [torch.zeros_like(p) for p in made.rounds.parameters])):
        with torch.no_grad():
            for own, value in zip(made.rounds.parameters, parameters or made.rounds.parameters, strict=True):
                own.copy_(value)
        again, _ = source._sample(0)
        rewards[name] = (again - torch.stack(list(source.groups.latents[:1]))).abs().max().item()
    assert 0 < rewards["now"] < rewards["base"]  # an update has moved the policy since; the base is further off


@pytest.mark.parametrize("sampler", ["theta", "ema", "old"])
def test_who_samples_is_told_apart(sampler: str, tmp_path: Path) -> None:
    made = online(tmp_path, numbers({"sampler": sampler, "lag": 0.5}))
    start = [p.detach().clone() for p in made.rounds.parameters]
    steps_to(made, 2)
    theta, ema = weights(made), [tensor.clone() for tensor in made.trainer.ema.averages]
    made.step()
    with made.rounds._weights(made.trainer):
        carried = [p.detach().clone() for p in made.rounds.parameters]
    old = [a.lerp(b, 0.5) for a, b in zip(start, theta, strict=True)]
    assert same(carried, {"theta": theta, "ema": ema, "old": old}[sampler])
    assert same(weights(made), theta)
    assert not same(theta, ema)


def test_without_lag_old_is_theta(tmp_path: Path) -> None:
    lagging, current = (
        online(tmp_path / sampler, numbers({"sampler": sampler, "lag": 0.0})) for sampler in ("old", "theta")
    )
    steps_to(lagging, 5)
    steps_to(current, 5)
    assert lagging.rounds.samplers == current.rounds.samplers
    assert same(weights(lagging), weights(current))


@pytest.mark.parametrize(("window", "groups"), [(1, 2), (2, 4), (0, 8)])
def test_a_window_holds_the_last_rounds_and_no_group_mixes_them(window: int, groups: int, tmp_path: Path) -> None:
    made = online(tmp_path, numbers({"window": window}))
    steps_to(made, 7)
    assert len(made.rounds.groups.rewards) == len(made.rounds.prompts) == groups
    expected = [prompt.text for prompt in PROMPTS[-groups:]]
    assert [prompt.text for prompt in made.rounds.prompts] == expected
    drawn = made.objective.draw(torch.Generator().manual_seed(0))
    for x0, prompt in zip(drawn.x0, drawn.prompts, strict=True):
        source = made.rounds.sources[PROMPTS.index(prompt) // 2]
        stored = torch.stack(list(source.groups.latents))[source.prompts.index(prompt)]
        assert all(any(torch.equal(image, own) for own in stored) for image in x0)


def test_a_round_that_cannot_teach_widens_the_window(tmp_path: Path) -> None:
    made = online(tmp_path, numbers())
    steps_to(made, 5)
    made.rounds.sources[2].groups.rewards.fill_(0.5)
    made.rounds._groups = None
    assert len(made.rounds.usable(3, drop_flat=True)) == 2
    assert len(made.rounds.groups.rewards) == 4
    assert made.step().metrics["rounds_trained"] == 2


def test_the_reference_is_the_last_sampler_and_tilts_add(tmp_path: Path) -> None:
    made = online(tmp_path, numbers({"reference": "sampler"}))
    steps = steps_to(made, 2)
    assert made.rounds.reference is None
    theta = weights(made)
    steps += steps_to(made, 1)
    assert made.rounds.reference is not None
    assert same(made.rounds.reference, theta)
    assert steps[-1].metrics["kappa"] == 0  # where a round begins the policy is its reference
    assert steps[-1].metrics["tilt"] == pytest.approx(2 / 5)
    assert made.step().metrics["kappa"] > 0


def test_with_the_base_as_reference_tilt_stays(tmp_path: Path) -> None:
    made, ledger = opened(tmp_path, numbers())
    assert [s.metrics["tilt"] for s in steps_to(made, 5) if s.kind == "optimise"] == [pytest.approx(1 / 5)] * 5
    assert ledger.lagged.evaluations == 0


def test_elites_are_the_best_so_far_and_never_worse(tmp_path: Path) -> None:
    made = online(tmp_path, numbers({"elite": True, "prompts": "same"}))
    before = [-math.inf, -math.inf]
    for updates in (1, 2, 2, 2):
        steps_to(made, updates)
        made.objective.draw(torch.Generator().manual_seed(0))
        elites = made.rounds.elites(PROMPTS[:2])
        assert elites is not None
        for i, elite in enumerate(elites):
            seen = [
                (r, x)
                for s in made.rounds.sources
                for r, x in zip(s.groups.rewards[i], s.groups.latents[i], strict=True)
            ]
            best = max(seen, key=lambda pair: pair[0].item())
            assert torch.equal(elite, best[1])
            assert best[0].item() >= before[i]
            before[i] = best[0].item()


def test_an_elite_that_was_not_scored_gives_way(tmp_path: Path) -> None:
    made = online(tmp_path, numbers({"elite": True, "prompts": "same"}))
    steps_to(made, 1)
    made.rounds.sources[0].groups.rewards[0] = math.nan
    steps_to(made, 2)
    made.rounds._groups = None
    elite = made.rounds.groups and made.rounds.elites(PROMPTS[:1])
    assert elite is not None
    later = made.rounds.sources[1].groups
    assert torch.equal(elite[0], later.latents[0][int(later.rewards[0].argmax())])


def test_an_elite_costs_an_image_with_gradient(tmp_path: Path) -> None:
    spent = {}
    for elite in (False, True):
        made, ledger = opened(tmp_path / str(elite), numbers({"elite": elite}))
        steps_to(made, 2)
        spent[elite] = ledger.optimisation
    assert spent[True].images - spent[False].images == 2 * 2
    assert spent[True].evaluations - spent[False].evaluations == 3 * 2 * 2


def test_groups_held_back_are_never_trained_on(tmp_path: Path) -> None:
    made, ledger = opened(tmp_path, numbers({"rounds": 1, "held_back": 3}))
    assert isinstance(made, OnlineTraining)
    steps = steps_to(made, 5)
    assert {prompt.text for prompt in made.rounds.prompts} == {prompt.text for prompt in PROMPTS[:5]}
    measured = [step for step in steps if "held_back_agreement" in step.metrics]
    assert len(measured) == 2  # every second update
    assert all(-1 <= step.metrics["held_back_agreement"] <= 1 for step in measured)
    assert ledger.collection.evaluations == 8 * 4 * 2 + 2 * 3 * 4 * 2


# -- resuming


def test_images_of_a_later_round_cannot_be_made_again_and_the_first_rounds_can(tmp_path: Path) -> None:
    config = numbers({"window": 0})
    made, _ = opened(tmp_path, config)
    steps_to(made, 3)
    state = made.state_dict()
    for place in ("pools", "rounds"):
        for shard in (tmp_path / place).rglob("shard-*.json"):
            shard.unlink()
        resumed, ledger = opened(tmp_path, config)
        resumed.load_state_dict(state)
        if place == "pools":
            resumed.step()
            assert len(list((tmp_path / place).rglob("shard-*.json"))) == 2
            assert ledger.pool.images == ledger.collection.images == 0
        else:
            with pytest.raises(BenchError, match=r"gone .* Delete checkpoint.pt"):
                resumed.step()


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "theta": ({}, {"rule": "kl-target", "every": 1}),
    "old, moving reference": ({"sampler": "old", "reference": "sampler", "window": 2}, {"rule": "slope"}),
    "ema, elites": ({"sampler": "ema", "elite": True, "prompts": "same"}, {"rule": "snr", "every": 2}),
    "held back": ({"held_back": 1, "window": 0}, {"rule": "batch"}),
}


FAST = "old, moving reference"  # most is carried over there


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != FAST)) for name in VARIANTS])
def test_a_run_killed_anywhere_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    """A state is saved after every step, and each is gone on from; shards of rounds are then made once alone."""
    config, path = numbers(*VARIANTS[name]), tmp_path / "state.pt"
    whole, spent = opened(tmp_path / "whole", config)
    every = steps_to(whole, 7)
    for killed_after in range(4, len(every), 6):
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        killed, ledger = opened(tmp_path / "killed", config)
        for _ in range(killed_after):
            killed.step()
        torch.save(killed.state_dict(), path)
        before = ledger.total
        killed.step()  # perhaps a shard that is kept, while the state that knows of it is lost
        resumed, ledger = opened(tmp_path / "killed", config)
        resumed.load_state_dict(torch.load(path, weights_only=True))
        rest = [resumed.step() for _ in range(len(every) - killed_after)]
        assert same(weights(resumed), weights(whole))
        for step, other in zip(rest, every[killed_after:], strict=True):
            assert repr(dict(step.metrics)) == repr(dict(other.metrics))
        total = before + ledger.total
        assert (total.evaluations, total.images) == (spent.total.evaluations, spent.total.images)


def test_other_weights_never_take_a_round_s_images(tmp_path: Path) -> None:
    one, other = online(tmp_path, numbers()), online(tmp_path, numbers(gamma=1.0))
    steps_to(one, 3)
    steps_to(other, 3)
    assert one.rounds.samplers != other.rounds.samplers
    assert one.rounds.sources[1].origin.pool.path != other.rounds.sources[1].origin.pool.path
    assert one.rounds.sources[0].origin.pool.path == other.rounds.sources[0].origin.pool.path


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rounds": 3}, "does not split evenly"),
        ({"rounds": 1, "held_back": 8}, "held_back is 8"),
        ({"held_back": 1, "prompts": "same"}, "their prompts come again"),
    ],
)
def test_numbers_that_do_not_go_together(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=said):
        opened(tmp_path, numbers(changed))


def test_too_few_prompts_are_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="need 12 training prompts; there are 8"):
        opened(tmp_path, numbers(pool={"prompts": 12, "images": 4, "seed": 0, "shard_prompts": 1}))


def test_batch_in_parts_is_refused(tmp_path: Path) -> None:
    optimiser = content.read(content.find("profile", "pocket") / "gdro.toml")["optimiser"] | {"batch": 3}
    with pytest.raises(BenchError, match="all groups of an update in one pass"):
        opened(tmp_path, numbers({"rounds": 1}, {"rule": "batch"}, optimiser=optimiser))


# -- through the command line

ROUNDS = {
    "method__online__rounds": 4, "method__online__updates": 2, "method__online__fresh_groups": 1,
    "method__online__sampler": "old", "method__online__reference": "sampler", "method__adaptive_beta__rule": "slope",
    "profile__budget__limit": 400,
}  # fmt: skip


def call(out: Path, **changed: object) -> Result:
    result = CliRunner().invoke(main, arguments(out, **(ROUNDS | changed)))  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("online")
    call(out)
    return out


def same_run(one: Path, other: Path) -> None:
    assert recorded(one) == recorded(other)
    a, b = (load_file(folder(out) / "lora" / "pytorch_lora_weights.safetensors") for out in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


def test_a_run_in_rounds_leaves_its_record(finished: Path) -> None:
    steps = pd.read_parquet(folder(finished) / "steps.parquet")
    assert steps["round_reward"].notna().sum() == 4
    assert (
        steps.loc[steps["kind"] == "optimise", ["beta", "kappa", "slope", "saturated", "tilt"]].notna().all(axis=None)
    )
    last = record.read(folder(finished)).points[-1]
    assert (last.pool_images, last.images_sampled) == (4, 16)
    assert not (folder(finished) / "rounds").exists()


def test_the_dry_run_foretells_it(finished: Path) -> None:
    settings = [words for words in arguments(finished, **ROUNDS) if "=" in words]  # type: ignore[arg-type]
    made = plan.make_plan("ocr", "gdro", "pocket", 0, finished, settings)
    costs = gdro.costs(made.config, made.profile.sampler)
    ledger, updates = dry_run.follow(made, costs, dry_run.Speed(0, 0, 0, 0, 0, 0))
    last = record.read(folder(finished)).points[-1]
    assert (ledger.pool.images, ledger.collection.images) == (last.pool_images, last.images_sampled)
    assert ledger.collection.evaluations == last.collection_evaluations
    assert ledger.optimisation.evaluations == last.optimisation_evaluations
    assert updates == last.updates


def test_eight_processes_get_further_in_an_hour_and_not_sooner_to_the_end(finished: Path) -> None:
    settings = [words for words in arguments(finished, **ROUNDS) if "=" in words]  # type: ignore[arg-type]
    settings += ["profile.budget.kind=seconds", "profile.budget.limit=3600"]
    made = plan.make_plan("ocr", "gdro", "pocket", 0, finished, settings)
    costs, speed = gdro.costs(made.config, made.profile.sampler), dry_run.Speed(1.0, 3.0, 0, 0, 0, 0)
    (alone, updates), (ledger, more) = (dry_run.follow(made, costs, speed.of(n)) for n in (1, 8))
    assert alone.spent == pytest.approx(3600, rel=0.02)
    assert ledger.spent == pytest.approx(3600, rel=0.02)
    assert more > 7 * updates


def test_a_budget_that_ends_before_the_last_round_is_refused(tmp_path: Path) -> None:
    flags = arguments(tmp_path, **(ROUNDS | {"method__online__updates": 50}))  # type: ignore[arg-type]
    result = CliRunner().invoke(main, flags)
    assert result.exit_code == 2
    assert "ends before the last of 4 rounds" in result.output


@pytest.mark.slow
def test_interrupted_inside_a_round_it_goes_on_to_the_same_numbers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, shards = Pool.shard, 0

    def shard(pool: Pool, *rest: Any) -> Any:
        nonlocal shards
        shards += not pool.shared
        if shards == 2:
            raise KeyboardInterrupt
        return original(pool, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "shard", shard)
        patch.setattr(runner, "CHECKPOINT_SECONDS", 1e9)
        assert CliRunner().invoke(main, arguments(tmp_path, **ROUNDS)).exit_code != 0  # type: ignore[arg-type]
    assert (folder(tmp_path) / "checkpoint.pt").exists()
    call(tmp_path)
    same_run(tmp_path, finished)


SHARDS = "ocr/pocket/*/rounds/*/shard-*.json"
MOMENTS = [(1, 0.0), (1, 0.2), (2, 0.1), (3, 0.0), (3, 0.3)]


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "delay"), MOMENTS)
def test_killed_inside_a_round_it_goes_on_to_the_same_numbers(
    finished: Path, tmp_path: Path, shards: int, delay: float
) -> None:
    command = [sys.executable, "-m", "gdro_bench.cli", *arguments(tmp_path, **ROUNDS)]  # type: ignore[arg-type]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while process.poll() is None and len(list(tmp_path.glob(SHARDS))) < shards:
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob("ocr/pocket/*/run.json"))
    call(tmp_path)
    same_run(tmp_path, finished)


@pytest.mark.slow
def test_a_whole_run_of_one_round_is_the_offline_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced through the rounds' own code."""
    plain = {"method__online__rounds": 1, "method__adaptive_beta__rule": "fixed"}
    shipped, forced = (tmp_path / name for name in ("shipped", "forced"))
    assert CliRunner().invoke(main, arguments(shipped)).exit_code == 0

    def through_rounds(config: gdro.Config, context: TrainContext) -> Training:
        return gdro.begin_rounds(config, ONCE, Controller(None, config.beta, config.tau, context.seed), context)

    with monkeypatch.context() as patch:
        patch.setattr(gdro, "METHOD", gdro.Method(gdro.Config, through_rounds, gdro.costs))
        assert CliRunner().invoke(main, arguments(forced, **plain)).exit_code == 0  # type: ignore[arg-type]
    same_run(forced, shipped)
