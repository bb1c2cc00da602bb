"""Rules of the house that a machine can check."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gdro_bench"


def functions() -> Iterator[tuple[str, int]]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.name}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_are_short() -> None:
    lengths = dict(functions())
    assert statistics.median(lengths.values()) <= 12
    assert {name: length for name, length in lengths.items() if length > 70} == {}


def test_python_lives_in_the_package_and_its_tests() -> None:
    places = {path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert places <= {"gdro_bench", "tests", "benchmarks"}


def test_shipped_weights_stay_small() -> None:
    for folder, most in {
        "weights": 20e6,
        "weathered_weights": 20e6,
        "detector_weights": 2e6,
        "judge_weights": 2e6,
    }.items():
        files = [path for path in (PACKAGE / "models" / "pocket" / folder).rglob("*") if path.is_file()]
        assert 0 < sum(path.stat().st_size for path in files) <= most


def test_shipped_weights_name_no_folder_of_a_machine() -> None:
    for path in (PACKAGE / "models").rglob("*.json"):
        assert '": "/' not in path.read_text(encoding="utf-8"), path
