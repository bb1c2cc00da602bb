"""Rewards, one module each: a function that takes a profile's `Instruments` gives a `Scorer`, and another makes prompts
of text and metadata. Judges and gold scores are `Scorer`s, too, but no method sees what they say.

Another package adds its own through the entry-point groups `gdro_bench.rewards`, `gdro_bench.prompts` and
`gdro_bench.judges`.
"""

REWARDS = {
    "ocr": "gdro_bench.rewards.ocr:open_reward",
    "text-size": "gdro_bench.rewards.ocr:open_text_size",
    "geneval": "gdro_bench.rewards.geneval:open_mended",
    "geneval-published": "gdro_bench.rewards.geneval:open_published",
}
JUDGES = {  # gold scores and second readers, too: a function of the profile's `[judge]` table gives a `Scorer`
    "pocket": "gdro_bench.models.pocket.judge:open_judge",
    "pocket-facts": "gdro_bench.models.pocket.gold:open_gold",
    "tesseract": "gdro_bench.rewards.ocr:open_second",
    "unified-reward": "gdro_bench.rewards.unified_reward:open_served",
    "unified-reward-local": "gdro_bench.rewards.unified_reward:open_local",
}
PROMPTS = {
    "ocr": "gdro_bench.task:quoting",
    "text-size": "gdro_bench.task:quoting",
    "geneval": "gdro_bench.rewards.geneval:described",
    "geneval-published": "gdro_bench.rewards.geneval:described",
}
