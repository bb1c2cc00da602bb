"""The last healthy mark: the rule on curves made by hand, and what a run keeps and writes for it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.torch import load_file
from test_run import SHORT, arguments, folder, recorded

from gdro_bench.cli import main
from gdro_bench.engine import artifacts, folders, health, plan, record
from gdro_bench.engine.health import verdict
from gdro_bench.errors import BenchError

NAN = math.nan
PROMPTS = 40
SPREAD = np.linspace(-1, 1, PROMPTS)  # of prompts around a mean: cancels where points are paired
UNKNOWN = np.full(PROMPTS, NAN)


def rated(*means: float) -> NDArray[np.float64]:
    """Ratings [M, N] whose differences between points have a little noise of their own."""
    noise = np.random.default_rng(0).normal(0, 0.1, (len(means), PROMPTS))
    return np.array(means)[:, None] + SPREAD + noise - noise.mean(axis=1, keepdims=True)


def found(ratings: NDArray[np.float64], kl: list[float] | None = None, limit: float = 10.0) -> health.Verdict:
    marks = [i / (len(ratings) - 1) for i in range(len(ratings))]
    return verdict(marks, ratings, np.array(kl or [0.0] * len(ratings)), limit)


# -- the rule


@pytest.mark.parametrize(
    ("means", "last"),
    [
        ([3.0, 3.2, 3.4, 3.6], 3),  # rises
        ([3.0, 3.0, 3.0, 3.0], 3),  # stays
        ([3.0, 3.4, 3.0, 2.5], 1),  # turns
        ([3.0, 3.4, 3.39, 2.5], 2),  # a dip within noise is no turn
        ([3.0, 3.4, 2.8, 3.4, 3.5], 4),  # falls and comes back
        ([3.0, 3.4, 2.8, 3.4, 2.9, 2.8], 3),  # comes back, and falls for good
        ([3.0, 2.6, 2.4, 2.2], 0),  # falls from the start
        ([3.0, 2.6, 2.8, 2.9], 0),  # rises again, but stays below its best
        ([3.0, 3.2, 3.4, 3.0], 2),  # falls where the run ends
    ],
)
def test_the_last_point_before_the_judge_turned(means: list[float], last: int) -> None:
    assert found(rated(*means)).last == last


def test_the_best_is_the_best_so_far_and_not_the_best_of_all() -> None:
    """Every point of a rising curve lies below the end."""
    assert found(rated(2.0, 3.0, 4.0, 5.0)).healthy == (True,) * 4


def test_points_are_paired_over_prompts() -> None:
    """A fall that is small beside the spread of prompts is one, if nearly all prompts fell."""
    ratings = np.stack([10 * SPREAD, 10 * SPREAD - 0.05 - 0.01 * np.abs(SPREAD)])
    assert found(ratings).healthy == (True, False)
    shuffled = np.stack([ratings[0], ratings[1][::-1]])
    assert found(shuffled).healthy == (True, True)


def test_why_names_the_fall_and_the_best() -> None:
    why = found(rated(3.0, 3.4, 3.0, 2.5, 2.4)).why
    assert "changed at 50% by -0.400 [" in why
    assert "from its best, 3.400 at 25%, and did not come back" in why
    assert "where the run ended" in found(rated(3.0, 3.4, 2.5)).why
    assert "never fell" in found(rated(3.0, 3.4, 3.4)).why


def test_an_unknown_rating_is_neither_healthy_nor_a_fall() -> None:
    ratings = rated(3.0, 3.4, 3.4, 2.5)
    ratings[2] = NAN
    assert found(ratings).healthy == (True, True, None, False)
    assert found(ratings).last == 1
    ratings[0] = NAN
    assert found(ratings).healthy == (None, True, None, False)
    few = rated(3.0, 3.4, 2.5)
    few[:, ::2] = NAN  # every second prompt is unknown
    assert found(few).last == 1


def test_ratings_rule_where_they_are_known_whatever_the_divergence() -> None:
    assert found(rated(3.0, 3.4, 3.5), [0.0, 100.0, 200.0]).last == 2


@pytest.mark.parametrize(
    ("kl", "last", "healthy"),
    [
        ([0.0, 5.0, 9.0, 10.0], 3, (True, True, True, True)),
        ([0.0, 5.0, 11.0, 20.0], 1, (True, True, False, False)),
        ([0.0, 11.0, 5.0, 20.0], 0, (True, False, True, False)),  # the first crossing counts
        ([0.0, 5.0, NAN, 20.0], 1, (True, True, None, False)),
        ([NAN, NAN, NAN, NAN], None, (None,) * 4),
    ],
)
def test_without_a_judge_the_divergence_tells(
    kl: list[float], last: int | None, healthy: tuple[bool | None, ...]
) -> None:
    seen = found(np.stack([UNKNOWN] * 4), kl)
    assert (seen.last, seen.healthy) == (last, healthy)


def test_why_says_that_no_judge_rated() -> None:
    unknown = np.stack([UNKNOWN] * 3)
    assert found(unknown, [0.0, 5.0, 11.25]).why == (
        "No judge rated; at 100% the path's KL from the base was 11.2 nats, over 10."
    )
    assert "stayed within 10 nats" in found(unknown, [0.0, 1.0, 2.0]).why
    assert "Neither" in found(unknown, [NAN] * 3).why


# -- a run


def call(out: Path, method: str = "gdro", **changed: object) -> Result:
    return CliRunner().invoke(main, arguments(out, method, **changed))


def read(out: Path) -> dict:
    return json.loads((folder(out) / "health.json").read_text(), parse_constant=pytest.fail)


def test_health_prompts_are_training_prompts_of_any_method_and_seed(tmp_path: Path) -> None:
    plans = [plan.make_plan("ocr", method, "pocket", seed, tmp_path) for method, seed in (("gdro", 0), ("dpo", 3))]
    assert plans[0].health == plans[1].health
    texts = [prompt.text for prompt in plans[0].health]
    assert len(set(texts)) == plans[0].profile.health.prompts
    assert set(texts) <= {prompt.text for prompt in plans[0].train}
    assert not set(texts) & {prompt.text for prompt in plans[0].held_out}
    assert set(plans[0].health) <= set(plans[0].all_prompts)
    few = tmp_path / "few.txt"
    few.write_text('a sign that reads "CAFE"\n' * 3 + 'a sign that reads "OWL"\n')
    small = ["method.pool.prompts=4"]
    assert len(plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, small, train_prompts=few).health) == 2


def test_health_moves_no_number_and_no_name(tmp_path: Path) -> None:
    settings = ("profile.health.prompts=0", "profile.keep_adapters=false")
    one, other = (plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, some) for some in ((), settings))
    assert (one.digests, one.folder) == (other.digests, other.folder)


def test_a_run_names_its_last_healthy_checkpoint(short_run: tuple[Path, str]) -> None:
    out, said = short_run
    table, run = read(out), record.read(folder(out))
    assert [point["mark"] for point in table["points"]] == [point.mark for point in run.points]
    assert len(table["prompts"]) == SHORT["profile.health.prompts"]
    assert table["judge"].startswith("pocket judge")
    marks, ratings = ([point[name] for point in table["points"]] for name in ("mark", "ratings"))
    kl = [point["statistics"]["path_kl"] for point in table["points"]]
    again = verdict(marks, np.array(ratings), np.array(kl), table["kl_limit"])
    assert again.last is not None
    assert table["last_healthy"]["mark"] == marks[again.last]
    assert table["last_healthy"]["why"] == again.why
    assert kl[0] == 0 < kl[-1]
    assert f"Last healthy mark: {marks[again.last]:.0%} of the budget, {folder(out)}/loras/" in said
    assert again.why in said


def test_every_point_s_adapters_are_kept_and_can_be_evaluated(short_run: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = short_run
    names = sorted(path.name for path in (folder(out) / "loras").iterdir())
    assert names == ["0.0", "0.6", "1.0"]
    file = "pytorch_lora_weights.safetensors"
    first, middle, last = (load_file(folder(out) / "loras" / name / file) for name in names)
    end = load_file(folder(out) / "lora" / file)
    assert all(torch.equal(last[name], end[name]) for name in end)
    assert any(not torch.equal(last[name], middle[name]) for name in end)
    assert all(not weights.any() for name, weights in first.items() if "lora_B" in name)
    flags = [part for name in ("sampler.steps", "held_out_prompts", "reader.workers")
             for part in ("--set", f"profile.{name}={SHORT[f'profile.{name}']}")]  # fmt: skip
    for name, point in zip(names, record.read(folder(out)).points, strict=True):
        command = ["eval", "ocr", "--lora", str(folder(out) / "loras" / name), "--out", str(tmp_path / name), *flags]
        result = CliRunner().invoke(main, [*command, "--device", "cpu"])
        assert result.exit_code == 0, result.output
        reward = json.loads((tmp_path / name / "eval.json").read_text())["reward"]["mean"]
        assert reward == pytest.approx(point.reward.mean, abs=1e-9)


@pytest.mark.slow
def test_without_health_and_adapters_the_record_is_the_same(short_run: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = short_run
    result = call(tmp_path, profile__health__prompts=0, profile__keep_adapters="false")
    assert result.exit_code == 0, result.output
    assert "healthy" not in result.output
    assert not (folder(tmp_path) / "health.json").exists()
    assert not (folder(tmp_path) / "loras").exists()
    one, other = record.read(folder(out)), record.read(folder(tmp_path))
    assert (one.points, one.digests) == (other.points, other.digests)
    scores = [record.read_scores(folder(place)).to_csv() for place in (out, tmp_path)]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_without_a_judge_the_limit_of_the_divergence_tells(tmp_path: Path) -> None:
    result = call(tmp_path, profile__health__judge="none", profile__health__kl_limit=1e-9)
    assert result.exit_code == 0, result.output
    table = read(tmp_path)
    assert table["judge"] == "none"
    assert table["points"][1]["rating"]["mean"] is None
    assert table["last_healthy"]["mark"] == 0.0
    assert "No judge rated; at 60%" in table["last_healthy"]["why"]


def test_one_run_has_one_rule(short_run: tuple[Path, str]) -> None:
    out, _ = short_run
    before = recorded(out)
    result = call(out, profile__health__prompts=4)
    assert result.exit_code == 1
    assert "holds a run with another health" in result.output
    assert recorded(out) == before


def test_kept_adapters_are_whole_or_not_there(tmp_path: Path) -> None:
    place = folders.adapters_of(tmp_path, 0.5)
    for leftover in (place, place.with_name("0.5.partial")):
        leftover.mkdir(parents=True)
        (leftover / "old").write_text("of a run that was killed")

    def save(to: Path) -> None:
        to.mkdir()
        (to / "new").write_text("")

    def fail(to: Path) -> None:
        save(to)
        raise OSError(28, "No space left on device")

    artifacts.keep_adapters(place, save)
    assert [path.name for path in place.iterdir()] == ["new"]
    assert [path.name for path in place.parent.iterdir()] == ["0.5"]
    with pytest.raises(BenchError, match="No space left"):
        artifacts.keep_adapters(folders.adapters_of(tmp_path, 0.6), fail)
    assert not folders.adapters_of(tmp_path, 0.6).exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"last_healthy": {"mark": "x", "adapters": null, "why": ""}}'])
def test_a_damaged_health_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "health.json").write_text(text)
    with pytest.raises(BenchError, match="is damaged"):
        health.read(tmp_path)


def test_a_run_of_an_older_version_has_none(tmp_path: Path) -> None:
    assert health.read(tmp_path) is None
