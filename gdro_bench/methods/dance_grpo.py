"""DanceGRPO (arXiv 2505.07818) for rectified flows: Flow-GRPO's update on an SDE of constant noise.

The epoch, the advantages and the clipped loss are in `grpo`, the step and its log-probability in `sampling`. The rules
are those of the published LoRA script for FLUX.1-dev (`train_grpo_flux_lora.py` and its shell script), and so are the
settings of `baselines/flux1-dev`:

    sigma_t = eta, and a group starts from one noise
    A       = (r - mean) / (std + 1e-8) of the group, the unbiased std
    scored  = x0_hat = x - t v of the last step, which is then left out (`noisy_last = false`)
    trained = 60 % of the other steps, rounded down, drawn for each image
    update  = half of an epoch's groups, whole ones where they are even in number, flat ones among them
              (`drop_zero = false`, `shuffle = false`)

Each has its setting in `baselines/<profile>/dance-grpo.toml`: `noisy_last = true`, for one, scores the noisy last state
and draws the 60 % from all steps. Equal rewards have equal advantages: nothing is ranked, so ties need no order.

Where this differs from the published code (settings: see baselines/methods/dance-grpo.md):
1. Images of a flat group get exactly 0. Published, the rounding error of their mean is divided by one of the same size
   plus 1e-8, and can give all of them an advantage near 1 of one sign.
2. Images of advantage 0 count in an update's mean, but do not go through the model: they have no gradient.
3. The model is told t; published, t is cut to thousandths, while the step itself takes the exact one.
4. Every group has a noise of its own, float32; published, the two prompts of a GPU's batch share one, in bfloat16.
5. Prompts are drawn anew for every epoch, without repetition within it; published, the data is gone through in order.
6. A moving average of the weights is evaluated, as for every method here; the published LoRA script keeps none.
7. An image without a score counts as one of advantage 0; the published rewards cannot fail.
"""

from __future__ import annotations

from gdro_bench.methods import Method, TrainContext
from gdro_bench.methods.parts.grpo import Config, RolloutTraining, check, costs


def start(config: Config, context: TrainContext) -> RolloutTraining:
    return RolloutTraining("dance-grpo", config, context)


METHOD = Method(Config, start, costs, check)
