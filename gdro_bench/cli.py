"""The command line: parses, calls, prints. Anything heavy is imported inside a command."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gdro_bench import __version__
from gdro_bench.errors import BenchError

AXIS_NAMES = ("evaluations", "seconds", "images", "updates")


class Group(click.Group):
    """Shows a `BenchError` as its two sentences, and Ctrl-C as one."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BenchError as error:
            click.echo(f"Error: {error.problem}\n{error.remedy}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            click.echo(f"Error: {error.filename or 'A file'} cannot be written: {error.strerror}.", err=True)
            click.echo("Free some space or give another --out; the run goes on from its last checkpoint.", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("Stopped. Type the same command again to go on from here.", err=True)
            ctx.exit(130)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gdro-bench")
def main() -> None:
    """Reward post-training of rectified-flow models, compared at matched cost."""


@main.command()
@click.argument("task")
@click.option("--method", default="gdro", show_default=True, help="How to train.")
@click.option("--profile", default="pocket", show_default=True, help="Which model, instruments and budget.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--out", default=Path("runs"), show_default=True, type=click.Path(path_type=Path), help="Where runs go.")
@click.option("--set", "settings", multiple=True, metavar="GROUP.KEY=VALUE", help="Change one number; repeatable.")
@click.option("--budget", type=int, help="Velocity evaluations (or the profile's kind), instead of the profile's.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Your own prompts to evaluate on, one a line.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--dry-run", is_flag=True, help="Only say what it would cost: images, hours, memory, disk.")
def run(
    task: str,
    method: str,
    profile: str,
    seed: int,
    out: Path,
    settings: tuple[str, ...],
    budget: int | None,
    prompts: Path | None,
    device: str,
    dry_run: bool,
) -> None:
    """Train a method on TASK within the profile's budget; killed, the same command goes on."""
    from gdro_bench import models, parallel, plan, progress, runner, summary

    chosen = plan.make(task, method, profile, seed, out, settings, budget, prompts)
    if dry_run:
        from gdro_bench import forecast

        team = parallel.Team(device=models.pick_device(device))
        summary.print_forecast(Console(), chosen, forecast.forecast(chosen, team))
        return
    with parallel.team(models.pick_device(device)) as team:
        console = Console(quiet=not team.first)
        with progress.RunBars(console) as bars:
            finished = runner.execute(chosen, bars, team)
    summary.print_run(console, finished, chosen.folder)


@main.command()
@click.argument("task")
@click.option("--method", "methods", multiple=True, default=["gdro"], show_default=True, help="Repeatable.")
@click.option("--over", multiple=True, metavar="GROUP.KEY=A,B", help="Values to try, one run each; repeatable.")
@click.option("--seeds", default="0", show_default=True, help="Seeds, with commas between them.")
@click.option("--profile", default="pocket", show_default=True, help="Which model, instruments and budget.")
@click.option("--out", default=Path("runs"), show_default=True, type=click.Path(path_type=Path), help="Where runs go.")
@click.option("--set", "settings", multiple=True, metavar="GROUP.KEY=VALUE", help="For all runs; repeatable.")
@click.option("--budget", type=int, help="Instead of the profile's.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
def sweep(task: str, methods: tuple[str, ...], over: tuple[str, ...], seeds: str, device: str, **chosen: Any) -> None:
    """Train on TASK once for every method, value and seed, one after another; killed, the same command goes on."""
    from gdro_bench import models, parallel, progress, summary
    from gdro_bench import sweep as sweeping

    plans = sweeping.plans(task, methods, over, sweeping.numbers(seeds), **chosen)
    with parallel.team(models.pick_device(device)) as team:
        console = Console(quiet=not team.first)
        with progress.RunBars(console) as bars:
            outcomes = sweeping.execute(plans, bars, team)
    summary.print_sweep(console, outcomes)
    if any(outcome.run is None for outcome in outcomes):
        sys.exit(1)


@main.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option("--runs", default=Path("runs"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes.  [default: RUNS/compare]")
@click.option("--x", "axis", default="evaluations", show_default=True, type=click.Choice(AXIS_NAMES))
@click.option("--reward", "level", type=float, help="R*, the reward to match methods at, instead of one chosen.")
@click.option("--reference", help="The method that others are held against.  [default: gdro, if it is there]")
def compare(
    folders: tuple[Path, ...], runs: Path, out: Path | None, axis: str, level: float | None, reference: str | None
) -> None:
    """Draw figures, tables and a page from the finished runs in FOLDERS, or from all under --runs."""
    from gdro_bench import summary
    from gdro_bench.compare import entries, report

    groups, unfinished = entries.groups(folders, runs)
    console = Console()
    for group in groups:
        compared = entries.compare(group, bool(folders), reference)
        folder = (out or runs / "compare") / f"{compared.first.task}-{compared.first.profile}"
        summary.print_comparison(console, *report.write(compared, folder, axis, level), folder)
    for folder in unfinished:
        console.print(f"Left out, unfinished: {folder}", soft_wrap=True)


@main.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option("--runs", default=Path("runs"), show_default=True, type=click.Path(path_type=Path))
@click.option("--judge", "name", default="pocket", show_default=True, help="Or unified-reward[-local], none.")
@click.option("--gold", default="pocket-facts", show_default=True, help="pocket-facts, or none.")
@click.option("--second-reader", default="none", show_default=True, help="tesseract, or none: the OCR reward by it.")
@click.option("--url", default="", help="Where unified-reward is served; it ends in /v1.")
@click.option(
    "--model", default="UnifiedReward", show_default=True, help="Its server's name for it; local: folder or id."
)
def judge(folders: tuple[Path, ...], runs: Path, **chosen: str) -> None:
    """Have the pictures of the finished runs in FOLDERS, or of all under --runs, judged; killed, it goes on."""
    from gdro_bench import judging, progress
    from gdro_bench.compare import entries

    judges = judging.open_judges(judging.JudgeConfig(**chosen))
    finished = entries.finished(folders, runs)[0]
    console = Console()
    with progress.EvaluationBar(console) as bar:
        for folder in finished:
            judging.judge_run(folder, judges, bar.evaluating)
    console.print(f"Judged {len(finished)} runs. Next: gdro-bench compare --runs {runs}", soft_wrap=True)


@main.command("eval")
@click.argument("task")
@click.option("--profile", default="pocket", show_default=True, help="Which model and instruments.")
@click.option("--images", type=click.Path(path_type=Path), help="Score these: CSV (path, prompt), or GenEval's layout.")
@click.option("--model", type=click.Path(path_type=Path), help="Weights to paint with, instead of the profile's.")
@click.option("--lora", type=click.Path(path_type=Path), help="Adapters to paint with, such as a run's lora/.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Your own prompts to paint, one a line.")
@click.option(
    "--mask2former", metavar="SOURCE", help="For geneval, not the pocket detector: folder, hub id or mmdet file."
)
@click.option("--clip", metavar="SOURCE", help="Tells colours to --mask2former: a folder, hub id or open_clip file.")
@click.option("--judge", metavar="URL", help="Ask UnifiedReward at this address (it ends in /v1), too.")
@click.option("--judge-model", default="UnifiedReward", show_default=True, help="The name that its server knows it by.")
@click.option("--out", type=click.Path(path_type=Path), help="Write eval.json and scores.csv there.")
@click.option("--set", "settings", multiple=True, metavar="profile.KEY=VALUE", help="Repeatable.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
def eval_(
    task: str,
    profile: str,
    images: Path | None,
    prompts: Path | None,
    out: Path | None,
    settings: tuple[str, ...],
    **chosen: Any,
) -> None:
    """Score a model's pictures, or those in --images, on TASK, without training."""
    from gdro_bench import evaluation, plan, progress, summary

    console = Console()
    measured, settled, held_out = plan.to_evaluate(task, profile, settings, prompts)
    asked = evaluation.Asked(**chosen)
    if images:
        asked.refuse_painting(prompts)
        pictures = evaluation.read(images, plan.prompt_of(measured))
    else:
        pictures = evaluation.paint(settled, held_out, task, asked)
    scorer, judge = evaluation.instruments(measured, settled, asked)
    with progress.EvaluationBar(console) as bar:
        scores = evaluation.score(pictures, scorer, bar.evaluating)
        said = None if judge is None else evaluation.score(pictures, judge, bar.evaluating)
    found = evaluation.result(scorer, pictures.prompts, scores, settled.max_unscored)
    if judge is not None and said is not None:
        found = evaluation.with_judge(found, pictures.prompts, scores, judge, said, measured.correction)
    summary.print_evaluation(console, found)
    if out is not None:
        evaluation.write(out, pictures, scores, said, found)
        console.print(f"Written: {out / 'eval.json'}, {out / 'scores.csv'}", soft_wrap=True)


@main.command("list")
def list_() -> None:
    """Show tasks, profiles and the methods that each profile has numbers for."""
    from rich.table import Table

    from gdro_bench import content
    from gdro_bench.methods import METHODS

    table = Table("task", "profile", "methods")
    for task in content.names("task"):
        prompt_sets = content.read(content.find("task", task) / "task.toml")["prompts"]
        for profile in content.names("profile"):
            folder = content.find("profile", profile)
            if content.read(folder / "profile.toml")["prompts"] in prompt_sets:
                methods = sorted(f.stem for f in folder.glob("*.toml") if f.stem in METHODS)
                table.add_row(task, profile, ", ".join(methods))
    Console().print(table)


@main.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), help="[default: runs/pretrain-MODEL]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--images", type=click.IntRange(min=64), help="Transformer images, instead of the recipe's.")
def pretrain(model: str, out: Path | None, seed: int, device: str, images: int | None) -> None:
    """Make MODEL (pocket, GenEval's base pocket-weathered, or the instruments pocket-detector and pocket-judge) anew:
    weights and card under --out; a base, killed, goes on where it was."""
    from gdro_bench.errors import unknown
    from gdro_bench.models.pocket import detector_making, judge_making, making

    instruments = {"pocket-detector": detector_making.pretrain, "pocket-judge": judge_making.pretrain}
    folder = out or Path(f"runs/pretrain-{model}")
    if model in making.RECIPES:
        making.pretrain(model, folder, seed, device, images, Console())
    elif model in instruments:
        instruments[model](folder, seed, Console())
    else:
        raise unknown("model to pretrain called", model, [*making.RECIPES, *instruments])


@main.command()
@click.argument("task")
@click.option("--split", type=click.Choice(["train", "tuning", "held-out"]), help="[default: train; geneval: held-out]")
@click.option("--seed", type=click.IntRange(min=0), help="[default: 0; geneval: 0, tuning 1, held-out 43]")
@click.option("-n", "count", type=click.IntRange(min=1), help="How many; of geneval's held-out split, of each tag.")
@click.option("--world", type=click.Choice(["pocket", "photo"]), help="[default: pocket; geneval: photo]")
def prompts(task: str, **chosen: Any) -> None:
    """Write prompts of TASK to standard output: the files in tasks/ were made so, geneval's published test set, too."""
    from gdro_bench import prompt_sets

    for line in prompt_sets.lines(task, **chosen):
        click.echo(line)


@main.command()
@click.option("--profile", default="pocket", show_default=True, help="Check what this profile needs.")
@click.option("--set", "settings", multiple=True, metavar="profile.KEY=VALUE", help="Repeatable.")
def doctor(profile: str, settings: tuple[str, ...]) -> None:
    """Check this machine before hours are spent: versions, memory, disk, weights, and that every instrument sees."""
    from gdro_bench import checkup

    if not checkup.print_checks(Console(), profile, settings):
        sys.exit(1)


if __name__ == "__main__":
    main()
