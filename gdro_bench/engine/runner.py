"""Runs one plan: drives the method until its budget is spent, evaluates at the marks, keeps checkpoints."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

from gdro_bench import content, registry, version
from gdro_bench.budget import TIMED, Ledger, MeteredPolicy, MeteredScorer
from gdro_bench.distributed import ProcessGroup
from gdro_bench.engine import artifacts, card, folders, judging, record, samples
from gdro_bench.engine.health import Health
from gdro_bench.engine.held_out import HeldOut, Row, point_of
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.record import Run
from gdro_bench.engine.run_state import RunState
from gdro_bench.engine.tracking import Tracking
from gdro_bench.errors import BenchError, TrainingFailed, first_line
from gdro_bench.files import not_written, sync
from gdro_bench.instruments import open_named, open_reward
from gdro_bench.methods import Method, TrainContext, Training
from gdro_bench.models import open_policy
from gdro_bench.policy import Policy
from gdro_bench.pool import Pool
from gdro_bench.score import Scorer

CHECKPOINT = "checkpoint.pt"  # in a run's folder, while it is under way
ROUNDS = "rounds"  # folder of images that the run's own weights made: nobody else's
CHECKPOINT_SECONDS = 60  # between checkpoints, at least
CHECKPOINT_SHARE = 0.05  # of a run's time that checkpoints may take
FEW_PROMPTS = 20  # intervals over fewer tell little


def forget_progress(folder: Path) -> None:
    """Deletes what only a run that goes on needs."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(folder / ROUNDS, ignore_errors=True)


class ProgressListener(Protocol):
    """Sees a run's progress; the command line draws bars."""

    def spent(self, spent: float, limit: int, doing: str) -> None: ...
    def trains(self) -> None:
        """An update was made: the run's pool, if it has one, is complete on disk."""
        ...

    def evaluating(self, done: int, total: int) -> None: ...
    def warn(self, sentence: str) -> None: ...


def execute(plan: Plan, listener: ProgressListener, processes: ProcessGroup) -> Run:
    """Runs the plan, or goes on with it, or returns its record if it is finished; then has its pictures judged.

    Raises:
        BenchError: the folder is in use, damaged or another run's, or a part of the run fails for good.
    """
    with _locked(plan, processes):
        if processes.broadcast(processes.is_main and (plan.folder / "run.json").exists()):
            run = record.read(plan.folder)
            folders.check_claim(plan, run.digests["model"], run.instruments["reward"])
            if processes.is_main:
                forget_progress(plan.folder)  # killed before it could
        else:
            scorer = open_reward(plan.task, plan.profile, processes.device)
            with _enough_memory(processes):
                run = Execution(plan, scorer, listener, processes).run()
        processes.first_alone(lambda tick: _judge(plan, run, listener, tick))
    return run


@contextmanager
def _enough_memory(processes: ProcessGroup) -> Iterator[None]:
    """Raises:
    TrainingFailed: the accelerator's memory is full. Of many processes it may be one's alone: then it is a BenchError,
        which ends them all."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        kind = TrainingFailed if processes.size == 1 else BenchError
        raise kind(
            f"The memory of {processes.device} is full: {first_line(error)}",
            "Take fewer images at once (--set profile.sampler.batch=2, --set method.optimiser.batch=6) or hold the "
            "model in less (baselines/full-scale.md); --dry-run says what a run needs.",
        ) from error


def _judge(plan: Plan, run: Run, listener: ProgressListener, tick: Callable[[], None]) -> None:
    def judged(done: int, total: int) -> None:
        listener.evaluating(done, total)
        tick()

    try:
        judging.finish(run, plan.folder, plan.profile.judge, judged)
    except BenchError as error:  # the run is finished and stands; a judge's server may be up another day
        listener.warn(f"The run is finished, but not judged. {error.problem} {error.remedy}")
    card.write(plan.folder)


@contextmanager
def _locked(plan: Plan, processes: ProcessGroup) -> Iterator[None]:
    """The main process holds the folder; the others work for it.

    Raises:
        BenchError: it cannot have it; all raise.
    """
    with ExitStack() as held:
        refusal: BenchError | None = None
        if processes.is_main:
            try:
                held.enter_context(folders.locked(plan.folder))
            except BenchError as error:
                refusal = error
        told = processes.broadcast([refusal.problem, refusal.remedy] if refusal else [])
        if told:
            raise BenchError(told[0], told[1])
        yield


def _machine(processes: ProcessGroup) -> dict[str, object]:
    """On what a run ended: another kind of processor, or another library, rounds otherwise."""
    on_cpu = processes.device == "cpu"
    return {
        "device": platform.machine() if on_cpu else torch.cuda.get_device_name(processes.device),
        "threads": torch.get_num_threads(),
        "processes": processes.size,
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in ("torch", "diffusers", "peft", "transformers", "numpy")},
    }


def _digest(policy: Policy) -> str:
    """Of the adapters as they start, which every process draws by itself."""
    return content.digest([float(parameter.detach().double().sum()) for parameter in policy.parameters()])


class Execution:
    """One plan being run, by all processes alike; the main one alone writes."""

    def __init__(self, plan: Plan, scorer: Scorer, listener: ProgressListener, processes: ProcessGroup) -> None:
        self.plan, self.scorer, self.listener, self.processes = plan, scorer, listener, processes
        budget = plan.profile.budget
        self.state = RunState(Ledger(budget.limit, budget.kind))
        self.policy: Policy = open_policy(plan.profile, processes.device, plan.seed)
        processes.lockstep = plan.profile.pretrained is not None and plan.profile.pretrained.sharded
        self.held_out = HeldOut(plan, self.policy, scorer, processes)
        self.health = Health.of(plan, self.policy, processes)
        self.checkpoint, self.rounds = plan.folder / CHECKPOINT, plan.folder / ROUNDS
        self.saved_at, self.saving = time.monotonic(), 0.0
        self.auxiliaries = open_named(plan.auxiliaries, plan.profile, processes.device)
        folders.claim(plan, self.policy.name, scorer.name, processes.is_main)
        folders.check_shared(plan.folder, processes)
        processes.check_same(plan.digests | self._instruments() | {"adapters": _digest(self.policy)})
        self._warn()
        self.policy.encode_ahead(plan.all_prompts, processes)
        self.training = self._start()
        self.tracking = Tracking(plan if processes.is_main else replace(plan, track=()), self.state, listener.warn)

    def _instruments(self) -> dict[str, str]:
        """What every machine must have alike."""
        watching = ", ".join(f"{name}: {scorer.name}" for name, scorer in self.auxiliaries.items())
        libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers"))
        return {"model": self.policy.name, "reward": self.scorer.name, "auxiliaries": watching, "libraries": libraries}

    def _warn(self) -> None:
        """Of prompts that are too few, and of one's own that the model cannot show: their scores say little of a
        method."""
        prompts = len({prompt.text for prompt in self.plan.held_out})
        if prompts < FEW_PROMPTS:
            self.listener.warn(f"The intervals are over {prompts} held-out prompts alone: take {FEW_PROMPTS} or more.")
        for told in unsupported(self.plan, self.policy):
            self.listener.warn(told)

    def _start(self) -> Training:
        """The training, fresh or as the checkpoint has it."""
        there = self.processes.broadcast(self.processes.is_main and self.checkpoint.exists())
        saved = self._read_checkpoint() if there else None
        if saved is not None:
            with self._of_this_version():
                self.state = RunState.from_json(saved["state"])
            ledger = self.state.ledger
            self.listener.spent(ledger.spent, ledger.limit, f"goes on from update {self.state.updates}")
        self._note_code()
        plan, ledger = self.plan, self.state.ledger
        context = TrainContext(
            MeteredPolicy(self.policy, ledger, self.processes),
            MeteredScorer(self.scorer, ledger),
            plan.train,
            plan.profile.sampler,
            Pool(plan.pools, ledger, self.processes),
            plan.seed,
            self.processes,
            plan.profile.score_ahead or 0,
            plan.profile.max_unscored,
            Pool(self.rounds, ledger, self.processes, shared=False),
            {name: MeteredScorer(scorer, ledger) for name, scorer in self.auxiliaries.items()},
        )
        method: Method = registry.lookup("method", plan.method)
        training = method.start(plan.config, context)
        if saved is not None:
            with self._of_this_version():
                training.load_state_dict(saved["method"])
        return training

    def _note_code(self) -> None:
        """The version that runs now, not the one that will be checked out when the run ends."""
        code, before = version.of_code(), self.state.code
        if before and before[-1] != code:
            self.listener.warn(f"This run was begun with {before[-1]} and goes on with {code}: its record names both.")
        if before[-1:] != [code]:
            before.append(code)

    @contextmanager
    def _of_this_version(self) -> Iterator[None]:
        """Raises:
        BenchError: what is read inside was written by a version that had other fields."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise  # `_enough_memory` tells of it
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise BenchError(
                f"The checkpoint {self.checkpoint} is of another version of this package ({first_line(error)}).",
                "Go on with that version, or delete the file: the run starts anew, its pool is kept.",
            ) from error

    def _read_checkpoint(self) -> dict[str, Any]:
        try:
            saved: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if set(saved) != {"method", "state"}:
                raise ValueError("it lacks the method or the run's state")
        except Exception as error:  # torch raises whatever the bytes make it
            raise BenchError(
                f"The checkpoint {self.checkpoint} is damaged: {first_line(error)}.",
                "Delete it and type the same command again: the run starts anew, its pool is kept.",
            ) from error
        return saved

    def run(self) -> Run:
        """To the end of the budget; killed at any moment, it goes on to the same numbers."""
        marks, state = self.plan.profile.budget.marks, self.state
        if not state.points:
            self._evaluate(0.0)
            self._save()
        while len(state.points) <= len(marks):
            mark = marks[len(state.points) - 1]
            while state.ledger.spent < mark * state.ledger.limit:
                self._step()
            self._evaluate(mark)
            self._save()
        return self._finish()

    def _step(self) -> None:
        start, ledger = time.perf_counter(), self.state.ledger
        before = ledger.accounts()
        step = self.training.step()
        account = ledger.optimisation if step.kind == "optimise" else ledger.collection
        account.seconds += time.perf_counter() - start if self.processes.is_main else 0.0
        ledger.share(before, self.processes)
        self.state.log(step)
        self.tracking.step()
        self.listener.spent(ledger.spent, ledger.limit, step.progress)
        if step.kind == "optimise":
            self.listener.trains()
        due = step.kind == "optimise" and time.monotonic() - self.saved_at > self._between()
        if due or step.keep:
            self._save()

    def _between(self) -> float:
        """Seconds between checkpoints: at full scale one takes long to write, with an epoch's chains in it."""
        return max(CHECKPOINT_SECONDS, self.saving / CHECKPOINT_SHARE)

    def _save(self) -> None:
        if not self.processes.is_main:
            return
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        partial, start = self.checkpoint.with_suffix(".partial"), time.monotonic()
        try:
            torch.save({"method": self.training.state_dict(), "state": self.state.to_json()}, partial)
            sync(partial)
            os.replace(partial, self.checkpoint)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise not_written(self.checkpoint, error) from error
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - start

    # -- evaluation

    def _evaluate(self, mark: float) -> None:
        """Scores the held-out prompts, and keeps the first pictures."""
        if self.state.points and self.state.points[-1].updates == self.state.updates:
            self._evaluate_again(mark)
            return
        with self.training.evaluation_weights():
            images, rows = self.held_out.evaluate(mark, self.listener.evaluating)
            health = self.health.look(mark)
            self._keep_adapters(mark, self.policy.save)
        if self.processes.is_main:
            samples.write(samples.path_of(self.plan.folder, mark), images[: self.plan.profile.kept_images])
        self._enter(mark, rows, health)

    def _evaluate_again(self, mark: float) -> None:
        """Nothing was learnt since the last evaluation (the pool was filled, say): its pictures and scores stand."""
        last, folder = self.state.points[-1].mark, self.plan.folder
        if self.processes.is_main:
            shutil.copyfile(samples.path_of(folder, last), samples.path_of(folder, mark))
        before = folders.adapters_of(folder, last)
        if before.exists():
            self._keep_adapters(mark, lambda to: shutil.copytree(before, to))
        rows, health = (
            [row | {"mark": mark} for row in known if row["mark"] == last]
            for known in (self.state.scores, self.state.health)
        )
        self._enter(mark, rows, health)

    def _keep_adapters(self, mark: float, save: Callable[[Path], object]) -> None:
        if self.processes.is_main and self.plan.profile.keep_adapters:
            artifacts.keep_adapters(folders.adapters_of(self.plan.folder, mark), save)

    def _enter(self, mark: float, rows: list[Row], health: list[Row]) -> None:
        state = self.state
        state.scores += rows
        state.health += health
        if self.processes.is_main:
            self.health.write(state.health)
        base = [row for row in state.scores if row["mark"] == 0.0]
        state.points.append(point_of(mark, rows, base, state))
        state.steps_before.append(len(state.steps))
        state.seconds.append({"mark": mark} | {name: getattr(state.ledger, name).seconds for name in TIMED})
        self.tracking.point()

    def _finish(self) -> Run:
        run = artifacts.record_of(self.plan, self.state, self.policy.name, self.scorer.name)
        self.tracking.close()  # first: with its record a run is finished, and would not come here again
        if self.processes.is_main:
            with self.training.evaluation_weights():
                artifacts.write(self.plan, self.state, run, self.policy, _machine(self.processes))
            forget_progress(self.plan.folder)
        self.processes.barrier()  # who goes on sees a finished run
        return run


def unsupported(plan: Plan, policy: Policy) -> list[str]:
    """Of one's own prompts those that the model cannot show, in sentences: what is trained on, and evaluated on."""
    of = getattr(policy, "unsupported", None)
    told = []
    for own, prompts, name in ((plan.train_prompts, plan.train, "training"), (plan.prompts, plan.held_out, "held-out")):
        reasons = [reason for prompt in prompts if (reason := of(prompt))] if own and of else []
        if reasons:
            share = f"{len(reasons)} of {len(prompts)} {name} prompts"
            told.append(f"{share} ask for what {policy.name} was never taught: {reasons[0]}.")
    return told
