"""What README and reports claim is what the records beside them say."""

import re
from pathlib import Path

import pandas as pd
import pytest

from gdro_bench.compare import entries, matched, report
from gdro_bench.engine import record
from gdro_bench.engine.record import Run
from gdro_bench.models.pocket.policy import WEATHERED, WEIGHTS, weights_digest

ROOT = Path(__file__).parents[1]
REPORTS = sorted(path.parent for path in (ROOT / "reports").rglob("runs") if path.is_dir())
MAIN, GENEVAL = ROOT / "reports" / "ocr-pocket", ROOT / "reports" / "geneval-pocket"
DPO = ROOT / "reports" / "dpo" / "geneval-pocket"
SIGNATURES = ROOT / "reports" / "signatures" / "ocr-pocket"


def runs_of(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "runs").rglob("run.json"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT / "reports"))


ALL_RUNS = [folder for one in REPORTS for folder in runs_of(one)]
SEEDS = [folder for folder in runs_of(MAIN) if re.fullmatch(r"gdro-s\d", folder.name)]


def row(run: Run) -> str:
    base, last = run.points[0], run.points[-1]
    return f"| {run.seed} | {base.reward} | {last.reward} | {last.gain} |"


@pytest.mark.parametrize("folder", SEEDS, ids=named)
def test_the_readme_quotes_the_record(folder):
    assert row(record.read(folder)) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", [MAIN / "in-short.md", GENEVAL / "in-short.md", GENEVAL / "verdict.md"], ids=named)
def test_the_readme_quotes_the_comparison(table):
    assert table.read_text(encoding="utf-8") in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", runs_of(GENEVAL), ids=named)
def test_every_geneval_run_ends_above_its_base(folder):
    assert record.read(folder).points[-1].gain.low > 0


def test_the_readme_quotes_the_hacked_run():
    rows = (SIGNATURES / "in-short.md").read_text(encoding="utf-8").splitlines()
    cells = next(row for row in rows if "gamma=0.0" in row).strip("| ").split(" | ")
    for said in cells[-2:]:  # the corrected score against its best, gold against the base's
        word, value = said.split(": ")
        assert word == "below"
        assert value in re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_reports_quote_dpo_against_gdro_on_geneval():
    compared = entries.compare([entries.load(folder) for folder in runs_of(GENEVAL) + runs_of(DPO)], variants=False)
    dpo = next(end for end in matched.at_budget(compared) if end.entry.label == "dpo")
    said = f"ends at {dpo.reward}, against GDRO's {dpo.difference}"
    assert said in re.sub(r"\s+", " ", (ROOT / "reports" / "README.md").read_text(encoding="utf-8"))


def changed_row(folder: Path) -> str:
    """What one changed number did: reward, gain, and s of the best and the worst image over the last fifth."""
    run, steps = record.read(folder), pd.read_parquet(folder / "steps.parquet")
    updates = steps[steps["kind"] == "optimise"]
    end = updates.iloc[-(len(updates) // 5) :]
    said = ", ".join(run.changed) or "none"
    s = f"{end['s_top1'].mean():.2f} | {end['s_worst'].mean():.2f}"
    return f"| {said} | {len(updates)} | {run.points[-1].reward} | {run.points[-1].gain} | {s} |"


@pytest.mark.parametrize("folder", [f for f in runs_of(SIGNATURES) if f.name.endswith("s0")], ids=named)
def test_the_reports_quote_what_one_number_does(folder):
    assert changed_row(folder) in (ROOT / "reports" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ALL_RUNS, ids=named)
def test_a_record_is_the_mean_of_its_scores(folder):
    scores = record.read_scores(folder)
    for point in record.read(folder).points:
        assert scores[scores["mark"] == point.mark]["value"].mean() == pytest.approx(point.reward.mean)


def test_the_records_are_of_the_shipped_models():
    shipped = {"ocr": weights_digest(WEIGHTS), "geneval": weights_digest(WEATHERED)}
    for run in map(record.read, ALL_RUNS):
        assert run.digests["model"] == f"pocket-{shipped[run.task]}"


def test_there_are_seeds_to_quote():
    assert [record.read(folder).seed for folder in SEEDS] == list(range(len(SEEDS))) != []


def test_seeds_of_a_method_share_its_setting():
    for one in REPORTS:
        by_method: dict[str, list[Run]] = {}
        for folder in runs_of(one):
            if re.fullmatch(r"[a-z-]+-s\d", folder.name):
                by_method.setdefault(record.read(folder).method, []).append(record.read(folder))
        assert all(run.settings == runs[0].settings for runs in by_method.values() for run in runs)


def text_of(path: Path) -> str:
    """Without the figures' pixels, which depend on the version of the drawing library; their data are in CSV files."""
    return re.sub(r"data:image/png;base64,[^\"]*", "", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", REPORTS, ids=named)
def test_the_report_is_a_function_of_the_records(folder, tmp_path):
    runs = [entries.load(run) for run in runs_of(folder)]
    report.write(entries.compare(runs, variants=folder == SIGNATURES), tmp_path, "evaluations", None)
    for path in folder.glob("*.*"):
        assert (tmp_path / path.name).exists(), path.name
        if path.suffix in (".csv", ".md", ".tex", ".html"):
            assert text_of(tmp_path / path.name) == text_of(path), path.name
