"""DanceGRPO (arXiv 2505.07818) for rectified flows: Flow-GRPO's update on an SDE of constant noise.

The epoch, the advantages and the clipped loss are in `grpo`, the step and its log-probability in `sampling`:

    sigma_t = eta,   a group starts from one noise,   std of the advantage by group,   a random 60 % of the steps

Where this differs from the published code:
1. Groups whose rewards are all equal are dropped and counted.
2. A moving average of the weights is evaluated, as for every method here.
"""

from __future__ import annotations

from gdro_bench.methods import Method, TrainContext
from gdro_bench.methods.grpo import Config, RolloutTraining, costs


def start(config: Config, context: TrainContext) -> RolloutTraining:
    return RolloutTraining("dance-grpo", config, context)


METHOD = Method(Config, start, costs)
