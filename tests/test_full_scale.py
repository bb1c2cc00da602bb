"""The profiles of FLUX.1-dev and SD3.5 end to end, on tiny pipelines of the real classes with random weights."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import test_distributed
import torch
from click.testing import CliRunner, Result
from diffusers import FluxTransformer2DModel
from peft.tuners.lora import LoraLayer
from tiny_pipelines import SIDE, save_flux, save_sd3
from torch.nn import Linear

from gdro_bench import registry, sampling
from gdro_bench.budget import Ledger
from gdro_bench.cli import main
from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import plan, record, samples
from gdro_bench.instruments import Instruments
from gdro_bench.methods import TrainContext, flow_grpo
from gdro_bench.models import open_policy
from gdro_bench.models.lora import ADAPTER, add_lora, lora_parameters
from gdro_bench.models.pretrained import PretrainedPolicy
from gdro_bench.pool import Pool
from gdro_bench.registry import TABLES
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

pytestmark = pytest.mark.usefixtures("sketched")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
PROFILES = ["flux1-dev", "sd35-medium"]
STEPS = 3
TRAIN = "train.txt"  # few, since methods that sample for themselves have all encoded ahead
WORDS = ("OWL", "FOX", "CAT", "DOG", "BEE", "ANT", "COW", "ELK")
SHORT: dict[str, object] = {
    "profile.pretrained.side": SIDE,
    "profile.pretrained.dtype": "float32",
    "profile.pretrained.text_tokens": 12,
    "profile.sampler.steps": STEPS,
    "profile.sampler.batch": 3,
    "profile.held_out_prompts": 4,
    "profile.kept_images": 2,
    "profile.drift.prompts": 1,
    "profile.drift.images": 2,
    "profile.lora.rank": 4,
    "profile.reader.engine": "rapidocr",
    "profile.reader.limit_side": 64,
    "profile.reader.workers": 0,
    "profile.judge.name": "none",
    "profile.budget.limit": 400,
    "profile.budget.marks": "[1.0]",
    "method.optimiser.learning_rate": 0.01,
}
POOL = {"method.pool.prompts": 4, "method.pool.images": 4, "method.pool.shard_prompts": 2, "method.optimiser.batch": 4}
METHOD_SHORT: dict[str, dict[str, object]] = {
    "gdro": POOL | {"method.k": 3, "method.groups": 2},
    "flow-grpo": {"method.prompts": 2, "method.k": 4, "method.rollout_steps": 2},
}


BRIGHT = """
from gdro_bench.cli import main
from gdro_bench.registry import TABLES
TABLES["reward"]["ocr"] = "test_full_scale:open_brightness"
main()
"""


class Brightness:
    """A reward that random weights can move: OCR reads nothing in their pictures."""

    name = "brightness"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(image.mean() / 255), {}, "seen") for image in images]


def open_brightness(instruments: Instruments) -> Brightness:
    return Brightness()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    (folder / TRAIN).write_text("".join(f'a photograph of a sign that reads "{word}"\n' for word in WORDS))
    return {"flux1-dev": save_flux(folder / "tiny-flux"), "sd35-medium": save_sd3(folder / "tiny-sd3")}


def arguments(profile: str, source: Path, out: Path, method: str, **changed: object) -> list[str]:
    settings = SHORT | METHOD_SHORT[method] | {name.replace("__", "."): value for name, value in changed.items()}
    settings |= {"profile.pretrained.source": source, "profile.pretrained.text_cache": out / "texts"}
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    chosen = ["--profile", profile, "--method", method, "--out", str(out), "--device", "cpu"]
    chosen += ["--train-prompts", str(source.parent / TRAIN)] if source.exists() else []
    return ["run", "ocr", *chosen, *flags]


def call(profile: str, source: Path, out: Path, method: str, *more: str, **changed: object) -> Result:
    return CliRunner().invoke(main, [*arguments(profile, source, out, method, **changed), *more])


def painted_by_diffusers(profile: str, source: Path, lora: Path, text: str) -> np.ndarray:
    """The picture of a held-out prompt, by the plain pipeline with the run's adapters."""
    from diffusers import FluxPipeline, StableDiffusion3Pipeline

    pipeline = (FluxPipeline if profile == "flux1-dev" else StableDiffusion3Pipeline).from_pretrained(source)
    pipeline.load_lora_weights(lora)
    shape = (64, 16) if profile == "flux1-dev" else (4, SIDE // 2, SIDE // 2)
    settings = plan.read_profile(profile)
    guidance = settings.pretrained.distilled_guidance if profile == "flux1-dev" else settings.sampler.guidance
    made = pipeline(
        [text], num_inference_steps=STEPS, guidance_scale=guidance, height=SIDE, width=SIDE, output_type="np",
        latents=sampling.noise_for([("ocr", "held out", text)], shape), max_sequence_length=12,
    )  # fmt: skip
    return np.asarray(made.images)[0]


@pytest.mark.parametrize("method", list(METHOD_SHORT))
@pytest.mark.parametrize("profile", PROFILES)
def test_a_run_trains_and_plain_diffusers_paints_what_it_paints(
    profile: str, method: str, saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES["reward"], "ocr", "test_full_scale:open_brightness")
    result = call(profile, saved[profile], tmp_path, method)
    assert result.exit_code == 0, result.output
    folder = next((tmp_path / "ocr" / profile).iterdir())
    base, last = record.read(folder).points
    assert last.updates > 2
    assert last.reward.mean != base.reward.mean
    moved = pd.read_parquet(folder / "steps.parquet")["gradient_norm"].dropna().gt(0)
    assert moved.mean() > 0.8  # an update whose ratios are all clipped moves nothing
    text = record.read_scores(folder)["text"].iloc[0]
    theirs = painted_by_diffusers(profile, saved[profile], folder / "lora", text)
    ours = samples.read(samples.path_of(folder, 1.0), [0])[0] / 255
    assert np.abs(ours - theirs).max() < 0.5 / 255 + 1e-4
    assert np.abs(ours - samples.read(samples.path_of(folder, 0.0), [0])[0] / 255).max() > 2 / 255


# -- on a device: the same tests on the CPU, and on a GPU where one is (`pytest -m cuda`)


PROMPTS_OF_TWO = [Prompt('a sign that reads "OWL"', "OWL"), Prompt('a wall that reads "FOX"', "FOX")]


def opened(profile: str, source: Path, folder: Path, device: str, **pretrained: object) -> PretrainedPolicy:
    chosen = {"dtype": "float32", "gradient_checkpointing": "true"} | pretrained
    settings = (f"profile.{name}" for name in (
        f"pretrained.source={source}", f"pretrained.side={SIDE}", "lora.rank=4", "pretrained.text_tokens=12",
        f"pretrained.text_cache={folder}", *(f"pretrained.{name}={value}" for name, value in chosen.items()),
    ))  # fmt: skip
    policy: Any = open_policy(plan.read_profile(profile, tuple(settings)), device, 0)
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)).to(device)
    return policy


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("profile", PROFILES)
def test_on_a_device_velocities_gradients_and_pictures_are_the_cpus(
    profile: str, device: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    prompts, seen = PROMPTS_OF_TWO, []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as exact as the CPU's convolutions
        for place in ("cpu", device):
            policy = opened(profile, saved[profile], tmp_path / place, place)
            policy.encode_ahead([*prompts, Prompt("", "")], ProcessGroup())
            noise = sampling.noise_for([("device", i) for i in range(2)], policy.latent_shape)
            v = policy.velocity(noise, torch.tensor([0.4, 0.9]), policy.encode(prompts))
            v.square().mean().backward()
            gradients = [p.grad.cpu() for p in policy.parameters() if p.grad is not None]
            once = replace(plan.read_profile(profile).sampler, steps=STEPS, batch=2)
            with torch.no_grad():
                pictures = policy.decode(sampling.sample(policy, noise, prompts, once, reference=False))
            assert v.device.type == place
            seen.append((v.detach().cpu(), gradients, pictures.astype(int)))
    (v, gradients, pictures), (other, others, shown) = seen
    torch.testing.assert_close(other, v, rtol=1e-3, atol=1e-4)
    for one, two in zip(gradients, others, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-2, atol=1e-5)
    assert abs(shown - pictures).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["gdro", "flow-grpo"])
@pytest.mark.parametrize("profile", PROFILES)
def test_on_a_device_a_run_in_bfloat16_ends(
    profile: str, method: str, device: str, saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES["reward"], "ocr", "test_full_scale:open_brightness")
    bfloat16 = {"profile__pretrained__dtype": "bfloat16"}
    result = call(profile, saved[profile], tmp_path, method, "--device", device, **bfloat16)
    assert result.exit_code == 0, result.output
    folder = next((tmp_path / "ocr" / profile).iterdir())
    assert record.read(folder).points[-1].updates > 2
    steps = pd.read_parquet(folder / "steps.parquet")
    norms = steps["gradient_norm"].dropna()
    assert norms.iloc[0] > 0
    assert np.isfinite(norms).all()
    if method == "flow-grpo":
        assert steps[steps["kind"] == "optimise"]["clipped"].iloc[0] == 0


class Alternates:
    name = "alternates"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(i % 2)) for i in range(len(images))]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [True, False])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("profile", PROFILES)
def test_on_a_device_log_probabilities_kept_while_sampling_are_those_of_training(
    profile: str, device: str, checkpointed: bool, saved: dict[str, Path], tmp_path: Path
) -> None:
    """In batches of one size, in bfloat16, with the weights not moved: an epoch's later updates compare with them."""
    settings = {"dtype": "bfloat16", "gradient_checkpointing": str(checkpointed).lower()}
    policy = opened(profile, saved[profile], tmp_path, device, **settings)
    policy.encode_ahead([*PROMPTS_OF_TWO, Prompt("", "")], ProcessGroup())
    numbers = ("method.prompts=2", "method.k=4", "method.drop_zero=false")
    config = plan.make_plan("ocr", "flow-grpo", profile, 0, tmp_path, numbers).config
    sampler = replace(plan.read_profile(profile).sampler, steps=STEPS, batch=2)
    pool = Pool(tmp_path, Ledger(1))
    training = flow_grpo.start(config, TrainContext(policy, Alternates(), PROMPTS_OF_TWO, sampler, pool, 0))
    training.step()
    assert training.rounding() == {"kept_clipped": 0, "kept_kl": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "method", "groups"),
    [("flux1-dev", "gdro", 2), ("flux1-dev", "gdro", 3), ("sd35-medium", "flow-grpo", 0)],
)
def test_a_model_spread_over_processes_is_the_same_model(
    profile: str, method: str, groups: int, saved: dict[str, Path], tmp_path: Path
) -> None:
    for size, folder in ((1, "whole"), (2, "sharded")):
        changed: dict[str, object] = {"profile__pretrained__sharded": "true", "method__optimiser__learning_rate": 1e-4}
        changed |= {"method__groups": groups} if groups else {}
        chosen = arguments(profile, saved[profile], tmp_path / folder, method, **changed)
        processes = test_distributed.start(size, [sys.executable, "-c", BRIGHT, *chosen])
        ended = test_distributed.finish(processes)
        assert [code for code, *_ in ended] == [0] * size, "\n".join(said + errors for _, said, errors in ended)
    runs = [next((tmp_path / folder / "ocr" / profile).iterdir()) for folder in ("whole", "sharded")]
    test_distributed.assert_alike(*runs, reward=1e-4, steps=0.05)
    assert record.read(runs[0]).points[-1].updates > 2


SHARDED = """
import sys, torch
from torch.distributed.tensor import DTensor
from gdro_bench.distributed import process_group
from gdro_bench.engine.plan import read_profile
from gdro_bench.models import open_policy
from gdro_bench.models.pretrained import blocks
from gdro_bench.task import Prompt
with process_group("cpu") as processes:
    policy = open_policy(read_profile("flux1-dev", sys.argv[1:]), "cpu", 0)
    x, t = torch.zeros(1, *policy.latent_shape), torch.ones(1)
    with torch.no_grad():
        policy.velocity(x, t, policy.encode([Prompt("a sign", "")]))
    frozen = [p for name, p in policy.transformer.named_parameters() if "lora_" not in name]
    print(len(blocks(policy.transformer)), all(isinstance(p, DTensor) for p in frozen))
"""


@pytest.mark.slow
def test_a_sharded_model_frees_its_weights_after_a_forward(saved: dict[str, Path], tmp_path: Path) -> None:
    names = ("side", "dtype", "text_tokens")
    settings = [f"profile.pretrained.{name}={SHORT[f'profile.pretrained.{name}']}" for name in names]
    settings += [f"profile.pretrained.source={saved['flux1-dev']}", f"profile.pretrained.text_cache={tmp_path}"]
    settings += ["profile.pretrained.sharded=true", "profile.lora.rank=4"]
    processes = test_distributed.start(2, [sys.executable, "-c", SHARDED, *settings])
    for code, output, errors in test_distributed.finish(processes):
        assert code == 0, errors
        assert output.split() == ["2", "True"]


@pytest.mark.slow
def test_a_run_with_the_real_reader_ends(saved: dict[str, Path], tmp_path: Path) -> None:
    result = call("flux1-dev", saved["flux1-dev"], tmp_path, "gdro", method__drop_flat="false")
    assert result.exit_code == 0, result.output
    assert "rapidocr" in result.output


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("task", ["ocr", "geneval"])
def test_every_method_has_numbers_and_prompts_that_fit(profile: str, task: str) -> None:
    for method in TABLES["method"]:
        chosen = plan.make_plan(task, method, profile, 0, Path("runs"))
        assert len(chosen.held_out) == 553 * (4 if task == "geneval" else 1)
        assert len(chosen.train) >= 2000
        costs = registry.lookup("method", method).costs(chosen.config, chosen.profile.sampler)
        share = costs.pool.evaluations / chosen.profile.budget.limit
        assert 0 <= share <= 0.6
        assert (share == 0) == (costs.collected.images > 0)
        assert sum(mark <= share for mark in chosen.profile.budget.marks) <= 1  # others would see the base again


def test_the_paper_s_updates_fit_the_budget() -> None:
    for task, updates in (("ocr", 300), ("geneval", 700)):
        chosen = plan.make_plan(task, "gdro", "flux1-dev", 0, Path("runs"))
        costs = registry.lookup("method", "gdro").costs(chosen.config, chosen.profile.sampler)
        assert costs.pool.evaluations + updates * costs.update.evaluations <= chosen.profile.budget.limit


def test_sd3_adapters_leave_the_second_attention_alone() -> None:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    add_lora(transformer, plan.read_profile("sd35-medium").lora, seed=0)
    adapted = {name.split(".lora_")[0] for name, _ in transformer.named_parameters() if "lora_" in name}
    assert any("attn2" in name for name, _ in transformer.named_modules())
    assert not any("attn2" in name for name in adapted)
    assert {"transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0"} <= adapted
    assert len(adapted) == 8 + 7  # the last block has no to_add_out


def adapted(dtype: torch.dtype) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    ).to(dtype)  # fmt: skip
    add_lora(transformer, plan.read_profile("flux1-dev").lora, seed=0)
    for parameter in lora_parameters(transformer):
        torch.nn.init.normal_(parameter, std=0.1)
    return transformer


def velocity(transformer: FluxTransformer2DModel, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x, texts, pooled = (torch.randn(2, *n, generator=generator).to(dtype) for n in ((4, 16), (3, 32), (16,)))
    v: torch.Tensor = transformer(
        hidden_states=x, timestep=torch.tensor([0.5, 0.9], dtype=dtype), guidance=torch.full((2,), 3.5),
        encoder_hidden_states=texts, pooled_projections=pooled, txt_ids=torch.zeros(3, 3), img_ids=torch.zeros(4, 3),
        return_dict=False,
    )[0]  # fmt: skip
    return v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_multiply_in_the_models_dtype_and_learn_in_float32(dtype: torch.dtype) -> None:
    """In float32 they are peft's own, bit for bit; in bfloat16 they differ from it by rounding alone."""
    transformer = adapted(dtype)
    ours = velocity(transformer, dtype)
    ours.float().square().sum().backward()
    gradients = [p.grad for p in lora_parameters(transformer)]
    assert all(p.dtype == torch.float32 for p in lora_parameters(transformer))
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    seen: list[torch.dtype] = []
    for layer in (module for module in transformer.modules() if isinstance(module, LoraLayer)):
        layer.lora_A[ADAPTER].register_forward_hook(lambda *call: seen.append(call[2].dtype))
    assert torch.equal(velocity(transformer, dtype), ours)
    assert set(seen) == {dtype}
    for layer in (module for module in transformer.modules() if isinstance(module, LoraLayer)):
        layer.cast_input_dtype_enabled = True
        for factors in (layer.lora_A, layer.lora_B):
            factors[ADAPTER].__class__ = Linear
    theirs = velocity(transformer, dtype)
    assert torch.equal(ours, theirs) if dtype == torch.float32 else torch.allclose(ours, theirs, rtol=0.05, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "batch", "compiled"),
    [(1, 3, False), pytest.param(1, 8, False, marks=pytest.mark.slow), pytest.param(1, 3, True, marks=pytest.mark.slow),
     pytest.param(2, 3, False, marks=pytest.mark.slow)],
)  # fmt: skip
@pytest.mark.parametrize("profile", PROFILES)
def test_the_first_update_of_an_epoch_is_on_policy_in_bfloat16(
    profile: str,
    size: int,
    batch: int,
    compiled: bool,
    saved: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the log-probabilities kept while sampling, 25 % (compiled: 75 %) of SD3's ratios were clipped."""
    changed: dict[str, object] = {"profile__pretrained__dtype": "bfloat16", "profile__sampler__batch": batch}
    changed |= {"profile__pretrained__compiled": str(compiled).lower()}
    if size > 1 or compiled:
        chosen = arguments(profile, saved[profile], tmp_path, "flow-grpo", **changed)
        ended = test_distributed.finish(test_distributed.start(size, [sys.executable, "-c", BRIGHT, *chosen]))
        assert [code for code, *_ in ended] == [0] * size, "\n".join(said + errors for _, said, errors in ended)
        assert not any("recompile_limit" in errors for *_, errors in ended)
    else:  # here, since a process of its own takes three times as long to start as the run itself
        monkeypatch.setitem(TABLES["reward"], "ocr", "test_full_scale:open_brightness")
        assert call(profile, saved[profile], tmp_path, "flow-grpo", **changed).exit_code == 0
    steps = pd.read_parquet(next((tmp_path / "ocr" / profile).iterdir()) / "steps.parquet")
    updates = steps[steps["kind"] == "optimise"]
    assert updates["clipped"].iloc[0] == updates["approx_kl"].iloc[0] == 0
    assert updates["gradient_norm"].iloc[0] > 0
    assert updates["approx_kl"].iloc[1] > 0


def test_how_the_work_is_done_is_not_part_of_what_is_measured() -> None:
    settings = [f"profile.pretrained.{name}=true" for name in ("sharded", "compiled")] + ["profile.score_ahead=0"]
    one, other = (plan.make_plan("ocr", "gdro", "flux1-dev", 0, Path("runs"), tuple(some)) for some in ([], settings))
    assert one.digests == other.digests
    assert one.folder == other.folder  # so that a run goes on on other hardware
    changed = plan.make_plan("ocr", "gdro", "flux1-dev", 0, Path("runs"), ("profile.pretrained.text_tokens=64",))
    assert one.digests["profile"] != changed.digests["profile"]
    assert one.folder != changed.folder


def test_a_model_that_is_not_here_says_what_to_do(tmp_path: Path) -> None:
    result = call("flux1-dev", tmp_path / "nowhere", tmp_path, "gdro")
    assert result.exit_code == 1
    assert "cannot be loaded" in result.output
    assert "profile.pretrained.source" in result.output


def test_missing_engines_name_their_extra(saved: dict[str, Path], tmp_path: Path) -> None:
    result = call("flux1-dev", saved["flux1-dev"], tmp_path, "gdro", profile__reader__engine="paddleocr")
    assert result.exit_code == 1
    assert "gdro-bench[paddle]" in result.output
    flags = ["--set", "profile.detector.name=mmdet", "--set", "profile.reader.engine=rapidocr"]
    result = CliRunner().invoke(main, ["run", "geneval", "--profile", "flux1-dev", "--out", str(tmp_path), *flags])
    assert result.exit_code == 1
    assert "mmdet cannot be imported" in result.output


# -- what it will cost


@pytest.mark.parametrize(("profile", "method"), [("flux1-dev", "gdro"), ("sd35-medium", "flow-grpo")])
def test_a_dry_run_counts_what_the_run_spends(
    profile: str, method: str, saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES["reward"], "ocr", "test_full_scale:open_brightness")
    planned = call(profile, saved[profile], tmp_path, method, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert not list(tmp_path.glob("ocr"))
    assert call(profile, saved[profile], tmp_path, method).exit_code == 0
    last = record.read(next((tmp_path / "ocr" / profile).iterdir())).points[-1]
    assert f"{last.updates} updates" in planned.output
    assert f"{last.optimisation_evaluations:,}" in planned.output
    collected = last.pool_evaluations or last.collection_evaluations
    assert f"{collected:,}" in planned.output
