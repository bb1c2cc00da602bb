"""Rewards, one module each: a function of a profile's `Instruments` gives a `Scorer`, and another makes prompts of text
and metadata. Judges and gold scores are `Scorer`s, too, but no method sees their scores.

`gdro_bench.registry` names them all.
"""
