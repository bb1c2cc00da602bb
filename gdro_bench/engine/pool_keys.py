"""Which runs share a pool, as far as their plans tell: what model and reward call themselves is known later."""

from __future__ import annotations

from dataclasses import asdict, replace

from gdro_bench import content
from gdro_bench import task as tasks
from gdro_bench.engine import record
from gdro_bench.engine.plan import Plan
from gdro_bench.engine.uses import uses_of


def pool_key(one: Plan) -> str | None:
    """Names the pool that a run fills first (in rounds, that of round 0), None where it has none. Runs of one pool have
    one key; where profiles differ in their model or reward, so may runs of two pools."""
    uses = uses_of(one.config)
    if (pool := uses.pool) is None:
        return None
    share = pool.prompts // uses.rounds
    filled = asdict(replace(pool, prompts=share))
    prompts = tasks.pool_order(one.train, pool.seed)[:share]
    return content.digest(
        [tasks.digest_with_targets(prompts), filled, asdict(one.profile.sampler), list(uses.auxiliaries)]
    )


def exact_key(one: Plan) -> str:
    """The other way round: runs of one key have one pool."""
    return content.digest([pool_key(one), one.task.name, record.identity_settings(one.settings["profile"])])
