"""A search as an Optuna study on a file that only grows (`journal.log`), which any number of processes share.

A trial belongs to the process that holds its lock file, and to nobody once that process is gone. What came out of it
lies in its folder; the journal repeats it for Optuna.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gdro_bench import files
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.pool_keys import exact_key, pool_key
from gdro_bench.engine.tuning.search import Search
from gdro_bench.engine.tuning.space import Choices, Domain
from gdro_bench.errors import BenchError

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal.log"
ENOUGH = 20  # trials that Optuna's importance asks for: five among its best quarter
QUANTILE = 0.25


@dataclass(slots=True)
class Claim:
    """A trial that is this process's until it is released."""

    number: int
    own: IO[str]
    pool: IO[str] | None = None  # held while the trial may be filling it

    def release(self) -> None:
        self.own.close()
        self.release_pool()

    def release_pool(self) -> None:
        if self.pool is not None:
            self.pool.close()


@dataclass(frozen=True, slots=True)
class _Pool:
    """Of a trial's pool, the file that says that it is complete, and the one that is locked while a trial fills it."""

    full: Path
    lock: Path

    @classmethod
    def of(cls, plan: Plan) -> _Pool | None:
        """None for a trial without a pool."""
        key, folder = pool_key(plan), plan.pools
        return None if key is None else cls(folder / f"{exact_key(plan)}.full", folder / f"{key}.lock")


class StudyOf:
    """The study of a search: which trials are open, whose they are, what they are worth."""

    def __init__(self, search: Search) -> None:
        """Opens it, or begins it with every trial enqueued.

        Raises:
            BenchError: Optuna is missing, or the folder holds another search or a damaged journal.
        """
        self.search, self.optuna = search, _import_optuna()
        self.pools = [_Pool.of(plan) for plan in search.plans]
        search.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            try:
                self.study = self._open()
                self._begin()
            except (ValueError, KeyError, TypeError, AssertionError) as error:
                raise self._damaged(error) from error

    def _alone(self) -> IO[str]:
        """Inside, no other process opens the study or takes a trial."""
        return files.wait_for(self.search.folder / ".taking")

    def _damaged(self, error: Exception) -> BenchError:
        return BenchError(
            f"The journal {self.search.folder / JOURNAL} is damaged: {type(error).__name__}: {str(error)[:120]}.",
            "Delete it and type the same command again: finished trials lie in their folders and are kept.",
        )

    def _open(self) -> optuna.Study:
        storages, path = self.optuna.storages, self.search.folder / JOURNAL
        lock = _Lock(path)
        _mend(path, lock)
        storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(path), lock))
        name = f"{self.search.method} on {self.search.task}, {self.search.profile}"
        sampler = self.optuna.samplers.RandomSampler(0)  # of no effect: all trials are enqueued
        study: optuna.Study = self.optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True, sampler=sampler
        )
        return study

    def _begin(self) -> None:
        """Raises:
        BenchError: the study was begun with something else."""
        before = self.study.user_attrs.get("identity")
        if before is None:
            before = self.search.identity
            self.study.set_user_attr("identity", before)
        for name, value in self.search.identity.items():
            if before.get(name) != value:
                raise BenchError(
                    f"{self.search.folder} holds a search with another {name} ({before.get(name)}, now {value}).",
                    "Give another --out, or delete that folder.",
                )
        for settings in self.search.drawn[len(self.study.get_trials(deepcopy=False)) :]:
            self.study.enqueue_trial(settings)

    def _states(self) -> list[optuna.trial.TrialState]:
        return [one.state for one in self.study.get_trials(deepcopy=False)[: len(self.search.plans)]]

    def unfinished(self) -> list[int]:
        """Numbers of the trials that have no result yet."""
        return [number for number, state in enumerate(self._states()) if not state.is_finished()]

    def claim(self, number: int) -> Claim | None:
        """The trial, if it has no result and no other process works on it or fills the pool that it needs."""
        with self._alone():
            claim = self._locked(number)
            if claim is None:
                return None
            if self._states()[number].is_finished():
                claim.release()
                return None
            while self._states()[number] == self.optuna.trial.TrialState.WAITING:
                self.study.ask(self._distributions())
            return claim

    def _locked(self, number: int) -> Claim | None:
        needed, own = self.pools[number], files.take(self.search.plans[number].folder / ".claim")
        if own is None:
            return None
        if needed is None or needed.full.exists():
            return Claim(number, own)
        pool = files.take(needed.lock)
        if pool is None:
            own.close()
            return None
        return Claim(number, own, pool)

    def filled(self, claim: Claim) -> None:
        """The pool of this trial is complete: others may begin that need it."""
        needed = self.pools[claim.number]
        if claim.pool is not None and needed is not None:
            needed.full.touch()
            claim.release_pool()

    def _distributions(self) -> dict[str, Any]:
        return {name: self._distribution(domain) for name, domain in self.search.space.items()}

    def _distribution(self, domain: Domain) -> Any:
        kinds = self.optuna.distributions
        if isinstance(domain, Choices):
            return kinds.CategoricalDistribution(domain.values)
        kind = kinds.IntDistribution if domain.whole else kinds.FloatDistribution
        return kind(domain.low, domain.high, log=domain.log)

    def finish(self, claim: Claim, value: float | None) -> None:
        """Enters what a trial is worth, None if it failed, and gives it back."""
        state = self.optuna.trial.TrialState.FAIL if value is None else self.optuna.trial.TrialState.COMPLETE
        self.study.tell(claim.number, value, state=state)
        claim.release()

    def importance(self) -> tuple[dict[str, float] | None, str]:
        """Each setting's share in what tells the best quarter of the trials from all (PED-ANOVA, arXiv 2304.10255),
        or None and why."""
        trials = self.study.get_trials(deepcopy=False)[: len(self.search.plans)]
        values = [one.value for one in trials if one.state == self.optuna.trial.TrialState.COMPLETE]
        if len(values) < ENOUGH:
            return None, f"trials that came to their end: {len(values)}; it takes {ENOUGH}"
        if len(set(values)) == 1:
            return None, "all trials are worth the same"
        asked = self.optuna.create_study(direction="maximize")
        asked.add_trials(trials)
        evaluator = self.optuna.importance.PedAnovaImportanceEvaluator(target_quantile=QUANTILE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            shares = self.optuna.importance.get_param_importances(asked, evaluator=evaluator)
        return {name: float(share) for name, share in shares.items()}, ""


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise BenchError("Optuna is not installed.", "Run `pip install 'gdro-bench[tune]'`.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class _Lock:
    """The journal's lock, which a process gives back however it dies; Optuna's own outlive theirs by half a minute."""

    def __init__(self, journal: Path) -> None:
        self.path = journal.with_suffix(".lock")
        self.held: IO[str] | None = None

    def acquire(self) -> bool:
        self.held = files.wait_for(self.path)
        return True

    def release(self) -> None:
        if self.held is not None:
            self.held.close()


def _mend(journal: Path, lock: _Lock) -> None:
    """Cuts off a last line that was not written to its end, where the machine lost its power."""
    lock.acquire()
    try:
        if journal.exists():
            written = journal.read_bytes()
            os.truncate(journal, written.rfind(b"\n") + 1)
    finally:
        lock.release()
