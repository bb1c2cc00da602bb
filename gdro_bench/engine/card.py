"""The model card of a run's adapters, in the form of Hugging Face's hub: what they are, what they gained and what else
moved, with intervals, and the command that made them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from gdro_bench import content, stats, task
from gdro_bench.engine import health, judging, record
from gdro_bench.engine.record import Run
from gdro_bench.files import write_atomically
from gdro_bench.stats import Estimate

FILE = "README.md"
ADAPTERS = "lora"  # the folder of a run's adapters
SHEET = "../sheet.png"  # from there
HOME = "gdro-bench"
LICENCES = {  # of adapters, by the base that they belong to: its own, which they inherit
    "black-forest-labs/FLUX.1-dev": {
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
        "license_link": "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    },
    "stabilityai/stable-diffusion-3.5-medium": {
        "license": "other",
        "license_name": "stabilityai-ai-community",
        "license_link": "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
    },
}
OWN_LICENCE = {"license": "apache-2.0"}  # of pocket
NAMES = {"u": "judge, mean of its axes (1-5)", "gold": "gold (share of the prompt's facts that the picture shows)"}


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of the held-out pictures: the base's mean, that of the end, and the change, paired over prompts."""

    name: str
    base: float
    end: Estimate
    change: Estimate


def write(folder: Path) -> None:
    """Writes the card of a finished run beside its adapters, or anew; nothing where they are not kept.

    Raises:
        BenchError: the run's record, scores or judgements are damaged.
    """
    if (folder / ADAPTERS).is_dir():
        write_atomically(folder / ADAPTERS / FILE, str(of(folder)).encode())


def of(folder: Path, sheet: str = SHEET) -> ModelCard:
    """The card of a finished run. sheet: where it finds the picture of before and after.

    Raises:
        BenchError: the run's record, scores or judgements are damaged.
    """
    run = record.read(folder)
    scores = record.read_scores(folder)
    judged = judging.read(folder) if judging.is_complete(run, folder) else None
    corrected, rated = _corrected(run, scores, judged)
    told = f"of {rated} prompts | | {corrected}"
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        model_name=f"{run.method}-{run.task}-{run.profile}-s{run.seed}",
        tags=["lora", "text-to-image", "reinforcement-learning", HOME, run.method],
        eval_results=_results(run, corrected, {"reward": len(set(_texts(scores))), "corrected": rated}),
        **_base(run),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(run, folder, scores, judged, told, sheet)}")


def _source(run: Run) -> str:
    """The base as a hub id; nothing for one that is not on the hub."""
    source = str(run.settings["profile"].get("pretrained", {}).get("source", ""))
    local = source.startswith((".", "/", "~")) or Path(source).exists()
    return source if source.count("/") == 1 and not local else ""


def _base(run: Run) -> dict[str, Any]:
    source = _source(run)
    if source:
        return {"base_model": source, **LICENCES.get(source, {})}
    return OWN_LICENCE if run.settings["profile"].get("model") == "pocket" else {}


def _results(run: Run, corrected: Estimate, prompts: dict[str, int]) -> list[EvalResult]:
    """The held-out reward and the corrected score, as far as they are known, and of how many prompts each is."""
    known = {"reward": (run.instruments["reward"], run.points[-1].reward), "corrected": ("corrected score", corrected)}
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type=f"{HOME}-{run.task}",
            dataset_name=f"{run.task}, held-out prompts",  # one for all: the hub joins results of a dataset
            metric_type=kind,
            metric_name=name,
            metric_value=round(value.mean, 4),
            metric_args={
                "low": round(value.low, 4),
                "high": round(value.high, 4),
                "interval": "95 % bootstrap",
                "prompts": prompts[kind],
            },
        )
        for kind, (name, value) in known.items()
        if not math.isnan(value.mean)
    ]


# ---------------------------------------------------------------------------------------------------------------
# What moved


def _at(table: pd.DataFrame, mark: float) -> pd.DataFrame:
    return table[np.isclose(table["mark"], mark)].sort_values("prompt")


def changes(run: Run, table: pd.DataFrame, texts: list[str]) -> list[Change]:
    """From the base to the end of the budget, of every column of numbers. texts: of the prompts by their number."""
    base, end = (_at(table, point.mark) for point in (run.points[0], run.points[-1]))
    shared = sorted(set(base["prompt"]) & set(end["prompt"]))
    base, end = (one[one["prompt"].isin(shared)] for one in (base, end))
    prompts = [texts[number] for number in end["prompt"]]
    found = []
    for name in table.select_dtypes("number").columns.difference(["mark", "prompt"], sort=False):
        before, after = (one[name].to_numpy(float) for one in (base, end))
        moved = stats.paired_gain(before, after, prompts=prompts)
        ended = stats.bootstrap_mean(after, prompts=prompts)
        found.append(Change(name, float(stats.known_mean(before)), ended, moved))
    return [one for one in found if not math.isnan(one.change.mean)]


def _texts(scores: pd.DataFrame) -> list[str]:
    return [str(text) for text in _at(scores, 0.0)["text"]]


def _corrected(run: Run, scores: pd.DataFrame, judged: pd.DataFrame | None) -> tuple[Estimate, int]:
    """Of the means at the end of the budget, and of how many prompts: those whose pictures were kept and rated."""
    if judged is None or "u" not in judged:
        return Estimate(math.nan, math.nan, math.nan), 0
    end, u = _at(scores, run.points[-1].mark), _at(judged, run.points[-1].mark).set_index("prompt")["u"]
    rated = u.reindex(end["prompt"]).to_numpy(float)
    correction = task.load(run.task).correction
    corrected = judging.corrected_mean(end["value"].to_numpy(float), rated, list(end["text"]), correction)
    return corrected, end[~np.isnan(rated)]["text"].nunique()


# ---------------------------------------------------------------------------------------------------------------
# The text


def _body(run: Run, folder: Path, scores: pd.DataFrame, judged: pd.DataFrame | None, corrected: str, sheet: str) -> str:
    correction = task.load(run.task).correction
    last, judges, healthy = run.points[-1], judging.instruments(folder), health.read(folder)
    reward, *moved = _moved(run, scores, judged)
    return f"""# {run.method} on {run.task}, seed {run.seed}

LoRA adapters for {_named_base(run)}, trained with `{run.method}` on the reward of the task `{run.task}`
({run.instruments["reward"]}) by {HOME} {run.version}.

| | base | with these adapters | change |
| --- | ---: | ---: | ---: |
| reward, held-out prompts | {stats.three_decimals(reward.base)} | {reward.end} | {reward.change} |
| corrected score, {corrected} | |

Brackets are 95 % bootstrap intervals over prompts. {last.unscored} pictures at the end could not be scored.
The corrected score is r (u - {correction.pivot:g}) + {correction.shift:g} of the means of the reward r and of a
judge's rating u, which no training saw; judge: {judges.get("judge", "none, so it is not known")}.

Spent: {last.evaluations:,} velocity evaluations (passes of one image through the model), {last.pool_evaluations:,} of
them for a pool of images; {last.updates} updates; {last.reward_calls:,} calls of the reward.
{_health(healthy)}
## What moved besides

{_table(moved)}

![The first held-out prompts before and after, from the same noise]({sheet})

## Use

{_use(run)}

## Made by

    {record.command(run)}

All settings of the method:

```json
{_settings(run.settings["method"])}
```
"""


def _moved(run: Run, scores: pd.DataFrame, judged: pd.DataFrame | None) -> list[Change]:
    """The reward, and what moved besides."""
    texts = _texts(scores)
    reward = changes(run, scores[["mark", "prompt", "value"]], texts)
    moved = changes(run, scores.drop(columns="value"), texts)
    return reward + moved + ([] if judged is None else changes(run, judged, texts))


def _named_base(run: Run) -> str:
    source = _source(run)
    return f"[{source}](https://huggingface.co/{source})" if source else f"`{run.digests['model']}`"


def _health(healthy: health.Healthy | None) -> str:
    if healthy is None:
        return ""
    mark = "not known" if healthy.mark is None else f"at {healthy.mark:.0%} of the budget"
    return f"\nLast healthy mark, found on training prompts: {mark}. {healthy.why}\n"


def _table(moved: list[Change]) -> str:
    rows = [
        f"| {NAMES.get(one.name, one.name.replace('_', ' '))} | {stats.three_decimals(one.base)} | {one.end} "
        f"| {one.change} |"
        for one in moved
    ]
    return "\n".join(["| | base | end | change |", "| --- | ---: | ---: | ---: |", *rows])


def _use(run: Run) -> str:
    source = _source(run)
    if not source:
        return f"    gdro-bench eval {run.task} --profile {run.profile} --lora FOLDER"
    return f"""```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{source}")
pipeline.transformer.load_lora_adapter("FOLDER")
```"""


def _settings(method: Mapping[str, Any]) -> str:
    return json.dumps(content.flatten(method), indent=1)
