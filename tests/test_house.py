"""Rules of the house that a machine can check."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

from gdro_bench import content, registry

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gdro_bench"
MOST_PARTS = 27  # modules and packages at the top level
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every function's dotted name and lines."""
    for child in ast.iter_child_nodes(node):
        name = f"{prefix}{getattr(child, 'name', '')}"
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, (child.end_lineno or child.lineno) - child.lineno + 1
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from definitions(child, f"{name}." if inside else prefix)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_functions_are_short() -> None:
    found = [
        (f"{path.relative_to(PACKAGE)}:{name}", lines)
        for path in PACKAGE.rglob("*.py")
        for name, lines in definitions(parsed(path))
    ]
    assert statistics.median(lines for _, lines in found) <= 8
    assert {name: lines for name, lines in found if lines > 45} == {}


def imports(path: Path) -> set[str]:
    """The package's modules that one imports, anywhere in it: in functions and for type checkers, too."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return names & set(MODULES)


def reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    """What a module imports, and what that imports, and so on."""
    seen: set[str] = set()
    waiting = set(graph[start])
    while waiting:
        seen.add(name := waiting.pop())
        waiting |= graph[name] - seen
    return seen


def test_no_import_goes_in_a_circle() -> None:
    graph = {name: imports(path) for name, path in MODULES.items()}
    assert [name for name in graph if name in reached(name, graph)] == []


def test_the_package_has_few_parts() -> None:
    parts = {name.split(".")[1] for name in MODULES if "." in name}
    assert len(parts) <= MOST_PARTS


def test_python_lives_in_the_package_and_its_tests() -> None:
    places = {path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert places <= {"gdro_bench", "tests", "benchmarks"}


def test_a_profile_holds_itself_and_methods() -> None:
    for profile in content.names("profile"):
        assert set(content.method_files(profile)) - {"profile"} <= set(registry.TABLES["method"])


def test_shipped_weights_stay_small() -> None:
    for folder, most in {
        "weights": 20e6,
        "detector_weights": 2e6,
        "judge_weights": 2e6,
    }.items():
        files = [path for path in (PACKAGE / "models" / "pocket" / folder).rglob("*") if path.is_file()]
        assert 0 < sum(path.stat().st_size for path in files) <= most


def test_shipped_weights_are_there_once() -> None:
    contents = [path.read_bytes() for path in (PACKAGE / "models").rglob("*.safetensors")]
    assert len(set(contents)) == len(contents)


def test_a_run_needs_nothing_of_the_trainings() -> None:
    trainings = {name for name in MODULES if name.startswith("gdro_bench.models.pocket.training")}
    needing = {name for name, path in MODULES.items() if imports(path) & trainings} - trainings
    assert needing == {"gdro_bench.cli"}  # `gdro-bench pretrain`


def test_shipped_weights_name_no_folder_of_a_machine() -> None:
    for path in (PACKAGE / "models").rglob("*.json"):
        assert '": "/' not in path.read_text(encoding="utf-8"), path
