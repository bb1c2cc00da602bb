"""`python -m gdro_bench`: the command line."""

from gdro_bench.cli import main

if __name__ == "__main__":
    main(prog_name="gdro-bench")
