"""Claims judged by rules that were fixed before the runs: `rules.toml` (what is claimed and what would settle it),
`rules.py` (its form), `measures.py` (records -> numbers), `verdicts.py` (numbers -> verdicts) and `page.py`."""
