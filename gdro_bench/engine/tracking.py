"""Curves while a run goes on, in the trackers that people use: TensorBoard, Trackio, Weights & Biases.

What a tracker sees is a series of events, one for every step and one for every evaluation point, numbered from 1. It
can be made again from the run's state, so a run that was killed goes on in the same tracked run: what the tracker has
already is left out, and what it lacks is sent once more. A tracker that fails is dropped with a warning; the run goes
on.

TensorBoard writes files into the run's folder. The other two keep runs elsewhere: Trackio on this machine (in its own
folder, `TRACKIO_DIR`), Weights & Biases on a server, if it is logged in; without one (`WANDB_MODE=offline`) a run that
goes on has two folders there, the last of which is whole: sync that one. A run is named there by its task, profile,
method, changed settings and seed, and by a random name of its own, in the project `gdro-bench`.
"""

from __future__ import annotations

import importlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gdro_bench import registry
from gdro_bench.engine import samples
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.record import Point
from gdro_bench.engine.run_state import RunState
from gdro_bench.errors import BenchError, first_line
from gdro_bench.files import write_atomically

PROJECT = "gdro-bench"
PICTURES = 16  # of an evaluation point
OWN_NAME = "tracked"  # the file in a run's folder by whose text trackers know it again
Warn = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Event:
    """The `number`th thing that a run tells: values by name, and pictures [H, W, 3], if it has some."""

    number: int
    values: dict[str, float]
    pictures: NDArray[np.uint8] | None = None


class Tracker(Protocol):
    """What a name of the registry's kind "tracker" opens, a function of the `Plan`."""

    def begin(self, past: Sequence[Event]) -> None:
        """Makes sure that exactly these events are there: all that the run has told before."""
        ...

    def log(self, event: Event) -> None: ...
    def close(self) -> None: ...


class Tracking:
    """A run's trackers. None of them can end the run."""

    def __init__(self, plan: Plan, state: RunState, warn: Warn) -> None:
        """Raises:
        BenchError: a tracker is not installed."""
        self.plan, self.state, self.warn = plan, state, warn
        self.trackers: dict[str, Tracker] = {}
        if plan.track:
            _name_anew(plan, anew=not state.steps and not state.points)
        for name in plan.track:
            self._guarded(name, partial(self._open, name))
        self._each(lambda tracker: tracker.begin(list(events(plan, state))))

    def step(self) -> None:
        """The state has one more step."""
        self._each(lambda tracker: tracker.log(Event(_count(self.state), _step_values(self.state.steps[-1]))))

    def point(self) -> None:
        """The state has one more evaluation point."""
        last = len(self.state.points) - 1
        self._each(lambda tracker: tracker.log(_point_event(self.plan, self.state, last, _count(self.state))))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], object]) -> None:
        for name, tracker in list(self.trackers.items()):
            self._guarded(name, partial(act, tracker))

    def _open(self, name: str) -> None:
        self.trackers[name] = registry.lookup("tracker", name)(self.plan)

    def _guarded(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except BenchError:  # it is not installed: told before anything was spent
            raise
        except Exception as error:  # whatever a tracker raises, the run is worth more
            self.trackers.pop(name, None)
            reason = first_line(error)
            self.warn(f"{name} failed and is not told any more: {type(error).__name__}: {reason}. The run goes on.")


# ---------------------------------------------------------------------------------------------------------------
# Events


def _count(state: RunState) -> int:
    return len(state.steps) + len(state.points)


def events(plan: Plan, state: RunState) -> Iterator[Event]:
    """All that a run has told so far, in order."""
    told, point = 0, 0
    for row in range(len(state.steps) + 1):
        while point < len(state.points) and state.steps_before[point] == row:
            told += 1
            yield _point_event(plan, state, point, told)
            point += 1
        if row < len(state.steps):
            told += 1
            yield Event(told, _step_values(state.steps[row]))


def _step_values(row: dict[str, Any]) -> dict[str, float]:
    """Of a row of `steps.parquet`: its costs, and its measures as `train/...`."""
    numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
    cost = {f"cost/{name}": numbers.pop(key) for name, key in (("evaluations", "evaluations"), ("updates", "update"))}
    return cost | {f"train/{name}": value for name, value in numbers.items()}


def _point_event(plan: Plan, state: RunState, index: int, number: int) -> Event:
    point, seconds = state.points[index], state.seconds[index]
    spent = {"evaluations": point.evaluations, "updates": point.updates, "mark": point.mark}
    spent |= {"images": point.images_sampled + point.images_trained}
    values = {f"cost/{name}": float(value) for name, value in spent.items()}
    values["cost/seconds"] = sum(value for name, value in seconds.items() if name in ("collection", "optimisation"))
    return Event(number, values | _held_out(point), _pictures(plan, point.mark))


def _held_out(point: Point) -> dict[str, float]:
    values: dict[str, float] = {"held_out/unscored": float(point.unscored)}
    for name, estimate in (("reward", point.reward), ("gain", point.gain)):
        ends = {"": estimate.mean, "_low": estimate.low, "_high": estimate.high}
        values |= {f"held_out/{name}{end}": value for end, value in ends.items()}
    return values | {f"held_out/{name}": value for name, value in point.parts.items()}


def _pictures(plan: Plan, mark: float) -> NDArray[np.uint8] | None:
    """The first pictures of an evaluation point beside each other, four in a row."""
    path = samples.path_of(plan.folder, mark)
    kept = samples.numbers(path)[:PICTURES]
    if not kept:
        return None
    images = samples.read(path, kept)
    images = np.concatenate([images, np.full((-len(images) % 4, *images.shape[1:]), 255, np.uint8)])
    rows, (height, width) = len(images) // 4, images.shape[1:3]
    sheet: NDArray[np.uint8] = images.reshape(rows, 4, height, width, 3).swapaxes(1, 2)
    return np.ascontiguousarray(sheet.reshape(rows * height, 4 * width, 3))


# ---------------------------------------------------------------------------------------------------------------
# The trackers


def _imported(module: str, package: str) -> Any:
    """Raises:
    BenchError: it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BenchError(f"{package} is not installed.", f"Type: pip install 'gdro-bench[{package}]'", 2) from error


def _name_anew(plan: Plan, anew: bool) -> None:
    """Gives a run that begins a name of its own, by which it is known to a tracker when it goes on. Without it another
    run of these settings, in another folder or made again, would be taken for the same."""
    path = plan.folder / OWN_NAME
    if anew or not path.exists():
        write_atomically(path, secrets.token_hex(3).encode())


def _name(plan: Plan) -> str:
    own = (plan.folder / OWN_NAME).read_text(encoding="ascii").strip()
    return f"{plan.task.name}-{plan.profile_name}-{plan.folder.name}-{own}"


class TensorBoard:
    """Event files in the run's folder, `tensorboard/`. A run that goes on writes them anew from its state."""

    def __init__(self, plan: Plan) -> None:
        _imported("tensorboard", "tensorboard")
        self.folder = plan.folder / "tensorboard"
        self.writer: Any = None

    def begin(self, past: Sequence[Event]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(self.folder, ignore_errors=True)
        self.writer = SummaryWriter(str(self.folder))
        for event in past:
            self.log(event)

    def log(self, event: Event) -> None:
        for name, value in event.values.items():
            self.writer.add_scalar(name, value, event.number)
        if event.pictures is not None:
            self.writer.add_image("samples", event.pictures, event.number, dataformats="HWC")
            self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """A run of the project on this machine; `trackio show` opens it."""

    def __init__(self, plan: Plan) -> None:
        self.trackio, self.name = _imported("trackio", "trackio"), _name(plan)
        self.settings = plan.settings
        self.run: Any = None

    def begin(self, past: Sequence[Event]) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        there = SQLiteStorage.get_max_step_for_run(PROJECT, self.name) or 0
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self.run = self.trackio.init(PROJECT, self.name, config=self.settings, resume="allow", **quiet)
        self.there = there
        for event in past:
            self.log(event)

    def log(self, event: Event) -> None:
        if event.number <= self.there:  # before it was killed
            return
        shown = {} if event.pictures is None else {"samples": self.trackio.Image(event.pictures)}
        self.run.log(event.values | shown, step=event.number)

    def close(self) -> None:
        self.run.finish()


class WeightsAndBiases:
    """A run of the project on the server that this machine is logged in to."""

    def __init__(self, plan: Plan) -> None:
        self.wandb, self.name, self.settings = _imported("wandb", "wandb"), _name(plan), plan.settings
        self.run: Any = None

    def begin(self, past: Sequence[Event]) -> None:
        identity = "".join(c if c.isalnum() else "-" for c in self.name)
        self.run = self.wandb.init(
            project=PROJECT, name=self.name, id=identity, resume="allow", config=self.settings, reinit="finish_previous"
        )
        for event in past:
            self.log(event)

    def log(self, event: Event) -> None:
        if event.number < self.run.step:  # before it was killed
            return
        shown = {} if event.pictures is None else {"samples": self.wandb.Image(event.pictures)}
        self.run.log(event.values | shown, step=event.number)

    def close(self) -> None:
        self.run.finish()
