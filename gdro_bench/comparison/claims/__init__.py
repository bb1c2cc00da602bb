"""Claims judged by written rules: `rules.toml` (what is claimed and what would settle it),
`rules.py` (its form), `measures.py` (records -> numbers), `verdicts.py` (numbers -> verdicts) and `page.py`."""
