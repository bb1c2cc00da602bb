"""FLUX and SD3 as policies, held against diffusers' own pipelines on the same weights and noise."""

import gc
import json
import shutil
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import SIDE, save_flux, save_sd3

from gdro_bench import sampling
from gdro_bench.distributed import ProcessGroup
from gdro_bench.errors import BenchError
from gdro_bench.models import open_model, open_policy
from gdro_bench.models.lora import lora_parameters
from gdro_bench.models.pretrained import PretrainedPolicy
from gdro_bench.profile import LoraConfig, PretrainedConfig, Sampler
from gdro_bench.task import Prompt

PROMPTS = [Prompt('a red sign that reads "TREE"', "TREE"), Prompt('the top of a blue wall "OWL"', "OWL")]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
STEPS = 4


@dataclass
class Profile:
    """What opening a model reads of a profile."""

    model: str
    pretrained: PretrainedConfig | None
    lora: LoraConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"flux": save_flux(folder / "tiny-flux"), "sd3": save_sd3(folder / "tiny-sd3")}


def profile(family: str, saved: dict[str, Path], cache: Path, source: str = "") -> Any:
    numbers = PretrainedConfig(
        source or str(saved[family]), SIDE, "float32", 3.5, 12, False, False, False, False, str(cache)
    )
    return Profile(family, numbers, LoraConfig(4, 8.0, TARGETS))


@pytest.fixture(params=["flux", "sd3"])
def policy(request: pytest.FixtureRequest, saved: dict[str, Path], tmp_path: Path) -> PretrainedPolicy:
    return open_policy(profile(request.param, saved, tmp_path / "texts"), "cpu", 0)


def painted(policy: PretrainedPolicy, noise: torch.Tensor, guidance: float = 1.0, reference: bool = False):
    sampler = Sampler(steps=STEPS, shift=0.0, guidance=guidance, batch=2)
    return policy.decode(sampling.sample(policy, noise, PROMPTS, sampler, reference=reference))


def noise_of(policy: PretrainedPolicy) -> torch.Tensor:
    return sampling.noise_for([("test", i) for i in range(len(PROMPTS))], policy.latent_shape)


def by_diffusers(policy: PretrainedPolicy, noise: torch.Tensor, guidance: float) -> np.ndarray:
    """The pipeline's own pictures; its guidance is the distilled one of FLUX, the classifier-free one of SD3."""
    made = policy.pipeline(
        [p.text for p in PROMPTS], num_inference_steps=STEPS, guidance_scale=guidance, latents=noise, height=SIDE,
        width=SIDE, output_type="np", max_sequence_length=policy.config.text_tokens,
    )  # fmt: skip
    return np.asarray(made.images)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_pictures_are_those_of_diffusers(policy: PretrainedPolicy, guidance: float) -> None:
    if policy.name.startswith("tiny-flux"):
        theirs = by_diffusers(policy, noise_of(policy), policy.config.distilled_guidance)
        ours = painted(policy, noise_of(policy))
    else:
        theirs = by_diffusers(policy, noise_of(policy), guidance)
        ours = painted(policy, noise_of(policy), guidance)
    assert ours.shape == (2, SIDE, SIDE, 3)
    assert np.abs(ours / 255 - theirs).max() < 0.5 / 255 + 1e-4  # ours are rounded to 8 bits


def test_the_schedule_falls_from_1_to_0(policy: PretrainedPolicy) -> None:
    times = policy.timesteps(STEPS, 0.0)
    assert len(times) == STEPS + 1
    assert (times[0], times[-1]) == (1.0, 0.0)
    assert times.diff().lt(0).all()


def move(policy: PretrainedPolicy) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def test_the_reference_is_the_model_without_adapters(policy: PretrainedPolicy) -> None:
    before = painted(policy, noise_of(policy))
    move(policy)
    assert (painted(policy, noise_of(policy)) != before).any()
    assert (painted(policy, noise_of(policy), reference=True) == before).all()


def test_a_lagged_copy_is_the_model_with_those_adapters(policy: PretrainedPolicy) -> None:
    """Bit for bit; the policy keeps its own adapters and the gradient of a forward made before."""
    x, t, cond = noise_of(policy), torch.tensor([0.3, 0.9]), policy.encode(PROMPTS)
    start = [parameter.detach().clone() for parameter in policy.parameters()]
    with torch.no_grad():
        before = policy.velocity(x, t, cond)
        for parameter in policy.parameters():
            parameter.add_(0.1)
        after = policy.velocity(x, t, cond)
    loss = policy.velocity(x, t, cond).square().mean()
    assert torch.equal(policy.lagged_velocity(start, x, t, cond), before)
    loss.backward()
    assert not torch.equal(before, after)
    assert all(p.grad is not None for p in policy.parameters())
    with torch.no_grad():
        assert torch.equal(policy.velocity(x, t, cond), after)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_plain_diffusers_loads_the_adapters(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    policy = open_policy(profile(family, saved, tmp_path / "texts"), "cpu", 0)
    move(policy)
    policy.save(tmp_path / "lora")
    cond, x, t = policy.encode(PROMPTS), noise_of(policy), torch.tensor([0.5, 0.8])
    trained = policy.velocity(x, t, cond)
    plain = type(policy.pipeline).from_pretrained(saved[family])
    plain.load_lora_weights(tmp_path / "lora")
    theirs = type(policy)(plain, policy.config, "", "cpu")
    torch.testing.assert_close(theirs.velocity(x, t, cond), trained, rtol=0, atol=1e-5)
    again = open_model(profile(family, saved, tmp_path / "texts"), None, tmp_path / "lora", "cpu")
    torch.testing.assert_close(again.velocity(x, t, cond), trained, rtol=0, atol=1e-5)


def test_gradients_reach_the_adapters_and_nothing_else(policy: PretrainedPolicy) -> None:
    policy.velocity(noise_of(policy), torch.tensor([0.5, 0.8]), policy.encode(PROMPTS)).square().mean().backward()
    assert all(p.grad is not None for name, p in policy.transformer.named_parameters() if "lora_B" in name)
    assert all(p.grad is None for name, p in policy.transformer.named_parameters() if "lora" not in name)


def frozen(policy: PretrainedPolicy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.transformer.parameters() if not p.requires_grad]


def test_merged_adapters_sample_alike_and_leave_the_weights_as_they_were(policy: PretrainedPolicy) -> None:
    move(policy)
    noise, t, cond = noise_of(policy), torch.tensor([0.5, 0.8]), policy.encode(PROMPTS)
    with torch.no_grad():
        before, apart = frozen(policy), policy.velocity(noise, t, cond)
        with suppress(KeyError), policy.merged():
            torch.testing.assert_close(policy.velocity(noise, t, cond), apart, rtol=1e-4, atol=1e-5)
            assert any((one != other).any() for one, other in zip(before, frozen(policy), strict=True))
            raise KeyError  # as a sampler might
        assert all((one == other).all() for one, other in zip(before, frozen(policy), strict=True))
        assert (policy.velocity(noise, t, cond) == apart).all()


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_a_bfloat16_base_keeps_its_adapters_apart(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    chosen = profile(family, saved, tmp_path / "texts")
    chosen.pretrained = replace(chosen.pretrained, dtype="bfloat16")
    policy = open_policy(chosen, "cpu", 0)
    move(policy)
    before = frozen(policy)
    with policy.merged():
        assert all((one == other).all() for one, other in zip(before, frozen(policy), strict=True))


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_a_bfloat16_base_has_float32_adapters(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    """And velocities near those of a float32 base (diffusers' FLUX rounds t, too)."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        chosen = profile(family, saved, tmp_path / "texts")
        chosen.pretrained = replace(chosen.pretrained, dtype=dtype)
        policy = open_policy(chosen, "cpu", 0)
        assert policy.transformer.proj_out.weight.dtype == getattr(torch, dtype)
        move(policy)
        v = policy.velocity(noise_of(policy), torch.tensor([0.5, 0.8]), policy.encode(PROMPTS))
        v.square().mean().backward()
        assert {p.dtype for p in policy.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in policy.parameters() if p.grad is not None} == {torch.float32}
        found[dtype] = v.detach()
    assert found["bfloat16"].dtype == torch.float32
    error = (found["bfloat16"] - found["float32"]).norm() / found["float32"].norm()
    assert 0 < error < 0.15


def test_what_moves_a_picture_names_the_model(saved: dict[str, Path], tmp_path: Path) -> None:
    """Pools of one name are shared."""
    plain = profile("flux", saved, tmp_path / "texts")
    changes = [{}, {"dtype": "bfloat16"}, {"distilled_guidance": 1.0}, {"text_tokens": 8}, {"sharded": True}]
    chosen = [replace(plain, pretrained=replace(plain.pretrained, **change)) for change in changes]
    names = [open_policy(one, "cpu", 0).name for one in chosen]
    assert len(set(names)) == 4
    assert names[0] == names[-1]


def test_models_whose_folders_are_called_alike_are_told_apart(saved: dict[str, Path], tmp_path: Path) -> None:
    """Their pools are not shared, and adapters of one are not loaded onto the other, which --weights names."""
    plain = profile("flux", saved, tmp_path / "texts")
    own = open_policy(plain, "cpu", 0)
    other = tmp_path / Path(plain.pretrained.source).name
    tuned = type(own.pipeline).from_pretrained(plain.pretrained.source)
    with torch.no_grad():
        next(tuned.transformer.parameters()).mul_(1.5)
    tuned.save_pretrained(other)
    given = open_model(plain, other, None, "cpu")
    again = open_policy(replace(plain, pretrained=replace(plain.pretrained, dtype="bfloat16")), "cpu", 0)
    assert given.config.source == str(other)
    assert given.name.split()[0] == own.name.split()[0]
    assert given.name != own.name
    assert again.base == own.base  # however it was loaded
    tuned_too = replace(plain, pretrained=replace(plain.pretrained, source=str(other)))
    open_policy(tuned_too, "cpu", 0).save(tmp_path / "lora")
    assert open_model(plain, other, tmp_path / "lora", "cpu").base == given.base
    with pytest.raises(BenchError, match=r"were trained on .* not on .*--weights"):
        open_model(plain, None, tmp_path / "lora", "cpu")


def test_a_text_is_encoded_once_and_kept(policy: PretrainedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    first = policy.encode(PROMPTS)
    assert len(list(Path(policy.config.text_cache).iterdir())) == len(PROMPTS)
    policy._read.cache_clear()
    monkeypatch.setattr(policy, "_encode_texts", lambda texts: pytest.fail("encoded again"))
    for kept, made in zip(policy.encode(PROMPTS).tensors, first.tensors, strict=True):
        assert torch.equal(kept, made)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Python does not look for objects that hold each other."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("family", ["flux", "sd3", "pocket"])
def test_a_model_that_is_let_go_is_gone(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    """Or it would stay on the device while the next run of this process opens its own."""
    own = (
        Profile("pocket", None, LoraConfig(4, 8.0, TARGETS)) if family == "pocket" else profile(family, saved, tmp_path)
    )
    policy = open_policy(own, "cpu", 0)  # type: ignore[arg-type]
    policy.encode(PROMPTS)
    transformer = weakref.ref(policy.transformer)  # type: ignore[attr-defined]
    del policy
    assert transformer() is None


@pytest.mark.usefixtures("uncollected")
def test_a_model_that_something_still_holds_in_a_circle_goes_when_the_next_is_opened() -> None:
    own: Any = Profile("pocket", None, LoraConfig(4, 8.0, TARGETS))
    policy: Any = open_policy(own, "cpu", 0)
    policy.itself, transformer = policy, weakref.ref(policy.transformer)
    del policy
    assert transformer() is not None
    open_policy(own, "cpu", 0)
    assert transformer() is None


def test_what_peft_cannot_work_with_is_named(saved: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    def old(*arguments: object, **options: object) -> None:
        raise ImportError("Found an incompatible version of torchao. Found version 0.14.0.")

    monkeypatch.setattr(FluxTransformer2DModel, "add_adapter", old)
    with pytest.raises(BenchError, match=r"incompatible version of torchao.*Install what it asks for"):
        open_policy(profile("flux", saved, tmp_path), "cpu", 0)


def test_text_encoders_travel_once_and_go(policy: PretrainedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    travels = []
    move_module = torch.nn.Module.to

    def counted(module: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        travels.append(type(module).__name__)
        return move_module(module, *arguments, **options)

    monkeypatch.setattr(torch.nn.Module, "to", counted)
    encoders = [part for name, part in policy.pipeline.components.items() if name.startswith("text_encoder")]
    many = [Prompt(f'a red sign that reads "{i}"', str(i)) for i in range(40)]
    policy.encode_ahead([*many, *many, *PROMPTS], ProcessGroup())
    for start in range(0, 40, 6):
        assert len(policy.encode(many[start : start + 6])) == len(many[start : start + 6])
    assert sorted(travels) == sorted(2 * [type(encoder).__name__ for encoder in encoders])  # there and back
    assert not any(part for name, part in policy.pipeline.components.items() if name.startswith("text_encoder"))


class Apart(ProcessGroup):
    """The first of two processes on machines that share no disk."""

    def barrier(self) -> None: ...
    def gather_objects(self, own: Sequence[Any], count: int) -> list[Any]:
        return [*own, *own]


def test_texts_that_another_machine_encoded_must_be_seen(policy: PretrainedPolicy) -> None:
    assert len(PROMPTS) > 1
    with pytest.raises(BenchError, match=r"Processes 0, 1 do not see .*text_cache"):
        policy.encode_ahead(PROMPTS, Apart(0, 2))
    policy.encode(PROMPTS)  # the encoders are still there


def trained(policy: PretrainedPolicy) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """A velocity of moved adapters and the gradients of its square."""
    move(policy)
    v = policy.velocity(noise_of(policy), torch.tensor([0.5, 0.8]), policy.encode(PROMPTS))
    v.square().mean().backward()
    return v.detach(), [p.grad for p in policy.parameters()]


COMPILED = pytest.param("compiled", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")])  # torch's own


@pytest.mark.parametrize("how", ["gradient_checkpointing", COMPILED])
def test_how_it_is_computed_changes_nothing(how: str, saved: dict[str, Path], tmp_path: Path) -> None:
    plain = profile("flux", saved, tmp_path / "texts")
    other = replace(plain, pretrained=replace(plain.pretrained, **{how: True}))
    torch.testing.assert_close(*(trained(open_policy(chosen, "cpu", 0)) for chosen in (plain, other)))


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_a_base_in_float8(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    """Nearly the velocity of the base in bfloat16, gradients for the adapters, and their files as ever."""
    pytest.importorskip("torchao", reason="an extra: it warns in every run of machines that cannot use it")
    plain = profile(family, saved, tmp_path / "texts")
    plain = replace(plain, pretrained=replace(plain.pretrained, dtype="bfloat16", gradient_checkpointing=True))
    small = replace(plain, pretrained=replace(plain.pretrained, float8=True))
    policy = open_policy(small, "cpu", 0)
    (v, gradients), (expected, theirs) = trained(policy), trained(open_policy(plain, "cpu", 0))
    assert 0 < (v - expected).norm() / expected.norm() < 0.05
    for found, right in zip(gradients, theirs, strict=True):
        assert (found is None) == (right is None)
    x, t, cond = noise_of(policy), torch.tensor([0.5, 0.8]), policy.encode(PROMPTS)
    policy.save(tmp_path / "lora")
    again = open_model(small, None, tmp_path / "lora", "cpu")
    torch.testing.assert_close(again.velocity(x, t, cond), v)


def test_without_torchao_the_extra_is_named(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    chosen = profile("flux", saved, tmp_path)
    with pytest.raises(BenchError, match=r"torchao is not installed.*gdro-bench\[float8\]"):
        open_policy(replace(chosen, pretrained=replace(chosen.pretrained, float8=True)), "cpu", 0)


def test_float8_weights_are_not_sharded(saved: dict[str, Path], tmp_path: Path) -> None:
    chosen = profile("flux", saved, tmp_path)
    chosen = replace(chosen, pretrained=replace(chosen.pretrained, float8=True, sharded=True))
    with pytest.raises(BenchError, match="cannot be sharded"):
        open_policy(chosen, "cpu", 0)


def test_a_model_that_cannot_be_had_says_what_to_do(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot be loaded.*Accept its licence"):
        open_policy(profile("flux", saved, tmp_path, str(tmp_path / "nothing")), "cpu", 0)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_a_side_that_no_patch_fits_is_told(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    chosen = profile(family, saved, tmp_path)
    chosen = replace(chosen, pretrained=replace(chosen.pretrained, side=520))
    with pytest.raises(BenchError, match=r"side is 520.*multiple of 16"):
        open_policy(chosen, "cpu", 0)


@pytest.mark.parametrize(
    ("family", "encoder", "absent"),
    [
        ("flux", "text_encoder", "final_layer_norm"),
        ("flux", "text_encoder_2", "shared"),
        ("sd3", "text_encoder_3", "wo"),
    ],
)
def test_a_text_encoder_that_lacks_a_weight_is_refused(
    family: str, encoder: str, absent: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    """transformers draws it at random, and every text would be noise."""
    shutil.copytree(saved[family], tmp_path / "cut")
    file = next((tmp_path / "cut" / encoder).glob("*.safetensors"))
    kept = {name: one for name, one in load_file(file).items() if absent not in name}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(BenchError, match=rf"cannot be loaded: its {encoder} lacks \S*{absent}"):
        open_policy(profile(family, saved, tmp_path, str(tmp_path / "cut")), "cpu", 0)


def test_weights_that_are_damaged_are_told(saved: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(saved["flux"], tmp_path / "cut")
    file = next((tmp_path / "cut" / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(BenchError, match="cannot be loaded"):
        open_policy(profile("flux", saved, tmp_path, str(tmp_path / "cut")), "cpu", 0)
    whole = load_file(next((saved["flux"] / "transformer").glob("*.safetensors")))
    save_file({name: one for name, one in whole.items() if "x_embedder" not in name}, file, {"format": "pt"})
    with pytest.raises(BenchError, match=r"cannot be loaded: its transformer lacks x_embedder"):
        open_policy(profile("flux", saved, tmp_path, str(tmp_path / "cut")), "cpu", 0)


def saved_by_peft(policy: PretrainedPolicy, folder: Path, **other: Any) -> list[torch.Tensor]:
    """Adapters as Flow-GRPO's code saves them, of an alpha that is twice the rank; their weights."""
    targets = ["attn.to_q", "attn.to_k"]
    numbers = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, **other)
    wrapped = peft.get_peft_model(policy.pipeline.transformer, numbers)
    wrapped.save_pretrained(folder)
    return [weight.detach().clone() for name, weight in wrapped.named_parameters() if "lora_" in name]


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_adapters_that_peft_saved_are_loaded_as_they_were(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    chosen, lora = profile(family, saved, tmp_path / "texts"), tmp_path / "lora"
    other = open_model(chosen, None, None, "cpu")
    weights = saved_by_peft(other, lora)
    policy = open_model(chosen, None, lora, "cpu")
    assert all(map(torch.equal, lora_parameters(policy.transformer), weights))
    scales = {m.scaling["policy"] for m in policy.transformer.modules() if isinstance(m, LoraLayer)}
    assert scales == {2.0}
    x, t, cond = torch.randn(2, *policy.latent_shape), torch.tensor([0.3, 0.9]), policy.encode(PROMPTS[:2])
    torch.testing.assert_close(policy.velocity(x, t, cond), other.velocity(x, t, cond))
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["attn.to_q"]}))
    with pytest.raises(BenchError, match=r"no place for .*to_k"):
        open_model(chosen, None, lora, "cpu")
    (lora / "adapter_config.json").unlink()
    with pytest.raises(BenchError, match=r"cannot be loaded.*one that peft saved"):
        open_model(chosen, None, lora, "cpu")


def test_adapters_that_peft_saved_and_are_no_plain_lora_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    chosen = profile("sd3", saved, tmp_path / "texts")
    saved_by_peft(open_model(chosen, None, None, "cpu"), tmp_path / "lora", use_dora=True)
    with pytest.raises(BenchError, match="another kind than LoRA"):
        open_model(chosen, None, tmp_path / "lora", "cpu")


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_adapters_that_fit_in_part_are_refused(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    """Half of a file would be evaluated as if it were the whole."""
    chosen, lora = profile(family, saved, tmp_path / "texts"), tmp_path / "lora"
    open_policy(chosen, "cpu", 0).save(lora)
    file = lora / "pytorch_lora_weights.safetensors"
    whole = load_file(file)
    with safe_open(file, "pt") as opened:
        noted = opened.metadata()
    names = sorted(whole)
    first_kind = [name for name in names if ".to_q." in name]
    cases = {
        r"are not whole: \d+ of them are missing, .*lora_B": [name for name in names if "lora_A" in name],
        r"are not whole: \d+ of them are missing, .*to_k": first_kind,
    }
    for said, kept in cases.items():
        save_file({name: whole[name] for name in kept}, file, noted)
        with pytest.raises(BenchError, match=said):
            open_model(chosen, None, lora, "cpu")
    strange = {f"transformer.nowhere.to_q.lora_{part}.weight": whole[names[0]].clone() for part in "AB"}
    save_file(whole | strange, file, noted)
    with pytest.raises(BenchError, match=r"no place for .*nowhere"):
        open_model(chosen, None, lora, "cpu")
    save_file(whole, file, noted)
    open_model(chosen, None, lora, "cpu")


def test_a_profile_without_the_table_is_told(saved: dict[str, Path], tmp_path: Path) -> None:
    chosen = profile("sd3", saved, tmp_path)
    chosen.pretrained = None
    with pytest.raises(BenchError, match=r"needs a table \[pretrained\]"):
        open_policy(chosen, "cpu", 0)
