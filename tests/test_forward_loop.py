"""The loop of DiffusionNFT, AWM, DGPO and CRD: what it draws, asks, charges and saves, and that rewards rise."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from gdro_bench import content, sampling
from gdro_bench.budget import Ledger, MeteredPolicy, MeteredScorer
from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import plan
from gdro_bench.errors import BenchError
from gdro_bench.methods import Method, TrainContext, awm, gdro
from gdro_bench.methods.parts import forward_data, forward_process, groups
from gdro_bench.methods.parts.forward_process import ForwardTraining
from gdro_bench.methods.parts.offline import OfflineTraining
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.policy import Cond
from gdro_bench.pool import Pool
from gdro_bench.profile import LoraConfig, Sampler
from gdro_bench.registry import lookup
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

NAMES = ["nft", "awm", "dgpo", "crd"]
METHODS = pytest.mark.parametrize("name", NAMES)
PROMPTS = [Prompt(f'a red sign that reads "{word}" at the top of a blue wall', word) for word in ("CAT", "DOG", "SUN")]
SAMPLER = Sampler(4, 2.0, 1.0, 8)
ONLINE: dict[str, object] = {"prompts": 2, "k": 4, "draws": 2, "first": 0, "last": 3}
SMALL = {
    "online": ONLINE,
    "offline": {"k": 3, "groups": 2, "drop_flat": False},
    "pool": {"prompts": 3, "images": 4, "shard_prompts": 2},
}


class Brightness:
    """A reward that any model can learn at once: how bright the picture is."""

    name = "brightness"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(image.mean()) / 255, {}, "") for image in images]


def merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested tables, the second over the first."""
    return table | {k: merged(table[k], v) if isinstance(v, dict) else v for k, v in changes.items()}


def numbers(name: str, **changed: Any) -> Any:
    """A method's settings on pocket, made small, with changes of nested tables."""
    method: Method = lookup("method", name)
    table = plan.read_settings(content.find("profile", "pocket") / f"{name}.toml", None)
    return content.build(method.config_type, merged(merged(table, SMALL), changed), name)


@cache
def opened() -> PocketPolicy:
    return PocketPolicy.open("cpu", LoraConfig(4, 4.0, ("to_q", "to_v")), 0)


def made(tmp_path: Path, name: str, config: Any = None, prompts: list[Prompt] = PROMPTS) -> ForwardTraining:
    ledger = Ledger(0)
    policy = MeteredPolicy(copy.deepcopy(opened()), ledger)
    scorer = MeteredScorer(Brightness(), ledger)
    context = TrainContext(policy, scorer, prompts, SAMPLER, Pool(tmp_path, ledger), 0)
    training = lookup("method", name).start(config or numbers(name), context)
    assert isinstance(training, ForwardTraining)
    return training


def ledger_of(training: ForwardTraining) -> Ledger:
    policy = training.context.policy
    assert isinstance(policy, MeteredPolicy)
    return policy.ledger


def disturbed(training: ForwardTraining) -> None:
    """The policy moves, as if it had learned."""
    with torch.no_grad():
        for parameter in training.trainer.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.02)


# -- what is drawn


def online(**changed: Any) -> forward_data.OnlineConfig:
    config = numbers("nft", online={"k": 6, "draws": 3, "last": 7} | changed).online
    assert isinstance(config, forward_data.OnlineConfig)
    return config


def test_steps_are_drawn_without_repetition_of_the_grid_s_part() -> None:
    steps = forward_data.grid_steps(online(first=1, last=4, draws=4), 50, torch.Generator().manual_seed(0))
    assert steps.shape == (50, 4, 6)
    assert torch.equal(steps.sort(dim=1).values, torch.arange(1, 5).view(1, 4, 1).expand(50, 4, 6))
    assert len({tuple(row) for row in steps.transpose(1, 2).reshape(-1, 4).tolist()}) == 24


def test_strata_give_one_step_each_and_every_step_its_turn() -> None:
    config = online(first=1, last=11, draws=6, stratified=True)  # AWM's bins: the first has one step, the others two
    steps = forward_data.grid_steps(config, 200, torch.Generator().manual_seed(0))
    assert torch.equal(steps // 2, torch.arange(6).view(1, 6, 1).expand(200, 6, 6))
    assert steps.unique().tolist() == list(range(1, 12))


@pytest.mark.parametrize(("share", "distinct"), [("image", 3), ("group", 2), ("epoch", 1)])
def test_steps_are_shared_as_asked(share: str, distinct: int) -> None:
    steps = forward_data.grid_steps(online(share_t=share), 40, torch.Generator().manual_seed(0))
    of_groups = {tuple(group.flatten().tolist()) for group in steps}
    of_images = {tuple(image.tolist()) for image in steps[0].T}
    assert (len(of_groups) > 1) + (len(of_images) > 1) + 1 == distinct


@pytest.mark.parametrize("shared", [True, False])
def test_noise_is_shared_in_a_group_as_asked_and_new_for_each_draw(tmp_path: Path, shared: bool) -> None:
    training = made(tmp_path, "nft", numbers("nft", online={"share_noise": shared}))
    training.step()
    lesson = training.data.lesson(0)
    first = lesson.noise(0, 0)
    assert torch.equal(first[0], first[1]) == shared
    assert torch.equal(first, training.data.lesson(0).noise(0, 0))
    assert not torch.equal(first, lesson.noise(0, 1))


def test_policy_old_copy_and_reference_see_the_same_noise(tmp_path: Path) -> None:
    training = made(tmp_path, "nft", numbers("nft", kl_weight=0.1))
    training.step()
    lesson = training.data.lesson(0)
    seen = training._see(lesson, lesson.pairs(), frozenset())
    assert seen.old is not None
    assert seen.reference is not None
    for other in (seen.old, seen.reference):  # all are the same model still
        torch.testing.assert_close(other, seen.theta, rtol=0, atol=1e-5)


@METHODS
def test_offline_draws_are_gdro_s(tmp_path: Path, name: str) -> None:
    """The same images, t and eps, whatever the weights."""
    training = made(tmp_path, name, numbers(name, mode="offline"))
    table = plan.read_settings(content.find("profile", "pocket") / "gdro.toml", None)
    table = merged(table, {**SMALL["offline"], "pool": SMALL["pool"]})
    of_gdro: OfflineTraining = gdro.start(content.build(gdro.Config, table, "gdro"), training.context)
    for _ in range(2):
        training.step()
        of_gdro.step()
    for update in (0, 5):
        lesson = training.data.lesson(update)
        seed = content.seed(of_gdro.stream, training.context.seed, update)
        drawn = of_gdro.objective.draw(torch.Generator().manual_seed(seed))
        assert torch.equal(lesson.x0, drawn.x0)
        assert torch.equal(lesson.t, drawn.t)
        assert lesson.prompts == drawn.prompts
        assert all(torch.equal(lesson.noise(g, d), drawn.eps[g, d]) for g, d in lesson.pairs())
        assert torch.equal(lesson.advantage, groups.advantages(drawn.r, "global", 5.0))


@METHODS
def test_shipped_offline_numbers_are_gdro_s(name: str) -> None:
    for profile in content.names("profile"):
        own, theirs = (content.read(content.find("profile", profile) / f"{one}.toml") for one in (name, "gdro"))
        assert own["offline"] == {key: theirs[key] for key in own["offline"]}
        assert own["pool"] == theirs["pool"]


# -- what is asked and charged


@METHODS
def test_what_is_foretold_is_spent(tmp_path: Path, name: str) -> None:
    """Once the copies lag, and, offline, once the pool is full."""
    method: Method = lookup("method", name)
    lagging = {"old": {"delay": 0, "start": 0.5, "slope": 0.0, "ceiling": 0.5}, "kl_weight": 0.1}
    for mode in ("online", "offline"):
        config = numbers(name, mode=mode, **lagging)
        assert method.costs is not None
        foretold = method.costs(config, SAMPLER)
        training = made(tmp_path / mode, name, config)
        disturbed(training)
        ledger, kinds = ledger_of(training), []
        while "optimise" not in kinds:
            before = ledger.accounts()
            kinds.append(training.step().kind)
        collected = before["collection"]
        expected = foretold.collected if mode == "online" else foretold.pool
        for field in ("evaluations", "images", "reward_calls"):
            assert getattr(collected, field) == getattr(expected, field)
        asked = ledger.optimisation
        assert (asked.evaluations, asked.images) == (foretold.update.evaluations, foretold.update.images)


def first_update(tmp_path: Path, name: str, **changed: Any) -> dict[str, int]:
    training = made(tmp_path, name, numbers(name, **changed))
    while training.step().kind != "optimise":
        pass
    return ledger_of(training).evaluations_by_use()


@METHODS
def test_a_copy_that_is_the_policy_is_not_asked(tmp_path: Path, name: str) -> None:
    spent = first_update(tmp_path, name)
    assert spent["policy"] > 0
    assert spent["lagged"] == 0
    assert spent["reference"] == (spent["policy"] if name == "dgpo" else 0)


@METHODS
def test_offline_one_forward_of_the_reference_serves_all(tmp_path: Path, name: str) -> None:
    spent = first_update(tmp_path, name, mode="offline", kl_weight=0.1)
    assert (spent["lagged"], spent["reference"]) == (0, spent["policy"])


def test_a_guided_teacher_costs_one_more(tmp_path: Path) -> None:
    spent = first_update(tmp_path, "crd", kl_weight=0.1, teacher_guidance=4.5)
    assert spent["reference"] == 2 * spent["policy"]


def test_guidance_is_not_taught_where_the_sampler_guides(tmp_path: Path) -> None:
    config = numbers("crd", kl_weight=0.1, teacher_guidance=4.5)
    with pytest.raises(BenchError, match=r"profile.sampler.guidance=1"):
        forward_process.check_teacher(config, replace(SAMPLER, guidance=4.5))
    forward_process.check_teacher(replace(config, teacher_guidance=1.0), replace(SAMPLER, guidance=4.5))
    forward_process.check_teacher(config, SAMPLER)


def test_rollouts_are_guided_and_the_trained_velocity_is_not(tmp_path: Path) -> None:
    spent = first_update(tmp_path, "awm", online={"guidance": 4.5})
    images = 2 * 4
    assert spent["rollout"] == images * SAMPLER.steps * 2
    assert spent["policy"] == images * 2


def test_the_guided_teacher_is_the_formula(tmp_path: Path) -> None:
    training = made(tmp_path, "crd", numbers("crd", kl_weight=0.1, teacher_guidance=3.0))
    training.step()
    lesson, policy = training.data.lesson(0), training.context.policy
    seen = training._see(lesson, lesson.pairs()[:1], frozenset())
    x_t = (1 - seen.t.view(1, -1, 1, 1)) * lesson.x0[:1] + seen.t.view(1, -1, 1, 1) * lesson.noise(0, 0)
    both = [
        policy.reference_velocity(x_t.flatten(0, 1), seen.t.flatten(), policy.encode([prompt] * 4))
        for prompt in (Prompt("", ""), lesson.prompts[0])
    ]
    assert seen.teacher is not None
    torch.testing.assert_close(seen.teacher[0], both[0] + 3.0 * (both[1] - both[0]))


@pytest.mark.parametrize("updates", [1, 2])
def test_awm_s_first_update_of_an_epoch_has_ratio_one_to_the_last_bit(tmp_path: Path, updates: int) -> None:
    training = made(tmp_path, "awm", numbers("awm", online={"updates_per_epoch": updates}))
    disturbed(training)
    for lagged in training.copies.values():
        lagged.load(training.trainer.parameters)
    training.step()
    lesson = training.data.lesson(0)
    current = frozenset(name for name, lagged in training.copies.items() if lagged.is_current())
    seen = training._see(lesson, lesson.pairs(), current)
    before = seen.theta if seen.sampler is None else seen.sampler
    ratio = awm.awm_ratio(seen.theta, before, seen.target, seen.t, "ghuber", 0.25)
    assert torch.equal(ratio, torch.ones_like(ratio))


def test_without_adapters_the_reference_is_the_bare_model_to_the_last_bit(tmp_path: Path) -> None:
    training = made(tmp_path, "nft", numbers("nft", kl_weight=0.1))
    disturbed(training)
    training.step()
    lesson = training.data.lesson(0)
    seen = training._see(lesson, lesson.pairs()[:1], frozenset())
    bare = PocketPolicy.open("cpu", None, 0)
    t = seen.t.view(1, -1, 1, 1)
    x_t = (1 - t) * lesson.x0[:1] + t * lesson.noise(0, 0)
    with torch.no_grad():
        v = bare.velocity(x_t.flatten(0, 1), seen.t.flatten(), bare.encode([lesson.prompts[0]] * 4))
    assert seen.reference is not None
    assert torch.equal(seen.reference[0], v)
    assert not torch.equal(seen.theta[0], v)


# -- older copies


def test_copies_follow_after_an_epoch_or_every_update(tmp_path: Path) -> None:
    moved = {}
    for when in ("epoch", "update"):
        training = made(tmp_path, "nft", numbers("nft", online={"move_copies": when, "updates_per_epoch": 2}))
        start = [p.detach().clone() for p in training.trainer.parameters]
        for _ in range(2):
            training.step()
        moved[when] = not all(torch.equal(a, b) for a, b in zip(training.copies["old"].averages, start, strict=True))
        training.step()
        assert training.copies["old"].is_current()  # decay 0 in these updates
    assert moved == {"epoch": False, "update": True}


@pytest.mark.parametrize(("name", "actor"), [("nft", "old"), ("crd", "sampler"), ("awm", None), ("dgpo", "old")])
def test_rollouts_are_made_by_whom_the_method_says(tmp_path: Path, name: str, actor: str | None) -> None:
    config = replace(numbers(name), old_samples_after=0) if name == "dgpo" else numbers(name)
    training = made(tmp_path, name, config)
    untouched = [p.detach().clone() for p in training.trainer.parameters]
    disturbed(training)
    changed = [p.detach().clone() for p in training.trainer.parameters]
    with training._acting():
        acting = [p.detach().clone() for p in training.trainer.parameters]
    expected = changed if actor is None else untouched
    assert all(torch.equal(a, b) for a, b in zip(acting, expected, strict=True))


def test_dgpo_s_old_policy_samples_after_so_many_updates(tmp_path: Path) -> None:
    acts = made(tmp_path, "dgpo").rule.acts
    assert [acts(n) for n in (0, 199, 200)] == [None, None, "old"]


def parts(training: ForwardTraining) -> list[Tensor]:
    """All parameters and those of the copies."""
    return [*training.trainer.parameters, *(a for lagged in training.copies.values() for a in lagged.averages)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "crd")) for name in NAMES])
def test_a_saved_state_goes_on_to_the_same_parameters(tmp_path: Path, name: str) -> None:
    """Saved after a collection, between an epoch's two updates, and between epochs."""
    lagging = {"delay": 0, "start": 0.4, "slope": 0.1, "ceiling": 0.9}
    config = numbers(name, old=lagging, online={"updates_per_epoch": 2, "move_copies": "epoch"})
    config = replace(config, sampler=config.old) if name == "crd" else config
    whole = made(tmp_path, name, config)
    for done in range(1, 6):
        whole.step()
        torch.save(whole.state_dict(), tmp_path / f"{done}.pt")
    assert not any(lagged.is_current() for lagged in whole.copies.values())
    for killed_after in (1, 2, 3):
        resumed = made(tmp_path, name, config)
        resumed.load_state_dict(torch.load(tmp_path / f"{killed_after}.pt", weights_only=True))
        for _ in range(5 - killed_after):
            resumed.step()
        assert all(torch.equal(a, b) for a, b in zip(parts(whole), parts(resumed), strict=True))


# -- rewards that are missing or equal


class Some(Brightness):
    """Scores all of a group alike, and one image not at all."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(value, {}, "") for value in self.values]


@METHODS
def test_an_unscored_image_has_no_say_and_is_counted(tmp_path: Path, name: str) -> None:
    training = made(tmp_path, name)
    scorer = Some([0.1, math.nan, 0.4, 0.2, 0.5, 0.5, 0.5, 0.5])
    training.data.context = replace(training.context, scorer=scorer)
    step = training.step()
    assert (step.metrics["unscored"], step.metrics["flat_groups"], step.metrics["dropped"]) == (1, 1, 0)
    advantage = training.data.lesson(0).advantage
    assert [row.count_nonzero().item() for row in advantage.unbind()] in ([3, 0], [3])
    assert math.isfinite(training.step().metrics["loss"])


def test_flat_groups_can_be_left_out(tmp_path: Path) -> None:
    training = made(tmp_path, "dgpo", numbers("dgpo", online={"drop_flat": True}))
    training.data.context = replace(training.context, scorer=Some([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5]))
    assert training.step().metrics["dropped"] == 4
    assert len(training.data.lesson(0).prompts) == 1
    training.step()
    training.data.context = replace(training.context, scorer=Some([0.5] * 8))
    assert training.step().metrics["flat_groups"] == 2
    assert training.step().kind == "collect"


# -- mistakes


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("nft", {"online": {"k": 1}}, "at least 2 images"),
        ("nft", {"online": {"prompts": 4}}, "Lower method.online.prompts"),
        ("nft", {"online": {"updates_per_epoch": 3}}, "Lower method.online.updates_per_epoch"),
        ("crd", {"online": {"last": 4}}, "between 0 and 3"),
        ("crd", {"online": {"first": 3, "last": 2}}, "do not lie in a grid"),
        ("dgpo", {"online": {"draws": 5}}, "5 draws of 4 steps"),
        ("awm", {"online": {"updates_per_epoch": 2, "move_copies": "update"}}, 'move_copies="epoch"'),
        ("awm", {"mode": "offline", "offline": {"k": 5}}, "between 2 and pool.images"),
        ("awm", {"mode": "offline", "offline": {"k": 1}}, "between 2 and pool.images"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(
    tmp_path: Path, name: str, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(BenchError) as refused:
        made(tmp_path, name, numbers(name, **changed))
    assert said in f"{refused.value} {refused.value.remedy}"


# -- a mixture of Gaussians in the plane, whose velocity is known

MODES_AT = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
REWARDS = (1.0, 0.5, 0.0)  # of each mode
SPREAD = 0.3


def mixture_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[eps - x0 | x_t] for x0 of the mixture, x [B, 2], t [B]."""
    t_ = t.view(-1, 1, 1)
    variance = (1 - t_).square() * SPREAD**2 + t_.square()
    off = x[:, None] - (1 - t_) * MODES_AT  # [B, 3, 2]
    share = (-off.square().sum(2) / (2 * variance[..., 0])).softmax(1)
    each = (t_ - (1 - t_) * SPREAD**2) / variance * off - MODES_AT
    return (share[..., None] * each).sum(1)


class Plane:
    """A policy of the plane: the mixture's velocity, and a small network on top that starts at 0."""

    name, latent_shape = "plane", (2,)

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = torch.nn.Sequential(
                torch.nn.Linear(3, 48),
                torch.nn.SiLU(),
                torch.nn.Linear(48, 48),
                torch.nn.SiLU(),
                torch.nn.Linear(48, 2),
            )
        for parameter in self.network[-1].parameters():
            torch.nn.init.zeros_(parameter)

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        return Cond((torch.zeros(len(prompts), 1),))

    def encode_ahead(self, prompts: Sequence[Prompt], processes: ProcessGroup) -> None: ...

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        learned: Tensor = self.network(torch.cat((x, t.view(-1, 1)), dim=1))
        return mixture_velocity(x, t) + learned

    @torch.no_grad()
    def reference_velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return mixture_velocity(x, t)

    @torch.no_grad()
    def lagged_velocity(self, adapters: Sequence[Tensor], x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        kept = [p.data for p in self.parameters()]
        for parameter, value in zip(self.parameters(), adapters, strict=True):
            parameter.data = value
        v = self.velocity(x, t, cond)
        for parameter, value in zip(self.parameters(), kept, strict=True):
            parameter.data = value
        return v

    def merged(self) -> AbstractContextManager[None]:
        return nullcontext()

    def timesteps(self, steps: int, shift: float) -> Tensor:
        return sampling.timesteps(steps, shift)

    def decode(self, x: Tensor) -> Any:
        return x.numpy()

    def parameters(self) -> Iterator[Parameter]:
        return self.network.parameters()

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class NearestMode:
    name = "nearest mode"

    def __call__(self, images: Any, prompts: Sequence[Prompt]) -> list[Score]:
        nearest = torch.cdist(torch.from_numpy(images), MODES_AT).argmin(1)
        return [Score(REWARDS[int(mode)], {}, "") for mode in nearest]


PLANE_SAMPLER = Sampler(12, 1.0, 1.0, 512)
FEW = [Prompt(str(i), str(i)) for i in range(8)]
RATE = {"learning_rate": 3e-3, "warmup_steps": 0}
# Errors are much larger in the plane than in a picture, where they average over many elements: DGPO's beta and clip
# range are on their scale, and at those for pictures a group would count as separated at once.
SCALE: dict[str, dict[str, object]] = {"dgpo": {"beta": 1.0, "clip_range": 0.0, "kl_weight": 0.1}}
# Offline the anchor stands still, so its weight says how far a policy may go: these let it go far enough to be seen.
FREE: dict[str, dict[str, object]] = SCALE | {"awm": {"old_weight": 0.02}, "crd": {"beta": 0.1}}


def in_plane(tmp_path: Path, name: str, table: dict[str, Any]) -> Any:
    context = TrainContext(Plane(), NearestMode(), FEW, PLANE_SAMPLER, Pool(tmp_path, Ledger(0)), 0)
    method: Method = lookup("method", name)
    read = plan.read_settings(content.find("profile", "pocket") / f"{name}.toml", None)
    return method.start(content.build(method.config_type, merged(read, table), name), context)


def mean_reward(policy: Plane) -> float:
    noise = torch.randn((2000, 2), generator=torch.Generator().manual_seed(5))
    x0 = sampling.sample(policy, noise, [FEW[0]] * 2000, replace(PLANE_SAMPLER, batch=2000), reference=False)
    return sum(score.value for score in NearestMode()(x0.numpy(), [])) / 2000


@METHODS
def test_in_the_plane_the_reward_rises_online(tmp_path: Path, name: str) -> None:
    grid = {"prompts": 8, "k": 16, "draws": 3, "first": 1, "last": 9, "updates_per_epoch": 1}
    training = in_plane(tmp_path, name, {"online": grid, "optimiser": RATE} | SCALE.get(name, {}))
    before = mean_reward(training.context.policy)
    assert before == pytest.approx(0.5, abs=0.05)
    for _ in range(60):
        training.step()
    assert mean_reward(training.context.policy) > before + 0.15


OFFLINE_PLANE = {"k": 6, "groups": 32, "draws": 2, "drop_flat": True}
POOL_PLANE = {"prompts": 8, "images": 32, "shard_prompts": 8}


@METHODS
def test_in_the_plane_the_reward_rises_offline(tmp_path: Path, name: str) -> None:
    table = {"mode": "offline", "offline": OFFLINE_PLANE, "pool": POOL_PLANE, "optimiser": RATE}
    table |= FREE.get(name, {})
    training = in_plane(tmp_path, name, table)
    before = mean_reward(training.context.policy)
    for _ in range(80):
        training.step()
    assert mean_reward(training.context.policy) > before + 0.1


@pytest.mark.parametrize("name", ["gdro", "dgpo"])
def test_in_the_plane_gdro_and_dgpo_order_likelihoods_by_reward(tmp_path: Path, name: str) -> None:
    """e_theta - e_ref falls from the worst mode to the best. (For DGPO all of them may rise.)"""
    settings_of = {
        "gdro": OFFLINE_PLANE | {"pool": POOL_PLANE, "optimiser": RATE, "tau": 0.1, "gamma": 0.0, "beta": 5.0},
        "dgpo": {"mode": "offline", "offline": OFFLINE_PLANE, "pool": POOL_PLANE, "optimiser": RATE} | SCALE["dgpo"],
    }
    training = in_plane(tmp_path, name, settings_of[name])
    for _ in range(200):
        training.step()
    policy, draws = training.context.policy, 400
    generator = torch.Generator().manual_seed(3)
    rise = []
    for mode in MODES_AT:
        x0 = mode + SPREAD * torch.randn((draws, 2), generator=generator)
        t, eps = torch.rand(draws, generator=generator), torch.randn((draws, 2), generator=generator)
        x_t, cond = (1 - t[:, None]) * x0 + t[:, None] * eps, policy.encode([FEW[0]] * draws)
        errors = [(v(x_t, t, cond) - (eps - x0)).square().mean() for v in (policy.velocity, policy.reference_velocity)]
        rise.append((errors[0] - errors[1]).item())
    assert rise[0] < rise[1] < rise[2]
    assert rise[2] > 0
