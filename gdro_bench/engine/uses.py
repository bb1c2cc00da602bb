"""What the engine must know of a method's settings before a model is open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdro_bench.methods.parts.offline import PoolConfig


@dataclass(frozen=True, slots=True)
class Uses:
    """The settings of its `pool`, None where it samples anew, and in how many `rounds` that is filled; `auxiliaries`,
    names of the rewards that watch the task's own; and the `guidances` of its rollouts and teachers, where 1 is
    none."""

    pool: PoolConfig | None
    rounds: int
    auxiliaries: tuple[str, ...]
    guidances: frozenset[float]


def uses_of(config: Any) -> Uses:
    """Of a method's config, by names that mean the same in every one, a plug-in's, too: `pool`, which a `mode` of
    "online" leaves alone; `online.rounds`; `auxiliary`; `online.guidance`, where 0 is the profile's; and
    `teacher_guidance`."""
    pool = None if getattr(config, "mode", "offline") == "online" else getattr(config, "pool", None)
    auxiliary, rollouts = getattr(config, "auxiliary", None), getattr(config, "online", None)
    guidances = {getattr(rollouts, "guidance", 1) or 1, getattr(config, "teacher_guidance", 1)}
    return Uses(pool, getattr(rollouts, "rounds", 1), auxiliary.rewards if auxiliary else (), frozenset(guidances))
