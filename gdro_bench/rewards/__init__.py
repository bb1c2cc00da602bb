"""Rewards, one module each: a function of a profile's `Instruments` gives a `Scorer`, and another makes prompts of text
and metadata.

`gdro_bench.registry` names them all.
"""
