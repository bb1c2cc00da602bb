"""What a report writes: tables, figures, grids and the page."""

import base64
import re
import shlex
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from known_runs import EVIL, FALLING, MARKS, PROMPTS, SLOWER, call, judge, make_run, ratio_of
from markupsafe import escape

from gdro_bench import content
from gdro_bench.cli import main
from gdro_bench.comparison import drawings, entries, grids, grouping, headlines, matched, report
from gdro_bench.comparison.tables import costs, ends, words
from gdro_bench.engine import record, samples
from gdro_bench.stats import Estimate

# -- what is written


def test_everything_is_written(written: Path) -> None:
    names = {path.name for path in written.iterdir()}
    assert {"page.html", "report.md", "curves.csv", "reward.pdf", "reward.png", "quality.pdf", "quality.png"} <= names
    assert {"cost-ratio.pdf", "cost-ratio.png", "cost-ratio.csv"} <= names
    assert {f"matched-{what}.{kind}" for what in ("reward", "budget") for kind in ("csv", "md", "tex")} <= names
    assert {"grid-first.pdf", "grid-first.png", "grid-rises.png"} <= names


def test_the_same_records_give_the_same_bytes(written: Path, compared: entries.Comparison, tmp_path: Path) -> None:
    report.write(compared, tmp_path / "again", "evaluations", None)
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_tables_say_what_the_numbers_say(written: Path) -> None:
    table = pd.read_csv(written / "matched-reward.csv", index_col="label")
    assert table.loc["flow-grpo", "ratio"] == pytest.approx(1000 / 500)
    assert table.loc["flow-grpo", "ratio_without_pool"] == pytest.approx(1000 / 200)
    assert "| flow-grpo |" in (written / "matched-reward.md").read_text()
    assert r"\toprule" in (written / "matched-reward.tex").read_text()
    short = (written / "in-short.md").read_text()
    assert re.search(r"flow-grpo \| 0\.600 .* \| below: -0\.200 .* \| 0\.87 \[", short)  # gdro's pool is dear at first
    assert max(line.count("|") for line in short.splitlines()) <= 7  # six columns
    assert short in (written / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_difference_within_noise_is_called_so(tmp_path: Path) -> None:
    """Where there are several seeds: the luck of one is in no interval."""
    rng, runs = np.random.default_rng(0), []
    for name, seed in (("gdro", 0), ("gdro", 1), ("dpo", 0), ("dpo", 1), ("rft", 0)):
        folder = make_run(tmp_path / f"{name}{seed}", name, seed)
        scores = pd.read_parquet(folder / "scores.parquet")
        scores["value"] += rng.normal(0, 0.3, len(scores)) * (scores["mark"] == 1.0)
        scores.to_parquet(folder / "scores.parquet")
        runs.append(entries.load(folder))
    said, short = report.write(entries.compare(runs, False), tmp_path / "out", "evaluations", None)
    assert [line[0] for line in short.cells] == ["gdro", "dpo", "rft (1 seed)"]
    assert short.cells[1][2].startswith("within noise: ")
    assert re.match(r"[+-]0\.\d{3} \[", short.cells[2][2])
    assert any("91 to 99 cases of 100; over prompts alone where there is one seed" in sentence for sentence in said)
    _, alone = report.write(entries.compare(runs[::2], False), tmp_path / "alone", "evaluations", None)
    assert [line[0] for line in alone.cells] == ["gdro", "dpo", "rft"]


def test_variants_of_a_method_are_held_against_the_same_seeds(tmp_path: Path) -> None:
    """Seed 0 ends 0.1 above seed 1: against both the variant, of seed 0 alone, would seem to gain what is seed 0's."""
    lower = tuple(reward - 0.1 for reward in (0.5, 0.5, 0.7, 0.8, 0.9))
    own = [
        make_run(tmp_path / "a", seed=0, rewards=(0.4, 0.5, 0.7, 0.8, 0.9)),
        make_run(tmp_path / "b", "gdro", 1, lower),
    ]
    variant = make_run(tmp_path / "c", seed=0, rewards=(0.4, 0.5, 0.7, 0.8, 0.9), changed=("method.tau=0.5",))
    other = make_run(tmp_path / "d", "dpo", rewards=(0.4, 0.5, 0.7, 0.8, 0.9))
    compared = entries.compare([entries.load(folder) for folder in (*own, variant, other)], variants=True)
    end = {row.entry.label: row.difference for row in matched.at_budget(compared)}
    assert astuple(end["gdro (tau=0.5)"]) == pytest.approx((0, 0, 0), abs=1e-9)
    assert end["dpo"].mean == pytest.approx(0.05)
    assert ratio_of(compared, "gdro", label="gdro (tau=0.5)")[True] == Estimate(1.0, 1.0, 1.0)
    short = ends.short_table(compared, [], matched.at_budget(compared))
    assert short.cells[1][2].endswith(", seed 0 of both")
    again = make_run(tmp_path / "e", seed=1, rewards=lower, changed=("method.tau=0.5",))
    both = entries.compare([entries.load(folder) for folder in (*own, variant, again)], variants=True)
    one, other = (entry.seed_weights for entry in both.entries)
    assert (one == other).all()  # whatever their settings: seeds are drawn together


def test_what_too_few_resamples_reach_has_no_interval() -> None:
    values = np.array([0.5, *[0.4] * 95, *[np.nan] * 5])
    assert not matched.fair(values)
    assert str(matched._where_there(values)) == "0.500 [nan, nan]"
    assert (
        words.with_interval(matched._where_there(values), "too often not there")
        == "0.500, no interval: too often not there"
    )
    assert matched.fair(values[:-4])


def test_another_cut_of_the_levels_is_told(compared: entries.Comparison) -> None:
    table = costs.cut_table(compared, matched.at_reward(compared, 0.5, "evaluations"), "evaluations")
    assert table is not None
    cuts = [f"up to {cut:.0%}" for cut in costs.CUTS]
    assert table.header == ["method", *cuts, "up to 90%, above both first points"]
    levels = (np.arange(matched.LEVELS) + 0.5) / matched.LEVELS  # gdro climbs from 0.4 at 300 to 0.6 at 500
    whole = float(np.exp(np.log(1000 * levels / (300 + 200 * levels)).mean()))
    assert table.numbers.query("cut == 1")["ratio"].item() == pytest.approx(whole)
    assert table.cells[0][-1] == "no such level"  # gdro is tested at 0.4 and then at 0.6, where flow-grpo ends
    assert table.cells[0][0] == "flow-grpo"


@pytest.mark.usefixtures("undrawn")
def test_a_record_from_anybody_writes_nowhere_but_under_out(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", profile="../../../escaped")
    assert call("--runs", tmp_path / "runs", "--out", tmp_path / "out" / "deep").exit_code == 0
    assert [path.name for path in (tmp_path / "out" / "deep").iterdir()] == ["ocr-.._.._.._escaped"]
    assert not (tmp_path / "escaped").exists()
    assert content.safe_name("..") == "_.."


def test_what_was_tested_on_is_told(tmp_path: Path) -> None:
    """Numbers of the prompts that methods' settings are chosen on are no test."""
    run = record.read(make_run(tmp_path / "a"))
    assert words.tested_on(run) == "held-out prompts"
    assert words.tested_on(replace(run, changed=("prompts=abc",))) == "the user's own prompts"
    tuned_on = {"profile": {"prompts": "pocket-tuning"}, "method": {}}
    assert "pocket-tuning, on which methods' settings are chosen" in words.tested_on(replace(run, settings=tuned_on))


def test_seeds_that_share_a_pool_are_told(tmp_path: Path) -> None:
    """Those of a method that draws prompts anew with every seed have more in their interval."""
    shared = "method.pool.shared=true"
    changes = {"gdro": (shared,), "flow-grpo": (), "nft": (shared, "method.mode=online"), "dpo": ()}
    runs = [
        entries.load(make_run(tmp_path / f"{method}{seed}", method, seed, changed=changed))
        for method, changed in changes.items()
        for seed in (0, 1)
    ]
    for run in runs:
        method = run.run.settings["method"]
        method["pool"] = {"seed": 0} | ({"shared": True} if method.pop("pool.shared", None) else {})
    compared = entries.compare(runs, True)
    told = headlines.headlines(compared, matched.at_budget(compared), None, "evaluations")
    assert [line.split(":")[0] for line in told if "one pool" in line] == [
        f"All seeds of {compared.entries[0].label} train on the prompts of one pool"
    ]
    assert "gdro" in compared.entries[0].label


def test_prompts_and_readings_stay_text(written: Path) -> None:
    page = (written / "page.html").read_text()
    assert EVIL not in page
    assert "&lt;script&gt;alert(" in page
    assert page.count("<script>") == 1  # its own


@pytest.mark.usefixtures("sketched")
def test_names_and_instruments_stay_text(tmp_path: Path) -> None:
    """A record may come from elsewhere: nothing in it is markup, on any place of the page."""
    make_run(tmp_path / "a", instruments={"reward": EVIL})
    make_run(tmp_path / "b", instruments={"reward": EVIL}, changed=(f"method.draw={EVIL}",))
    loaded = [entries.load(tmp_path / name) for name in "ab"]
    report.write(entries.compare(loaded, True), tmp_path / "out", "evaluations", None, EVIL)
    page = (tmp_path / "out" / "page.html").read_text()
    assert EVIL not in page
    assert page.count("<script>") == 1


def test_a_verdict_that_is_not_known_is_no_finding(compared: entries.Comparison) -> None:
    for run in compared.entries[0].runs:
        run.parts["correct counting"] = np.full_like(run.parts["reward"], np.nan)
    for run in compared.entries[1].runs:
        run.parts["correct counting"] = np.ones_like(run.parts["reward"])
    verdict = ends.verdict_table(compared)
    assert verdict is not None
    assert verdict.cells[1] == ["gdro", "not known", "not known"]


def test_the_page_holds_its_pictures_and_needs_nothing_else(written: Path) -> None:
    page = (written / "page.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) >= 2 + 3 * 4
    assert all(base64.b64decode(picture)[:4] == b"\x89PNG" for picture in pictures)
    assert not re.search(r'(src|href)="(?!data:|#)', page)


@pytest.mark.usefixtures("sketched")
def test_ablations_are_drawn_by_the_number(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", changed=("method.tau=0.5",), rewards=SLOWER)
    assert call("--runs", tmp_path).exit_code == 0
    data = pd.read_csv(tmp_path / "compare" / "ocr-pocket" / "ablation-gdro-tau.csv")
    assert sorted(set(data["label"])) == [0.05, 0.5]
    assert (tmp_path / "compare" / "ocr-pocket" / "ablation-gdro-tau.pdf").exists()


@pytest.mark.usefixtures("sketched")
def test_an_ablation_is_drawn_though_a_run_of_it_was_not_judged(tmp_path: Path) -> None:
    judge(make_run(tmp_path / "a"), FALLING)
    make_run(tmp_path / "b", changed=("method.tau=0.5",), rewards=SLOWER)
    assert call("--runs", tmp_path).exit_code == 0
    assert (tmp_path / "compare" / "ocr-pocket" / "page.html").exists()


def test_what_moves_no_number_is_no_change_of_a_run(tmp_path: Path) -> None:
    changed = ("profile.reader.workers=1", "profile.judge.url=http://there", "method.tau=0.5", "profile.budget.limit=5")
    run = entries.load(make_run(tmp_path, changed=changed))
    assert grouping.changes([run]) == {"profile.budget.limit"}


def test_a_mark_before_the_first_update_lets_no_cost_run_backwards(tmp_path: Path) -> None:
    """Rollouts that no pool keeps have cost something by then."""
    run = entries.load(make_run(tmp_path, "flow-grpo", pool=300))
    points = tuple(replace(point, pool_evaluations=0, pool_images=0) for point in run.run.points)
    entry = entries.Entry("flow-grpo", (replace(run, run=replace(run.run, points=points)),))
    cost, _ = matched.with_pool_point(entry, "evaluations", True, entry.mean("reward"))
    assert entry.first_update == 2
    assert list(cost) == sorted(cost)


@pytest.mark.usefixtures("sketched")
def test_an_ablation_of_a_word_is_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", changed=("method.draw=spread",))
    assert call("--runs", tmp_path).exit_code == 0
    data = pd.read_csv(tmp_path / "compare" / "ocr-pocket" / "ablation-gdro-draw.csv")
    assert list(dict.fromkeys(data["label"])) == ["random", "spread"]


@pytest.mark.usefixtures("undrawn")
def test_the_page_gives_the_command_of_every_run(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", changed=("method.tau=0.5",), rewards=SLOWER)
    assert call("--runs", tmp_path).exit_code == 0
    page = (tmp_path / "compare" / "ocr-pocket" / "page.html").read_text()
    assert "--method gdro --seed 0</code>" in page
    assert "--set method.tau=0.5</code>" in page


def test_a_command_with_own_prompts_can_be_typed(tmp_path: Path) -> None:
    changed = ("profile.budget.limit=1000", "method.tau=0.5", "prompts=f2dc63b0")
    typed = record.command(entries.load(make_run(tmp_path / "a", changed=changed[1:2])).run)
    assert typed.endswith("--set method.tau=0.5")
    run = replace(entries.load(tmp_path / "a").run, changed=changed)
    words = shlex.split(record.command(run), comments=True)
    options = ["--set", "profile.budget.limit=1000", "--set", "method.tau=0.5", "--prompts", "FILE"]
    assert words[-6:] == options
    assert "f2dc63b0" in record.command(run)
    (tmp_path / "prompts.txt").write_text('a sign "HI"\n')
    typed = [str(tmp_path / "prompts.txt") if word == "FILE" else word for word in words[2:]]
    parsed = main.commands["run"].make_context("run", typed)  # type: ignore[attr-defined]
    assert parsed.params["prompts"] == tmp_path / "prompts.txt"


# -- figures


@pytest.mark.usefixtures("sketched")
def test_a_figure_carries_its_own_caption(tmp_path: Path) -> None:
    """The corrected score's is made of the task's own settings."""
    run = entries.load(judge(make_run(tmp_path / "a"), FALLING))
    bent = replace(run, correction=replace(run.correction, pivot=2.5, shift=0.7))
    compared = entries.compare([bent], False)
    curves = costs.curve_table(compared.entries, compared.prompt_weights)
    drawn = {figure.name: figure for figure in drawings.draw(compared, curves, tmp_path / "out", "evaluations", None)}
    assert list(drawn) == ["reward", "quality", "corrected", "performance-profile"]
    assert "r (u - 2.5) + 0.7" in drawn["corrected"].caption
    assert all(figure.path.exists() and figure.path.with_suffix(".pdf").exists() for figure in drawn.values())


@pytest.mark.usefixtures("sketched")
def test_every_figure_is_on_the_page_with_its_caption(
    written: Path, compared: entries.Comparison, tmp_path: Path
) -> None:
    page = (written / "page.html").read_text()
    curves = costs.curve_table(compared.entries, compared.prompt_weights)
    for figure in drawings.draw(compared, curves, tmp_path / "again", "evaluations", None):
        assert str(escape(figure.title)) in page
        assert str(escape(figure.caption)) in page


@pytest.mark.usefixtures("sketched")
def test_one_method_alone_is_not_matched_but_shown_at_its_end(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    result = call(tmp_path / "a", "--out", tmp_path / "out")
    assert "gdro ends at 0.8" in result.output
    assert "nothing to match" not in result.output
    written = {path.name for path in (tmp_path / "out" / "ocr-pocket").iterdir()}
    assert "matched-reward.csv" not in written
    assert {"grid-first.png", "grid-rises.png"} <= written


def test_grids_show_the_prompts_whose_pictures_all_have(tmp_path: Path, compared: entries.Comparison) -> None:
    path = samples.path_of(compared.entries[1].runs[0].folder, 1.0)
    kept = [number for number in samples.numbers(path) if number != 1]
    samples.write(path, samples.read(path, kept), kept)
    first = grids.grids(compared, matched.at_reward(compared, 0.6, "evaluations"))[0]
    assert compared.entries[1].runs[0].prompts[1] not in first.prompts
    assert first.prompts[0] == compared.entries[0].runs[0].prompts[0]


def test_a_grid_shows_what_the_reward_likes_better_and_gold_worse(compared: entries.Comparison) -> None:
    for entry in compared.entries:
        for run in entry.runs:
            run.parts["gold"] = np.ones((len(MARKS), PROMPTS))
        run = entry.runs[0]
        run.parts["gold"][-1, [1, 2, 3]] = 0.5
        run.parts["reward"] = np.zeros((len(MARKS), PROMPTS))
        run.parts["reward"][-1, :4] = 0.9, 0.2, -0.4, 0.8  # gold holds; it falls with the reward up, down and up
    shown = next(grid for grid in grids.grids(compared, []) if grid.name == "doubted")
    assert shown.numbers == [3, 1]
    assert "where the reward rose most while gold fell" in shown.title
    for entry in compared.entries:
        entry.runs[0].parts["gold"][:] = 1.0
    assert all(grid.name != "doubted" for grid in grids.grids(compared, []))


@pytest.mark.usefixtures("undrawn")
def test_without_any_gain_there_is_nothing_to_match(tmp_path: Path) -> None:
    make_run(tmp_path / "a", rewards=(0.4,) * 5)
    make_run(tmp_path / "b", "dpo", rewards=(0.4,) * 5)
    result = call("--runs", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "nothing to match" in result.output
