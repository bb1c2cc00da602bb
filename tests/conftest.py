"""One torch thread in tests and in what they start: threads that wait for each other spin, and two runs of tests share
two cores."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from judge_server import Judge
from known_runs import six_runs

from gdro_bench.comparison import report
from gdro_bench.comparison.entries import Comparison
from gdro_bench.judges import unified_reward

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

LONGEST = (
    *("run", "api", "online", "full_scale", "distributed", "tracking", "regularise", "benchmarks", "forward_loop"),
    *("tune", "written", "compare", "judged", "reader_workers", "bad_input", "card", "evaluation", "plugin"),
    *("world", "gold"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first: two processes with a file at a time each then end at nearly the same time."""
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where `--out` of a short run of GDRO is, and what it said. A test that changes it changes a copy."""
    from test_run import call

    out = tmp_path_factory.mktemp("short-run")
    result = call(out)
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.fixture
def compared(tmp_path: Path) -> Comparison:
    return six_runs(tmp_path)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that tests read and do not change."""
    folder = tmp_path_factory.mktemp("written")
    report.write(six_runs(folder / "runs"), folder / "out", "evaluations", None)
    return folder / "out"


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that ask which figures there are, and not how they look: rendering takes most of a figure's time."""
    from matplotlib.figure import Figure
    from PIL import Image

    from gdro_bench import figures

    def save(figure: Figure, path: Path) -> None:
        Image.new("RGB", (1, 1)).save(path.with_suffix(".png"))
        path.with_suffix(".pdf").write_bytes(b"%PDF-1.4\n")

    monkeypatch.setattr(figures, "save", save)
    monkeypatch.setattr(Figure, "tight_layout", lambda *_, **__: None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what a report says: its figures and grids take most of its time."""
    from gdro_bench.comparison import drawings, report

    monkeypatch.setattr(drawings, "FIGURES", ())
    monkeypatch.setattr(report, "grids", lambda *_: [])


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client of a judge's server would have waited before it asked again, without the waiting."""
    waited: list[float] = []
    monkeypatch.setattr(unified_reward, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def server() -> Iterator[Judge]:
    judge = Judge()
    thread = threading.Thread(target=judge.serve_forever, args=(0.05,))
    thread.start()
    yield judge
    judge.shutdown()
    thread.join()
    judge.server_close()
