"""The command line: parses, calls `gdro_bench.commands`, prints. Anything heavy is imported inside a command."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click
from rich.console import Console

from gdro_bench import content
from gdro_bench.errors import BenchError
from gdro_bench.files import REMEDIES
from gdro_bench.profile import DEFAULT_JUDGE_MODEL
from gdro_bench.version import __version__

AXIS_NAMES = ("evaluations", "seconds", "images", "updates")
START = """Train a small model on this machine, with no downloads:

  gdro-bench run ocr --method gdro

Then see what came out, and what else there is:

  gdro-bench compare
  gdro-bench --help"""
GO_ON = ("run", "sweep", "tune", "judge", "pretrain")  # commands that keep what they have done
F = TypeVar("F", bound=Callable[..., Any])


class Group(click.Group):
    """Shows a `BenchError` as its two sentences, and Ctrl-C or SIGTERM as one."""

    def invoke(self, ctx: click.Context) -> Any:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except BenchError as error:
            click.echo(f"Error: {error.problem}\n{error.remedy}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno not in REMEDIES:
                raise
            click.echo(f"Error: {error.filename or 'A file'} cannot be used: {error.strerror}.", err=True)
            click.echo(REMEDIES[error.errno], err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            goes_on = ctx.invoked_subcommand in GO_ON and "--dry-run" not in sys.argv
            click.echo(f"Stopped.{' Type the same command again to go on from here.' if goes_on else ''}", err=True)
            ctx.exit(130)


PIPE_WIDTH = 160  # columns where no terminal says how many there are: intervals stay on one line


def _console(quiet: bool = False) -> Console:
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds the stack as Ctrl-C does, so that worker processes end and files are closed."""
    raise KeyboardInterrupt


def _examples(*commands: str) -> dict[str, str]:
    """The end of a command's help; `\\b` keeps click from filling the lines."""
    return {"epilog": "\b\nExamples:\n" + "\n".join(f"  gdro-bench {command}" for command in commands)}


# ---------------------------------------------------------------------------------------------------------------
# Options that several commands have, each with one name and one meaning


class _Path(click.Path):
    """An empty text, as of a variable that is not set, would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty.", param, ctx)
        return super().convert(value, param, ctx)


def _path(*names: str, **more: Any) -> Callable[[F], F]:
    return click.option(*names, type=_Path(path_type=Path), **more)


profile_option = click.option(
    "--profile", default="pocket", show_default=True, help="Model, instruments and budget: a folder of baselines/."
)
seed_option = click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, content.LARGEST_SEED),
    help="Seed of all random draws.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute."
)
set_option = click.option(
    "--set", "settings", multiple=True, metavar="GROUP.KEY=VALUE",
    help="Change one setting of baselines/, such as method.tau=0.1 or profile.judge.name=none; repeatable.",
)  # fmt: skip
budget_option = click.option(
    "--budget", type=int, help="How much to spend, in velocity evaluations, or in what profile.budget.kind says."
)
runs_out_option = _path("--out", default=Path("runs"), show_default=True, help="Folder that runs are kept in.")
runs_option = _path("--runs", default=Path("runs"), show_default=True, help="Folder to look for runs in.")
prompts_option = _path(
    "--prompts", help="A file of your own prompts to evaluate on, one a line, as those of the task's own files."
)
track_option = click.option(
    "--track", multiple=True, metavar="NAME",
    help="Show curves while it runs, in tensorboard, trackio or wandb; repeatable. Results stay the same.",
)  # fmt: skip
train_prompts_option = _path(
    "--train-prompts", help="A file of your own prompts to train on, one a line, as those of the task's own files."
)


def judge_options(default: str, model: str) -> Callable[[F], F]:
    """`--judge`, `--judge-url` and `--judge-model`; a model '' is the profile's."""
    options = (
        click.option("--judge", default=default, show_default=True, help="Judge by name; unified-reward, for one."),
        click.option("--judge-url", default="", help="Address of the judge's server; it ends in /v1."),
        click.option(
            "--judge-model", default=model, show_default=model or "the profile's",
            help="What the server calls the judge; for unified-reward-local a folder or hub id.",
        ),
    )  # fmt: skip

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gdro-bench")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Reward post-training of text-to-image rectified-flow models, compared at matched cost."""
    if ctx.invoked_subcommand is None:
        click.echo(START)


@main.command(
    **_examples(
        "run ocr --method gdro",
        "run ocr --method flow-grpo --seed 1",
        "run geneval --set method.gamma=0 --budget 50000",
        "run ocr --profile flux1-dev --dry-run",
    )
)
@click.argument("task")
@click.option("--method", default="gdro", show_default=True, help="How to train.")
@profile_option
@seed_option
@runs_out_option
@set_option
@budget_option
@prompts_option
@train_prompts_option
@track_option
@device_option
@click.option(
    "--dry-run", is_flag=True, help="Train nothing: say what it would cost in images, hours, memory and disk."
)
@click.option(
    "--processes",
    "count",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="With --dry-run: what it would cost on so many, one a GPU. (torchrun starts them for a run.)",
)
def run(device: str, dry_run: bool, count: int, **options: Any) -> None:
    """Train a model on TASK with one method. Killed at any moment, the same command goes on."""
    from gdro_bench.engine.plan import make_plan

    if count > 1 and not dry_run:
        raise BenchError(
            "--processes counts with --dry-run alone.",
            f"Start so many with: torchrun --nproc-per-node {count} --no-python gdro-bench run ...", 2,
        )  # fmt: skip
    plan = make_plan(**options)
    from gdro_bench import distributed, models, progress
    from gdro_bench.commands import summary
    from gdro_bench.engine import runner

    if dry_run:
        from gdro_bench.commands.dry_run import forecast

        console = _console()
        console.print("Opening the model and measuring this machine, up to a minute")
        summary.print_forecast(console, plan, forecast(plan, models.pick_device(device), count))
        return
    with distributed.process_group(models.pick_device(device)) as processes:
        console = _console(quiet=not processes.is_main)
        with progress.RunBars(console) as bars:
            finished = runner.execute(plan, bars, processes)
    summary.print_run(console, finished, plan)


@main.command(
    **_examples(
        "sweep ocr --method gdro --method flow-grpo --seeds 0,1,2",
        "sweep ocr --over method.tau=0.5,0.05,0.025",
        "sweep ocr --seeds 0,1,2 --jobs 2",
    )
)
@click.argument("task")
@click.option(
    "--method", "methods", multiple=True, default=["gdro"], show_default=True, help="How to train; repeatable."
)
@click.option("--over", multiple=True, metavar="GROUP.KEY=A,B", help="Values to try, one run each; repeatable.")
@click.option("--seeds", default="0", show_default=True, help="Seeds, with commas between them.")
@profile_option
@runs_out_option
@set_option
@budget_option
@prompts_option
@train_prompts_option
@track_option
@device_option
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(min=1),
    help="Runs side by side on this machine, whose cores they share.",
)  # fmt: skip
@click.option(
    "--ray", metavar="ADDRESS",
    help="Spread the runs over a Ray cluster: HOST:PORT, auto (this machine's) or local (started here, for a trial). "
    "A run takes this machine's cores / --jobs.",
)  # fmt: skip
def sweep(
    task: str, methods: tuple[str, ...], over: tuple[str, ...], seeds: str, device: str, jobs: int, ray: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Train on TASK once for every method, value and seed. Stopped, it goes on when typed again."""
    from gdro_bench.commands import sweep as sweep_command

    plans = sweep_command.plans(task, methods, over, sweep_command.parse_seeds(seeds), **options)
    from gdro_bench import distributed, models, progress
    from gdro_bench.commands import on_ray, side_by_side, summary

    here = "cpu" if ray is not None else models.pick_device(device)
    with distributed.process_group(here) as processes:
        console = _console(quiet=not processes.is_main)
        if (jobs > 1 or ray is not None) and processes.size > 1:
            raise BenchError("--jobs and --ray start processes of their own.", "Leave them out, or torchrun.", 2)
        with progress.RunBars(console) as bars:
            if ray is not None:
                outcomes = on_ray.execute(plans, bars, device, jobs, ray)
            elif jobs > 1:
                outcomes = side_by_side.execute(plans, bars, here, jobs)
            else:
                outcomes = sweep_command.execute(plans, bars, processes)
    summary.print_sweep(console, outcomes)
    if any(outcome.run is None for outcome in outcomes):
        sys.exit(1)


@main.command(
    **_examples(
        "tune ocr --method gdro --method flow-grpo --trials 24 --budget 60000",
        "tune geneval --method dpo --trials 12 --budget 48000 --jobs 2",
        "tune ocr --method gdro --method flow-grpo --over method.optimiser.learning_rate=1e-3,2.66e-3",
    )
)
@click.argument("task")
@click.option(
    "--method", "methods", multiple=True, default=["gdro"], show_default=True, help="Whose settings; repeatable."
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    help="Number of trials of each method; the first has its own settings.  [default: 24]",
)
@click.option(
    "--over",
    multiple=True,
    metavar="method.KEY=A,B",
    help="Try all these values instead of points of the method's search space; repeatable: all combinations.",
)
@click.option("--budget", type=int, help="Budget of one trial, pools counted.  [default: the profile's]")
@profile_option
@seed_option
@_path("--out", default=Path("tuned"), show_default=True, help="Folder that trials are kept in.")
@set_option
@device_option
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Trials side by side on this machine."
)
def tune(task: str, methods: tuple[str, ...], device: str, jobs: int, **options: Any) -> None:
    """Search each method's settings on TASK's tuning prompts, all methods alike. If it is stopped, type the same
    command again: it goes on. Typed on another machine with the same --out, it shares the trials."""
    from gdro_bench.commands import tune as tune_command

    searches = tune_command.searches(task, methods, **options)
    from gdro_bench import distributed, models, progress
    from gdro_bench.commands import summary

    budget = searches[0].plans[0].profile.budget
    with distributed.process_group(models.pick_device(device)) as processes:
        console = _console(quiet=not processes.is_main)
        if jobs > 1 and processes.size > 1:
            raise BenchError("--jobs starts processes of its own.", "Leave out --jobs, or torchrun.", 2)
        total = sum(len(search.plans) for search in searches)
        with progress.TrialBars(console, budget.limit, budget.kind, total) as bars:
            found = tune_command.execute(searches, bars, processes, models.pick_device(device), jobs)
    if found:
        summary.print_tune(console, found)
    if any(one.best is None for one in found):
        sys.exit(1)


@main.command(
    **_examples(
        *("compare", "compare runs/ocr --out report", "compare --x images --level 0.8"),
        "compare --tuned tuned --name flow-grpo Flow-GRPO",
    )
)
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@runs_option
@_path("--out", help="Folder that the report goes to.  [default: RUNS/compare]")
@click.option(
    "--x", "axis", default="evaluations", show_default=True, type=click.Choice(AXIS_NAMES), help="Unit of cost."
)
@click.option("--level", type=float, help="The reward at which costs are compared (R*), instead of the common one.")
@click.option("--reference", help="The method that others are held against.  [default: gdro, if it is there]")
@click.option(
    "--name",
    "names",
    nargs=2,
    multiple=True,
    metavar="METHOD NAME",
    help="Rename METHOD, as a report calls it, to NAME; repeatable.",
)
@_path("--tuned", help="Folder of gdro-bench tune: report how many trials each method's settings took.")
@_path("--study", help="Folder of gdro-bench study: tell what people prefer.")
def compare(
    folders: tuple[Path, ...], runs: Path, out: Path | None, names: tuple[tuple[str, str], ...], **options: Any
) -> None:
    """Make figures, tables and a page from the finished runs in FOLDERS, or from all under --runs."""
    from gdro_bench.commands import compare as compare_command

    compare_command.execute(_console(), folders, runs, out, **options, names=dict(names))


@main.command(**_examples("claims", "claims runs/ocr runs/geneval --out verdicts", "claims --rules my-rules.toml"))
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@runs_option
@_path("--out", help="Folder that the page goes to.  [default: RUNS/claims]")
@_path("--rules", help="File of claims and rules, instead of those on GDRO's paper that come with the package.")
@_path("--tuned", help="Folder of gdro-bench tune: of several GDRO runs in rounds, judge those with its settings.")
def claims(folders: tuple[Path, ...], runs: Path, out: Path | None, rules: Path | None, tuned: Path | None) -> None:
    """Judge claims by written rules: verdicts on the finished runs in FOLDERS, or on all under
    --runs, on one page."""
    from gdro_bench.commands import claims as claims_command

    claims_command.execute(_console(), folders, runs, out, rules, tuned)


@main.command(
    **_examples(
        "study runs/ocr --pairs 50 --out study",
        "study --out study --answers anna.json --answers ben.json",
    )
)
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@runs_option
@_path("--out", help="Folder of the study.  [default: RUNS/study]")
@_path("--answers", "files", multiple=True, help="A file that a rater saved: tell what was answered; repeatable.")
@click.option(
    "--pairs", "count", default=50, show_default=True, type=click.IntRange(min=1), help="Prompts for each two methods."
)
@click.option(
    "--at", default="budget", show_default=True, type=click.Choice(["budget", "reward"]),
    help="Pictures at the end of the budget, or where methods reach the same reward.",
)  # fmt: skip
@seed_option
@click.option("--question", default=None, help="What raters are asked.  [default: which picture is better]")
@click.option("--reference", help="The method that others are held against.  [default: gdro, if it is there]")
def study(folders: tuple[Path, ...], runs: Path, question: str | None, **options: Any) -> None:
    """Ask people: one page of blind comparisons of the finished runs in FOLDERS, or of all under --runs; with
    --answers, what they say."""
    from gdro_bench.commands import study as study_command

    study_command.execute(
        _console(), folders, runs, question=study_command.QUESTION if question is None else question, **options
    )


@main.command(**_examples("judge", "judge runs/ocr --judge unified-reward --judge-url http://127.0.0.1:8080/v1"))
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@runs_option
@judge_options(default="pocket", model=DEFAULT_JUDGE_MODEL)
@click.option("--gold", help="Score of known truth: pocket-facts, or none.  [default: that of each run's profile]")
@click.option("--second-reader", default="none", show_default=True, help="The OCR reward by another reader: tesseract.")
def judge(folders: tuple[Path, ...], runs: Path, **options: Any) -> None:
    """Have the pictures of the finished runs in FOLDERS, or of all under --runs, judged: these ratings take the
    place of those that a run has. Killed, it goes on."""
    from gdro_bench.commands import judge as judge_command

    judge_command.execute(_console(), folders, runs, **options)


@main.command(
    "eval",
    **_examples(
        "eval ocr --lora runs/ocr/pocket/gdro-s0/lora",
        "eval ocr --lora runs/ocr/pocket/gdro-s0/lora --lora-scale 0,0.25,0.5,0.75,1 --judge pocket --out frontier",
        "eval geneval --profile flux1-dev --images FOLDER --out scores",
        "eval ocr --images list.csv --judge unified-reward --judge-url http://127.0.0.1:8080/v1",
    ),
)
@click.argument("task")
@profile_option
@_path("--images", help="Score these pictures: a CSV file (path, prompt), or a folder in GenEval's layout.")
@_path("--weights", help="Generate with these weights instead of the profile's.")
@_path("--lora", help="Generate with these adapters, such as a run's lora/ or what peft saved.")
@click.option("--lora-scale", metavar="A,B", help="Once for each scale of the adapters' updates: 0,0.25,0.5,0.75,1.")
@prompts_option
@click.option("--mask2former", metavar="SOURCE", help="Detector for geneval: folder, hub id, or mmdet's checkpoint.")
@click.option("--clip", metavar="SOURCE", help="Tells --mask2former's colours: folder, hub id, or open_clip's file.")
@judge_options(default="none", model="")
@_path("--out", help="Folder that eval.json and scores.csv go to.")
@set_option
@device_option
def evaluate(
    task: str,
    profile: str,
    settings: tuple[str, ...],
    prompts: Path | None,
    out: Path | None,
    lora_scale: str | None,
    **options: Any,
) -> None:
    """Score pictures on TASK without training: those in --images, or a model's."""
    from gdro_bench.commands import evaluate as evaluate_command
    from gdro_bench.commands import frontier

    request, shared = evaluate_command.EvalRequest(**options), (task, profile, settings, prompts, out)
    if lora_scale is None:
        evaluate_command.execute(_console(), request, *shared)
    else:
        frontier.execute(_console(), request, frontier.parse_scales(lora_scale), *shared)


@main.command(
    **_examples(
        "publish runs/ocr/flux1-dev/gdro-s0 --repo NAME/flux-ocr-gdro",
        "publish runs/ocr/flux1-dev/gdro-s0 --repo NAME/flux-ocr-gdro --upload",
    )
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--repo", required=True, metavar="OWNER/NAME", help="Where on Hugging Face's hub.")
@click.option("--upload", is_flag=True, help="Really do it; without this, only say what would be uploaded.")
@click.option("--public", is_flag=True, help="Let everyone see a new repository; it is private else.")
def publish(folder: Path, repo: str, upload: bool, public: bool) -> None:
    """Put the adapters of the finished run in FOLDER on Hugging Face's hub, with their model card, record and scores.
    Dry by default."""
    from gdro_bench.commands import publish as publish_command

    publish_command.execute(_console(), folder, repo, upload, public)


@main.command("list", **_examples("list"))
def list_() -> None:
    """Show tasks, profiles and the methods that each profile has settings for."""
    from gdro_bench.commands import listing

    listing.print_list(_console())


@main.command(**_examples("pretrain pocket", "pretrain pocket-judge --out judge"))
@click.argument("model")
@_path("--out", help="Folder for weights and card.  [default: runs/pretrain-MODEL]")
@seed_option
@device_option
@click.option(
    "--train-images", type=click.IntRange(min=64), help="Images the transformer sees, instead of the recipe's."
)
def pretrain(model: str, out: Path | None, seed: int, device: str, train_images: int | None) -> None:
    """Train again what comes with the package: MODEL is pocket (the base), pocket-detector or pocket-judge. A base that
    was killed goes on. Several processes share its batches; on a CPU two of one thread are faster than one of two:
    torchrun --nproc-per-node 2 --no-python gdro-bench pretrain pocket"""
    from gdro_bench import distributed, models
    from gdro_bench.models.pocket import training

    folder = out or Path(f"runs/pretrain-{model}")
    with distributed.process_group(models.pick_device(device)) as processes:
        training.pretrain(model, folder, seed, train_images, _console(quiet=not processes.is_main), processes)


@main.command(**_examples("prompts ocr --split tuning", "prompts geneval --seed 43 -n 100"))
@click.argument("task")
@click.option("--split", type=click.Choice(["train", "tuning", "held-out"]), help="[default: train; geneval: held-out]")
@click.option("--seed", type=click.IntRange(min=0), help="[default: 0; geneval: 0, tuning 1, held-out 43]")
@click.option("-n", "count", type=click.IntRange(min=1), help="How many; of geneval's held-out split, of each tag.")
@click.option("--world", type=click.Choice(["pocket", "photo"]), help="[default: pocket; geneval: photo]")
def prompts(task: str, **options: Any) -> None:
    """Write prompts of TASK to standard output. The files in tasks/ were made so, and so is GenEval's published set."""
    from gdro_bench.commands.prompts import lines

    for line in lines(task, **options):
        click.echo(line)


@main.command(
    **_examples(
        "doctor", "doctor --profile flux1-dev", "doctor --profile flux1-dev --task ocr --method gdro --processes 8"
    )
)
@profile_option
@click.option("--task", help="Check what this task needs.  [default: what any does]")
@click.option("--method", help="Check what this method needs.  [default: what any does]")
@click.option(
    "--processes", default=1, show_default=True, type=click.IntRange(1), help="How many you will start here, one a GPU."
)
@set_option
def doctor(profile: str, task: str | None, method: str | None, processes: int, settings: tuple[str, ...]) -> None:
    """Check this machine before hours are spent: versions, memory, disk, weights and every instrument."""
    from gdro_bench.commands import doctor as doctor_command

    if not doctor_command.print_checks(_console(), profile, settings, task, method, processes):
        sys.exit(1)


if __name__ == "__main__":
    main()
