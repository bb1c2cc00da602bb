"""Memory at full scale, counted from shapes."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from gdro_bench.cli import main
from gdro_bench.engine.plan import read_profile
from gdro_bench.models import memory, shapes


@pytest.mark.parametrize(
    ("name", "weights", "unchecked", "checkpointed", "training", "an_image", "spread"),
    [("flux1-dev", 23.80, 6.67, 0.41, 30.02, 0.71, 10.55), ("sd35-medium", 4.94, 2.06, 0.09, 7.27, 0.30, 3.35)],
)
def test_what_is_counted_of_the_published_shapes(
    name: str, weights: float, unchecked: float, checkpointed: float, training: float, an_image: float, spread: float
) -> None:
    """GB. Unchecked they were 9.47 and 2.58 while adapters kept float32 copies of their inputs; what is left in float32
    are normalisations. Training is with 6 images; `spread` is its part of 8 processes with sharded weights."""
    profile = read_profile(name)
    counted = memory.count(profile)
    assert counted.weights / 1e9 == pytest.approx(weights, abs=0.01)
    assert counted.unchecked / 1e9 == pytest.approx(unchecked, abs=0.02)
    assert counted.checkpointed / 1e9 == pytest.approx(checkpointed, abs=0.01)
    assert 0 < counted.float32 < counted.unchecked / 3
    assert profile.pretrained is not None
    whole = memory.foretell(profile, counted, 6)
    assert whole.peak == whole.encoding == max(whole.encoding, whole.sampling, whole.training)
    assert whole.training / 1e9 == pytest.approx(training, abs=0.02)
    assert (memory.foretell(profile, counted, 7).training - whole.training) / 1e9 == pytest.approx(an_image, abs=0.01)
    assert memory.foretell(sharded(profile), counted, 6, 8).training / 1e9 == pytest.approx(spread, abs=0.02)


def sharded(profile: memory.Profile) -> memory.Profile:
    assert profile.pretrained is not None
    return replace(profile, pretrained=replace(profile.pretrained, sharded=True))


@pytest.mark.parametrize(("name", "megabytes"), [("flux1-dev", 1.050), ("sd35-medium", 1.683)])
def test_an_encoded_text_of_the_published_shapes(name: str, megabytes: float) -> None:
    """FLUX: 128 tokens of 4,096 and one of 768, in bfloat16; Stable Diffusion 3.5: 77 tokens more, and one of 2,048."""
    profile = read_profile(name)
    assert profile.pretrained is not None
    assert shapes.text_bytes(profile.pretrained, profile.model == "flux") / 1e6 == pytest.approx(megabytes, abs=0.001)


def test_fused_attention_is_not_taken_apart() -> None:
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    q = torch.empty(1, 2, 64, 8, device="meta", requires_grad=True)
    with memory._FusedAttention(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert max(saved) == q.numel()


@pytest.mark.slow
@pytest.mark.parametrize("profile", [pytest.param("flux1-dev", marks=pytest.mark.slow), "sd35-medium"])
def test_a_dry_run_without_weights_counts(profile: str) -> None:
    def dry(processes: int) -> str:
        command = ["run", "ocr", "--profile", profile, "--dry-run", "--device", "cpu", "--processes", str(processes)]
        result = CliRunner().invoke(main, [*command, "--set", "profile.pretrained.sharded=true"])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    one, eight = dry(1), dry(8)
    assert "with 1 process," in one
    assert "with 8 processes that share it perfectly," in eight
    for said in (one, eight):
        assert "330 TFLOP/s" in said
        assert "GB of memory each at the peak" in said
    assert one != eight.replace("8 processes", "1 process")
