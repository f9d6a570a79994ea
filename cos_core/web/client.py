"""One HTTP client for servers that speak JSON: bounded in time and memory, no redirects, the key to one host.

A request ends within its timeout as an HttpReply or as a ServerError. Imports urllib3 only when a client is made.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from cos_core.errors import InputError
from cos_core.files.jsonl import decode
from cos_core.files.text import one_line
from cos_core.web.addresses import check_connections, check_key, check_timeout, checked_address, shown
from cos_core.web.server_messages import connection_error, error_message, requested_pause

if TYPE_CHECKING:
    import urllib3

Read = TypeVar("Read")

MAX_REPLY_BYTES = 8 * 2**20
"""Longest reply; a completion of a thousand tokens takes some kilobytes."""

MAX_TOGETHER_BYTES = 128 * 2**20
"""Most bytes of all replies being read in this process, without the first `_CHUNK` bytes of each."""

PAUSES_SECONDS = 60.0
"""Most seconds that the pauses before further attempts of one request take together, whatever the server asks for."""

_CHUNK = 1 << 16
_SCRUBBED_FROM = 8
"""A shorter key is removed from messages only, because in an answer it may be a word."""

_ITEM = (400, 413, 414, 415, 422)
"""Statuses caused by the request itself; with any other status the same request may succeed later."""
_BUSY = (408, 409, 425, 429)


class ServerError(Exception):
    """A request that was not answered; the reason in one line, without the key.

    `status`: the HTTP status, where one came; `again`: whether asking again soon may help; `transient`: the reason lies outside
    the request (a server that is down, busy, or another than was meant), so that the same request may be answered another day;
    `after`: seconds that the server asked to wait.
    """

    def __init__(
        self, reason: str, status: int | None = None, *, again: bool = True, transient: bool = True, after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.again = again
        self.transient = transient
        self.after = after


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A server's reply: the body in bytes, and the `message` of an error in one line.

    `status`: the HTTP status, None where no reply came; `headers`: names in any case.
    """

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def data(self) -> Any:
        """The body as JSON; None for an error, and for a body that is no JSON."""
        try:
            return decode(self.body) if self.ok else None
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a busy server is asked again: `attempts` in all, with pauses of `pause` seconds, twice that, four times ... between.

    A pause that the server asks for counts instead. All pauses of a request together take at most `pauses` seconds, and no
    attempt begins once `pauses` and two timeouts have passed: with all its attempts a request ends within `pauses` and three
    timeouts.
    """

    attempts: int = 4
    pause: float = 0.5
    pauses: float = PAUSES_SECONDS

    def pause_after(self, attempt: int, requested: float | None) -> float:
        """Seconds to wait after attempt number `attempt` (from 1) failed; `requested`: the seconds the server asked for."""
        if requested is not None:
            return requested
        # Jitter keeps many clients from coming back all at once.
        return float(self.pause * 2.0 ** (attempt - 1) * (1 + 0.25 * random.random()))


class _ByteBudget:
    """Bytes that the replies being read may hold together."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        with self._lock:
            self._left += size


_BUDGET = _ByteBudget(MAX_TOGETHER_BYTES)


@dataclass(frozen=True)
class Client:
    """Requests to one server, at most `connections` at once; its proxy is the environment's, as for other programs.

    `url`: the address that paths are added to; `key`: sent as bearer token to this address alone; `timeout`: seconds that a
    whole request may take, from the name's look-up to the reply's last byte. Redirects are not followed. Raises InputError for
    an address that is none, a key that no header can hold, and a timeout out of bounds.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    connections: int = 1
    _pool: Any = field(init=False, repr=False, compare=False)
    _free: threading.BoundedSemaphore = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", checked_address(self.url))
        check_key(self.key)
        check_timeout(self.timeout)
        check_connections(self.connections)
        object.__setattr__(self, "_pool", _pool(self.url, self.connections))
        object.__setattr__(self, "_free", threading.BoundedSemaphore(self.connections))

    def request(self, path: str, body: bytes | None = None) -> HttpReply:
        """The reply to a POST of `body` (JSON), or to a GET. Raises ServerError when no whole reply came."""
        return self._send("GET" if body is None else "POST", path, body)

    def exists(self) -> bool:
        """Whether a server replies at all, whatever its status (a HEAD of the address)."""
        try:
            self._send("HEAD", "", None)
        except ServerError as error:
            return error.status is not None
        return True

    def ask(self, path: str, body: bytes, read: Callable[[bytes], Read], policy: RetryPolicy) -> Read:
        """`read(body)` of the reply to a POST of JSON; repeats the request by `policy` where that may help.

        Raises ServerError when the last attempt failed, too; `read` raises one for a reply that it does not understand.
        """
        left, last_start = policy.pauses, time.monotonic() + policy.pauses + 2 * self.timeout
        for attempt in range(1, policy.attempts + 1):
            try:
                return read(self._accepted(path, body))
            except ServerError as error:
                pause = min(policy.pause_after(attempt, error.after), left)
                if not error.again or attempt == policy.attempts or time.monotonic() + pause > last_start:
                    raise
            # Not counted among `connections`: another request runs meanwhile.
            left -= pause
            time.sleep(pause)
        raise ServerError("a request needs at least one attempt", again=False)

    def _accepted(self, path: str, body: bytes) -> bytes:
        reply = self.request(path, body)
        if reply.ok:
            return reply.body
        status = reply.status
        again = status in _BUSY or (status is not None and 500 <= status < 600 and status not in (501, 505))
        after = requested_pause(reply.headers, reply.message) if again else None
        message = f"HTTP {status} {reply.message}".rstrip()
        raise ServerError(message, status, again=again, transient=status not in _ITEM, after=after)

    def _send(self, method: str, path: str, body: bytes | None) -> HttpReply:
        with self._free:
            exchange = _Exchange(self, method, path, body)
            thread = threading.Thread(target=exchange.run, name="request", daemon=True)
            thread.start()
            try:
                whole = exchange.ended.wait(self.timeout)
            except BaseException:
                exchange.give_up()
                raise
            if not whole:
                exchange.give_up()
                raise ServerError(f"no whole reply within {self.timeout:g} s")
            return exchange.outcome()

    def scrubbed(self, text: str) -> str:
        """`text` without the key: servers quote requests."""
        return text.replace(self.key, "[key]") if self.key else text


class _Exchange:
    """One request in a thread of its own, which can be given up at any point: while a name is looked up, a connection made, a
    request sent, a header or a body read. Its caller waits for `ended`, at most until the deadline.
    """

    def __init__(self, client: Client, method: str, path: str, body: bytes | None) -> None:
        self.ended = threading.Event()
        self.connection: Any = None
        self.given_up = False
        self._client, self._method, self._path, self._body = client, method, path, body
        self._reply: HttpReply | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        _CURRENT.exchange = self
        try:
            self._reply = self._exchanged()
        except BaseException as error:
            self._error = error
        finally:
            _CURRENT.exchange = None
            self.ended.set()

    def give_up(self) -> None:
        """Ends the thread soon, by shutting down its connection."""
        self.given_up = True
        sock = getattr(self.connection, "sock", None)
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):  # closed already
                # Not the socket's own method, which for TLS waits for the other side.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def outcome(self) -> HttpReply:
        if self._error is not None:
            raise self._error
        assert self._reply is not None  # `run` sets one of the two
        return self._reply

    def _exchanged(self) -> HttpReply:
        import http.client

        import urllib3

        client = self._client
        try:
            reply = client._pool.request(
                self._method,
                client.url + self._path,
                body=self._body,
                headers=self._headers(),
                timeout=urllib3.Timeout(connect=client.timeout, read=client.timeout),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                return self._read(reply)
            except BaseException:
                # The rest of the reply would be read as the next one.
                reply.close()
                raise
            finally:
                reply.release_conn()
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError, zlib.error) as error:
            raise ServerError(client.scrubbed(connection_error(error))) from None

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self._body is not None:
            headers["Content-Type"] = "application/json"
        if self._client.key:
            headers["Authorization"] = f"Bearer {self._client.key}"
        return headers

    def _read(self, reply: Any) -> HttpReply:
        status, key = int(reply.status), self._client.key
        if 300 <= status < 400:
            target = self._client.scrubbed(one_line(shown(reply.headers.get("Location", "nowhere"))))
            raise ServerError(f"HTTP {status} redirects to {target}, which is not followed", status, again=False)
        if status < 200:
            raise ServerError(f"HTTP {status}, which is no answer", status)
        body = _inflated(self._body_of(reply), reply.headers.get("Content-Encoding", ""))
        message = "" if status < 300 else self._client.scrubbed(error_message(body))
        if key and len(key) >= _SCRUBBED_FROM:
            body = body.replace(key.encode(), b"[key]")
        return HttpReply(status, reply.headers, body, message)

    def _body_of(self, reply: Any) -> bytes:
        data, reserved = bytearray(), 0
        try:
            while chunk := reply.read1(_CHUNK, decode_content=False):
                data += chunk
                if len(data) > MAX_REPLY_BYTES:
                    raise ServerError(f"the reply is longer than {MAX_REPLY_BYTES >> 20} MiB")
                if self.given_up:
                    raise ServerError("given up")
                if len(data) > _CHUNK + reserved:
                    if not _BUDGET.take(_CHUNK * 4):
                        raise ServerError(f"the replies being read are longer than {MAX_TOGETHER_BYTES >> 20} MiB together")
                    reserved += _CHUNK * 4
            return bytes(data)
        finally:
            _BUDGET.give(reserved)


_CURRENT = threading.local()
"""The exchange of this thread, for the connection that it uses."""


def _pool(url: str, connections: int) -> urllib3.PoolManager:
    """Connections to the server, or to the proxy in front of it."""
    import urllib.request

    import urllib3

    parts = urlsplit(url)
    proxy = None
    if not urllib.request.proxy_bypass(str(parts.hostname)):
        proxies = urllib.request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
    options: dict[str, Any] = {"num_pools": 1, "maxsize": connections, "block": False}
    try:
        pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    except (urllib3.exceptions.HTTPError, ValueError):
        raise InputError("the environment names a proxy (http_proxy, https_proxy, all_proxy) that is no address") from None
    pool.pool_classes_by_scheme = _pool_classes()
    return pool


@functools.cache
def _pool_classes() -> dict[str, Any]:
    """urllib3's pools, whose connections register with the exchange of their thread, so that it can end them."""
    import logging

    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    # urllib3 logs unreadable headers with a traceback and their text.
    logging.getLogger("urllib3.connection").setLevel(logging.ERROR)

    def registered(base: Any) -> Any:
        class Registered(base):
            def connect(self) -> None:
                _register(self)
                super().connect()

            def putrequest(self, *arguments: Any, **options: Any) -> None:
                _register(self)
                super().putrequest(*arguments, **options)

        return Registered

    pools = {}
    for scheme, pool in (("http", HTTPConnectionPool), ("https", HTTPSConnectionPool)):
        pools[scheme] = type(f"Registered{pool.__name__}", (pool,), {"ConnectionCls": registered(pool.ConnectionCls)})
    return pools


def _register(connection: Any) -> None:
    exchange = getattr(_CURRENT, "exchange", None)
    if exchange is not None:
        exchange.connection = connection
        if exchange.given_up:
            raise OSError("given up")


def _inflated(data: bytes, encoding: str) -> bytes:
    """A body decompressed, of at most MAX_REPLY_BYTES. Raises ServerError."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return data
    if name not in ("gzip", "x-gzip", "deflate"):
        raise ServerError(f"the reply is compressed as {one_line(encoding, 40)!r}, which was not asked for", again=False)
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    plain = inflater.decompress(data, MAX_REPLY_BYTES + 1)
    if len(plain) > MAX_REPLY_BYTES:
        raise ServerError(f"the reply is longer than {MAX_REPLY_BYTES >> 20} MiB")
    if not inflater.eof:
        raise ServerError("the reply ends in the middle of its compressed body")
    return plain


def payload(data: Mapping[str, Any]) -> bytes:
    """A request's body: JSON in ASCII, half characters (lone surrogates) as escapes."""
    return json.dumps(data).encode()
