"""`publish`: a run's adapters on Hugging Face's hub, with the evidence: model card, record, scores and judgements."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from gdro_bench.engine import card, record
from gdro_bench.errors import BenchError, first_line
from gdro_bench.files import write_atomically

EVIDENCE = ("run.json", "scores.parquet", "judged.parquet", "health.json")  # as far as the run has them
SHEET = "sheet.png"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def execute(console: Console, folder: Path, repo: str, upload: bool, public: bool) -> None:
    """Says what would be uploaded, or uploads it.

    Raises:
        BenchError: no finished run with adapters, a bad name, no right to write there, or the hub cannot be reached.
    """
    _check_name(repo)
    run = record.read(folder)
    if not (folder / card.ADAPTERS).is_dir():
        raise BenchError(f"{folder} has no {card.ADAPTERS}/.", "Run it again with this version: it keeps its adapters.")
    with tempfile.TemporaryDirectory() as staged:
        files = list(_stage(folder, Path(staged)))
        size = sum((Path(staged) / name).stat().st_size for name in files)
        console.print(f"{repo}: {len(files)} files, {size / 1e6:.1f} MB", markup=False)
        for name in files:
            console.print(f"  {name}", soft_wrap=True, markup=False)
        if not upload:
            console.print("Nothing was uploaded. Add --upload to do it.")
            return
        address = _upload(Path(staged), repo, public, f"{run.method} on {run.task}, seed {run.seed}")
    console.print(f"Uploaded: {address}", soft_wrap=True, markup=False)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        allowed = NAME.fullmatch(repo) is not None
    except HFValidationError:
        allowed = False
    if not allowed:
        raise BenchError(f"{repo!r} is no name on the hub.", "Give OWNER/NAME, such as --repo anna/flux-ocr-gdro.", 2)


def _stage(folder: Path, to: Path) -> Iterator[str]:
    """Copies what goes up, as it will lie there, and yields the names."""
    for path in sorted((folder / card.ADAPTERS).iterdir()):
        if path.is_file() and path.name != card.FILE:
            shutil.copyfile(path, to / path.name)
            yield path.name
    for name in EVIDENCE:
        if (folder / name).exists():
            (to / "evidence").mkdir(exist_ok=True)
            shutil.copyfile(folder / name, to / "evidence" / name)
            yield f"evidence/{name}"
    if (folder / SHEET).exists():
        shutil.copyfile(folder / SHEET, to / SHEET)
        yield SHEET
    write_atomically(to / card.FILE, str(card.of(folder, SHEET)).encode())
    yield card.FILE


def _upload(staged: Path, repo: str, public: bool, message: str) -> str:
    """Returns the address of what was uploaded.

    Raises:
        BenchError: as for `execute`.
    """
    from huggingface_hub import HfApi, errors  # here, because a dry run needs none of it

    api = HfApi()
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=staged, commit_message=message)
    except errors.LocalTokenNotFoundError as error:
        raise BenchError("This machine is not logged in to the hub.", "Type: hf auth login") from error
    except errors.HfHubHTTPError as error:
        raise BenchError(
            f"The hub refused {repo}: {first_line(error)}.", "Log in with a token that may write there: hf auth login"
        ) from error
    except (OSError, getattr(errors, "HTTPError", OSError)) as error:  # of the network
        raise BenchError(
            f"The hub cannot be reached: {first_line(error)}.", "Type the same command again later."
        ) from error
    return str(made)
