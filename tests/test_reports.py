"""What README and reports claim is what the records beside them say."""

import re
from pathlib import Path

import pandas as pd
import pytest

from gdro_bench import record
from gdro_bench.compare import entries, report
from gdro_bench.models.pocket.policy import WEIGHTS, weights_digest
from gdro_bench.record import Run

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "reports" / "ocr-pocket"
RUNS = sorted(path.parent for path in (REPORT / "runs").rglob("run.json"))
SEEDS = [folder for folder in RUNS if re.fullmatch(r"gdro-s\d", folder.name)]


def row(run: Run) -> str:
    base, last = run.points[0], run.points[-1]
    return f"| {run.seed} | {base.reward} | {last.reward} | {last.gain} |"


@pytest.mark.parametrize("folder", SEEDS, ids=lambda path: path.name)
def test_the_readme_quotes_the_record(folder):
    assert row(record.read(folder)) in (ROOT / "README.md").read_text(encoding="utf-8")


def changed_row(folder: Path) -> str:
    """What one changed number did: reward, gain, and s of the best and the worst image over the last fifth."""
    run, steps = record.read(folder), pd.read_parquet(folder / "steps.parquet")
    updates = steps[steps["kind"] == "optimise"]
    end = updates.iloc[-(len(updates) // 5) :]
    said = ", ".join(run.changed) or "none"
    s = f"{end['s_top1'].mean():.2f} | {end['s_worst'].mean():.2f}"
    return f"| {said} | {len(updates)} | {run.points[-1].reward} | {run.points[-1].gain} | {s} |"


@pytest.mark.parametrize(
    "folder", [folder for folder in RUNS if folder.name.endswith("s0")], ids=lambda path: path.name
)
def test_the_reports_quote_what_one_number_does(folder):
    assert changed_row(folder) in (ROOT / "reports" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_a_record_is_the_mean_of_its_scores(folder):
    scores = record.read_scores(folder)
    for point in record.read(folder).points:
        assert scores[scores["mark"] == point.mark]["value"].mean() == pytest.approx(point.reward.mean)


def test_the_records_are_of_the_shipped_model():
    assert {record.read(folder).digests["model"] for folder in RUNS} == {f"pocket-{weights_digest(WEIGHTS)}"}


def test_there_are_three_seeds_of_one_setting():
    runs = [record.read(folder) for folder in SEEDS]
    assert [run.seed for run in runs] == [0, 1, 2]
    assert all(run.settings == runs[0].settings for run in runs)


def text_of(path: Path) -> str:
    """Without the figures' pixels, which depend on the version of the drawing library; their data are in CSV files."""
    return re.sub(r"data:image/png;base64,[^\"]*", "", path.read_text(encoding="utf-8"))


def test_the_report_is_a_function_of_the_records(tmp_path):
    runs = [entries.load(folder) for folder in RUNS]
    report.write(entries.compare(runs, variants=False), tmp_path, "evaluations", None)
    for path in REPORT.glob("*.*"):
        assert (tmp_path / path.name).exists(), path.name
        if path.suffix in (".csv", ".md", ".tex", ".html"):
            assert text_of(tmp_path / path.name) == text_of(path), path.name
