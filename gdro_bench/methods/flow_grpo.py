"""Flow-GRPO (arXiv 2505.05470): policy gradients on an SDE with the flow's marginals.

The epoch, the advantages and the clipped loss are in `grpo`, the step and its log-probability in `sampling`:

    sigma_t = a sqrt(t / (1 - t)),   x_next = mu(x, v, t) + sigma_t sqrt(-dt) eps                       eq. 9
    KL      = mean (mu - mu_ref)^2 / (2 sigma_t^2)   ("rate")   or / (2 sigma_t^2 |dt|)   ("step", exact)

Settings of `baselines/<profile>/flow-grpo.toml` also give its variants: `noising.kind = "cps"` (arXiv 2509.05952), and
`window` for Flow-GRPO-Fast. Where this differs from the published code:
1. Groups whose rewards are all equal are dropped and counted, never filled up again at random.
2. Prompts are drawn without repetition within an epoch.
3. The moving average follows `min(slope * update, ceiling)`, as GDRO's does, every update.
"""

from __future__ import annotations

from gdro_bench.methods import Method, TrainContext
from gdro_bench.methods.grpo import Config, RolloutTraining, costs


def start(config: Config, context: TrainContext) -> RolloutTraining:
    return RolloutTraining("flow-grpo", config, context)


METHOD = Method(Config, start, costs)
