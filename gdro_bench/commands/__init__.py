"""What the commands do, a module each; `cli` only parses. `summary` prints."""
