"""The version, which every record carries."""

import subprocess
from functools import cache
from pathlib import Path

__version__ = "0.1.0"


@cache
def of_code() -> str:
    """The version; of a checkout with its commit, as in `0.1.0+1a2b3c4d`, and `-dirty` if a file was changed since."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return __version__
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here, or a checkout of somebody else's
        return __version__
    return f"{__version__}+{described}"
