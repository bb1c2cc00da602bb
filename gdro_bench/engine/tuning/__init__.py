"""The search for a method's settings: a space, trials drawn from it, an Optuna study of them, and what came out."""
