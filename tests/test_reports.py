"""What README and reports claim is what the records beside them say."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from gdro_bench import content, stats
from gdro_bench.engine import judging, plan, record
from gdro_bench.engine.record import Run
from gdro_bench.models.pocket.policy import PocketPolicy

ROOT = Path(__file__).parents[1]
REPORTS = sorted(path.parent for path in (ROOT / "reports").rglob("runs") if path.is_dir())
COMPARISONS = [ROOT / "reports" / name for name in ("ocr-pocket", "geneval-pocket")]
README, REPORTS_README = ROOT / "README.md", ROOT / "reports" / "README.md"
TEXTS = {path: re.sub(r"\s+", " ", path.read_text(encoding="utf-8")) for path in (README, REPORTS_README)}


def script() -> ModuleType:
    """The one that made the reports."""
    spec = importlib.util.spec_from_file_location("keep", ROOT / "benchmarks" / "keep_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KEEP = script()
QUOTED, IN_README = KEEP.QUOTED, KEEP.IN_README


def runs_of(folder: Path) -> list[Path]:
    runs: list[Path] = KEEP.runs_of(folder)
    return runs


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


ALL_RUNS = sorted(path.parent for path in (ROOT / "reports").rglob("run.json"))
PLAIN = [run for folder in COMPARISONS for run in runs_of(folder)]


def test_each_method_that_the_readme_shows_is_in_a_comparison() -> None:
    assert set(IN_README) <= {method.split(" (")[0] for folder in COMPARISONS for method in KEEP.cells(folder)}


@pytest.mark.parametrize("folder", COMPARISONS, ids=named)
def test_the_readme_quotes_the_comparisons(folder: Path) -> None:
    shown = KEEP.readme_rows(folder).splitlines()
    known = {method.split(" (")[0] for method in KEEP.cells(folder)}
    assert {"gdro", "flow-grpo"} <= known
    assert {row.split(" | ")[1].split(" (")[0] for row in shown} == known & set(IN_README)
    assert all(row in TEXTS[README] for row in shown)
    base = record.read(runs_of(folder)[0]).points[0].reward.mean
    assert f"{base:.3f} on {'OCR' if 'ocr' in folder.name else 'GenEval'}" in TEXTS[README]


def section(folder: Path) -> str:
    """What reports/README.md says of a report."""
    text = REPORTS_README.read_text(encoding="utf-8")
    after = re.split(rf"^## {folder.name}\n", text, flags=re.MULTILINE)[1]
    return re.split(r"^## ", after, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("folder", REPORTS, ids=named)
def test_the_reports_quote_the_tables(folder: Path) -> None:
    """Whole, where a section shows one of them; the comparisons show all."""
    told = section(folder)
    shown = [title for title, head in QUOTED.items() if head in told]
    assert len(shown) == len(QUOTED) or folder not in COMPARISONS
    assert all(KEEP.table(folder, title) in told for title in shown)


def test_a_stale_table_is_quoted_anew_and_nothing_else_changes() -> None:
    text, folder = REPORTS_README.read_text(encoding="utf-8"), COMPARISONS[0]
    told = KEEP.table(folder, "Errors by kind")
    stale = text.replace(told, told.replace("[", "[9"))
    assert stale != text
    assert KEEP.quoted(stale, folder) == text
    assert KEEP.quoted(stale, COMPARISONS[1]) == stale


INTERVAL = r"-?[\d.,]+%? \[[^\[\]]*\d[^\[\]]*\]"  # a number with its interval, its plus sign left out


@pytest.mark.parametrize("folder", REPORTS, ids=named)
def test_every_interval_of_a_section_is_in_its_report_or_records(folder: Path) -> None:
    """In tables that call runs by shorter names, too, and in the words below them."""
    told = re.findall(INTERVAL, re.sub(r"\s+", " ", section(folder)))
    known = set(re.findall(INTERVAL, (folder / "report.md").read_text(encoding="utf-8")))
    known |= {str(point.reward) for run in runs_of(folder) for point in record.read(run).points}
    known |= on_the_way(folder) if folder.name.startswith("long-") else set()
    known |= unpaid_gains(folder) if (folder / "unpaid").exists() else set()
    assert told
    assert set(told) <= known


def on_the_way(folder: Path) -> set[str]:
    """What gold and the judge's rating have changed by at every evaluation point, over the pictures judged."""
    found = set()
    for run in runs_of(folder):
        judged = judging.read(run).set_index("prompt")
        texts = record.read_scores(run).query("mark == 0").set_index("prompt")["text"]
        base = judged[judged["mark"] == 0.0]
        weights = stats.draws_of(texts[base.index].tolist(), seed=0)
        for _, there in judged.groupby("mark"):
            moved = (there[["gold", "u"]] - base[["gold", "u"]]).loc[base.index].to_numpy()
            drawn = weights @ moved / weights.sum(axis=1)[:, None]
            found |= {str(stats.estimate(float(moved[:, i].mean()), drawn[:, i])) for i in range(2)}
    return found


def unpaid_gains(folder: Path) -> set[str]:
    """Of the cue and of ocr, where nothing is paid for the cue: the adapters' pictures against the exploit's base."""
    base = record.read_scores(runs_of(folder)[0]).query("mark == 0").sort_values("prompt")
    ended = pd.read_csv(folder / "unpaid" / "scores.csv")
    assert ended["prompt"].tolist() == base["text"].tolist()
    weights = stats.draws_of(base["text"].tolist(), seed=0)
    gains = {name: ended[name].to_numpy() - base[name].to_numpy() for name in ("cue", "ocr")}
    return {str(stats.estimate(float(x.mean()), weights @ x / weights.sum(axis=1))) for x in gains.values()}


@pytest.mark.parametrize("folder", ALL_RUNS, ids=named)
def test_a_record_is_the_mean_of_its_scores(folder: Path) -> None:
    scores = record.read_scores(folder)
    for point in record.read(folder).points:
        assert scores[scores["mark"] == point.mark]["value"].mean() == pytest.approx(point.reward.mean)


def test_no_record_is_kept_twice() -> None:
    runs = [record.read(folder) for folder in ALL_RUNS]
    assert len({content.digest(run) for run in runs}) == len(runs)


def test_the_records_are_of_the_base_that_is_here() -> None:
    here = PocketPolicy.open("cpu", None, 0).name
    assert {record.read(folder).digests["model"] for folder in ALL_RUNS} == {here}


@pytest.mark.parametrize("folder", PLAIN, ids=named)
def test_the_compared_runs_have_the_numbers_that_are_here(folder: Path) -> None:
    run = record.read(folder)
    here = plan.make_plan(run.task, run.method, run.profile, run.seed, Path("runs"), list(run.changed))
    assert run.digests["method"] == content.digest(here.settings["method"])
    names = ("held_out", "train")
    assert [run.digests[name] for name in names] == [here.digests[name] for name in names]


def test_seeds_of_a_method_share_its_setting() -> None:
    for folder in REPORTS:
        by_name: dict[str, list[Run]] = {}
        for run in runs_of(folder):
            by_name.setdefault(re.sub(r"-s\d+$", "", run.name), []).append(record.read(run))
        assert all(run.settings == runs[0].settings for runs in by_name.values() for run in runs)


def test_a_kept_table_has_the_same_rows_and_instruments(tmp_path: Path) -> None:
    rows = {"mark": [0.0, 0.5], "prompt": [0, 1], "judge_note": ["", "no answer"], "u": [4.5, float("nan")]}
    whole, kept = tmp_path / "judged.parquet", tmp_path / "kept.parquet"
    table = pa.Table.from_pandas(pd.DataFrame(rows))
    parquet.write_table(table.replace_schema_metadata((table.schema.metadata or {}) | {b"names": b"{}"}), whole)
    KEEP.copy(whole, kept)
    pd.testing.assert_frame_equal(pd.read_parquet(kept), pd.DataFrame(rows), check_exact=True)
    assert parquet.read_schema(kept).metadata == {b"names": b"{}"}
    assert kept.stat().st_size < whole.stat().st_size / 2


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize(
    "folder",
    [pytest.param(folder, marks=[] if folder == COMPARISONS[0] else [pytest.mark.slow]) for folder in REPORTS],
    ids=named,
)
def test_the_report_is_a_function_of_the_records(folder: Path, tmp_path: Path) -> None:
    KEEP.write(KEEP.compared(runs_of(folder)), tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == (folder / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "page.html").exists()
    for path in folder.glob("*.png"):  # what they look like depends on the version of the drawing library
        assert (tmp_path / path.name).exists(), path.name


def test_the_claims_are_judged_on_the_records(tmp_path: Path) -> None:
    KEEP.judge(tmp_path)
    kept = (ROOT / "reports" / "claims" / "claims.md").read_text(encoding="utf-8")
    assert (tmp_path / "pocket" / "claims.md").read_text(encoding="utf-8") == kept
    (sentence,) = re.findall(r"^- (Of \d+ claims: .*)$", kept, re.MULTILINE)
    assert sentence in TEXTS[REPORTS_README]


def linked_pictures(page: Path) -> set[Path]:
    links = re.findall(r"\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8"))
    return {(page.parent / link).resolve() for link in links}


@pytest.mark.parametrize("page", [README, REPORTS_README], ids=named)
def test_every_picture_is_there_and_shown(page: Path) -> None:
    assert linked_pictures(page)
    assert all(path.is_file() for path in linked_pictures(page))


def test_no_picture_is_kept_that_nothing_shows() -> None:
    kept = {path.resolve() for path in (ROOT / "reports").rglob("*.png")}
    assert kept <= linked_pictures(README) | linked_pictures(REPORTS_README)
