"""What commands say on the terminal when they have ended: what came out, and what to type next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gdro_bench.engine.record import Run
from gdro_bench.progress import in_words

if TYPE_CHECKING:
    from gdro_bench.commands.board import Outcome
    from gdro_bench.commands.dry_run import Forecast
    from gdro_bench.commands.results import Result, ScaledResult
    from gdro_bench.comparison.tables.table import Table as Written
    from gdro_bench.engine.health import Healthy
    from gdro_bench.engine.plan import Plan
    from gdro_bench.engine.tuning.tuned import Tuned


def print_run(console: Console, run: Run, plan: Plan) -> None:
    """Base, marks, gain with interval, what it cost, where it is and what to type next."""
    folder = plan.folder
    title = f"{run.method} on {run.task}, {run.profile}, seed {run.seed}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # within 80 columns
    for heading in ("budget", "updates", "velocity evaluations", "reward [95 %]", "gain over base [95 %]", "unscored"):
        table.add_column(heading, justify="right", no_wrap="[" in heading)
    for point in (p for p in run.points if p.mark == 0 or p.updates):  # a mark before the first update is the base
        name = "base" if point.mark == 0 else f"{point.mark:.0%}"
        gain = "" if point.mark == 0 else str(point.gain)
        cost = f"{point.evaluations:,}"
        table.add_row(name, f"{point.updates}", cost, str(point.reward), gain, str(point.unscored))
    console.print(table)
    last = run.points[-1]
    _say(console, f"The held-out reward is {last.gain.against_zero} the base's ({run.instruments['reward']}).")
    console.print(
        f"Spent: {last.collection_evaluations:,} evaluations on collecting {last.images_sampled:,} images, "
        f"{last.optimisation_evaluations:,} on optimising, {last.reward_calls:,} reward calls."
    )
    from gdro_bench.engine import health  # here, because it loads torch, which other summaries need not wait for

    if (healthy := health.read(folder)) is not None:
        _say(console, f"Last healthy mark: {_named(healthy)}. {healthy.why}")
    _say(console, f"Record: {folder / 'run.json'}   pictures: {folder / 'sheet.png'}")
    _say(console, f"Next: {next_seed(plan)}")
    _say(console, f"or:   gdro-bench compare --runs {shlex.quote(str(folder.parents[2]))}")


def _named(healthy: Healthy) -> str:
    """The mark, and where its adapters are."""
    if healthy.mark is None:
        return "not known"
    return f"{healthy.mark:.0%} of the budget, " + (f"{healthy.adapters}" if healthy.adapters else "adapters not kept")


def _say(console: Console, line: str) -> None:
    """A line as it is: paths may hold what rich takes for markup."""
    console.print(line, soft_wrap=True, markup=False)


def next_seed(plan: Plan) -> str:
    """The command of the same run with the next seed: all that its plan holds."""
    words = ["gdro-bench", "run", plan.task.name, "--method", plan.method, "--seed", str(plan.seed + 1)]
    words += ["--profile", plan.profile_name] if plan.profile_name != "pocket" else []
    words += ["--out", str(plan.out)] if plan.out != Path("runs") else []
    words += [word for setting in plan.changed if "." in setting.split("=")[0] for word in ("--set", setting)]
    words += [word for tracker in plan.track for word in ("--track", tracker)]
    words += ["--prompts", str(plan.prompts)] if plan.prompts else []
    words += ["--train-prompts", str(plan.train_prompts)] if plan.train_prompts else []
    return shlex.join(words)


def print_forecast(console: Console, plan: Plan, expected: Forecast) -> None:
    """What a run will spend on what, and what it needs."""
    budget = plan.profile.budget
    table = Table(title=f"{plan.method} on {plan.task.name}, {plan.profile_name}: the plan", title_justify="left")
    for heading in ("", "velocity evaluations", "images", "reward calls", "time"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = {
        "pool": expected.pool,
        "rollouts": expected.rollouts,
        f"{expected.updates:,} updates": expected.optimisation,
        "marks (outside the budget)": expected.marks,
    }
    for name, spent in rows.items():
        counts = (f"{count:,}" for count in (spent.evaluations, spent.images, spent.reward_calls))
        table.add_row(name, *counts, in_words(spent.seconds))
    console.print(table)
    several = "1 process" if expected.processes == 1 else f"{expected.processes} processes that share it perfectly"
    console.print(
        f"Budget: {budget.limit:,} {budget.kind}. About {in_words(expected.seconds)} with {several}, "
        f"{expected.memory / 1e9:.1f} GB of memory each at the peak (leave an eighth of room), "
        f"{expected.disk / 1e9:.2f} GB of disk (without the model's own)."
    )
    console.print(escape(expected.basis))
    console.print("A pool that is there already costs evaluations, but no time.")
    for warning in expected.warnings:
        console.print(f"Warning: {warning}", soft_wrap=True, markup=False)


def print_sweep(console: Console, outcomes: Sequence[Outcome]) -> None:
    """A row a run, and what to type next."""
    table = Table(title="sweep", title_justify="left")
    for heading in ("run", "reward [95 %]", "gain over base [95 %]", "unscored"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for outcome in outcomes:
        if outcome.run is None:
            table.add_row(outcome.plan.folder.name, "failed", "", "")
        else:
            last = outcome.run.points[-1]
            table.add_row(outcome.plan.folder.name, str(last.reward), str(last.gain), str(last.unscored))
    console.print(table)
    for outcome in outcomes:
        if outcome.failure:
            _say(console, f"{outcome.plan.folder}: {outcome.failure}")
    if all(outcome.run is None for outcome in outcomes):
        _say(console, "Next: mend what is said above and type the same command again.")
    else:
        _say(console, f"Next: gdro-bench compare --runs {shlex.quote(str(outcomes[0].plan.out))}")


def print_tune(console: Console, searches: Sequence[Tuned]) -> None:
    """A row a method, the best trial's settings, what they hang on, and what to type next."""
    table = Table(title="tune", title_justify="left")
    rewards = ("own settings [95 %]", "best trial [95 %]", "over own [95 %]")
    for heading in ("method", "trials", "failed", *rewards, "spent"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for one in searches:
        own, best = (one.trials[number] if number is not None else None for number in (0, one.best))
        values = [str(value) if value else "failed" for value in (own and own.value, best and best.value)]
        gain = "" if best is None or best.gain is None else str(best.gain)
        table.add_row(one.method, f"{len(one.trials)}", f"{one.failed}", *values, gain, f"{one.evaluations:,}")
    console.print(table)
    for one in searches:
        _say(console, f"{one.method}: {_best(one)} {_importance(one)}")
    _say(console, f"Spent in evaluations of {searches[0].budget:,} {searches[0].budget_kind} a trial, pools counted.")


def _best(one: Tuned) -> str:
    if one.best is None:
        return f"All trials failed. {one.trials[0].failure}"
    best = one.trials[one.best].settings
    settings = " ".join(f"--set method.{name}={json.dumps(value)}" for name, value in best.items())
    return f"Trial {one.best} is best: {settings}."


def _importance(one: Tuned) -> str:
    if one.importance is None:
        return f"No importance of settings: {one.no_importance}."
    return "Importance: " + ", ".join(f"{name} {share:.0%}" for name, share in one.importance.items()) + "."


def print_comparison(console: Console, headlines: Sequence[str], short: Written, folder: Path) -> None:
    """The headlines of a report, its table in short, and where it is."""
    for sentence in headlines:
        _say(console, f"- {sentence}")
    for label, *cells in short.cells:  # as lines: a terminal is too narrow for so many intervals beside each other
        cells_of_it = [f"{name} {cell}" for name, cell in zip(short.header[1:], cells, strict=True) if cell]
        console.print(f"- {label}: {'; '.join(cells_of_it)}", soft_wrap=True, markup=False)
    _say(console, f"Report: {folder / 'page.html'} (figures, tables and data beside it)")


def print_evaluation(console: Console, result: Result) -> None:
    """The reward and its parts, with intervals."""
    table = Table(title=escape(f"{result.instrument}, {result.pictures} pictures"), title_justify="left")
    for heading in ("what", "mean [95 %]"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    corrected = {f"corrected score, {order}": value for order, value in result.corrected.items()}
    for name, value in {"reward": result.reward, **result.parts, **result.axes, **corrected}.items():
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)
    console.print(f"Not scored: {result.unscored}." + (f" Not judged: {result.unjudged}." if result.judge else ""))
    if result.judge:
        _say(console, f"Judge: {result.judge}.")


def print_frontier(console: Console, results: Sequence[ScaledResult]) -> None:
    """A row for each scale of the adapters."""
    first = results[0].result
    title = f"{first.instrument}, {first.pictures} pictures a scale"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = {"reward": [found.result.reward for found in results], "path KL, nats": [f.path_kl for f in results]}
    columns |= {"corrected score": [found.corrected for found in results]} if first.judge else {}
    columns |= {"gold": [found.gold for found in results]}
    for heading in ("scale", *(f"{name} [95 %]" for name in columns), "unscored"):
        table.add_column(heading, justify="right", no_wrap="[" in heading)
    for i, found in enumerate(results):
        table.add_row(f"{found.scale:g}", *(str(of[i]) for of in columns.values()), str(found.result.unscored))
    console.print(table)
    if first.judge:
        _say(console, f"Judge: {first.judge}. Not judged: {sum(found.result.unjudged for found in results)}.")
