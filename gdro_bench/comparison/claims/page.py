"""Verdicts -> one page, as Markdown and as HTML, with a figure of every test's interval against its bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gdro_bench import figures
from gdro_bench.comparison import page
from gdro_bench.comparison.claims.measures import MEASURES
from gdro_bench.comparison.claims.verdicts import Finding, Verdict
from gdro_bench.comparison.tables.table import Table
from gdro_bench.comparison.tables.words import OTHERS, PARTS
from gdro_bench.files import write_atomically

FIGURE = "Every test's interval against its bound"
HEADER = ["task", "what is measured", "runs", "rule", "measured [95 %]", "seeds", "verdict"]


def write(verdicts: Sequence[Verdict], out: Path, title: str, digest: str, seeds: int) -> None:
    """Writes claims.md, claims.html, claims.csv and claims.png (.pdf) into `out`.

    Args:
        digest: of the file of rules. seeds: fewer make a verdict provisional.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = numbers(verdicts)
    figures.verdicts(out / "claims", rows)
    write_atomically(out / "claims.csv", rows.to_csv(index=False, float_format="%.6g").encode())
    sentences = _sentences(verdicts, digest, seeds)
    write_atomically(out / "claims.md", _markdown(verdicts, title, sentences).encode())
    commands = _commands(verdicts)
    sections = [_section(number, verdict, commands) for number, verdict in enumerate(verdicts, 1)]
    html = page.render_claims(title, sentences, summary(verdicts), sections, commands, out / "claims.png", FIGURE)
    write_atomically(out / "claims.html", html.encode())


def numbers(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row a test: claim and its number on the page, task, what is measured, number with interval, bounds, seeds and
    verdict."""
    return pd.DataFrame(
        {
            "claim": verdict.claim.name,
            "number": number,
            "task": finding.test.task,
            "measured": what(finding),
            "measure": finding.test.measure,
            "unit": MEASURES[finding.test.measure].unit,
            "value": finding.estimate.mean,
            "value_low": finding.estimate.low,
            "value_high": finding.estimate.high,
            "bound": finding.test.bound,
            "weakly": np.nan if finding.test.weakly is None else finding.test.weakly,
            "side": "at most" if finding.test.at_most is not None else "at least",
            "seeds": finding.seeds,
            "verdict": finding.verdict,
            "claim_verdict": verdict.told,
        }
        for number, verdict in enumerate(verdicts, 1)
        for finding in verdict.findings
    )


def what(finding: Finding) -> str:
    """What a test measures, of which runs, in words."""
    test = finding.test
    part, says = (PARTS | OTHERS).get(test.part or "", test.part or ""), MEASURES[test.measure].says
    told = says.format(part=part) if "{part}" in says or not part else f"{part}, {says}"
    told += " (condition)" if test.condition else ""
    if MEASURES[test.measure].scope == "gold":
        return f"all methods: {told}"
    against = "" if test.against is None else f", against {test.against}"
    return f"{test.of}{against}: {told}"


def summary(verdicts: Sequence[Verdict]) -> Table:
    cells = [
        [_heading(number, v), v.claim.kind, v.told, str(min(f.seeds for f in v.findings))]
        for number, v in enumerate(verdicts, 1)
    ]
    return Table("verdicts", "Verdicts", ["claim", "kind", "verdict", "seeds"], cells, numbers(verdicts))


def _heading(number: int, verdict: Verdict) -> str:
    return f"{number}. {verdict.claim.says}"


def _sentences(verdicts: Sequence[Verdict], digest: str, seeds: int) -> list[str]:
    claims = [verdict for verdict in verdicts if verdict.claim.kind == "claim"]
    counted = {word: sum(v.word == word for v in claims) for word in dict.fromkeys(v.word for v in claims)}
    return [
        f"Of {len(claims)} claims: " + ", ".join(f"{count} {word}" for word, count in counted.items()) + "; "
        f"{sum(v.is_provisional for v in claims)} of these verdicts are provisional: from fewer than {seeds} seeds.",
        "A test is reproduced if its whole 95 % interval lies beyond the bound, and partly if beyond the weaker bound. "
        "If it lies short of the bound, the test is at most partly reproduced, and not if short of the weaker bound, "
        "too. Else it is undecided.",
        "A claim of several tests is partly reproduced if one of them is, even in part, and at most partly if none is "
        "and one fails, even in part. A test whose condition fails on that task, or is open where the test would hold, "
        "counts as undecided. Questions have the same words, but for yes and no.",
        f"Rules: digest {digest}. Whether they are older than the runs is told by their file's history, and by that of "
        "the code beside it, which measures. Of every twenty such intervals one or two miss the truth, of one seed up "
        "to half; nothing here corrects for their number.",
        "R* is the highest level of reward that both methods surely reach; where one does not rise, the other's own. A "
        "cost here is that of the method named first, divided by that of the other (below 1: the first is cheaper). "
        "Reports have the inverse: they divide by gdro's.",
        "Where a test leaves settings open (GDRO in more than one round), those are judged that did best of all trials "
        "of as many evaluations, in all searches; else those with most seeds, then with fewest changes.",
        "Intervals are over prompts, and over seeds where there are several: of one seed they do not hold its luck, "
        "and of seeds that share a pool not the pool's. Those of rank correlations are over methods and settings, each "
        "drawn with all its runs, and not over prompts.",
    ]


def _row(finding: Finding) -> list[str]:
    value = finding.missing or str(finding.estimate)
    rule, seeds = finding.test.rule, str(finding.seeds)
    return [finding.test.task, what(finding), finding.runs, rule, value, seeds, finding.verdict]


def _section(number: int, verdict: Verdict, commands: Sequence[str]) -> page.ClaimSection:
    """commands: of the whole page, in whose numbering the claim's own are told."""
    rows = list(map(_row, verdict.findings))
    table = Table(verdict.claim.name, _heading(number, verdict), HEADER, rows, pd.DataFrame())
    own = [commands.index(command) + 1 for command in _commands([verdict])]
    return page.ClaimSection(verdict.told, verdict.claim.source, table, own)


def _commands(verdicts: Sequence[Verdict]) -> list[str]:
    """What repeats the runs that were judged, each once."""
    return list(dict.fromkeys(c for verdict in verdicts for finding in verdict.findings for c in finding.commands))


def _markdown(verdicts: Sequence[Verdict], title: str, sentences: Sequence[str]) -> str:
    parts = [f"# {title}\n", "\n".join(f"- {sentence}" for sentence in sentences) + "\n"]
    parts += [summary(verdicts).markdown(), f"![{FIGURE}](claims.png)\n"]
    commands = _commands(verdicts)
    for number, verdict in enumerate(verdicts, 1):
        section = _section(number, verdict, commands)
        runs = f" Runs: {page.told_numbers(section.commands)}." if section.commands else ""
        parts.append(f"## {section.table.title}\n\n**{verdict.told}**. {verdict.claim.source}.{runs}\n")
        parts.append(section.table.markdown())
    if commands:
        lines = "\n".join(f"{number}. `{command}`" for number, command in enumerate(commands, 1))
        parts.append(f"## The runs, as commands\n\n{lines}\n")
    return "\n".join(parts)
