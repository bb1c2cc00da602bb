"""How often a 95 % interval of the difference of two methods holds the truth, by simulation: the package's replicates,
and seeds and prompts drawn both at once, as until 2026-11-30. Prompts differ as on pocket; a method has its own way
with each, every seed its luck, and every picture noise of its own.

python -m benchmarks.coverage                # 300 comparisons of each kind, some minutes on one core
python -m benchmarks.coverage --comparisons 50
"""

from collections.abc import Callable

import click
import numpy as np
from numpy.typing import NDArray

from gdro_bench import stats

PROMPTS, BETWEEN_PROMPTS = 120, 0.3  # pictures of a run, and the spread of their rewards by prompt
SEEDS = ((1, 1), (3, 3), (5, 5), (3, 5))
OF_SEEDS = (0.0, 0.01, 0.02, 0.04, 0.06)  # spread of a method's mean from seed to seed
OF_PICTURES = ((0.1, 0.2), (0.15, 0.25))  # of a method's way with a prompt, and of a picture

Replicates = Callable[[NDArray[np.float64], stats.Weights, stats.Weights], NDArray[np.float64]]


def at_once(values: NDArray[np.float64], seeds: stats.Weights, prompts: stats.Weights) -> NDArray[np.float64]:
    """Means [R, M] of values [S, M, N] with seeds and prompts drawn together."""
    return np.asarray(np.einsum("smr,rs->rm", values @ prompts.T, seeds))


@click.command()
@click.option("--comparisons", default=300, show_default=True, help="Of each kind.")
@click.option("--seed", default=0, show_default=True)
def main(comparisons: int, seed: int) -> None:
    rng, prompts = np.random.default_rng(seed), stats.draws(PROMPTS, 7)
    ways: dict[str, Replicates] = {"replicates": stats.replicates, "at once": at_once}
    print("seeds  of seeds  of prompt and picture  " + "  ".join(f"{name}: holds, width" for name in ways))
    for n, m in SEEDS:
        weights = stats.draws_of_few(n, 1), stats.draws_of_few(m, 2)
        for of_seeds in OF_SEEDS:
            for of_prompt, of_picture in OF_PICTURES:
                found: dict[str, list[tuple[bool, float]]] = {name: [] for name in ways}
                for _ in range(comparisons):
                    common = rng.normal(0, BETWEEN_PROMPTS, PROMPTS)
                    both = [
                        common
                        + rng.normal(0, of_prompt, PROMPTS)
                        + rng.normal(0, of_seeds, (seeds, 1, 1))
                        + rng.normal(0, of_picture, (seeds, 1, PROMPTS))
                        for seeds in (n, m)
                    ]
                    for name, of in ways.items():
                        ours, theirs = (of(one, drawn, prompts) for one, drawn in zip(both, weights, strict=True))
                        apart = stats.estimate(0.0, (ours - theirs)[:, 0])
                        found[name].append((apart.low <= 0 <= apart.high, apart.high - apart.low))
                told = ["{:.3f}, {:.3f}".format(*np.mean(each, axis=0)) for each in found.values()]
                print(f"{n}, {m}  {of_seeds}  {of_prompt}, {of_picture}  {'  '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
