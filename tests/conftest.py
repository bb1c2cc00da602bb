"""One torch thread in tests and in what they start: threads that wait for each other spin, and two runs of tests share
two cores."""

import os
import threading
from collections.abc import Iterator

import pytest
import torch
from judge_server import Judge

os.environ["OMP_NUM_THREADS"] = "1"
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
