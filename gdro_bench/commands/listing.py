"""`list`: tasks, profiles and the methods that each profile has settings for."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gdro_bench import content, registry
from gdro_bench.errors import BenchError


def print_list(console: Console) -> None:
    """One row for every task and profile that go together, and one for every method; a file that is not in order is
    told below the tables."""
    table, problems, named = Table("task", "profile", "methods"), [], set[str]()
    for task in content.names("task"):
        for profile in content.names("profile"):
            try:
                methods = _methods(task, profile)
            except BenchError as error:
                problems.append(error)
                continue
            if methods:
                table.add_row(task, profile, ", ".join(methods))
                named |= set(methods)
    console.print(table)
    about = Table("method", "what it is", "paper")
    for method in sorted(named):
        about.add_row(*map(escape, (method, *_about(method))))
    console.print(about)
    for problem in dict.fromkeys(map(str, problems)):
        console.print(f"Left out: {problem}", soft_wrap=True, markup=False)


def _about(method: str) -> tuple[str, str]:
    """A method's name in full and its paper, from the first lines of its page; nothing of one without a page."""
    pages = [root / "baselines" / "methods" / f"{method}.md" for root in content.roots()]
    for page in (one for one in pages if one.exists()):
        title, _, source, *_ = [*page.read_text(encoding="utf-8").splitlines(), "", "", ""]
        return title.removeprefix("# "), source.partition("; `")[0]
    return "", ""


def _methods(task: str, profile: str) -> list[str]:
    prompt_sets = content.read(content.find("task", task) / "task.toml").get("prompts", {})
    folder = content.find("profile", profile)
    if content.read(folder / "profile.toml").get("prompts") not in prompt_sets:
        return []
    known = registry.names("method")
    return sorted(name for name in content.method_files(profile) if name in known)
