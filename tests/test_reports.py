"""What README and reports claim is what the records beside them say."""

from pathlib import Path

import pytest

from gdro_bench import record
from gdro_bench.models.pocket.policy import WEIGHTS, weights_digest
from gdro_bench.record import Run

ROOT = Path(__file__).parents[1]
RUNS = sorted(path.parent for path in (ROOT / "reports").glob("*/*/run.json"))


def row(run: Run) -> str:
    base, last = run.points[0], run.points[-1]
    return f"| {run.seed} | {base.reward} | {last.reward} | {last.gain} |"


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_the_readme_quotes_the_record(folder):
    run = record.read(folder)
    scores = record.read_scores(folder)
    assert row(run) in (ROOT / "README.md").read_text(encoding="utf-8")
    for point in run.points:
        assert scores[scores["mark"] == point.mark]["value"].mean() == pytest.approx(point.reward.mean)


def test_the_records_are_of_the_shipped_model():
    assert {record.read(folder).digests["model"] for folder in RUNS} == {f"pocket-{weights_digest(WEIGHTS)}"}


def test_there_are_three_seeds_of_one_setting():
    runs = [record.read(folder) for folder in RUNS]
    assert [run.seed for run in runs] == [0, 1, 2]
    assert all(run.settings == runs[0].settings for run in runs)
