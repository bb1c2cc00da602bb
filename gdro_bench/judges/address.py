"""The address of a judge's server, which may hold a user's name and password: these go to the server and nowhere else.

Imports nothing heavy.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from gdro_bench.errors import BenchError

SERVED = ("unified-reward",)  # judges that are asked over HTTP


def check_judge(name: str, url: str) -> None:
    """Before a run, not after it.

    Raises:
        BenchError: the judge has no address, or what is given is none.
    """
    if name in SERVED and not url:
        raise BenchError(
            f"The judge {name} needs a server.",
            "Serve its model with vLLM and give the address, which ends in /v1: --judge-url URL, or in a profile "
            "profile.judge.url.", 2,
        )  # fmt: skip
    if url:
        check_address(url)


def check_address(url: str) -> None:
    """Raises:
    BenchError: it is no address of a web server."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        valid = valid and "@" not in parts.path + parts.query + parts.fragment  # a password cut short
    except ValueError:  # of a bad port or bad brackets
        valid = False
    if not valid:
        raise BenchError(
            f"The judge's address {without_credentials(url)!r} is no web address.",
            "Give one that begins with http:// or https://, such as http://127.0.0.1:8080/v1. An @ behind the host is "
            "written %40, and / ? # in a password %2F %3F %23.",
            2,
        )


def without_credentials(url: str) -> str:
    """The address without `user:password@`, which is what messages and records may show."""
    scheme, separator, rest = url.partition("//") if "//" in url else ("", "", url)
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"  # the last @: a password may hold / ? or #


def credentials(url: str) -> tuple[bytes, bytes] | None:
    """Name and password of an address that holds them."""
    parts = urlsplit(url)
    if parts.username is None:
        return None
    return unquote(parts.username).encode(), unquote(parts.password or "").encode()
