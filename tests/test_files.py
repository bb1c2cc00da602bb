"""Files written whole or not at all."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gdro_bench.errors import BenchError
from gdro_bench.files import write_atomically


def test_many_may_write_one_file_at_once(tmp_path: Path) -> None:
    """Processes of a run that share a folder of encoded texts do."""
    path, data = tmp_path / "texts" / "one.bin", bytes(100_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_atomically(path, data), range(400)))
    assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(BenchError, match="taken cannot be written"):
        write_atomically(tmp_path / "taken", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
