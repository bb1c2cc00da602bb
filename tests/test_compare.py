"""`compare`: which runs share a figure, and what it refuses."""

import re
from pathlib import Path

import pandas as pd
import pytest
from known_runs import FALLING, SLOWER, call, judge, make_run, make_search

from gdro_bench.cli import AXIS_NAMES
from gdro_bench.comparison import drawings, entries, grouping, report, searches
from gdro_bench.comparison.tables import costs, table
from gdro_bench.errors import BenchError


def test_variants_are_ablations_and_stay_out_of_the_main_figure(tmp_path: Path) -> None:
    runs = [entries.load(make_run(tmp_path / "a"))]
    runs += [entries.load(make_run(tmp_path / f"{t}", changed=(f"method.tau={t}",))) for t in (0.5, 0.025)]
    plain, all_ = (entries.compare(runs, variants) for variants in (False, True))
    assert [entry.label for entry in plain.entries] == ["gdro"]
    assert [entry.label for entry in all_.entries] == ["gdro", "gdro (tau=0.025)", "gdro (tau=0.5)"]
    labels = ["gdro (tau=0.05)", "gdro (k=10, tau=0.5)", "gdro (k=10)", "gdro (k=2)", "gdro (tau=0)"]
    ordered = ["gdro (k=2)", "gdro (k=10)", "gdro (k=10, tau=0.5)", "gdro (tau=0)", "gdro (tau=0.05)"]
    assert sorted(labels, key=entries._natural) == ordered
    assert report._title(all_) == "ocr on pocket: gdro (3 variants)"
    assert list(plain.ablations) == [("gdro", "tau")]
    values = [entries.setting_of(entry, "tau") for entry in plain.ablations["gdro", "tau"]]
    assert values == [0.025, 0.05, 0.5]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"limit": 500}, "budget is 1000 in one, 500 in the other"),
        ({"task": "geneval"}, "task is ocr in one, geneval in the other"),
        ({"settings": {"profile": {"sampler": {"steps": 4}}, "method": {}}}, "profile.sampler.steps is 8 in one, 4"),
        ({"digests": {"model": "n", "method": "x", "held_out": "h"}}, "digest of model is m in one, n in the other"),
        ({"instruments": {"reward": "another"}}, "reward is OCR in one, another in the other"),
    ],
)
def test_runs_that_cannot_share_a_figure_are_refused(tmp_path: Path, fields: dict[str, object], said: str) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "dpo", **fields)
    result = call(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1
    assert said in result.output
    assert "Name the folders that belong together" in result.output


def test_two_runs_of_one_seed_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    assert "are both seed 0 of gdro" in call(tmp_path).output


@pytest.mark.usefixtures("undrawn")
def test_tasks_are_reported_apart_when_no_folder_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", task="geneval")
    result = call("--runs", tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "compare").iterdir()} == {"ocr-pocket", "geneval-pocket"}


OTHER_PROMPTS = {"model": "m", "method": "gdro()", "held_out": "other"}


@pytest.mark.usefixtures("undrawn")
def test_runs_of_other_budgets_and_prompts_are_reported_apart(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"main{seed}", seed=seed)
    make_run(tmp_path / "a-budget", limit=500)
    make_run(tmp_path / "b-prompts", digests=OTHER_PROMPTS, changed=("prompts=other",))
    result = call("--runs", tmp_path)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "compare").iterdir()}
    assert names == {"ocr-pocket", "ocr-pocket-budget-500", "ocr-pocket-held_out-other"}
    remark = "Apart from ocr-pocket: 1 run with budget 500, where the others have 1000."
    assert remark in result.output
    assert remark in (tmp_path / "compare" / "ocr-pocket-budget-500" / "report.md").read_text()
    assert "2 seeds" in (tmp_path / "compare" / "ocr-pocket" / "report.md").read_text()


def test_the_main_group_leaves_the_profile_as_it_is_and_a_copied_record_counts_once(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / "a-tuning" / f"g{seed}", seed=seed, limit=400, changed=("profile.budget.limit=400",))
    for folder in ("b-main", "c-again"):
        make_run(tmp_path / folder / "g0")
    main, tuning = grouping.groups([], tmp_path)[0]
    assert (main.name, len(main.runs), tuning.name) == ("ocr-pocket", 1, "ocr-pocket-budget-400")


def test_groups_with_the_same_first_difference_have_folders_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    make_run(tmp_path / "c", limit=500)
    make_run(tmp_path / "d", limit=500, digests=OTHER_PROMPTS)
    groups, _ = grouping.groups([], tmp_path)
    assert len({group.name for group in groups}) == 3
    assert groups[0].name == "ocr-pocket"


@pytest.mark.parametrize("value", ["../../etc", "a b/c", "x" * 300])
def test_a_group_s_folder_is_a_safe_name(tmp_path: Path, value: str) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", instruments={"reward": value})
    name = grouping.groups([], tmp_path)[0][1].name
    assert re.fullmatch(r"ocr-pocket-[A-Za-z0-9._=-]{1,80}", name)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: folder.mkdir(), "There is no finished run in"),
        (lambda folder: (folder.mkdir(), (folder / "plan.json").write_text("{}")), "is not finished"),
        (lambda folder: make_run(folder, schema=1), "has schema 1, not 3"),
        (lambda folder: (make_run(folder) / "scores.parquet").unlink(), "scores.parquet cannot be read"),
    ],
)
def test_a_folder_that_is_of_no_use_is_named(tmp_path: Path, prepare, said: str) -> None:
    prepare(tmp_path / "run")
    result = call(tmp_path / "run")
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_folder_that_is_not_there_is_a_slip_and_no_missing_run(tmp_path: Path) -> None:
    result = call(tmp_path / "rnus")
    assert result.exit_code == 2
    assert "There is no folder" in result.output


def test_a_level_that_nobody_reaches_is_refused(compared: entries.Comparison, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"No method reaches a reward of 1.5: the highest is 0.800"):
        report.write(compared, tmp_path / "out", "evaluations", 1.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_report_takes_the_place_of_the_one_before_and_of_nothing_else(
    compared: entries.Comparison, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = [make_search(tmp_path / "tuned", method) for method in ("gdro", "flow-grpo")]
    report.write(compared, out, "evaluations", None, searched=searches.of(compared, found))
    (out / "notes.tex").write_text("mine")
    before = {path.name for path in out.iterdir()}
    report.write(compared, out, "evaluations", None)
    assert before - {path.name for path in out.iterdir()} == {f"searches.{kind}" for kind in ("csv", "md", "tex")}
    assert (out / "notes.tex").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_curve_stays_at_the_base_until_its_pool_is_paid_for(compared: entries.Comparison, tmp_path: Path) -> None:
    curves = costs.curve_table(compared.entries, compared.prompt_weights)
    drawn = drawings.Drawing(compared, curves, tmp_path, "evaluations", None).with_flat_starts
    flat = drawn[~drawn["measured"]]
    assert set(flat["label"]) == {"gdro"}
    assert flat["evaluations"].tolist() == [300.0] * len(flat)
    assert flat["evaluations_without_pool"].tolist() == [0.0] * len(flat)
    for (_, _), rows in drawn.groupby(["label", "seed"]):
        assert rows["evaluations"].is_monotonic_increasing
        assert (rows.loc[~rows["measured"], "reward"] == rows["reward"].iloc[0]).all()
    pd.testing.assert_frame_equal(drawn[drawn["measured"]].drop(columns="measured").reset_index(drop=True), curves)


def test_every_column_of_the_curves_is_told(written: Path) -> None:
    curves, told = pd.read_csv(written / "curves.csv"), pd.read_csv(written / "columns.csv", index_col="column")
    assert list(told.index) == list(curves)
    assert told.loc["evaluations_without_pool", "meaning"] == "velocity evaluations, pools not counted"
    assert told.loc["reward_low", "meaning"] == "lower end of the 95 % interval of reward"
    assert told.loc["text_area", "meaning"] == "text area (share)"
    assert told["meaning"].ne(told.index).all()


def test_a_method_looks_the_same_whatever_it_is_called(compared: entries.Comparison, tmp_path: Path) -> None:
    called = entries.named(compared, {"gdro": "GDRO (ours)"})
    own, given = (
        drawings.Drawing(one, pd.DataFrame(), tmp_path, "evaluations", None).styles for one in (compared, called)
    )
    assert given["GDRO (ours)"] == own["gdro"]
    assert given["flow-grpo"] == own["flow-grpo"]


def test_latex_takes_names_and_numbers_as_they_are() -> None:
    made = table.Table("t", "T", ["|v|", "x"], [["[28] a", "-0.5 [-1.0, 0.2]"], ["dance-grpo", "1e-3"]], pd.DataFrame())
    body = made.latex().splitlines()
    assert body[3] == r"\textbar{}v\textbar{} & x \\"
    assert body[5:7] == [r"{}[28] a & $-$0.5 [$-$1.0, 0.2] \\", r"dance-grpo & 1e-3 \\"]


def test_a_wide_table_is_shrunk_to_the_page() -> None:
    for columns in (6, 7):
        made = table.Table("t", "T", ["a"] * columns, [["1"] * columns], pd.DataFrame()).latex().splitlines()
        shrunk = made[1] == r"\resizebox{\linewidth}{!}{%" and made[-1] == "}"
        assert shrunk == (columns == 7), made
        assert made[0] == "% T"


def cut(path: Path) -> None:
    """As a full disk or a killed copy leaves it."""
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "problem", "remedy"),
    [
        (lambda run: cut(run / "scores.parquet"), "scores.parquet cannot be read", "run it again"),
        (lambda run: cut(judge(run, FALLING) / "judged.parquet"), "judged.parquet cannot be read", "gdro-bench judge"),
        (lambda run: (run / "timing.json").write_text("[]"), "0 rows for 5 evaluation points", "Delete that file"),
        (lambda run: (run / "timing.json").write_text("[1"), "timing.json cannot be read", "Delete that file"),
        (lambda run: (run / "timing.json").write_text("3"), "timing.json cannot be read", "Delete that file"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, damage, problem: str, remedy: str) -> None:
    damage(make_run(tmp_path / "run"))
    result = call(tmp_path / "run")
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    assert problem in result.output
    assert remedy in result.output


@pytest.mark.usefixtures("undrawn")
def test_a_record_without_timing_is_compared_on_all_axes_but_seconds(tmp_path: Path) -> None:
    (make_run(tmp_path / "a") / "timing.json").unlink()
    make_run(tmp_path / "b", "flow-grpo", rewards=SLOWER, pool=0)
    assert call("--runs", tmp_path, "--x", "images").exit_code == 0
    result = call("--runs", tmp_path, "--x", "seconds")
    assert result.exit_code == 1
    assert f"{tmp_path / 'a'} does not say how many seconds it took" in result.output


@pytest.mark.parametrize("level", ["nan", "inf"])
def test_a_level_that_is_no_number_is_refused(tmp_path: Path, level: str) -> None:
    make_run(tmp_path / "a")
    result = call(tmp_path / "a", "--level", level)
    assert result.exit_code == 2
    assert f"--level is {level}." in result.output


def test_without_runs_it_says_what_to_type(tmp_path: Path) -> None:
    result = call("--runs", tmp_path)
    assert result.exit_code == 1
    assert "gdro-bench sweep ocr --method gdro --method flow-grpo" in result.output


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_run_is_passed_over_and_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "plan.json").write_text("{}")
    result = call("--runs", tmp_path)
    assert result.exit_code == 0
    assert f"Left out, unfinished: {tmp_path / 'b'}" in result.output


def test_a_method_with_one_entry_may_be_named_without_its_settings(tmp_path: Path) -> None:
    make_run(tmp_path / "a", changed=("method.tau=0.1",))
    make_run(tmp_path / "b", "flow-grpo")
    compared = entries.compare([entries.load(tmp_path / name) for name in ("a", "b")], True)
    named = entries.named(compared, {"gdro": "ours", "flow-grpo": "theirs"})
    assert [entry.label for entry in named.entries] == ["ours", "theirs"]


def test_an_unknown_reference_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    assert "Did you mean 'gdro'?" in call(tmp_path, "--reference", "gdr0").output


def test_the_axes_of_the_command_line_are_those_of_the_report() -> None:
    assert tuple(entries.AXES) == AXIS_NAMES
