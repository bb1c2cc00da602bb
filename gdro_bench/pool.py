"""The on-disk store of groups of images: for each prompt, latents that some model sampled, and their rewards.

A shard is two files, written beside and moved into place, then named with their checksums in `shard-NNNNN.json`;
without that file a shard does not exist. Pools are named by the digest of all that made them, so runs share them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gdro_bench.budget import Cost, Ledger
from gdro_bench.distributed import ProcessGroup
from gdro_bench.errors import BenchError
from gdro_bench.files import await_file, not_written, wait_for, write_atomically
from gdro_bench.score import AUXILIARY, Score

LATENTS, SCORES = ".safetensors", ".parquet"  # the files of a shard
ABANDONED = 3600  # seconds after which a shard that is being written is of a run that was killed
Sampled = tuple[Tensor, list[list[Score]]]  # latents [P, G, *latent_shape] and P lists of G scores


@dataclass(frozen=True, slots=True)
class Shard:
    """Groups of consecutive prompts: latents [P, G, *latent_shape] float32, scores P lists of G, and what they cost."""

    latents: Tensor
    scores: list[list[Score]]
    cost: Cost


@dataclass(frozen=True, slots=True)
class Groups:
    """A whole pool: P groups of latents [G, *latent_shape], which stay in their files until they are asked for, rewards
    [P, G] with NaN where unscored, and what it cost; perhaps the values of auxiliary rewards by name, what images pay
    of a regulariser and their novelty's factors, each [P, G]."""

    latents: Sequence[Tensor]
    rewards: Tensor
    cost: Cost
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)
    paying: Tensor | None = None
    factors: Tensor | None = None


class Pool:
    """The store under one folder, `<folder>/<digest of recipe>`, which all of the process group see. What is not
    `shared` with other runs could not have been bought before, so it is no part of the ledger's `pool`."""

    def __init__(
        self, folder: Path, ledger: Ledger, processes: ProcessGroup | None = None, shared: bool = True
    ) -> None:
        self.folder, self.shared = folder, shared
        self.path = folder
        self.ledger = ledger
        self.processes = processes or ProcessGroup()

    def another(self) -> Pool:
        """The same store, for another recipe."""
        return Pool(self.folder, self.ledger, self.processes, self.shared)

    def open(self, digest: str, recipe: dict[str, Any]) -> None:
        """Chooses the pool of this recipe, new or from an earlier run."""
        self.path = self.folder / digest
        if self.processes.is_main:
            write_atomically(self.path / "recipe.json", json.dumps(recipe, indent=1, sort_keys=True).encode())
            for partial in self.path.glob("*.partial"):
                with contextlib.suppress(OSError):  # another run's may become a shard just now
                    if time.time() - partial.stat().st_mtime > ABANDONED:
                        partial.unlink()

    def shard(self, index: int, make: Callable[[], Sampled]) -> Shard:
        """The shard: made now, or taken from the store and charged what it once cost."""
        if self._is_there(index):
            shard = self.read(index)
            if self.processes.is_main:  # what it cost all of them
                self.ledger.collection += shard.cost
                self.ledger.pool += shard.cost if self.shared else Cost()
            return shard
        before, start = self.ledger.collection.copy(), time.perf_counter()
        latents, scores = make()
        cost = (self.ledger.collection - before).summed_over(self.processes)
        cost.seconds = time.perf_counter() - start
        shard = Shard(latents, scores, cost)
        if self.processes.is_main:
            self.ledger.pool += cost if self.shared else Cost()
            self.write(index, shard)
        self.processes.barrier()
        return shard

    def restore(self, index: int, make: Callable[[], Sampled]) -> None:
        """Makes a shard again that the run has paid for and that was deleted since, at no charge."""
        if not self._is_there(index):
            before = self.ledger.accounts()
            self.shard(index, make)
            for name, cost in before.items():
                setattr(self.ledger, name, cost)

    def _is_there(self, index: int) -> bool:
        """As the main process sees it. Others do not look before it is written: NFS would go on telling them that it
        is not."""
        there: bool = self.processes.broadcast(self.processes.is_main and index in self)
        return there

    def __contains__(self, index: int) -> bool:
        return self._stem(index).with_suffix(".json").exists()

    def _stem(self, index: int) -> Path:
        return self.path / f"shard-{index:05d}"

    def write(self, index: int, shard: Shard) -> None:
        """Raises:
        BenchError: the disk is full, or may not be written to."""
        rows = [
            {"prompt": p, "image": i, "value": score.value, "note": score.note, **score.parts}
            for p, group in enumerate(shard.scores)
            for i, score in enumerate(group)
        ]
        own = f"{index:05d}.{uuid.uuid4().hex[:8]}"  # another run may fill the same pool, on another machine
        partials = {suffix: self.path / f"shard-{own}{suffix}.partial" for suffix in (LATENTS, SCORES)}
        try:
            save_file({"latents": shard.latents.contiguous()}, str(partials[LATENTS]))
            pd.DataFrame(rows).to_parquet(partials[SCORES])
            checksums = {suffix: _checksum(partial) for suffix, partial in partials.items()}
            entry = {"checksums": checksums, "cost": dataclasses.asdict(shard.cost)}
            with wait_for(self.path / ".lock"):  # all files of a shard are one run's
                self._move(index, partials, json.dumps(entry, indent=1).encode())
        except (OSError, SafetensorError) as error:
            raise not_written(self.path, error) from error

    def _move(self, index: int, partials: Mapping[str, Path], entry: bytes) -> None:
        """Makes the files the shard; those of a run that was faster stay."""
        stem = self._stem(index)
        for suffix, partial in partials.items():
            if index in self:
                partial.unlink()
            else:
                os.replace(partial, stem.with_suffix(suffix))
        if index not in self:
            write_atomically(stem.with_suffix(".json"), entry)

    def read(self, index: int) -> Shard:
        """The shard, bit for bit as written.

        Raises:
            BenchError: a file is missing or differs from its checksum.
        """
        stem = self._stem(index)
        if self.processes.size > 1:
            for suffix in (".json", LATENTS, SCORES):
                await_file(stem.with_suffix(suffix))
        try:
            entry = json.loads(stem.with_suffix(".json").read_text())
            if entry["checksums"] != self._checksums(index):
                raise ValueError("its checksum differs")
            latents = load_file(str(stem.with_suffix(LATENTS)))["latents"]
            table = pd.read_parquet(stem.with_suffix(SCORES))
            cost = Cost(**entry["cost"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise BenchError(
                f"Shard {index} of the pool is damaged ({error}).",
                f"Delete {stem}.json and run the same command again: only this shard is made anew.",
            ) from error
        return Shard(latents, _scores(table, len(latents)), cost)

    def _checksums(self, index: int) -> dict[str, str]:
        return {suffix: _checksum(self._stem(index).with_suffix(suffix)) for suffix in (LATENTS, SCORES)}

    def groups(self, shards: int) -> Groups:
        """All shards as one."""
        read = [self.read(index) for index in range(shards)]
        rewards = [[score.value for score in group] for shard in read for group in shard.scores]
        latents = [group for shard in read for group in shard.latents]
        scores = [score for shard in read for group in shard.scores for score in group]
        names = [name for name in scores[0].parts if name.startswith(AUXILIARY)] if scores else []
        shape = (len(rewards), -1)
        auxiliary = {
            name.removeprefix(AUXILIARY): torch.tensor([score.parts[name] for score in scores]).view(shape)
            for name in names
        }
        return Groups(latents, torch.tensor(rewards), sum((shard.cost for shard in read), Cost()), auxiliary)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scores(table: pd.DataFrame, prompts: int) -> list[list[Score]]:
    parts = [name for name in table.columns if name not in ("prompt", "image", "value", "note")]
    scores: list[list[Score]] = [[] for _ in range(prompts)]
    for row in table.sort_values(["prompt", "image"]).to_dict("records"):
        scores[row["prompt"]].append(Score(row["value"], {name: row[name] for name in parts}, row["note"]))
    return scores
