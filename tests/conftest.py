"""One torch thread in tests: small tensors gain nothing from a second, and lose much beside another process."""

import threading
from collections.abc import Iterator

import pytest
import torch
from judge_server import Judge

torch.set_num_threads(1)


@pytest.fixture
def server() -> Iterator[Judge]:
    judge = Judge()
    thread = threading.Thread(target=judge.serve_forever, args=(0.05,))
    thread.start()
    yield judge
    judge.shutdown()
    thread.join()
    judge.server_close()
