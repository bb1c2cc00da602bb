"""Makes a folder of reports/ from finished runs: their records and the report; where reports/README.md shows a grid,
the pictures of its grids, too. The other pictures would take most of the tree's room. Records of another report's are
not kept twice: `others.txt` names them. Where reports/README.md and README.md quote its tables, they are written anew;
their words are not.

python benchmarks/keep_report.py ocr-pocket runs/main/ocr/pocket/*
python benchmarks/keep_report.py ablations-ocr reports/ocr-pocket/runs/gdro-s? runs/main/ocr/pocket/gdro-k=2-s0
python benchmarks/keep_report.py ocr-pocket                          # the report again, from the records that are kept
python benchmarks/keep_report.py claims                              # the verdicts on all of them
"""

import re
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from pyarrow import parquet, types
from rich.console import Console

from gdro_bench import figures
from gdro_bench.commands import claims
from gdro_bench.comparison import drawings, entries, matched, report, searches
from gdro_bench.comparison.entries import Comparison
from gdro_bench.comparison.grids import grids
from gdro_bench.comparison.tables.costs import curve_table
from gdro_bench.engine import record, samples
from gdro_bench.engine.plan import folder_name
from gdro_bench.engine.tuning import tuned

REPORTS = Path(__file__).resolve().parents[1] / "reports"
OTHERS = "others.txt"  # records of other reports that one shows, too: a folder a line, as from reports/
QUOTED = {  # tables of a report.md that its section of reports/README.md may show, and how they begin
    "In short": "| method | reward at the end |",
    "Errors by kind": "| error | base",
    "Of the pictures that the reward calls right": "| method | a fact is broken, of those called right |",
}
# methods of ocr-pocket and geneval-pocket that README.md shows; the others stand in reports/README.md
IN_README = ("gdro", "gdro, lagging reference", "gdro, braked rounds", "flow-grpo", "nft")
RECORDS = ("run.json", "scores.parquet", "judged.parquet", "steps.parquet")
NAMES = {  # as `compare --name` gives them
    "gdro (pool.prompts=48, online.rounds=4, online.updates=35)": "gdro, 4 rounds",
    "gdro (adaptive_beta.rule=kl-target, adaptive_beta.every=2, adaptive_beta.kl_target=0.025, "
    "adaptive_beta.rate=0.5)": "gdro, beta moved to a KL",
    "gdro (optimiser.learning_rate=0.001)": "gdro, rate 1e-3",
    "gdro (pool.prompts=120, online.rounds=10, online.updates=11, online.window=3)": "gdro, 10 rounds",
    "gdro (pool.prompts=120, online.rounds=10, online.updates=11, online.window=3, online.sampler=old, "
    "online.lag=1.0)": "gdro, 10 rounds of the base's",
    "gdro (pool.prompts=120, online.rounds=10, online.updates=11, online.reference=sampler)": "gdro, moving reference",
    "gdro (pool.prompts=120, online.rounds=10, online.updates=11, online.sampler=old, online.reference=sampler)": (
        "gdro, lagging reference"
    ),
    "gdro (pool.prompts=360, online.rounds=30, online.updates=11, online.sampler=old, online.reference=sampler)": (
        "gdro, lagging reference"  # three budgets of it, in rounds of the same length
    ),
    "gdro (gamma=3.2, pool.prompts=120, online.rounds=10, online.updates=11, online.reference=sampler)": (
        "gdro, moving reference, gamma 3.2"
    ),
    "gdro (gamma=0.0, pool.prompts=120, online.rounds=10, online.updates=11, online.reference=sampler, "
    "regulariser.velocity_kl=25.0)": "gdro, moving reference, brake",
    "gdro (gamma=0.0, pool.prompts=360, online.rounds=30, online.updates=11, online.sampler=old, "
    "online.reference=sampler, regulariser.velocity_kl=25.0)": "gdro, lagging reference, brake",
    "gdro (gamma=0.0, pool.prompts=120, optimiser.steady_steps=28, online.rounds=10, online.updates=11, "
    "online.reference=sampler, regulariser.velocity_kl=8.0)": "gdro, braked rounds",
    "gdro (gamma=0.0, pool.prompts=360, optimiser.steady_steps=28, online.rounds=30, online.updates=11, "
    "online.reference=sampler, regulariser.velocity_kl=8.0)": "gdro, braked rounds",  # three budgets of them
    "gdro (pool.prompts=120, online.rounds=10, online.updates=11, online.reference=sampler, "
    "regulariser.velocity_kl=25.0)": "gdro, moving reference, term and brake",
    "flow-grpo (optimiser.steady_steps=15)": "flow-grpo, falling rate",
    "gdro (beta=1.92, pool.prompts=120, online.rounds=10, online.updates=11, online.sampler=old)": (
        "gdro, 10 rounds that lag, a tenth of beta"
    ),
    "gdro (beta=1.92, pool.prompts=120, online.rounds=10, online.updates=11)": "gdro, 10 rounds, a tenth of beta",
    "gdro (t_distribution=sampler)": "gdro, sampler's times",
    "gdro (optimiser.ema_slope=0.01, optimiser.ema_ceiling=0.95)": "gdro, averaged weights",
    "nft (mode=offline, offline.t_distribution=sampler)": "nft offline, sampler's times",
    "nft (mode=offline)": "nft offline",
    "nft (online.first=4)": "nft, later half of the times",
    "nft (online.last=3)": "nft, earlier half of the times",
    "crd (sampler.delay=0, sampler.start=0.999, sampler.slope=0.0)": "crd on the base's images",
    "crd (old.start=0.999, old.slope=0.0)": "crd held to the base",
    "flow-grpo (optimiser.learning_rate=0.001)": "flow-grpo, rate 1e-3",
}


def compared(folders: list[Path]) -> Comparison:
    found = entries.compare([entries.load(folder) for folder in folders], variants=True)
    labels = {entry.label for entry in found.all_entries}
    return entries.named(found, {label: name for label, name in NAMES.items() if label in labels})


def runs_of(folder: Path) -> list[Path]:
    """The folders of the runs that a report shows."""
    own = [path.parent for path in (folder / "runs").rglob("run.json")]
    others = folder / OTHERS
    names = others.read_text(encoding="utf-8").split() if others.exists() else []
    return sorted([*own, *(REPORTS / name for name in names)], key=lambda path: path.name)


def keep(folders: list[Path], report: Path) -> None:
    """Records, and the pictures that a report of all these runs shows."""
    shown = in_grids(folders, report) if links(report, "grid") else {}
    others = [path for path in folders if path.is_relative_to(REPORTS) and not path.is_relative_to(report)]
    report.mkdir(exist_ok=True)
    if others:
        names = sorted(path.relative_to(REPORTS).as_posix() for path in others)
        (report / OTHERS).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    for folder in folders:
        if folder.is_relative_to(REPORTS):
            continue  # it is kept, with its pictures
        run = record.read(folder)
        kept = report / "runs" / folder_name(run.method, run.changed, run.seed)
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for name in RECORDS:
            copy(folder / name, kept / name)
        if report.name.startswith("long-"):
            copy(folder / "health.json", kept / "health.json")  # which mark was the last healthy one
        for path, pictures in shown.items():
            if path.is_relative_to(folder):
                wanted = sorted(pictures)
                samples.write(kept / path.relative_to(folder), samples.read(path, wanted), wanted)


def copy(old: Path, new: Path) -> None:
    """Tables with the same rows and names of instruments in half the bytes: of the numbers all first bytes together,
    and so on, which compress better so; no statistics for readers that look for a few rows, nor pandas' notes."""
    if old.suffix != ".parquet":
        shutil.copy(old, new)
        return
    table = parquet.read_table(old)
    noted = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"pandas"}
    numbers = [column.name for column in table.schema if types.is_floating(column.type)]
    with parquet.ParquetWriter(
        new,
        table.schema,
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name in table.column_names if name not in numbers],
        use_byte_stream_split=numbers,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(noted)


def in_grids(folders: list[Path], report: Path) -> dict[Path, set[int]]:
    """Which pictures of which files are in those grids of a report of all these runs that reports/README.md shows."""
    found = compared(folders)
    level = matched.common_level(found)
    at_reward = [] if level is None else matched.at_reward(found, level, "evaluations")
    shown = defaultdict[Path, set[int]](set)
    for grid in grids(found, at_reward):
        for path in grid.sources.values() if links(report, f"grid-{grid.name}") else ():
            shown[path] |= set(grid.numbers)
    return shown


def links(folder: Path, name: str) -> bool:
    """Whether reports/README.md shows a figure of this folder whose name begins so."""
    return f"({folder.name}/{name}" in (REPORTS / "README.md").read_text(encoding="utf-8")


def table(folder: Path, title: str) -> str:
    """A table of a report.md, as it stands there."""
    text = (folder / "report.md").read_text(encoding="utf-8")
    return re.split(rf"^## {title}.*\n\n", text, flags=re.MULTILINE)[1].split("\n\n")[0].strip()


def cells(folder: Path) -> dict[str, dict[str, str]]:
    """The table in short of a report.md: method -> heading -> cell."""
    head, _, *rows = [line.strip("| ").split(" | ") for line in table(folder, "In short").splitlines()]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def readme_rows(folder: Path) -> str:
    """The lines of README.md's table that are of a report."""
    lines, task = "", folder.name.removesuffix("-pocket")
    for method, cell in cells(folder).items():
        if method.split(" (")[0] in IN_README:
            cost = cell.get("cost to equal reward, times gdro's", "")
            gold = cell["gold, against the base's"].split(": ")[-1]
            lines += f"| {task} | {method} | {cell['reward at the end']} | {cost} | {gold} |\n"
    return lines


def quoted(text: str, folder: Path) -> str:
    """The text of reports/README.md, with those tables of a report that its section shows as they are now."""
    before, own, after = re.split(rf"(^## {folder.name}\n(?:(?!## ).*\n)*)", text, flags=re.MULTILINE)
    for title, head in QUOTED.items():
        shown = rf"^{re.escape(head)}.*\n(?:\|.*\n)*"
        if re.search(shown, own, re.MULTILINE):
            new = table(folder, title) + "\n"
            own = re.sub(shown, lambda _, new=new: new, own, flags=re.MULTILINE)
    return before + own + after


def quote(folder: Path) -> None:
    """Writes a report's tables where they are quoted."""
    page, readme = REPORTS / "README.md", REPORTS.parent / "README.md"
    page.write_text(quoted(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
    if folder.name.endswith("-pocket"):
        own, rows = rf"(^\| {folder.name.removesuffix('-pocket')} \|.*\n)+", readme_rows(folder)
        text = re.sub(own, lambda _: rows, readme.read_text(encoding="utf-8"), flags=re.MULTILINE)
        readme.write_text(text, encoding="utf-8")


def draw_for_readme(found: Comparison, task: str) -> None:
    """reports/readme-TASK.png: reward against cost of the methods that README.md shows, and nothing else."""
    shown = tuple(entry for entry in found.entries if entry.label in IN_README)
    of_these = Comparison(shown, found.reference, found.prompt_weights, {})
    curves = curve_table(shown, found.prompt_weights)
    drawing = drawings.Drawing(of_these, curves, REPORTS, "evaluations", None)
    panel = {"evaluations": "cost: velocity evaluations, pools counted"}
    name = f"reward on {'OCR' if task == 'ocr' else 'GenEval'}, held-out prompts"
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "readme.png"
        figures.cost_curves(path, drawing.with_flat_starts, panel, "reward", name, None, drawing.styles)
        figures.copy_in_few_colours(path, REPORTS / f"readme-{task}.png")


def write(found: Comparison, out: Path) -> None:
    """The report, as `compare --tuned reports/search` writes it."""
    searched = searches.of(found, tuned.find(REPORTS / "search"))
    report.write(found, out, "evaluations", None, searched=searched)


def show(folder: Path) -> None:
    """The text of the report of the runs that are kept, and the figures that reports/README.md shows."""
    with tempfile.TemporaryDirectory() as out:
        found = compared(runs_of(folder))
        write(found, Path(out))
        for old in folder.glob("*.png"):
            old.unlink()
        shown = [path for path in Path(out).glob("*.png") if links(folder, path.name)]
        shutil.copy(Path(out) / "report.md", folder)
        for path in shown:
            figures.copy_in_few_colours(path, folder / path.name)
    if folder.name.endswith("-pocket"):
        draw_for_readme(found, folder.name.removesuffix("-pocket"))
    quote(folder)


def judge(out: Path) -> None:
    """The page of `gdro-bench claims --runs reports --tuned reports/search`."""
    claims.execute(Console(quiet=True), (), REPORTS, out, None, REPORTS / "search")


def show_claims(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        judge(Path(out))
        folder.mkdir(exist_ok=True)
        shutil.copy(Path(out) / "pocket" / "claims.md", folder)
        figures.copy_in_few_colours(Path(out) / "pocket" / "claims.png", folder / "claims.png")


if __name__ == "__main__":
    name, *runs = sys.argv[1:]
    if name == "claims":
        show_claims(REPORTS / name)
        sys.exit()
    if runs:
        keep([Path(run).resolve() for run in runs], REPORTS / name)
    show(REPORTS / name)
