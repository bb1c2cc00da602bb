"""The runs of a sweep on a Ray cluster, a task each. Ray deals them out as its machines have cores (and GPUs) free; all
machines have this package and see the folder that the command is typed in and `--out`."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from gdro_bench.commands.board import GO_ON, Board, Message, Outcome, Watcher, work
from gdro_bench.commands.children import PATIENCE, threads_of
from gdro_bench.engine.plan import Plan
from gdro_bench.errors import BenchError, first_line
from gdro_bench.files import write_atomically

HERE = "local"  # the address of a cluster that is started on this machine and ends with the sweep
POLL = 0.5  # seconds between two looks at what the runs have said
REACHED = 10  # seconds within which a cluster's machine answers


def execute(plans: Sequence[Plan], listener: Watcher, device: str, jobs: int, address: str) -> list[Outcome]:
    """Runs them on the cluster at this address, each with as many threads as with `side_by_side`, and so with equal
    records. Runs that share a pool wait until one of them has filled it.

    Raises:
        BenchError: Ray is not installed, no cluster answers, or none of its machines has what a run takes.
    """
    with _connected(address) as ray:
        device = _device(ray, device)
        _check_machines(ray, threads_of(jobs), device)
        with _beacon(plans[0].out) as beacon, closing(_Tasks(ray, device, threads_of(jobs), beacon)) as t:
            return Board(plans, listener, t).run()


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Inside, this process drives the cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise BenchError(
            "Ray is not installed.", "Type: pip install 'gdro-bench[ray]', on every machine.", 2
        ) from error
    _knock(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        more = {"include_dashboard": False} if address == HERE else {}
        ray.init(address, log_to_driver=False, logging_level="ERROR", **more)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, first_line(error).rstrip(".")) from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own kills its processes before runs have put things in order
    try:
        yield ray
    except ray.exceptions.RayError as error:
        reason = first_line(error).rstrip(".")
        raise BenchError(f"The Ray cluster has failed: {reason}.", f"See to it, then {GO_ON}.") from error
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray itself would wait minutes for a machine that does not answer."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), REACHED).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, reason: str) -> BenchError:
    remedy = "Start one with ray start --head, or give --ray HOST:PORT, auto or local."
    return BenchError(f"No Ray cluster answers at {address!r}: {reason}.", remedy, 2)


def _device(ray: Any, name: str) -> str:
    """`auto` is CUDA where the cluster has it, whatever this machine has."""
    return name if name != "auto" else "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def _check_machines(ray: Any, threads: int, device: str) -> None:
    """Raises:
    BenchError: a run would wait for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(one.get("CPU", 0) >= threads and (device == "cpu" or one.get("GPU", 0) >= 1) for one in machines):
        what, other = (" and a GPU", ", or use --device cpu") if device == "cuda" else ("", "")
        problem = f"No machine of the Ray cluster has {threads} cores{what}, which a run takes."
        raise BenchError(problem, f"Raise --jobs for fewer cores a run{other}.", 2)


@contextmanager
def _beacon(out: Path) -> Iterator[Path]:
    """A file by which a task tells that it sees the same storage."""
    path = out / f".shared-{secrets.token_hex(8)}"
    write_atomically(path, b"")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


class _Mailbox:
    """An actor that keeps what runs say until it is fetched."""

    def __init__(self) -> None:
        self.messages: list[tuple[Path, Message]] = []

    def put(self, folder: Path, message: Message) -> None:
        self.messages.append((folder, message))

    def take(self) -> list[tuple[Path, Message]]:
        taken, self.messages = self.messages, []
        return taken


class _Tasks:
    """`Workers` that are tasks of a cluster; those that find no room wait there."""

    def __init__(self, ray: Any, device: str, threads: int, beacon: Path) -> None:
        self.ray, self.device, self.threads, self.beacon = ray, device, threads, beacon
        self.mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
        gpus = 1 if device == "cuda" else 0
        self.task = ray.remote(num_cpus=threads, num_gpus=gpus, max_calls=1, max_retries=0)(_work)
        self.tasks: dict[Any, Path] = {}

    def has_room(self) -> bool:
        return True

    def begin(self, one: Plan) -> None:
        task = self.task.remote(one, self.device, self.threads, Path.cwd(), self.beacon, self.mailbox)
        self.tasks[task] = one.folder

    def listen(self) -> Iterator[tuple[Path, Message]]:
        ended, _ = self.ray.wait(list(self.tasks), timeout=POLL)
        yield from self.ray.get(self.mailbox.take.remote())
        for task in ended:
            yield self.tasks.pop(task), self._last_word(task)

    def _last_word(self, task: Any) -> Message:
        try:
            message: Message = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            reason = repr(getattr(error, "cause", None) or type(error).__name__)
            return ("failed", f"Its task ended with {reason[:200]}; {GO_ON}.")
        return message

    def close(self) -> None:
        """Stops those under way, and takes back those that wait."""
        for task in self.tasks:
            self.ray.cancel(task)
        _, left = (
            self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=PATIENCE) if self.tasks else ([], [])
        )
        for task in left:
            self.ray.cancel(task, force=True)


def _work(one: Plan, device: str, threads: int, folder: Path, beacon: Path, mailbox: Any) -> Message:
    """One run, as a task of its own, in the folder that the command was typed in."""
    with suppress(OSError):
        os.chdir(folder)
    if Path.cwd() != folder or not beacon.exists():
        problem = f"{socket.gethostname()} does not see {beacon.parent.absolute()} from {folder}."
        return ("failed", f"{problem} Type the command in a folder that all machines share, with an --out there.")
    return work(one, device, threads, partial(mailbox.put.remote, one.folder))
