"""The one error that a user is meant to see: a sentence that says what is wrong, and one that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A mistake that the user can mend, shown without a traceback."""

    def __init__(self, problem: str, remedy: str, exit_code: int = 1) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem, self.remedy, self.exit_code = problem, remedy, exit_code

    def __reduce__(self) -> tuple[type[BenchError], tuple[str, str, int]]:
        """Worker processes raise it, too."""
        return type(self), (self.problem, self.remedy, self.exit_code)


class TrainingFailed(BenchError):
    """A training came to an end by its own settings: typed again, it would fail again."""


def unknown(kind: str, name: str, known: Iterable[str]) -> BenchError:
    """The error for a name that is not among the known ones, with the nearest of them as a suggestion."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    remedy = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names)}."
    return BenchError(f"There is no {kind} {name!r}.", remedy, exit_code=2)


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind if it says nothing: for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
