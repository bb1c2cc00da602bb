"""The search for a method's numbers: a space, trials drawn from it, an Optuna study of them, and what came out."""
