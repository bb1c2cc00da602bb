"""One run from its plan to its record: the loop, the held-out evaluation, what is written, and the judging."""
