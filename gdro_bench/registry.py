"""Every extension point by name. A name stands for "module:object", which is imported when it is used.

A new method, reward, prompt reader, judge, model, detector, text reader or tracker is a module and a line here. Another
package adds its own through the entry-point group `gdro_bench.<kind>s`, such as `gdro_bench.rewards`, without a line.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Literal

from gdro_bench.errors import BenchError, unknown

Kind = Literal["method", "reward", "prompt", "judge", "model", "detector", "reader", "tracker"]

TABLES: Mapping[Kind, Mapping[str, str]] = {
    # how a model is trained: a `gdro_bench.methods.Method`
    "method": {
        "gdro": "gdro_bench.methods.gdro:METHOD",
        "flow-grpo": "gdro_bench.methods.flow_grpo:METHOD",
        "dance-grpo": "gdro_bench.methods.dance_grpo:METHOD",
        "dpo": "gdro_bench.methods.dpo:METHOD",
        "rft": "gdro_bench.methods.rft:METHOD",
        "nft": "gdro_bench.methods.nft:METHOD",
        "awm": "gdro_bench.methods.awm:METHOD",
        "dgpo": "gdro_bench.methods.dgpo:METHOD",
        "crd": "gdro_bench.methods.crd:METHOD",
    },
    # what a task optimises: a function of `Instruments` that gives a `Scorer`
    "reward": {
        "ocr": "gdro_bench.rewards.ocr:open_reward",
        "text-size": "gdro_bench.rewards.ocr:open_text_size",
        "ocr-exploit": "gdro_bench.rewards.exploit:open_reward",
        "compressibility": "gdro_bench.rewards.auxiliary:open_compressibility",
        "objects": "gdro_bench.rewards.auxiliary:open_objects",
        "geneval": "gdro_bench.rewards.geneval:open_mended",
        "geneval-published": "gdro_bench.rewards.geneval:open_published",
    },
    # how a line of a prompt file becomes a `Prompt`, by the reward's name
    "prompt": {
        "ocr": "gdro_bench.task:quoted_prompt",
        "text-size": "gdro_bench.task:quoted_prompt",
        "ocr-exploit": "gdro_bench.task:quoted_prompt",
        "compressibility": "gdro_bench.task:plain_prompt",
        "objects": "gdro_bench.task:plain_prompt",
        "geneval": "gdro_bench.rewards.geneval:metadata_prompt",
        "geneval-published": "gdro_bench.rewards.geneval:metadata_prompt",
    },
    # what looks at pictures and no method sees: a function of `JudgeConfig` that gives a `Scorer`
    "judge": {
        "pocket": "gdro_bench.models.pocket.judge:open_judge",
        "pocket-facts": "gdro_bench.models.pocket.gold:open_gold",
        "tesseract": "gdro_bench.judges.second_reader:open_second_reader",
        "unified-reward": "gdro_bench.judges.unified_reward:open_server",
        "unified-reward-local": "gdro_bench.judges.unified_reward:open_local",
    },
    # what is trained: a function of (profile, device, LoRA settings or None, seed, folder of weights or None)
    "model": {
        "pocket": "gdro_bench.models.pocket.policy:open_pocket",
        "flux": "gdro_bench.models.pretrained:open_flux",
        "sd3": "gdro_bench.models.pretrained:open_sd3",
    },
    # what finds objects for GenEval: a function of (`DetectorConfig` or None, device)
    "detector": {
        "pocket": "gdro_bench.models.pocket.detector:open_detector",
        "mask2former": "gdro_bench.instruments.mask2former:open_detector",
        "mmdet": "gdro_bench.instruments.mmdet:open_detector",
    },
    # what reads text: an `EngineKind`, which knows its name and how it starts
    "reader": {
        "rapidocr": "gdro_bench.instruments.engines:RAPIDOCR",
        "paddleocr": "gdro_bench.instruments.engines:PADDLEOCR",
    },
    # what shows curves while a run goes on: a function of the `Plan` that gives an `engine.tracking.Tracker`
    "tracker": {
        "tensorboard": "gdro_bench.engine.tracking:TensorBoard",
        "trackio": "gdro_bench.engine.tracking:Trackio",
        "wandb": "gdro_bench.engine.tracking:WeightsAndBiases",
    },
}


def names(kind: Kind) -> dict[str, str]:
    """All names of a kind, with the "module:object" behind each; no other package can take one of ours."""
    return {e.name: e.value for e in entry_points(group=f"gdro_bench.{kind}s")} | dict(TABLES[kind])


def check(kind: Kind, name: str) -> None:
    """Imports nothing.

    Raises:
        BenchError: nothing of this kind has that name.
    """
    if name not in (known := names(kind)):
        raise unknown(kind, name, known)


def lookup(kind: Kind, name: str) -> Any:
    """The object behind a name.

    Raises:
        BenchError: nothing of this kind has that name, or another package's entry point cannot be imported.
    """
    check(kind, name)
    path = names(kind)[name]
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if name in TABLES[kind]:
            raise
        raise BenchError(
            f"The {kind} {name!r} is registered as {path}, which cannot be imported: {error}.",
            "Install or mend the package that registers it.",
        ) from error
