"""Checks of a server's settings, before anything is sent: address, key, timeout, number of connections."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from cos_core.errors import InputError
from cos_core.files.text import one_line

MIN_TIMEOUT, MAX_TIMEOUT = 0.1, 86_400.0
"""Bounds of a timeout, in seconds."""

MAX_CONNECTIONS = 1024
"""Most requests under way at once."""


def checked_address(url: str) -> str:
    """A server's address, without a slash at its end. Raises InputError for one that is none, without a password in it."""
    fault = _fault(url)
    if fault is not None:
        raise InputError(f"not the address of a server: {one_line(repr(shown(url)))}; {fault}")
    return url.rstrip("/")


def _fault(url: str) -> str | None:
    """Why an address cannot be used, None when it can."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if host:
            host.encode("idna")
    except ValueError:
        return "its host or port cannot be read"
    if parts.scheme not in ("http", "https") or not host:
        return "it begins with http:// or https://"
    if "@" in parts.netloc:
        return "a name and a password do not belong into it; a key is taken from the environment"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "it ends with its path (as a rule /v1), without ? and #"
    if port == 0 or any(character.isspace() or not character.isprintable() for character in url):
        return "it holds a space, a control character or port 0"
    return None


def shown(url: str) -> str:
    """An address for a message: without user name and password, and without what follows a question mark."""
    plain = re.sub(r"^(\w+:/*)?.*@", r"\1...@", url, flags=re.DOTALL)
    return re.sub(r"[?#].*", "?...", plain, flags=re.DOTALL)


def check_key(key: str | None, where: str = "the server's key") -> None:
    """Raises InputError, without the key, for one that an HTTP header cannot hold."""
    if key and not all("!" <= character <= "~" for character in key):
        raise InputError(f"{where} holds a space, a line end or a character that no HTTP header takes; set it anew")


def check_timeout(seconds: float) -> None:
    """Raises InputError for a timeout out of its bounds (NaN included)."""
    if not MIN_TIMEOUT <= seconds <= MAX_TIMEOUT:
        raise InputError(f"a timeout is between {MIN_TIMEOUT:g} and {MAX_TIMEOUT:g} seconds, not {seconds:g}")


def check_connections(count: int) -> None:
    """Raises InputError for a number of requests at once that is out of its bounds."""
    if not 1 <= count <= MAX_CONNECTIONS:
        raise InputError(f"between 1 and {MAX_CONNECTIONS} requests may be under way at once, not {one_line(count, 40)}")


def judge_address(url: str) -> str:
    """The endpoint's address up to /v1; it may be given with /chat/completions. Raises InputError for one that is none."""
    return checked_address(url.rstrip("/").removesuffix("/chat/completions"))
