"""Settings are read strictly: what is not understood is refused, by name, with what to write instead."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any, Literal

import pytest

from gdro_bench import content, task
from gdro_bench.engine import plan
from gdro_bench.errors import BenchError
from gdro_bench.methods import gdro


@dataclasses.dataclass(frozen=True, slots=True)
class Inner:
    steps: int
    shift: float


@dataclasses.dataclass(frozen=True, slots=True)
class Outer:
    title: str
    fast: bool
    draw: Literal["random", "spread"]
    marks: tuple[float, ...]
    limit: int | None
    inner: Inner
    sets: dict[str, Inner]


def table(**changed: Any) -> dict[str, Any]:
    inner = {"steps": 8, "shift": 2.0}
    whole = {"title": "x", "fast": True, "draw": "random", "marks": [0.5, 1.0], "limit": 3, "inner": inner}
    return whole | {"sets": {"a": dict(inner)}} | changed


def built(**changed: Any) -> Outer:
    return content.build(Outer, table(**changed), "outer.toml")


def refusal(**changed: Any) -> str:
    with pytest.raises(BenchError) as caught:
        built(**changed)
    assert caught.value.exit_code == 2
    return str(caught.value)


# -- building


def test_a_whole_table_is_built():
    inner = Inner(8, 2.0)
    assert built() == Outer("x", True, "random", (0.5, 1.0), 3, inner, {"a": inner})


@pytest.mark.parametrize("name", content.names("profile"))
def test_the_shipped_numbers_build(name):
    folder = content.find("profile", name)
    for name_of_task in content.names("task"):
        plan.read_profile(name, (), name_of_task)
        content.build(gdro.Config, plan.read_settings(folder / "gdro.toml", name_of_task), "gdro.toml")


def test_a_task_may_have_another_s_numbers(tmp_path, monkeypatch):
    """As `tasks/README.md` says to make `geneval-published`."""
    copied = tmp_path / "tasks" / "geneval-published"
    shutil.copytree(content.find("task", "geneval"), copied)
    text = (copied / "task.toml").read_text().replace('name = "geneval"', 'name = "geneval-published"')
    text = text.replace('reward = "geneval"', 'reward = "geneval-published"\nsettings = "geneval"')
    (copied / "task.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    one, other = (plan.make_plan(name, "flow-grpo", "pocket", 0, tmp_path) for name in (copied.name, "geneval"))
    assert one.task.reward == copied.name
    assert (one.config, one.profile) == (other.config, other.profile)


def test_a_task_may_have_numbers_of_its_own(tmp_path):
    """The paper's beta and gamma are others on GenEval than on OCR."""
    given = [
        plan.read_settings(content.find("profile", "flux1-dev") / "gdro.toml", task) for task in ("ocr", "geneval")
    ]
    assert [(table["beta"], table["gamma"], table["k"]) for table in given] == [(12.0, 0.5, 6), (6.0, 1.0, 6)]
    assert plan.make_plan("geneval", "gdro", "flux1-dev", 0, tmp_path).config.beta == 6.0

    path = tmp_path / "gdro.toml"
    path.write_text('k = 6\ndraw = "random"\n[pool]\nimages = 16\n[tasks.geneval]\npool.images = 8\ndraw = "top"\n')
    assert plan.read_settings(path, "geneval") == {"k": 6, "draw": "top", "pool": {"images": 8}}
    for wrong, said in (("[tasks.genval]\nk = 3", "Did you mean 'geneval'"), ("[tasks.ocr]\nkk = 3", "'kk'")):
        path.write_text(f"k = 6\n{wrong}\n")
        with pytest.raises(BenchError, match=said):
            plan.read_settings(path, "ocr")


def test_one_s_own_numbers_of_a_packaged_method_are_not_passed_over_silently(tmp_path, monkeypatch):
    packaged, own = content.find("profile", "pocket") / "gdro.toml", tmp_path / "baselines" / "pocket" / "gdro.toml"
    monkeypatch.chdir(tmp_path)
    own.parent.mkdir(parents=True)
    own.write_bytes(packaged.read_bytes())
    assert content.method_file("pocket", "gdro") == packaged
    own.write_text("tau = 1.0\n")
    with pytest.raises(BenchError, match=r"baselines/pocket/gdro\.toml is not read: the package has settings for gdro"):
        plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path)
    assert plan.make_plan("ocr", "dpo", "pocket", 0, tmp_path).method == "dpo"


def test_one_s_own_profile_or_task_of_a_packaged_name_is_not_passed_over_silently(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, name in (("profile", "pocket"), ("task", "ocr")):
        packaged = content.root() / content.FOLDERS[kind] / name / f"{kind}.toml"
        own = tmp_path / content.FOLDERS[kind] / name / f"{kind}.toml"
        own.parent.mkdir(parents=True)
        own.write_bytes(packaged.read_bytes())
        assert content.find(kind, name) == packaged.parent
        own.write_text("title = 1\n")
        with pytest.raises(BenchError, match=rf"{kind}\.toml is not read: the package has a {kind} '{name}'"):
            content.find(kind, name)
        own.write_bytes(packaged.read_bytes())
    (tmp_path / "tasks" / "ocr" / "pocket_train.txt").write_text('a sign that says "MINE"\n')
    with pytest.raises(BenchError, match=r"pocket_train\.txt is not read"):
        content.find("task", "ocr")
    (tmp_path / "baselines" / "pocket" / "mine.toml").write_text("beta = 1.0\n")  # a method that the package lacks
    content.find("profile", "pocket")


@pytest.mark.parametrize("word", ["123", "true", "", "[1]", "1e3", "a model", 'say "so"'])
def test_a_setting_reads_back_as_what_it_says(word, tmp_path):
    made = plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, [f"profile.judge.model={json.dumps(word)}"])
    assert made.profile.judge.model == word
    again = plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, made.changed)
    assert again.profile.judge.model == word
    assert again.changed == made.changed


def test_only_a_judge_s_address_loses_its_password(tmp_path):
    settings = ["profile.judge.model=UnifiedReward@v2", "profile.judge.url=http://me:secret@127.0.0.1:80/v1"]
    made = plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, settings)
    assert made.changed == ("profile.judge.url=http://127.0.0.1:80/v1", "profile.judge.model=UnifiedReward@v2")
    assert made.profile.judge.model == made.settings["profile"]["judge"]["model"] == "UnifiedReward@v2"


def test_what_a_file_leaves_out_can_be_set_for_an_evaluation_too():
    assert plan.read_profile("pocket", ["profile.score_ahead=2"]).score_ahead == 2


def test_numbers_in_lists_have_one_spelling(tmp_path):
    whole, same = (
        plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, [f"profile.budget.marks=[0.5, {end}]"])
        for end in ("1", "1.0")
    )
    assert whole.digests == same.digests
    assert whole.changed == same.changed == ("profile.budget.marks=[0.5, 1.0]",)


@pytest.mark.parametrize("written", ["2025-01-01", "10:00:00"])
def test_a_date_is_no_number(written, tmp_path):
    with pytest.raises(BenchError, match=r"tau is .*a number"):
        plan.make_plan("ocr", "gdro", "pocket", 0, tmp_path, [f"method.tau={written}"])


@pytest.mark.parametrize("text", ["tasks = 3", "[tasks]\nocr = 3"])
def test_a_table_that_is_none_is_named(text, tmp_path):
    (tmp_path / "gdro.toml").write_text(f"k = 6\n{text}\n")
    with pytest.raises(BenchError, match=r"\[tasks\] in .* must hold a table"):
        plan.read_settings(tmp_path / "gdro.toml", "ocr")


def test_only_a_line_s_end_ends_a_prompt(tmp_path):
    (tmp_path / "own.txt").write_text('a sign that says "A\u2028B"\r\na sign that says "C"\n', encoding="utf-8")
    assert [prompt.target for prompt in task.read_prompts(tmp_path / "own.txt")] == ["A\u2028B", "C"]


def test_an_unknown_key_is_refused_with_the_nearest_known():
    said = refusal(titel="y")
    assert "outer.toml" in said
    assert "'titel'" in said
    assert "Did you mean 'title'?" in said


def test_an_unknown_key_near_nothing_lists_what_is_known():
    assert "Known: draw, fast, inner, limit, marks, sets, title." in refusal(zzzzz=1)


def test_a_missing_key_is_named_with_its_type():
    short = table()
    del short["inner"]["shift"]
    with pytest.raises(BenchError, match=r"outer\.toml: inner lacks the setting 'shift'.*Add it: a number"):
        content.build(Outer, short, "outer.toml")


def test_an_int_is_taken_for_a_float_and_becomes_one():
    shift = built(inner={"steps": 8, "shift": 2}).inner.shift
    assert isinstance(shift, float)
    assert [type(mark) for mark in built(marks=[1]).marks] == [float]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"title": 3}, "title is 3"),
        ({"fast": 1}, "fast is 1"),
        ({"marks": 0.5}, "marks is 0.5"),
        ({"marks": ["a"]}, "marks is 'a'"),
        ({"limit": 1.5}, "limit is 1.5"),
        ({"limit": True}, "limit is True"),
        ({"inner": 3}, "inner is 3"),
        ({"inner": {"steps": 8.0, "shift": 2.0}}, "inner: steps is 8.0"),
        ({"inner": {"steps": True, "shift": 2.0}}, "inner: steps is True"),
        ({"inner": {"steps": 8, "shift": True}}, "inner: shift is True"),
        ({"sets": {"a": {"steps": "8", "shift": 2.0}}}, "sets.a: steps is '8'"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(changed, named):
    said = refusal(**changed)
    assert f"outer.toml: {named}" in said
    assert "It must be " in said


def test_a_choice_outside_a_literal_is_refused_with_the_nearest():
    assert "Did you mean 'spread'?" in refusal(draw="spred")


def test_none_is_taken_where_it_may_stand():
    assert built(limit=None).limit is None


# -- overriding


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("outer.inner.steps=28", 28),
        ("outer.inner.steps=1e-3", 0.001),
        ("outer.inner.steps=[1, 2]", [1, 2]),
        ("outer.inner.steps=true", True),
        ('outer.inner.steps="3"', "3"),
        ("outer.inner.steps=spread", "spread"),
        ("outer.inner.steps=a=b", "a=b"),
    ],
)
def test_override_sets_a_nested_value_as_toml_or_text(setting, expected):
    tables = {"outer": table()}
    content.apply_settings(tables, [setting])
    assert tables == {"outer": table(inner={"steps": expected, "shift": 2.0})}


@pytest.mark.parametrize(("file", "given"), [(100, "100.0"), (100.0, "100"), (1e2, "1e2")])
def test_the_same_number_changes_neither_settings_nor_digest(file, given):
    tables = {"method": {"beta": file}}
    before = content.digest(tables)
    assert content.apply_settings(tables, [f"method.beta={given}"]) == ()
    assert content.digest(tables) == before


def test_the_last_override_wins():
    tables = {"outer": table()}
    content.apply_settings(tables, ["outer.title=a", "outer.title=b"])
    assert tables["outer"]["title"] == "b"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("outer.titel=1", "Did you mean 'title'?"),
        ("outr.title=1", "Did you mean 'outer'?"),
        ("outer.iner.steps=1", "Did you mean 'inner'?"),
        ("outer.steps=1", "Did you mean outer.inner.steps or outer.sets.a.steps?"),
        ("outer.title.steps=1", "outer.title is a single value"),
        ("title=1", "group.key=value"),
        ("outer.title", "group.key=value"),
        ("outer.title=", "group.key=value"),
    ],
)
def test_override_refuses_what_does_not_exist(setting, said):
    tables = {"outer": table()}
    with pytest.raises(BenchError) as caught:
        content.apply_settings(tables, [setting])
    assert said in str(caught.value)
    assert tables == {"outer": table()}


# -- names


def test_digest_is_a_function_of_content():
    assert content.digest(built()) == content.digest(dataclasses.asdict(built()))
    assert content.digest({"a": 1, "b": 2}) == content.digest({"b": 2, "a": 1})
    assert content.digest("a", 1) == "2657442bb4a48d62"


@pytest.mark.parametrize(
    "changed", [{"title": "y"}, {"marks": [1.0, 0.5]}, {"limit": None}, {"inner": {"steps": 8, "shift": 2.000001}}]
)
def test_digest_feels_every_change(changed):
    assert content.digest(built(**changed)) != content.digest(built())


def test_seed_is_a_function_of_its_key():
    assert content.seed("pool", 0) == content.seed("pool", 0) < 2**63
    assert len({content.seed(*key) for key in [("a", 1), ("a", "1"), (1, "a"), ("a",), ("a", 1, 1)]}) == 5


@pytest.mark.parametrize("name", ["../tasks/ocr", "../x", "ocr/", "/etc", "", "."])
@pytest.mark.parametrize("kind", ["task", "profile"])
def test_a_name_is_never_a_path(kind, name):
    with pytest.raises(BenchError, match=f"There is no {kind}"):
        content.find(kind, name)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "profile.toml"
    path.write_text("steps = \n")
    with pytest.raises(BenchError, match=r"profile\.toml cannot be read"):
        content.read(path)


def test_a_task_paints_a_prompt_at_least_once(tmp_path, monkeypatch):
    folder = tmp_path / "tasks" / "none"
    folder.mkdir(parents=True)
    own = (content.find("task", "ocr") / "task.toml").read_text()
    said = own.replace("[prompts.pocket]\n", "[prompts.pocket]\nimages = 0\n", 1)
    (folder / "task.toml").write_text(said)
    monkeypatch.setattr(content, "root", lambda: tmp_path)
    with pytest.raises(BenchError, match="images is 0"):
        task.load("none")


@pytest.mark.parametrize(
    ("method", "setting", "said"),
    [
        ("gdro", "method.k=1", "k is 1"),
        ("flow-grpo", "method.window=100", "window of 100 steps"),
        ("flow-grpo", "method.optimiser.batch=6", "passes of the sampler's batch"),
        ("flow-grpo", "method.noising.level=nan", "noising.level|level is nan"),
        ("rft", "method.best=99", "best is 99"),
        ("dpo", "method.groups=0", "groups is 0"),
        *((name, "method.online.k=1", "online.k is 1") for name in ("nft", "awm", "dgpo", "crd")),
        ("nft", "method.online.prompts=99999", "An epoch takes 99999 prompts"),
        ("crd", "method.online.updates_per_epoch=500", "500 updates share"),
        ("awm", "method.online.last=99", "do not lie in a grid"),
    ],
)
def test_what_a_method_refuses_is_told_before_a_model_is_opened(method, setting, said, tmp_path):
    with pytest.raises(BenchError, match=said):
        plan.make_plan("ocr", method, "pocket", 0, tmp_path, [setting])
