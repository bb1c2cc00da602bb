"""The command line: small, frozen, and helpful when it is used wrongly."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gdro_bench import content
from gdro_bench.cli import main
from gdro_bench.engine import plan
from gdro_bench.errors import BenchError
from gdro_bench.registry import TABLES

FROZEN = {
    "eval": [
        *("--clip", "--device", "--images", "--judge", "--judge-model", "--judge-url", "--lora"),
        *("--lora-scale", "--mask2former", "--out", "--profile", "--prompts", "--set", "--weights", "task"),
    ],
    "claims": ["--out", "--rules", "--runs", "--tuned", "folders"],
    "compare": ["--level", "--name", "--out", "--reference", "--runs", "--study", "--tuned", "--x", "folders"],
    "doctor": ["--method", "--processes", "--profile", "--set", "--task"],
    "judge": ["--gold", "--judge", "--judge-model", "--judge-url", "--runs", "--second-reader", "folders"],
    "list": [],
    "publish": ["--public", "--repo", "--upload", "folder"],
    "pretrain": ["--device", "--out", "--seed", "--train-images", "model"],
    "prompts": ["--count", "--seed", "--split", "--world", "task"],
    "run": [
        *("--budget", "--device", "--dry-run", "--method", "--out", "--processes", "--profile", "--prompts", "--seed"),
        *("--set", "--track", "--train-prompts", "task"),
    ],
    "study": [
        *("--answers", "--at", "--out", "--pairs", "--question", "--reference", "--runs", "--seed", "folders"),
    ],
    "sweep": [
        *("--budget", "--device", "--jobs", "--method", "--out", "--over", "--profile", "--prompts", "--ray"),
        *("--seeds", "--set", "--track", "--train-prompts", "task"),
    ],
    "tune": [
        *("--budget", "--device", "--jobs", "--method", "--out", "--over", "--profile", "--seed", "--set"),
        *("--trials", "task"),
    ],
}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_the_command_line_is_frozen() -> None:
    found = {
        name: sorted("--count" if "-n" in p.opts else p.opts[0] for p in command.params)
        for name, command in main.commands.items()
    }
    assert found == FROZEN


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from gdro_bench.cli import main; main(['run', '--help'], standalone_mode=False);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "orc"], "There is no task 'orc'.\nDid you mean 'ocr'?"),
        (["run", "../ocr"], "There is no task '../ocr'."),
        (["run", "ocr", "--method", "grdo"], "Did you mean 'gdro'?"),
        (["run", "ocr", "--profile", "pockt"], "Did you mean 'pocket'?"),
        (["run", "ocr", "--set", "method.tao=1"], "Did you mean 'tau'?"),
        (["run", "ocr", "--set", "tau"], "is not of the form group.key=value"),
        (["run", "ocr", "--set", "method.k=many"], "It must be a whole number."),
        (["run", "ocr", "--budget", "0"], "must be above 0"),
        (["run", "ocr", "--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["sweep", "ocr", "--over", "method.tau"], "is not of the form group.key=a,b"),
        (["sweep", "ocr", "--over", "method.tao=1,2"], "Did you mean 'tau'?"),
        (["sweep", "ocr", "--seeds", "1,x"], "Write whole numbers with commas"),
        (["sweep", "ocr", "--method", "gdro", "--method", "flowgrpo"], "Did you mean 'flow-grpo'?"),
        (["pretrain", "pocket-judge", "--train-images", "64"], "--train-images is of the base alone"),
        (["pretrain", "flux"], "There is no model to pretrain called 'flux'."),
    ],
)
def test_a_mistake_ends_in_a_sentence_and_a_remedy(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_bad_prompt_line_is_named(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text('a sign that reads "CAFE"\n\na sign that reads CAFE\n')
    result = call("run", "ocr", "--prompts", str(prompts))
    assert result.exit_code == 1
    assert "line 3, has no text in straight double quotes" in result.output


def test_an_unwritable_out_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    result = call("run", "ocr", "--out", str(blocked))
    assert result.exit_code == 1
    assert "cannot be written" in result.output
    assert "--out" in result.output


def test_list_shows_task_profile_and_method() -> None:
    result = call("list")
    assert result.exit_code == 0
    assert all(name in result.output for name in ("ocr", "pocket", "gdro"))
    about = " ".join(result.output.split())  # of every method a name in full, and where it was published
    assert all(f"│ {name} │" in about for name in TABLES["method"])
    assert "GDRO: group-level direct reward optimisation │ arXiv 2601.02036" in about


@pytest.mark.parametrize("name", main.commands)
def test_every_command_s_help_has_an_example(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert f"gdro-bench {name}" in result.output.split("Examples:")[1]


def test_a_broken_profile_does_not_stop_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content.read

    def broken(path: Path) -> dict[str, object]:
        if path.parent.name == "flux1-dev":
            raise BenchError(f"{path} cannot be read: oops.", "Mend it.")
        return whole(path)

    monkeypatch.setattr(content, "read", broken)
    result = call("list")
    assert result.exit_code == 0
    assert "sd35-medium" in result.output
    assert "Left out" in result.output


# A setting that no file names may be one that files leave out: its method is imported to know.
@pytest.mark.parametrize(
    "arguments", [["run", "orc"], ["run", "ocr", "--method", "grdo"], ["run", "ocr", "--set", "tau"]]
)
def test_a_wrong_name_is_told_before_anything_heavy_is_loaded(arguments: list[str]) -> None:
    code = (
        "import sys; from gdro_bench.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: sys.exit(100 * ('torch' in sys.modules) + end.code)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 2


ROOT = Path(__file__).parents[1]
METHOD_PAGES = tuple(f"baselines/methods/{name}.md" for name in TABLES["method"])  # every method has one
PAGES = (
    *("README.md", "CONCEPTS.md", "baselines/README.md", "tasks/README.md", "reports/README.md"),
    *(f"baselines/{name}.md" for name in ("full-scale", "search", "guards")),
    *METHOD_PAGES,
)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_manual_leads_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    for link in (link for link in links if "://" not in link):
        to, _, anchor = link.partition("#")
        target = (path.parent / to).resolve() if to else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_manual_can_be_typed(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", "")  # a command over several lines is one
    lines = [line.partition(" # ")[0] for line in text.splitlines() if line.startswith("    ")]
    commands = [shlex.split(line[line.index("gdro-bench ") :])[1:] for line in lines if "gdro-bench " in line]
    assert commands
    for name, *arguments in commands:
        assert name in main.commands, name
        params = main.commands[name].make_context(name, arguments).params
        if name in ("run", "sweep", "tune"):
            check_names(params)


def check_names(params: dict[str, Any]) -> None:
    """Methods and numbers of the manual's commands are there; what a reader would bring need not be."""
    methods = params.get("methods") or (params["method"],)
    settings = [*params["settings"], *(one.partition(",")[0] for one in params.get("over", ()))]
    for method in (name for name in methods if name != "mine"):  # the reader's own
        plan.make_plan(params["task"], method, params["profile"], 0, Path("runs"), settings, params["budget"])
