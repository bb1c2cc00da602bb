"""The search for settings: what is drawn, what is refused, and that neither jobs nor a death changes what comes out."""

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from gdro_bench import content, progress
from gdro_bench.cli import main
from gdro_bench.engine import record
from gdro_bench.engine.tuning import space, tuned
from gdro_bench.engine.tuning.search import Search, _drawn, make_search
from gdro_bench.engine.tuning.space import Choices, Interval, draw, uniform_point
from gdro_bench.engine.tuning.study import StudyOf

pytestmark = pytest.mark.usefixtures("sketched")

TINY = """[space]
"optimiser.learning_rate" = {low = 1e-4, high = 1e-2, log = true}
"optimiser.warmup_steps" = {low = 0, high = 12}
"beta" = {choices = [5.0, 1e39]}
"""
SHORT = {
    "profile.sampler.steps": 3,
    "profile.held_out_prompts": 4,
    "profile.kept_images": 4,
    "profile.reader.workers": 0,
    "method.pool.prompts": 4,
    "method.pool.images": 4,
    "method.pool.shard_prompts": 2,
    "method.k": 4,
    "method.groups": 1,
    "method.drop_flat": "false",
    "method.beta": 5.0,
    "method.optimiser.learning_rate": 1e-3,
}
SETTINGS = [f"{name}={value}" for name, value in SHORT.items()]
BUDGET, TRIALS = 200, 4
FULL = [name for name in content.names("profile") if name != "pocket"]
ROOT = Path(__file__).parents[1]


def write_space(folder: Path, written: str = TINY) -> Path:
    """One's own space in the folder that the command is typed in."""
    path = folder / "baselines" / "pocket" / "gdro.search.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written)
    return path


def arguments(*more: str, trials: int | None = TRIALS) -> list[str]:
    flags = [part for setting in SETTINGS for part in ("--set", setting)]
    count = [] if trials is None else ["--trials", str(trials)]
    return ["tune", "ocr", "--device", "cpu", *count, "--budget", str(BUDGET), *flags, *more]


def call(*more: str, trials: int | None = TRIALS) -> Result:
    return CliRunner().invoke(main, arguments(*more, trials=trials))


def search(out: Path, trials: int = TRIALS, seed: int = 0, budget: int = BUDGET) -> Search:
    return make_search("ocr", "gdro", "pocket", trials, budget, seed, out, SETTINGS)


def folder_in(place: Path) -> Path:
    return place / "tuned" / "ocr" / "pocket" / "gdro"


def told(place: Path) -> dict[str, Any]:
    """tune.json less the times."""
    table: dict[str, Any] = json.loads((folder_in(place) / "tune.json").read_text())
    table.pop("seconds")
    for trial in table["trials"]:
        trial.pop("seconds")
    return table


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to type commands in, with a tiny space."""
    write_space(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search that has ended: four trials, of which those with a beta of 1e39 fail."""
    folder = tmp_path_factory.mktemp("finished")
    write_space(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = call()
    assert result.exit_code == 0, result.output
    (folder / "output").write_text(result.output)
    return folder


# ---------------------------------------------------------------------------------------------------------------
# What is drawn


@pytest.mark.parametrize(("dimension", "cells"), [(0, 64), (1, 27), (2, 25), (3, 49)])
@pytest.mark.parametrize("seed", [0, 1])
def test_points_fall_into_every_cell_once(dimension: int, cells: int, seed: int) -> None:
    points = [uniform_point(4, seed, number)[dimension] for number in range(2 * cells)]
    for half in (points[:cells], points[cells:]):
        assert sorted(int(cells * u) for u in half) == list(range(cells))


def test_a_draw_is_a_function_of_seed_and_number(place: Path) -> None:
    numbers = {"a": Interval(1e-4, 1.0, True, False), "b": Interval(0, 9, False, True), "c": Choices((1, 2))}
    backwards = [draw(numbers, 3, number) for number in reversed(range(20))]
    assert backwards[::-1] == [draw(numbers, 3, number) for number in range(20)]
    assert backwards[::-1] != [draw(numbers, 4, number) for number in range(20)]
    few, many = search(place, trials=3), search(place, trials=9)
    assert few.drawn == many.drawn[:3]
    assert [one.settings for one in few.plans] == [one.settings for one in many.plans[:3]]
    assert search(place, trials=3, seed=1).drawn[1:] != few.drawn[1:]


@pytest.mark.parametrize("log", [False, True])
def test_intervals_are_covered_to_their_ends(log: bool) -> None:
    grid = [i / 10_000 for i in range(10_000)]
    whole = [Interval(2, 9, log, True).at(u) for u in grid]
    assert set(whole) == set(range(2, 10))
    if not log:
        assert all(whole.count(value) == 1250 for value in range(2, 10))
    floats = [Interval(1e-3, 1.0, log, False).at(u) for u in grid]
    assert floats == sorted(floats)
    assert floats[0] == 1e-3
    assert 0.99 < floats[-1] <= 1.0
    assert floats[5000] == pytest.approx(1e-3**0.5 if log else 0.5, rel=0.01)


def test_the_first_trial_has_the_method_s_own_numbers(place: Path) -> None:
    own = search(place).plans[0].settings["method"]
    shipped = content.read(ROOT / "baselines" / "pocket" / "gdro.toml")
    changed = {name for name, value in content.flatten(own).items() if content.flatten(shipped)[name] != value}
    assert changed == {name.removeprefix("method.") for name in SHORT if name.startswith("method.")}


def test_trials_look_at_tuning_prompts_alone(place: Path) -> None:
    tuning = {prompt.text for one in search(place).plans for prompt in one.held_out}
    assert tuning <= set((ROOT / "tasks" / "ocr" / "pocket_tuning.txt").read_text().splitlines())


@pytest.mark.parametrize("profile", ["pocket", *(pytest.param(n, marks=pytest.mark.slow) for n in FULL)])
def test_every_method_has_a_space_of_its_profile(profile: str, tmp_path: Path) -> None:
    methods = set(content.method_files(profile)) - {"profile"}
    assert set(content.space_files(profile)) == methods
    for method in methods:
        for task in ("ocr", "geneval"):
            budget = 60_000 if profile == "pocket" else None
            made = make_search(task, method, profile, 3, budget, 0, tmp_path)
            assert 4 <= len(made.space) <= 6
            assert {f"optimiser.{name}" for name in ("learning_rate", "warmup_steps", "epsilon")} < set(made.space)
            assert ("pool.prompts" in made.space) == (made.plans[0].pool is not None)


# ---------------------------------------------------------------------------------------------------------------
# Bad spaces

BAD = {
    '"tao" = {choices = [0.05, 0.5]}': "Did you mean 'tau'?",
    '"optimiser.learningrate" = {low = 1e-4, high = 1e-2}': "Did you mean 'optimiser.learning_rate'?",
    '"beta" = {low = 50.0, high = 1.0}': "low 50.0 is not below high 1.0",
    '"beta" = {low = 5.0, high = 5.0}': "is not below high",
    '"beta" = {low = 50.0, high = 100.0}': "beta leaves out 5.0, the method's own value",
    '"beta" = {low = 0.0, high = 100.0, log = true}': "has no logarithm",
    '"beta" = {low = 1.0, high = inf}': "Write a finite number.",
    '"beta" = {low = "1", high = 9.0}': "'1' is no end",
    '"beta" = {low = 1.0, high = 9.0, log = 1}': "It must be true or false.",
    '"beta" = {low = 1.0}': "Write {choices = [1, 2]}",
    '"beta" = {low = 1.0, high = 9.0, step = 1}': "Write {choices = [1, 2]}",
    '"beta" = 5.0': "Write {choices = [1, 2]}",
    '"beta" = {choices = []}': "Write a list of different values.",
    '"beta" = {choices = [5.0, 5.0]}': "Write a list of different values.",
    '"beta" = {choices = [5.0, "six"]}': "is not of the kind of 5.0",
    '"beta" = {low = -1.0, high = 9.0}': "lets beta be -1.0: gdro.toml: beta is -1.0.",
    '"k" = {low = 2.5, high = 9}': "Write a whole number.",
    '"k" = {low = 2, high = 9}': "lets k be 9: k is 9.",
    '"k" = {choices = [4, true]}': "is not of the kind of 4",
    '"drop_flat" = {low = 0, high = 1}': "Write {choices = [...]} for it.",
    '"ties" = {choices = ["joint", "none"]}': 'lets ties be "none"',
    '"pool.prompts" = {choices = [4, 64]}': "The pool takes 768 evaluations",
    "": "has no [space]",
    '[tasks.orc.space]\n"beta" = {choices = [5.0]}': "There is no task 'orc'.",
    '[tasks.ocr]\n"beta" = {choices = [5.0]}': "table in",
    "[spaces]": "Did you mean 'space'?",
    "beta = {": "cannot be read",
}


@pytest.mark.parametrize("entry", BAD)
def test_a_bad_space_is_refused_before_any_trial(entry: str, place: Path) -> None:
    write_space(place, f"[space]\n{entry}\n" if not entry.startswith("[") else f"{entry}\n")
    result = call()
    assert result.exit_code in (1, 2), result.output
    assert BAD[entry] in result.output
    assert "Traceback" not in result.output
    assert not (place / "tuned").exists()


def test_a_drawn_combination_is_refused_before_any_trial(place: Path) -> None:
    write_space(place, '[space]\n"k" = {choices = [4, 2, 3]}\n"pool.images" = {choices = [4, 2, 3]}\n')
    result = call(trials=8)
    assert result.exit_code == 2
    assert "It must lie between 2 and pool.images" in result.output
    assert not (place / "tuned").exists()


def test_a_task_s_own_entries_take_the_place_of_general_ones(place: Path) -> None:
    path = write_space(place, TINY + '[tasks.ocr.space]\n"beta" = {choices = [5.0, 6.0]}\n')
    own = content.read(ROOT / "baselines" / "pocket" / "gdro.toml") | {"beta": 5.0}
    assert space.read(path, "ocr", own)["beta"] == Choices((5.0, 6.0))
    assert space.read(path, "geneval", own)["beta"] == Choices((5.0, 1e39))


OVER = {
    "method.beta=5, 1e39": ("", [{"beta": 5.0}, {"beta": 1e39}]),
    "method.beta=6.0": ("leaves out 5.0, the method's own value", []),
    "method.beta=5.0,-1": ("--over lets beta be -1.0", []),
    "method.beta=5.0,5": ("choices are [5.0, 5]", []),
    "method.beta=": ("is not of the form group.key=a,b", []),
    "method.bet=5.0": ("Did you mean 'beta'?", []),
    "method.regulariser.velocity_kl=25,8": ("Give the first trial's value, too: --set method.regulariser.", []),
    "method.regulariser.velocity=25,8": ("no setting in gdro.toml called 'regulariser.velocity'", []),
    "profile.seed=5.0": ("is of no method's setting", []),
    "beta": ("is not of the form group.key=a,b", []),
}


@pytest.mark.parametrize("over", OVER)
def test_given_values_take_the_place_of_the_space(over: str, place: Path) -> None:
    said, drawn = OVER[over]
    if drawn:
        made = make_search("ocr", "gdro", "pocket", None, BUDGET, 0, place, SETTINGS, [over])
        assert list(made.drawn) == drawn
        assert made.space == {"beta": Choices((5.0, 1e39))}
        return
    result = call("--over", over, trials=None)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert not (place / "tuned").exists()


def test_a_grid_holds_every_combination_once_the_own_one_first(place: Path) -> None:
    over = ["method.beta=4.0,5.0", "method.optimiser.warmup_steps=0,10,20", "method.k=2,4"]
    made = make_search("ocr", "gdro", "pocket", None, BUDGET, 0, place, SETTINGS, over)
    own = {"beta": 5.0, "optimiser.warmup_steps": 0, "k": 4}
    assert made.drawn[0] == own
    assert len({json.dumps(one) for one in made.drawn}) == len(made.drawn) == 12
    assert made.plans[3].settings["method"]["k"] == made.drawn[3]["k"]


def test_what_was_spent_before_is_no_part_of_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 trials of 100 evaluations one had ended, one is found with its record, one goes on from 90 % of its budget;
    this process spends 10 and then 50 evaluations in 6 seconds."""
    now, said = [0.0], io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bars = progress.TrialBars(Console(file=said), 100, "evaluations", 4)
    bars.found(1)
    bars.ended("gdro, trial 1", "0.7", 2)
    bars.spent("gdro, trial 2", 0.9, "training")
    bars.spent("gdro, trial 2", 1.0, "training")
    bars.spent("gdro, trial 3", 0.0, "sampling")
    bars.spent("gdro, trial 3", 0.5, "training")
    now[0] = 6.0
    bars.ended("gdro, trial 2", "0.8", 3)
    lines = said.getvalue().splitlines()
    assert lines[0] == "gdro, trial 1: 0.7 (2 of 4 ended)"
    assert lines[1] == "gdro, trial 2: 0.8 (3 of 4 ended, 10 evaluations/s, 5 s left)"


def test_values_of_one_number_are_given_together(place: Path) -> None:
    result = call("--over", "method.beta=5.0", "--over", "method.beta=6.0", trials=None)
    assert result.exit_code == 2
    assert "--over is given twice for method.beta.\nWrite all values together" in result.output


def test_a_grid_has_no_number_of_trials(place: Path) -> None:
    result = call("--over", "method.beta=5.0")
    assert result.exit_code == 2
    assert "--over tries all combinations.\nLeave out --trials." in result.output


def test_a_space_is_no_method(place: Path) -> None:
    assert "gdro.search" not in content.method_files("pocket")
    listed = CliRunner().invoke(main, ["list"])
    assert "search" not in listed.output


# ---------------------------------------------------------------------------------------------------------------
# What comes out


@pytest.mark.filterwarnings("ignore:.*NaN.*")
def test_each_trial_tells_what_its_record_says(finished: Path) -> None:
    done = tuned.read(folder_in(finished) / "tune.json")
    assert [trial.number for trial in done.trials] == list(range(TRIALS))
    failed = [trial for trial in done.trials if trial.settings["beta"] == 1e39]
    assert 0 < len(failed) == done.failed < TRIALS
    for trial in failed:
        assert (trial.value, trial.gain, trial.seconds) == (None, None, None)
        assert "The loss is" in trial.failure
    for trial in [one for one in done.trials if one not in failed]:
        run = record.read(folder_in(finished) / f"trial-{trial.number:03d}")
        assert trial.value == run.points[-1].reward
        assert (trial.evaluations, trial.pool_evaluations) == (run.points[-1].evaluations, 4 * 4 * 3)
        assert content.flatten(run.settings["method"]).items() >= trial.settings.items()
        assert trial.digest == run.digests["method"]
        assert trial.seconds is not None
        assert [point.mark for point in run.points] == [0.0, 0.5, 1.0]
    best = max((t for t in done.trials if t.value), key=lambda t: t.value.mean if t.value else 0)
    assert done.best is not None
    assert done.trials[done.best].value == best.value
    assert done.trials[0].gain is not None
    assert done.trials[0].gain.mean == 0
    assert done.evaluations == sum(trial.evaluations or 0 for trial in done.trials)
    assert (done.importance, done.no_importance) == (
        None,
        f"trials that came to their end: {TRIALS - done.failed}; it takes 20",
    )


def test_the_command_shows_trials_the_best_and_what_failed(finished: Path) -> None:
    output = (finished / "output").read_text()
    done = tuned.read(folder_in(finished) / "tune.json")
    assert done.best is not None
    for trial in done.trials:
        assert f"gdro, trial {trial.number}: {trial.value or 'failed: The loss is'}" in output
    assert f"({TRIALS} of {TRIALS} ended" in output
    assert f"Trial {done.best} is best: --set method.optimiser.learning_rate=" in output


def test_the_journal_is_a_study_of_optuna(finished: Path) -> None:
    optuna = pytest.importorskip("optuna")
    backend = optuna.storages.journal.JournalFileBackend(str(folder_in(finished) / "journal.log"))
    (study,) = optuna.get_all_study_summaries(optuna.storages.JournalStorage(backend))
    loaded = optuna.load_study(study_name=study.study_name, storage=optuna.storages.JournalStorage(backend))
    for trial, seen in zip(told(finished)["trials"], loaded.trials, strict=True):
        assert seen.params == trial["settings"]
        assert seen.value == (trial["value"]["mean"] if trial["value"] else None)
        assert seen.state.name == ("COMPLETE" if trial["value"] else "FAIL")


# ---------------------------------------------------------------------------------------------------------------
# Going on


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stamps(place: Path) -> dict[str, int]:
    results = [path for path in folder_in(place).rglob("*.json") if path.name in ("run.json", "failure.json")]
    return {str(path.relative_to(place)): path.stat().st_mtime_ns for path in results}


@pytest.mark.parametrize("loss", ["nothing", "tune.json", "journal.log", "the end of the journal"])
def test_what_has_ended_is_not_repeated(loss: str, copied: Path, finished: Path) -> None:
    before = stamps(copied)
    assert len(before) == TRIALS
    if loss == "the end of the journal":
        path = folder_in(copied) / "journal.log"
        path.write_bytes(path.read_bytes() + b'{"op_code":6,"wor')
    elif loss != "nothing":
        (folder_in(copied) / loss).unlink()
    assert call().exit_code == 0
    assert stamps(copied) == before
    assert told(copied) == told(finished)


def test_more_trials_go_on_from_the_first_ones(copied: Path, finished: Path) -> None:
    before = stamps(copied)
    result = call(trials=TRIALS + 1)
    assert result.exit_code == 0, result.output
    assert before.items() <= stamps(copied).items()
    assert told(copied)["trials"][:TRIALS] == told(finished)["trials"]
    assert len(told(copied)["trials"]) == TRIALS + 1


def test_another_search_is_refused_in_the_same_folder(copied: Path) -> None:
    for more, said in ((["--budget", "210"], "another budget (200 evaluations, now 210"), (["--seed", "1"], "seed")):
        result = call(*more)
        assert result.exit_code == 1
        assert said in result.output
        assert "Give another --out" in result.output


def test_trials_of_two_readers_are_not_ranked(copied: Path) -> None:
    path = next(copied.rglob("trial-001/run.json"))
    path.write_text(path.read_text().replace('"OCR reward', '"Another OCR reward'))
    result = call()
    assert result.exit_code == 1
    assert "have another base, task or reward: they cannot be ranked" in " ".join(result.output.split())


@pytest.mark.parametrize("noise", [b"[]\n[]\n", bytes(range(256)), b'{"op_code": 99}\n{}\n'])
def test_a_damaged_journal_is_named(noise: bytes, copied: Path) -> None:
    (folder_in(copied) / "journal.log").write_bytes(noise + b"\n")
    result = call()
    assert result.exit_code == 1, result.output
    assert "journal.log is damaged" in result.output
    assert "Delete it" in result.output


def test_without_optuna_one_sentence_names_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = call()
    assert result.exit_code == 1
    assert result.output == "Error: Optuna is not installed.\nRun `pip install 'gdro-bench[tune]'`.\n"


def test_a_failed_first_trial_leaves_no_gain_and_all_failed_no_best(place: Path) -> None:
    write_space(place, '[space]\n"beta" = {choices = [1e39]}\n')
    result = call("--set", "method.beta=1e39", trials=1)
    assert result.exit_code == 1
    assert "All trials failed. The loss is" in result.output
    assert told(place)["best"] is None


# ---------------------------------------------------------------------------------------------------------------
# Whose a trial is


def test_a_trial_is_one_process_s_until_it_gives_it_back(place: Path) -> None:
    first, second = (StudyOf(search(place / "tuned")) for _ in range(2))
    claim = first.claim(0)
    assert claim is not None
    assert second.claim(0) is None
    assert second.claim(1) is None  # it needs the pool that trial 0 is filling
    claim.release()
    again = second.claim(0)
    assert again is not None
    second.filled(again)
    claims = [first.claim(2), second.claim(1)]
    second.finish(again, 0.5)
    assert first.unfinished() == second.unfinished() == [1, 2, 3]
    assert first.claim(0) is None
    assert [one.number for one in claims if one] == [2, 1]
    for one in claims:
        if one:
            one.release()


def test_a_dead_process_s_trial_is_taken_up(place: Path) -> None:
    """Optuna is loaded by the command alone."""
    code = (
        "import sys, time; from pathlib import Path; from gdro_bench.engine.tuning import search, study\n"
        "import gdro_bench.commands.tune, gdro_bench.commands.compare; assert 'optuna' not in sys.modules\n"
        f"made = search.make_search('ocr', 'gdro', 'pocket', {TRIALS}, {BUDGET}, 0, Path('tuned'), {SETTINGS!r})\n"
        "held = study.StudyOf(made).claim(0); print('claimed', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        study = StudyOf(search(Path("tuned")))
        assert study.claim(0) is None
        process.kill()
    claim = study.claim(0)
    assert claim is not None
    claim.release()


def test_what_a_value_hangs_on_is_important(place: Path) -> None:
    study = StudyOf(search(place / "tuned", trials=32))
    assert study.importance()[1] == "trials that came to their end: 0; it takes 20"
    for number, numbers in enumerate(study.search.drawn):
        claim = study.claim(number)
        assert claim is not None
        study.finish(claim, -abs(math.log(numbers["optimiser.learning_rate"] / 1e-3)))
    shares, _ = study.importance()
    assert shares is not None
    assert max(shares, key=lambda name: shares[name]) == "optimiser.learning_rate"
    assert sum(shares.values()) == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------------------
# Real processes


def started(place: Path, *more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "gdro_bench.cli", *arguments(*more)]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


SIGNS = {
    "the study is begun": "tuned/ocr/pocket/gdro/journal.log",
    "the pool is being filled": "tuned/ocr/pools/*/shard-00000.json",
    "the first trial is half done": "tuned/ocr/pocket/gdro/trial-000/samples/0.5.zip",
    "the first trial has just ended": "tuned/ocr/pocket/gdro/trial-000/run.json",
    "the next one is under way": "tuned/ocr/pocket/gdro/trial-001/checkpoint.pt",
}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("moment", SIGNS)
def test_killed_and_resumed_gives_the_same(moment: str, jobs: str, finished: Path, place: Path) -> None:
    with started(place, "--jobs", jobs) as process:
        while process.poll() is None and not list(place.glob(SIGNS[moment])):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (folder_in(place) / "tune.json").exists()
    result = call()
    assert result.exit_code == 0, result.output
    assert told(place) == told(finished)


@pytest.mark.slow
def test_two_jobs_give_what_one_gives(finished: Path, place: Path) -> None:
    with started(place, "--jobs", "2") as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert told(place) == told(finished)


@pytest.mark.slow
def test_two_commands_share_the_trials_of_a_study(finished: Path, place: Path) -> None:
    both = [started(place) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    ran = [line.split(":")[0] for output in outputs for line in output.splitlines() if line.startswith("gdro, trial")]
    assert sorted(ran) == [f"gdro, trial {number}" for number in range(TRIALS)]
    assert told(place) == told(finished)


def test_a_trial_that_was_had_is_not_drawn_again() -> None:
    """As where a method's own settings came from an earlier search of the same space and seed."""
    space = {"tau": Interval(0.0, 1.0, False, False)}
    first = _drawn(space, {"tau": 7.0}, 0, 5)
    again = _drawn(space, first[3], 0, 5)
    assert len({json.dumps(one) for one in again}) == 5
    assert again[1:4] == (first[1], first[2], first[4])
    few = {"k": Choices((2, 3))}
    assert [one["k"] for one in _drawn(few, {"k": 2}, 0, 4)][:2] == [2, 3]  # a space with fewer than trials
