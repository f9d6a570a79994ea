"""One HTTP client for servers that speak JSON: connections that stay open, bounded replies, no redirects, the key to one host.

Imports urllib3 only when a client is made.
"""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cos_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_REPLY_BYTES = 16 * 2**20
"""A longer reply is cut off and called too long; a completion of a thousand tokens takes some kilobytes."""


_CHUNK = 1 << 16
_OBJECT = re.compile(r"^<?\w*Connection(?:Pool)?\([^)]*\)(?: at 0x\w+>)?: ")


class ServerError(Exception):
    """No whole reply came: refused, dropped, out of time, too long; the reason in one line."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's reply: HTTP status, headers (names in any case), and the body in bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Client:
    """Requests to one server, from as many threads as `connections`; its proxy is the environment's, as for other programs.

    `url`: the address that paths are added to; `key`: sent as bearer token to this address alone; `timeout`: seconds that a
    reply may take, and as many again for one that drips. Raises InputError for an address that is none.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    connections: int = 1
    _pool: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        import urllib3

        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"not the address of a server: {self.url!r}; it begins with http:// or https://")
        proxy = None
        if not urllib.request.proxy_bypass(parts.hostname):
            proxies = urllib.request.getproxies()
            proxy = proxies.get(parts.scheme) or proxies.get("all")
        options: dict[str, Any] = {"num_pools": 1, "maxsize": self.connections, "block": False}
        pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        object.__setattr__(self, "_pool", pool)

    def get(self, path: str) -> Answer:
        """Raises ServerError when no whole reply came."""
        return self._send("GET", path, None)

    def post(self, path: str, body: bytes) -> Answer:
        """Sends JSON. Raises ServerError when no whole reply came."""
        return self._send("POST", path, body)

    def _send(self, method: str, path: str, body: bytes | None) -> Answer:
        import urllib3

        headers = {"Accept": "application/json", **({"Content-Type": "application/json"} if body is not None else {})}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        until = time.monotonic() + self.timeout
        try:
            reply = self._pool.request(
                method,
                self.url.rstrip("/") + path,
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=min(self.timeout, 30.0), read=self.timeout),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            try:
                return Answer(int(reply.status), reply.headers, self._read(reply, until))
            except BaseException:
                # What is left of the reply would be taken for the next one.
                reply.close()
                raise
            finally:
                reply.release_conn()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ServerError(_reason(error)) from None

    def _read(self, reply: Any, until: float) -> bytes:
        data = bytearray()
        while chunk := reply.read1(_CHUNK, decode_content=True):
            data += chunk
            if len(data) > MAX_REPLY_BYTES:
                raise ServerError(f"the reply is longer than {MAX_REPLY_BYTES >> 20} MiB")
            if time.monotonic() > until:
                raise ServerError(f"the reply did not end within {self.timeout:g} s")
        return bytes(data)


def _reason(error: Exception) -> str:
    """One line, without the object that urllib3 begins its messages with."""
    text = str(error).strip().splitlines()
    return _OBJECT.sub("", text[0]) if text else type(error).__name__
