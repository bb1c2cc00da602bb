"""gdro-bench: reward post-training of rectified-flow models, compared at matched cost.

In Python as on the command line: `run`, `evaluate`, `compare`, and `runs` for finished runs as a table.
"""

from gdro_bench.api import compare, evaluate, run, runs
from gdro_bench.version import __version__

__all__ = ["__version__", "compare", "evaluate", "run", "runs"]
