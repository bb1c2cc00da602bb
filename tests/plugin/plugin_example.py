"""A reward, a method and a judge of another package: what README shows."""

from dataclasses import replace

from gdro_bench.methods import Method, rft
from gdro_bench.score import Score


# -- reward
class Redness:
    name = "redness (share of red light)"

    def __call__(self, images, prompts):  # uint8 [B, H, W, 3] and B prompts -> B scores
        return [Score(float(image[..., 0].sum() / max(image.sum(), 1))) for image in images]


def open_redness(instruments):
    return Redness()


# -- method
def start(config, context):  # RFT on the better half of every group
    return rft.start(replace(config, best=config.pool.images // 2), context)


BEST_HALF = Method(rft.Config, start)


# -- judge
class Contrast:
    name = "contrast (1-5)"

    def __call__(self, images, prompts):  # parts: the axes that task.toml averages
        ratings = [1 + 4 * min(1.0, float(image.std()) / 128) for image in images]
        return [Score(rating, {"style": rating}) for rating in ratings]


def open_contrast(config):
    return Contrast()
