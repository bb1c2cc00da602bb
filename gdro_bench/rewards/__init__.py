"""Rewards, one module each. Another package adds its own through the entry-point group `gdro_bench.rewards`."""

REWARDS = {"ocr": "gdro_bench.rewards.ocr:OcrReward"}
