"""A comparison in numbers: its tables, one module a question."""
