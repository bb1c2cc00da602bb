"""`gdro-bench doctor`: each check sees what is there and says what is not."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_pipelines import SIDE, save_flux, save_sd3

from gdro_bench import content, registry, task
from gdro_bench.cli import main
from gdro_bench.commands import doctor
from gdro_bench.commands.doctor import Subject
from gdro_bench.engine import plan
from gdro_bench.errors import BenchError
from gdro_bench.instruments import Instruments
from gdro_bench.profile import DetectorConfig, Profile
from gdro_bench.rewards.geneval_rules import Detections
from gdro_bench.score import Images


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"flux1-dev": save_flux(folder / "tiny-flux"), "sd35-medium": save_sd3(folder / "tiny-sd3")}


def profile(name: str, source: Path | str = "") -> Profile:
    return plan.read_profile(name, [f"profile.pretrained.source={source}"] if source else [])


def subject(name: str, source: Path | str = "") -> Subject:
    return Subject(name, profile(name, source))


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
        doctor._weights(subject("mine"))


def without_weights(*arguments: object) -> None:
    raise BenchError("There are no other weights.", "Restore them.")


def test_a_model_of_another_package_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile without `[pretrained]` need not be the pocket's."""
    monkeypatch.setitem(registry.TABLES["model"], "other", f"{__name__}:without_weights")
    with pytest.raises(BenchError, match="no other weights"):
        doctor._weights(Subject("pocket", replace(profile("pocket"), model="other")))


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
    assert "sees a yellow bus" in doctor._detector(Subject("pocket", named))


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
    theirs = replace(profile("pocket"), detector=DetectorConfig("nearly-red", "", ""))
    with pytest.raises(BenchError, match=r"nearly red calls a red picture \['pink'\]"):
        doctor._detector(Subject("pocket", theirs))


def test_remedies_keep_their_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich would take them for its markup."""

    def fails(subject: Subject) -> str:
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
    assert str(saved[name]) in doctor._weights(Subject(name, here))
    small = plan.read_profile(name, [f"profile.pretrained.source={saved[name]}", f"profile.pretrained.side={SIDE}"])
    assert "GB at its peak, the most of all methods" in doctor._device(Subject(name, small))


def test_what_is_checked_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"device": lambda subject: subject.profile.pretrained.source})
    result = CliRunner().invoke(main, ["doctor", "--profile", "flux1-dev", "--set", "profile.pretrained.source=/here"])
    assert result.exit_code == 0
    assert "/here" in result.output
    result = CliRunner().invoke(main, ["doctor", "--set", "profile.reader.worker=1"])
    assert result.exit_code == 2
    assert "Did you mean 'workers'" in result.output


def test_a_task_and_a_method_are_checked_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that cannot be had is in the way of no OCR run."""
    absent = ["--set", "profile.detector.source=/nowhere", "--profile", "flux1-dev"]
    monkeypatch.setattr(
        doctor, "CHECKS", {"detector": doctor._detector, "reader": doctor._reader, "disk": doctor._disk}
    )
    result = CliRunner().invoke(main, ["doctor", "--task", "ocr", "--method", "flow-grpo", *absent])
    assert "task ocr, flow-grpo" in result.output
    assert "not needed by the task" in result.output
    assert "a run takes up to 7.85 GB, its encoded texts 5.8 GB" in result.output  # as --dry-run counts it
    assert re.search(r"detector +│ ok │ not needed by the task", result.output)
    result = CliRunner().invoke(main, ["doctor", "--task", "geneval", *absent])
    assert result.exit_code == 1
    assert "/nowhere" in result.output
    watched = ["--method", "flow-grpo", "--set", 'method.auxiliary.rewards=["objects"]']
    result = CliRunner().invoke(main, ["doctor", "--task", "ocr", *watched, *absent])
    assert re.search(r"detector +│ no", result.output)


def test_all_are_checked_where_a_reward_needs_more_than_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(instruments: Instruments) -> None:
        assert instruments.device == "cpu"
        assert instruments.reader().areas == ()

    monkeypatch.setitem(registry.TABLES["reward"], "both", f"{__name__}:unopened")
    monkeypatch.setattr(sys.modules[__name__], "unopened", both, raising=False)
    task_ = replace(task.load("ocr"), reward="both")
    assert Subject("pocket", profile("pocket"), task_).needs == {"reader", "detector"}
    assert Subject("pocket", profile("pocket"), task.load("ocr")).needs == {"reader"}


def test_numbers_of_the_method_that_is_named_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"disk": doctor._disk})
    set_ = ["--set", "method.pool.prompts=48"]
    result = CliRunner().invoke(main, ["doctor", "--profile", "flux1-dev", "--method", "gdro", *set_])
    assert "a run takes up to 3.82 GB" in result.output
    for wrong, said in (
        (set_, "Add --method"),
        (["--method", "gdroo"], "Did you mean 'gdro'"),
        (["--task", "ocrr"], "Did you mean 'ocr'"),
        (["--method", "gdro", "--set", "method.taus=1"], "Did you mean 'tau'"),
    ):
        result = CliRunner().invoke(main, ["doctor", *wrong])
        assert result.exit_code == 2, result.output
        assert said in result.output


def test_the_machine_must_hold_what_its_processes_open(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = subject("flux1-dev", saved["flux1-dev"])
    each = sum(doctor._sizes(saved["flux1-dev"]).values())
    monkeypatch.setattr(doctor, "CGROUP", tmp_path / "memory.max")
    whole = doctor._machine_bytes()
    doctor.CGROUP.write_text("max\n", encoding="utf-8")
    assert doctor._machine_bytes() == whole
    doctor.CGROUP.write_text(f"{int(1.25 * each)}\n", encoding="utf-8")
    pool = replace(here, method="gdro")
    assert "1 x 0.0 GB while the model is opened" in doctor._machine(pool)
    with pytest.raises(BenchError, match="Start fewer processes"):
        doctor._machine(replace(pool, processes=2))
    chains = 2 * 48 * 24 * 7 * here.profile.pretrained.latent_elements * 4  # 6 steps: twice while it is put together
    with pytest.raises(BenchError, match=rf"{chains / 1e9:.1f} GB for an epoch's chains"):
        doctor._machine(replace(here, method="flow-grpo"))
    assert "opened" not in doctor._machine(subject("pocket"))


@pytest.mark.slow
def test_a_device_that_is_too_small_is_named(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: 30e9**0.5)
    with pytest.raises(BenchError, match=r"30 GB a process: \S+ takes 44 GB at its peak.*profile\.pretrained\."):
        doctor._device(subject("flux1-dev"))
    assert "a run takes is not known" in doctor._device(subject("flux1-dev", Path("nowhere")))


def test_weights_that_are_not_whole_are_named(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no folder of a pipeline.*profile\.pretrained\.source"):
        doctor._weights(subject("flux1-dev", tmp_path))
    (tmp_path / "model_index.json").write_text((saved["flux1-dev"] / "model_index.json").read_text())
    with pytest.raises(BenchError, match=r"text_encoder has no \*\.safetensors"):
        doctor._weights(subject("flux1-dev", tmp_path))


def test_a_pool_must_find_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a run takes up to 12.01 GB (dpo, the most of all methods)" in doctor._disk(subject("flux1-dev"))
    nowhere = doctor._disk(subject("flux1-dev", Path("nowhere")))  # its adapters are not known
    assert "a run takes up to" in nowhere
    assert "12.01" not in nowhere
    monkeypatch.setattr(doctor, "ROOM", 1e9)
    with pytest.raises(BenchError, match="Free some"):
        doctor._disk(subject("flux1-dev"))


def test_a_judge_that_is_not_there_is_named(waits: list[float]) -> None:
    with pytest.raises(BenchError, match=r"does not answer.*Start it"):
        doctor._judge(subject("flux1-dev"))
    assert waits == [1, 2, 4]
