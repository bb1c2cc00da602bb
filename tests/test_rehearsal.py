"""Every method on several processes, with the model whole and spread over them: all end, and with the numbers of one.

Numbers of groups that do not divide by the processes are the hard ones: some then have a pass less than others.
"""

import sys
from pathlib import Path

import pytest
import test_distributed
from test_full_scale import BRIGHT, POOL, SHORT
from tiny_pipelines import save_flux, save_sd3

from gdro_bench.engine import record

pytestmark = pytest.mark.slow

PROFILE = {"gdro": "flux1-dev", "dpo": "sd35-medium", "rft": "flux1-dev", "flow-grpo": "sd35-medium",
           "dance-grpo": "flux1-dev", "nft": "sd35-medium", "awm": "flux1-dev", "dgpo": "sd35-medium",
           "crd": "sd35-medium"}  # fmt: skip
ROLLOUT: dict[str, object] = {"method.prompts": 2, "method.k": 5, "method.rollout_steps": 2}
EPOCH: dict[str, object] = {
    "method.online.prompts": 5, "method.online.k": 3, "method.online.rollout_steps": 2, "method.online.first": 0,
    "method.online.last": 1, "method.online.draws": 2, "method.optimiser.batch": 3,
}  # fmt: skip
GROUPS: dict[str, object] = {"method.optimiser.batch": 3}
METHOD: dict[str, dict[str, object]] = {
    "gdro": POOL | GROUPS | {"method.k": 3}, "dpo": POOL | GROUPS, "rft": POOL | GROUPS, "flow-grpo": ROLLOUT,
    "dance-grpo": ROLLOUT, "nft": EPOCH, "awm": EPOCH, "dgpo": EPOCH, "crd": EPOCH,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"flux1-dev": save_flux(folder / "tiny-flux"), "sd35-medium": save_sd3(folder / "tiny-sd3")}


def command(method: str, source: Path, out: Path, groups: int, changed: dict[str, object]) -> list[str]:
    settings = SHORT | METHOD[method] | {"profile.drift.prompts": 0, "profile.budget.limit": 250}
    settings |= {"method.groups": groups} if "method.pool.prompts" in settings else {}
    settings |= {"profile.pretrained.source": source, "profile.pretrained.text_cache": out.parent / "texts"}
    settings |= {"method.optimiser.learning_rate": 1e-4} | changed
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    flags += ["--profile", PROFILE[method], "--method", method, "--out", str(out), "--device", "cpu"]
    return [sys.executable, "-c", BRIGHT, "run", "ocr", *flags]


def run(size: int, method: str, source: Path, out: Path, groups: int, **changed: object) -> Path:
    """The folder of a run on so many processes, made once."""
    if not list(out.glob("ocr/*/*/run.json")):
        settings = {name.replace("__", "."): value for name, value in changed.items()}
        ended = test_distributed.finish(test_distributed.start(size, command(method, source, out, groups, settings)))
        assert [code for code, *_ in ended] == [0] * size, "\n".join(output + errors for _, output, errors in ended)
    return next(out.glob("ocr/*/*/run.json")).parent


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("groups", [4, 5])
@pytest.mark.parametrize("method", list(METHOD))
def test_a_method_on_many_processes(
    method: str, groups: int, sharded: bool, size: int, saved: dict[str, Path], together: Path
) -> None:
    if groups == 4 and method not in ("gdro", "dpo", "rft"):
        pytest.skip("its groups are those of an epoch, whose images or groups no number of processes here divides")
    source, name = saved[PROFILE[method]], f"{method}-{groups}"
    alone = run(1, method, source, together / f"{name}-alone", groups)
    many = run(
        size,
        method,
        source,
        together / f"{name}-{size}-{sharded}",
        groups,
        profile__pretrained__sharded=str(sharded).lower(),
    )
    test_distributed.assert_alike(
        alone, many, reward=1e-4, steps=0.05, cancelling=1e-3 if method == "dance-grpo" else 1e-5
    )
    assert record.read(many).points[-1].updates > 0


@pytest.mark.parametrize("size", [2, 8])
def test_the_papers_85_groups_one_a_pass(size: int, saved: dict[str, Path], together: Path) -> None:
    settings = {
        "method__k": 2,
        "method__optimiser__batch": 2,
        "profile__budget__limit": 500,
        "profile__sampler__steps": 1,
    }
    source = saved["flux1-dev"]
    alone = run(1, "gdro", source, together / "85-alone", 85, **settings)
    many = run(size, "gdro", source, together / f"85-{size}", 85, profile__pretrained__sharded="true", **settings)
    test_distributed.assert_alike(alone, many, reward=1e-4, steps=0.05)
