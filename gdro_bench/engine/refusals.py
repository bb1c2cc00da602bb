"""What a method refuses when it starts, told before a model is opened or a picture is paid for."""

from __future__ import annotations

from typing import Any, NoReturn

from gdro_bench.errors import BenchError
from gdro_bench.methods import Method, TrainContext
from gdro_bench.profile import Sampler
from gdro_bench.task import Prompt


class _Nothing:
    """Stands for model, reward and pool before there are any."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(name)


def check_numbers(method: Method, config: Any, prompts: list[Prompt], sampler: Sampler, seed: int) -> None:
    """Starts a method as far as it goes without a model, since methods check their numbers first.

    Raises:
        BenchError: the method refuses a number.
    """
    nothing: Any = _Nothing()
    try:
        method.start(config, TrainContext(nothing, nothing, prompts, sampler, nothing, seed))
    except BenchError:
        raise
    except Exception:  # it began to work, with nothing: it refused no number
        return
