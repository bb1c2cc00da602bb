"""gdro-bench: reward post-training of rectified-flow models, compared at matched cost."""

__version__ = "0.1.0"
