"""Judges, one module each: a function of a profile's `JudgeConfig` gives a `Scorer` that no method sees. Pocket's judge
and gold score lie with its model.

`gdro_bench.registry` names them all.
"""
