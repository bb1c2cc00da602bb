"""Flow-GRPO (arXiv 2505.05470): policy gradients on an SDE with the flow's marginals.

The epoch, the advantages and the clipped loss are in `grpo`, the step and its log-probability in `sampling`:

    sigma_t = a sqrt(t / (1 - t)),   x_next = mu(x, v, t) + sigma_t sqrt(-dt) eps                       eq. 9
    KL      = mean (mu - mu_ref)^2 / (2 sigma_t^2)   ("rate")   or / (2 sigma_t^2 |dt|)   ("step", exact)

Settings of `baselines/<profile>/flow-grpo.toml` also give its variants: `noising.kind = "cps"` (arXiv 2509.05952), and
`window` for Flow-GRPO-Fast. Equal rewards have equal advantages: nothing is ranked, so ties need no order.

Where this differs from the published code (settings: see baselines/methods/flow-grpo.md):
1. Images of advantage 0, those of flat groups above all, are dropped and counted, never filled up again at random.
   Published, the SD3 script refills so that the rest divides into batches, and the FLUX script drops none
   (`drop_zero = false`).
2. Prompts are drawn without repetition within an epoch; published, within a batch: a prompt drawn twice has one group.
3. The moving average follows `min(slope * update, ceiling)`, as GDRO's does, every update; published, every eighth
   with a decay of at most 0.9.
4. The shipped `noisy_last = false` leaves the last step without noise; published, it has some, and the reward sees it.
5. In an epoch's first update the ratio is 1 by construction; published, it is computed, and 1 but for rounding.
6. Advantages are float32; published, float64.
7. An image without a score has no say; published, a reader that fails gives 0.
8. A window (`window`) is drawn once an epoch; published, for every batch that is sampled, so an update mixes windows.
"""

from __future__ import annotations

from gdro_bench.methods import Method, TrainContext
from gdro_bench.methods.parts.grpo import Config, RolloutTraining, check, costs


def start(config: Config, context: TrainContext) -> RolloutTraining:
    return RolloutTraining("flow-grpo", config, context)


METHOD = Method(Config, start, costs, check)
