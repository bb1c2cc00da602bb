import pytest
import torch
from torch.nn import Parameter

from gdro_bench.methods.parts.ema import Decay, Ema


def averaged_after(values: list[float], slope: float, ceiling: float) -> Ema:
    parameter = Parameter(torch.zeros((), dtype=torch.float64))
    ema = Ema([parameter], Decay(0, 0.0, slope, ceiling))
    for step, value in enumerate(values, 1):
        parameter.data.fill_(value)
        ema.update(step)
    return ema


def test_average_follows_its_recursion():
    values, expected = [1.0, -2.0, 4.0, 8.0], 0.0
    for step, value in enumerate(values, 1):
        decay = min(0.2 * step, 0.5)
        expected = decay * expected + (1 - decay) * value
    assert averaged_after(values, 0.2, 0.5).averages[0].item() == pytest.approx(expected)


def test_without_decay_the_average_is_the_last_value():
    assert averaged_after([1.0, 5.0], 0.0, 0.5).averages[0].item() == 5.0


def test_averages_are_applied_inside_only_even_after_an_error():
    ema = averaged_after([1.0, 2.0], 0.5, 0.5)

    def fail_inside() -> None:
        with ema.applied():
            assert ema.parameters[0].item() == ema.averages[0].item() != 2.0
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert ema.parameters[0].item() == 2.0
