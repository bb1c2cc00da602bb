"""What README and reports claim is what the records beside them say."""

import re
from pathlib import Path

import pandas as pd
import pytest

from gdro_bench.comparison import entries, matched, report
from gdro_bench.engine import record
from gdro_bench.engine.record import Run

ROOT = Path(__file__).parents[1]
REPORTS = sorted(path.parent for path in (ROOT / "reports").rglob("runs") if path.is_dir())
MAIN, GENEVAL = ROOT / "reports" / "ocr-pocket", ROOT / "reports" / "geneval-pocket"
DPO = ROOT / "reports" / "geneval-pocket-dpo"
ABLATIONS = ROOT / "reports" / "ocr-pocket-ablations"
README, REPORTS_README = ROOT / "README.md", ROOT / "reports" / "README.md"
TEXTS = {path: re.sub(r"\s+", " ", path.read_text(encoding="utf-8")) for path in (README, REPORTS_README)}


def runs_of(folder: Path) -> list[Path]:
    """A report's runs; the ablations hold GDRO's unchanged runs of the main report against theirs."""
    own = sorted(path.parent for path in (folder / "runs").rglob("run.json"))
    return own + (SEEDS if folder == ABLATIONS else [])


def named(path: Path) -> str:
    return str(path.relative_to(ROOT / "reports"))


def named_page(path: Path) -> str:
    return str(path.relative_to(ROOT))


SEEDS = [path.parent for path in sorted((MAIN / "runs").glob("gdro-s?/run.json"))]
ALL_RUNS = sorted({folder for one in REPORTS for folder in runs_of(one)})


def columns(report_folder: Path, title: str = "In short") -> dict[str, dict[str, str]]:
    """A table of a report.md: method -> heading -> cell."""
    text = (report_folder / "report.md").read_text(encoding="utf-8")
    lines = re.split(rf"## {title}.*\n\n", text)[1].split("\n\n")[0]
    head, _, *rows = [line.strip("| ").split(" | ") for line in lines.splitlines()]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in rows}


def test_the_readme_quotes_the_main_report():
    for method, cells in columns(MAIN).items():
        cost, gold = cells["cost of R*, times gdro's"], cells["gold, against the base's"].split(": ")[1]
        assert f"| {method} | {cells['reward at the end']} | {cost} | {gold} |" in TEXTS[README]


def test_the_reports_quote_seed_0_of_gdro_point_by_point():
    run = record.read(MAIN / "runs" / "gdro-s0")
    for point in (p for p in run.points if p.updates):
        row = f"| {point.mark:.0%} | {point.updates} | {point.evaluations:,} | {point.reward} | {point.gain} |"
        assert row in TEXTS[REPORTS_README]


@pytest.mark.parametrize("folder", [MAIN, GENEVAL], ids=named)
def test_the_reports_quote_the_table_in_short(folder):
    table = (folder / "report.md").read_text(encoding="utf-8").split("## In short\n\n")[1].split("\n\n")[0]
    assert table in REPORTS_README.read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", SEEDS, ids=named)
def test_the_reports_quote_each_seed_of_gdro(folder):
    run = record.read(folder)
    base, last = run.points[0], run.points[-1]
    assert f"| {run.seed} | {base.reward} | {last.reward} | {last.gain} |" in TEXTS[REPORTS_README]


@pytest.mark.parametrize("folder", runs_of(GENEVAL), ids=named)
def test_every_geneval_run_ends_above_its_base(folder):
    assert record.read(folder).points[-1].gain.low > 0


def test_the_reports_quote_the_hacked_run():
    for title, heading in (
        ("At matched budget", "corrected score against its best"),
        ("In short", "gold, against the base's"),
    ):
        cells = next(cells for label, cells in columns(ABLATIONS, title).items() if "gamma=0.0" in label)
        word, value = cells[heading].split(": ")
        assert word == "below"
        assert value in TEXTS[REPORTS_README]


def test_the_reports_quote_dpo_against_gdro_on_geneval():
    compared = entries.compare([entries.load(folder) for folder in runs_of(GENEVAL) + runs_of(DPO)], variants=False)
    dpo = next(end for end in matched.at_budget(compared) if end.entry.label == "dpo")
    assert f"ends at {dpo.reward}, against GDRO's {dpo.difference}" in TEXTS[REPORTS_README]


def changed_row(folder: Path) -> str:
    """What one changed number did: reward, gain, and s of the best and the worst image over the last fifth."""
    run, steps = record.read(folder), pd.read_parquet(folder / "steps.parquet")
    updates = steps[steps["kind"] == "optimise"]
    end = updates.iloc[-(len(updates) // 5) :]
    changed = ", ".join(run.changed) or "none"
    s = f"{end['s_top1'].mean():.2f} | {end['s_worst'].mean():.2f}"
    return f"| {changed} | {len(updates)} | {run.points[-1].reward} | {run.points[-1].gain} | {s} |"


@pytest.mark.parametrize("folder", [f for f in runs_of(ABLATIONS) if f.name.endswith("s0")], ids=named)
def test_the_reports_quote_what_one_number_does(folder):
    assert changed_row(folder) in TEXTS[REPORTS_README]


@pytest.mark.parametrize("folder", ALL_RUNS, ids=named)
def test_a_record_is_the_mean_of_its_scores(folder):
    scores = record.read_scores(folder)
    for point in record.read(folder).points:
        assert scores[scores["mark"] == point.mark]["value"].mean() == pytest.approx(point.reward.mean)


def test_the_records_are_of_the_first_edition_s_models():
    first = {"ocr": "d47eddecad17", "geneval": "d6416ba9ece4"}
    for run in map(record.read, ALL_RUNS):
        assert run.digests["model"] == f"pocket-{first[run.task]}"


def test_there_are_seeds_to_quote():
    assert [record.read(folder).seed for folder in SEEDS] == list(range(len(SEEDS))) != []


def test_seeds_of_a_method_share_its_setting():
    for one in REPORTS:
        by_method: dict[str, list[Run]] = {}
        for folder in runs_of(one):
            if re.fullmatch(r"[a-z-]+-s\d", folder.name):
                by_method.setdefault(record.read(folder).method, []).append(record.read(folder))
        assert all(run.settings == runs[0].settings for runs in by_method.values() for run in runs)


@pytest.mark.parametrize(
    "folder",
    [pytest.param(folder, marks=[] if folder in (MAIN, GENEVAL) else [pytest.mark.slow]) for folder in REPORTS],
    ids=named,
)
def test_the_report_is_a_function_of_the_records(folder, tmp_path):
    runs = [entries.load(run) for run in runs_of(folder)]
    report.write(entries.compare(runs, variants=folder == ABLATIONS), tmp_path, "evaluations", None)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == (folder / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "page.html").exists()
    for path in folder.glob("*.png"):  # its pixels depend on the version of the drawing library
        assert (tmp_path / path.name).exists(), path.name


def linked_pictures(page: Path) -> set[Path]:
    links = re.findall(r"\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8"))
    return {(page.parent / link).resolve() for link in links}


@pytest.mark.parametrize("page", [README, REPORTS_README], ids=named_page)
def test_every_picture_is_there_and_shown(page):
    assert linked_pictures(page)
    assert all(path.is_file() for path in linked_pictures(page))


def test_no_picture_is_kept_that_nothing_shows():
    kept = {path.resolve() for path in (ROOT / "reports").rglob("*.png")}
    assert kept <= linked_pictures(README) | linked_pictures(REPORTS_README)
