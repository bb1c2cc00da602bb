"""How fast this machine is and what full scale needs: scripts, run from the checkout as `python -m benchmarks.NAME`."""
