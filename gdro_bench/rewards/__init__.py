"""Rewards, one module each: a function that takes the profile's reader gives a `Scorer`, and another makes prompts
of text and metadata.

Another package adds its own through the entry-point groups `gdro_bench.rewards` and `gdro_bench.prompts`.
"""

REWARDS = {
    "ocr": "gdro_bench.rewards.ocr:open_reward",
    "geneval": "gdro_bench.rewards.geneval:open_mended",
    "geneval-published": "gdro_bench.rewards.geneval:open_published",
}
PROMPTS = {
    "ocr": "gdro_bench.task:quoting",
    "geneval": "gdro_bench.rewards.geneval:described",
    "geneval-published": "gdro_bench.rewards.geneval:described",
}
