"""Runs on disk whose curves, ratings and searches are known, so that answers about them are too."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from click.testing import CliRunner, Result

from gdro_bench.cli import main
from gdro_bench.comparison import entries, matched
from gdro_bench.engine import judging, record, samples
from gdro_bench.engine.record import Point, Run
from gdro_bench.engine.tuning import tuned
from gdro_bench.engine.tuning.tuned import Trial, Tuned
from gdro_bench.stats import Estimate

PROMPTS = 40
MARKS = (0.0, 0.25, 0.5, 0.75, 1.0)
LIMIT = 1000
EVIL = '<script>alert("x")</script>'


def make_run(
    folder: Path,
    method: str = "gdro",
    seed: int = 0,
    rewards: tuple[float, ...] = (0.4, 0.4, 0.6, 0.7, 0.8),
    pool: int = 300,
    changed: tuple[str, ...] = (),
    pictures: int = 4,
    **fields: object,
) -> Path:
    """A finished run on disk whose mean reward at each mark is known; `pool` evaluations come before any update."""
    unit = Estimate(0.0, 0.0, 0.0)
    points, rows, timing = [], [], []
    spread = np.linspace(-0.1, 0.1, PROMPTS)
    for mark, reward in zip(MARKS, rewards, strict=True):
        spent = int(mark * LIMIT)
        pooled = min(pool, spent)
        optimised = spent - pooled
        counts = {"collection_evaluations": pooled, "optimisation_evaluations": optimised}
        counts |= {"pool_images": pooled, "images_sampled": pooled, "images_trained": optimised, "reward_calls": 0}
        points.append(Point(mark, optimised // 10, pooled, **counts, reward=unit, gain=unit, unscored=0, parts={}))
        timing.append({"mark": mark, "pool": pooled / 10, "collection": pooled / 10, "optimisation": optimised / 10})
        for i in range(PROMPTS):
            row = {"mark": mark, "prompt": i, "text": f"prompt {i}", "value": reward + spread[i], "note": "W"}
            row |= {"text_area": 0.2 + mark / 10, "edge_density": 0.1, "exact": 0.0}
            rows.append(row | ({"text": f'a sign "{EVIL}"', "note": EVIL} if i == 0 else {}))
    run = Run(
        schema=record.SCHEMA, version="0", task="ocr", profile="pocket", method=method, seed=seed,
        settings={"profile": {"sampler": {"steps": 8}}, "method": {"tau": 0.05, "draw": "random"}},
        changed=changed, digests={"model": "m", "method": f"{method}{changed}", "held_out": "h"},
        instruments={"reward": "OCR"}, budget_kind="evaluations", limit=LIMIT, points=tuple(points),
    )  # fmt: skip
    for setting in changed:
        name, value = setting.removeprefix("method.").split("=")
        run.settings["method"][name] = float(value) if name == "tau" else value
    record.write(replace(run, **fields), folder)  # type: ignore[arg-type]
    pd.DataFrame(rows).to_parquet(folder / "scores.parquet")
    (folder / "timing.json").write_text(json.dumps(timing))
    for mark in MARKS:
        painted = [np.full((8, 8, 3), 20 * i, dtype=np.uint8) for i in range(pictures)]
        samples.write(samples.path_of(folder, mark), np.stack(painted))
    return folder


SLOWER = (0.4, 0.45, 0.5, 0.55, 0.6)


def six_runs(folder: Path) -> entries.Comparison:
    gdro = [entries.load(make_run(folder / f"g{s}", seed=s)) for s in range(3)]
    flow = [entries.load(make_run(folder / f"f{s}", "flow-grpo", s, SLOWER, pool=0)) for s in range(3)]
    return entries.compare([*gdro, *flow], variants=False)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def make_search(folder: Path, method: str, trials: int = 3, budget: int = 500, **fields: object) -> Tuned:
    """A search on disk whose trial 1 is best and has the numbers of `make_run`; trial 0 has others, trial 2 failed."""
    values = (Estimate(0.45, 0.35, 0.55), Estimate(0.5, 0.4, 0.6), *[None] * trials)
    digests = ["other", f"{method}()", *["third"] * trials]
    made = tuple(
        Trial(i, {"tau": 0.05}, digests[i], values[i], None, "" if i < 2 else "NaN.", 5, 510, 100, 1.0)
        for i in range(trials)
    )
    search = Tuned(
        schema=tuned.SCHEMA, version="0", task="ocr", profile="pocket", method=method, seed=0,
        budget_kind="evaluations", budget=budget, space={}, trials=made, best=1, failed=trials - 2,
        evaluations=510 * trials, seconds=float(trials), importance=None, no_importance="few",
    )  # fmt: skip
    search = replace(search, **fields)  # type: ignore[arg-type]
    (folder / method).mkdir(parents=True, exist_ok=True)
    (folder / method / tuned.FILE).write_text(json.dumps(asdict(search)))
    assert tuned.read(folder / method / tuned.FILE) == search
    return search


def ratio_of(
    compared: entries.Comparison, method: str, axis: str = "evaluations", label: str = ""
) -> dict[bool, Estimate]:
    entry = next(entry for entry in compared.entries if entry.method == method and label in entry.label)
    return matched.mean_ratio(compared, entry, axis)


def judge(folder: Path, u: tuple[float, ...], name: str = "judge (1-5)") -> Path:
    """A run that was judged: u at each mark, a fifth of a point apart from picture to picture, on the first 20."""
    spread = np.linspace(-0.1, 0.1, 20)
    rows = [
        {"mark": mark, "prompt": i, "u": value + spread[i], "alignment": value, "gold": 0.5, "judge_note": ""}
        for mark, value in zip(MARKS, u, strict=True)
        for i in range(20)
    ]
    judging._write(folder / judging.TABLE, rows, {"judge": name, "gold": "gold: facts"})
    return folder


def rejudge(folder: Path, table: pd.DataFrame) -> None:
    """Puts other judgements, by the same instruments, in the place of a run's."""
    judging._write(folder / judging.TABLE, table.to_dict("records"), judging.instruments(folder))


FALLING = (4.0, 4.0, 3.8, 3.4, 2.9)
