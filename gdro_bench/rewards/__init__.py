"""Rewards, one module each: `open_reward` takes the profile's reader and gives a `Scorer`.

Another package adds its own through the entry-point group `gdro_bench.rewards`.
"""

REWARDS = {"ocr": "gdro_bench.rewards.ocr:open_reward"}
