"""Adapters turned down: nothing at 0, themselves at 1, linear between; on the pocket model and on tiny pipelines."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from peft.tuners.lora import LoraLayer
from PIL import Image
from test_pretrained import PROMPTS, noise_of, profile
from tiny_pipelines import save_flux, save_sd3
from torch import Tensor

from gdro_bench import sampling
from gdro_bench.cli import main
from gdro_bench.commands import frontier
from gdro_bench.engine import divergence
from gdro_bench.engine.plan import read_profile
from gdro_bench.errors import BenchError
from gdro_bench.models import open_model, open_policy
from gdro_bench.models.lora import ADAPTER
from gdro_bench.models.pretrained import PretrainedPolicy
from gdro_bench.policy import Policy, Scalable
from gdro_bench.profile import Sampler

SAMPLER = Sampler(steps=3, shift=2.0, guidance=1.0, batch=4)
SHORT = ("sampler.steps=3", "held_out_prompts=6", "drift.prompts=2", "reader.workers=0")
FLAGS = [part for setting in SHORT for part in ("--set", f"profile.{setting}")]


def moved(policy: Policy) -> Policy:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved adapters of the pocket model that change its pictures."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    moved(open_policy(read_profile("pocket"), "cpu", 0)).save(folder)
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", "ocr", *map(str, arguments), "--device", "cpu", *FLAGS])


def evaluated(out: Path, *arguments: object) -> tuple[dict[str, Any], pd.DataFrame]:
    result = call(*arguments, "--judge", "pocket", "--out", out)
    assert result.exit_code == 0, result.output
    return json.loads((out / "eval.json").read_text(), parse_constant=pytest.fail), pd.read_csv(out / "scores.csv")


# -- the adapters


def test_a_layer_s_output_is_linear_in_the_scale() -> None:
    policy: Any = moved(open_policy(read_profile("pocket"), "cpu", 0))
    layer = next(module for module in policy.transformer.modules() if isinstance(module, LoraLayer))
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(2))

    def at(scale: float) -> Tensor:
        with policy.scaled(scale), torch.no_grad():
            return layer(x)

    update = at(1.0) - at(0.0)
    assert update.abs().max() > 1e-3
    for scale in (0.25, 0.5, 1.5):
        torch.testing.assert_close(at(scale) - at(0.0), scale * update, rtol=1e-4, atol=1e-6)
    by_hand = layer.lora_B[ADAPTER](layer.lora_A[ADAPTER](x)).detach()  # alpha is the rank on pocket
    torch.testing.assert_close(update, by_hand, rtol=1e-4, atol=1e-6)
    assert layer.scaling[ADAPTER] == 1.0


def test_the_scale_comes_back_even_after_an_error() -> None:
    policy: Any = open_policy(read_profile("pocket"), "cpu", 0)
    layers = [module for module in policy.transformer.modules() if isinstance(module, LoraLayer)]

    def fail() -> None:
        with policy.scaled(0.5):
            assert {layer.scaling[ADAPTER] for layer in layers} == {0.5}
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {layer.scaling[ADAPTER] for layer in layers} == {1.0}


def test_no_scale_is_the_base_and_a_whole_one_the_adapters_to_the_last_bit(adapters: Path) -> None:
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    base, policy = (open_model(read_profile("pocket"), None, lora, "cpu") for lora in (None, adapters))
    assert isinstance(policy, Scalable)
    noise = sampling.noise_for([("test", i) for i in range(4)], policy.latent_shape)
    expected = {0.0: sampling.sample(base, noise, prompts, SAMPLER, reference=False)}
    expected[1.0] = sampling.sample(policy, noise, prompts, SAMPLER, reference=False)
    assert not torch.equal(expected[0.0], expected[1.0])
    for scale, latents in expected.items():
        with policy.scaled(scale):
            assert torch.equal(sampling.sample(policy, noise, prompts, SAMPLER, reference=False), latents)


def test_the_path_s_divergence_grows_with_the_scale_from_exactly_nothing(adapters: Path) -> None:
    policy = open_model(read_profile("pocket"), None, adapters, "cpu")
    assert isinstance(policy, Scalable)
    found = []
    for scale in (0.0, 0.5, 1.0):
        with policy.scaled(scale):
            found.append(divergence.paths(policy, PROMPTS, "ocr", SAMPLER, 0.7).kl)
    assert found[0].tolist() == [0.0, 0.0]
    assert (found[0] < found[1]).all()
    assert (found[1] < found[2]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "save"), [("flux", save_flux), ("sd3", save_sd3)])
def test_pretrained_policies_are_scaled_alike(family: str, save: Any, dtype: str, tmp_path: Path) -> None:
    chosen = profile(family, {family: save(tmp_path / f"tiny-{family}")}, tmp_path / "texts")
    chosen.pretrained = replace(chosen.pretrained, dtype=dtype)
    base, policy = (open_policy(chosen, "cpu", 0) for _ in range(2))
    assert isinstance(base, PretrainedPolicy)
    assert isinstance(policy, PretrainedPolicy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3
    noise = noise_of(base)

    def latents(of: PretrainedPolicy) -> Tensor:
        return sampling.sample(of, noise, PROMPTS, SAMPLER, reference=False)

    whole = latents(policy)
    with policy.scaled(0.0):
        assert torch.equal(latents(policy), latents(base))
    with policy.scaled(0.5):
        half = latents(policy)
    with policy.scaled(1.0):
        assert torch.equal(latents(policy), whole)
    assert not torch.equal(half, whole)
    assert not torch.equal(half, latents(base))


# -- the command


def test_the_frontier_ends_in_the_evaluations_of_base_and_adapters(adapters: Path, tmp_path: Path) -> None:
    found, scores = evaluated(tmp_path / "frontier", "--lora", adapters, "--lora-scale", "1,0,0.5")
    plain = {scale: evaluated(tmp_path / f"{scale}", *lora) for scale, lora in {0: (), 1: ("--lora", adapters)}.items()}
    assert [entry["scale"] for entry in found["scales"]] == [0.0, 0.5, 1.0]
    for scale, (alone, rows) in plain.items():
        entry = next(entry for entry in found["scales"] if entry["scale"] == scale)
        results = set(alone) - {"inputs", "version"}
        assert {name: entry[name] for name in results} == {name: alone[name] for name in results}
        of_scale = scores[scores["scale"] == scale].reset_index(drop=True)
        pd.testing.assert_frame_equal(of_scale[list(rows)], rows, check_exact=True)
    assert scores.groupby("scale")["path_kl"].count().tolist() == [2, 2, 2]
    kl = [entry["path_kl"]["mean"] for entry in found["scales"]]
    assert kl[0] == 0 < kl[1] < kl[2]
    assert scores.groupby("scale")["gold"].mean().tolist() == pytest.approx(
        [entry["gold"]["mean"] for entry in found["scales"]]
    )
    with Image.open(tmp_path / "frontier" / "frontier.png") as figure:
        assert figure.width > figure.height
    assert (tmp_path / "frontier" / "frontier.pdf").stat().st_size > 0


def test_without_a_judge_there_is_no_corrected_score(adapters: Path) -> None:
    result = call("--lora", adapters, "--lora-scale", "1", "--set", "profile.judge.gold=none")
    assert result.exit_code == 0, result.output
    assert "path KL" in result.output
    assert "corrected" not in result.output


def test_scales_are_sorted_and_each_is_seen_once() -> None:
    assert frontier.parse_scales("1, 0.5,-0,0.50") == (0.0, 0.5, 1.0)
    assert np.copysign(1, frontier.parse_scales("-0")[0]) == 1


@pytest.mark.parametrize("written", ["", ",", "0,,1", "-0.5", "nan", "inf", "2.01", "half", "0;1", "1e400"])
def test_scales_that_cannot_be_are_refused(written: str) -> None:
    with pytest.raises(BenchError, match="The scales of the adapters are") as caught:
        frontier.parse_scales(written)
    assert caught.value.exit_code == 2


def test_scales_need_adapters() -> None:
    result = call("--lora-scale", "0,1")
    assert result.exit_code == 2
    assert "--lora-scale needs adapters to scale." in result.output
