"""`gdro-bench doctor`: each check sees what is there and says what is not."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_pipelines import SIDE, save_flux, save_sd3

from gdro_bench import content, registry
from gdro_bench.cli import main
from gdro_bench.commands import doctor
from gdro_bench.engine import plan
from gdro_bench.errors import BenchError
from gdro_bench.profile import DetectorConfig, Profile
from gdro_bench.rewards.geneval_rules import Detections
from gdro_bench.score import Images


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"flux1-dev": save_flux(folder / "tiny-flux"), "sd35-medium": save_sd3(folder / "tiny-sd3")}


def profile(name: str, source: Path | str = "") -> Profile:
    return plan.read_profile(name, [f"profile.pretrained.source={source}"] if source else [])


def test_pocket_is_whole() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "reads CAFE" in result.output
    assert "yellow bus" in result.output
    assert "pocket judge" in result.output


def test_models_of_single_tasks_are_opened_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "baselines" / "mine"
    own.mkdir(parents=True)
    pocket = (content.find("profile", "pocket") / "profile.toml").read_text(encoding="utf-8")
    (own / "profile.toml").write_text(pocket + '\n[tasks.geneval]\nmodel = "other"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry.TABLES["model"], "other", f"{__name__}:without_weights")
    with pytest.raises(BenchError, match="no other weights"):
        doctor._weights("mine", profile("mine"))


def without_weights(*arguments: object) -> None:
    raise BenchError("There are no other weights.", "Restore them.")


def test_a_model_of_another_package_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile without `[pretrained]` need not be the pocket's."""
    monkeypatch.setitem(registry.TABLES["model"], "other", f"{__name__}:without_weights")
    with pytest.raises(BenchError, match="no other weights"):
        doctor._weights("pocket", replace(profile("pocket"), model="other"))


def test_the_numbers_of_a_package_that_is_not_here_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "baselines" / "pocket"
    own.mkdir(parents=True)
    (own / "mine.toml").write_text("beta = 1.0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "mine" in content.method_files("pocket")
    found = plan.costs_of("pocket", profile("pocket"))
    assert "gdro" in found
    assert "mine" not in found


def test_a_named_pocket_detector_is_checked_as_such() -> None:
    named = replace(profile("pocket"), detector=DetectorConfig("pocket", "", ""))
    assert "sees a yellow bus" in doctor._detector("pocket", named)


class NearlyRed:
    """A detector of another package, which knows one class."""

    name, classes = "nearly red", ("boat",)

    def __init__(self, config: DetectorConfig, device: str) -> None:
        pass

    def __call__(self, images: Images) -> list[Detections]:
        assert images.shape == (1, 64, 64, 3)
        return [Detections({}, lambda name, detections: ["pink" if name == "boat" else "red"])]


def test_a_detector_of_another_package_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TABLES["detector"], "nearly-red", f"{__name__}:NearlyRed")
    with pytest.raises(BenchError, match=r"nearly red calls a red picture \['pink'\]"):
        doctor._detector("pocket", replace(profile("pocket"), detector=DetectorConfig("nearly-red", "", "")))


def test_remedies_keep_their_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich would take them for its markup."""

    def fails(name: str, profile: Profile) -> str:
        raise BenchError("No.", "pip install 'x[paddle]'")

    monkeypatch.setattr(doctor, "CHECKS", {"all": fails})
    result = CliRunner().invoke(main, ["doctor", "--profile", "flux1-dev"])
    assert result.exit_code == 1
    assert "x[paddle]" in result.output


@pytest.mark.parametrize("name", ["flux1-dev", "sd35-medium"])
def test_a_pipeline_s_weights_are_weighed(name: str, saved: dict[str, Path]) -> None:
    here = profile(name, saved[name])
    sizes = doctor._sizes(doctor._folder(here.pretrained))
    assert {"transformer", "vae", "text_encoder", "text_encoder_2"} <= set(sizes)
    assert min(sizes.values()) > 1000
    assert str(saved[name]) in doctor._weights(name, here)
    small = plan.read_profile(name, [f"profile.pretrained.source={saved[name]}", f"profile.pretrained.side={SIDE}"])
    assert "GB at its peak, the most of all methods" in doctor._device(name, small)


def test_what_is_checked_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"device": lambda name, profile: profile.pretrained.source})
    result = CliRunner().invoke(main, ["doctor", "--profile", "flux1-dev", "--set", "profile.pretrained.source=/here"])
    assert result.exit_code == 0
    assert "/here" in result.output
    result = CliRunner().invoke(main, ["doctor", "--set", "profile.reader.worker=1"])
    assert result.exit_code == 2
    assert "Did you mean 'workers'" in result.output


@pytest.mark.slow
def test_a_device_that_is_too_small_is_named(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: 30e9**0.5)
    with pytest.raises(BenchError, match=r"30 GB: \S+ takes 44 GB at its peak.*profile\.pretrained\."):
        doctor._device("flux1-dev", profile("flux1-dev"))
    assert "a run takes is not known" in doctor._device("flux1-dev", profile("flux1-dev", Path("nowhere")))


def test_weights_that_are_not_whole_are_named(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no folder of a pipeline.*profile\.pretrained\.source"):
        doctor._weights("flux1-dev", profile("flux1-dev", tmp_path))
    (tmp_path / "model_index.json").write_text((saved["flux1-dev"] / "model_index.json").read_text())
    with pytest.raises(BenchError, match=r"text_encoder has no \*\.safetensors"):
        doctor._weights("flux1-dev", profile("flux1-dev", tmp_path))


def test_a_pool_must_find_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a pool takes 8.39 GB" in doctor._disk("flux1-dev", profile("flux1-dev"))
    monkeypatch.setattr(doctor, "ROOM", 1e9)
    with pytest.raises(BenchError, match="Free some"):
        doctor._disk("flux1-dev", profile("flux1-dev"))


def test_a_judge_that_is_not_there_is_named(waits: list[float]) -> None:
    with pytest.raises(BenchError, match=r"does not answer.*Start it"):
        doctor._judge("flux1-dev", profile("flux1-dev"))
    assert waits == [1, 2, 4]
