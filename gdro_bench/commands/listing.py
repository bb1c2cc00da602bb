"""`list`: tasks, profiles and the methods that each profile has settings for."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from gdro_bench import content, registry
from gdro_bench.errors import BenchError


def print_list(console: Console) -> None:
    """One row for every task and profile that go together; a file that is not in order is told below the table."""
    table, problems = Table("task", "profile", "methods"), []
    for task in content.names("task"):
        for profile in content.names("profile"):
            try:
                methods = _methods(task, profile)
            except BenchError as error:
                problems.append(error)
                continue
            if methods:
                table.add_row(task, profile, ", ".join(methods))
    console.print(table)
    for problem in dict.fromkeys(map(str, problems)):
        console.print(f"Left out: {problem}", soft_wrap=True, markup=False)


def _methods(task: str, profile: str) -> list[str]:
    prompt_sets = content.read(content.find("task", task) / "task.toml").get("prompts", {})
    folder = content.find("profile", profile)
    if content.read(folder / "profile.toml").get("prompts") not in prompt_sets:
        return []
    known = registry.names("method")
    return sorted(name for name in content.method_files(profile) if name in known)
