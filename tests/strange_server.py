"""A loopback server that does to the bytes of HTTP what it is told: one `Behaviour` a path, and all that was seen."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import socket
import socketserver
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Behaviour:
    """What is sent in return: `pieces` one after the other, each after `pause` seconds; `last` again and again until the client
    goes away. `answers`: the text that a client must read from it, None where it must not be taken for an answer.
    """

    name: str
    pieces: tuple[bytes, ...]
    pause: float = 0.0
    last: bytes = b""
    answers: str | None = None

    @property
    def ends(self) -> bool:
        """Whether the connection is closed before long, so that no client need run out of time."""
        return not (self.pause or self.last)


def reply(body: bytes, status: str = "200 OK", headers: str = "", length: bool = True) -> bytes:
    own = f"Content-Length: {len(body)}\r\n" if length else ""
    return f"HTTP/1.1 {status}\r\nConnection: close\r\n{own}{headers}\r\n".encode("latin-1") + body


def completion(content: Any = "0.5", **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}], **more}).encode()


def _chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + end
    return reply(body, headers="Transfer-Encoding: chunked\r\n", length=False)


def _statuses() -> Iterator[Behaviour]:
    """Every status with bodies that say something and nothing."""
    bodies = {"empty": b"", "words": b"go\naway\x1b[2J", "json": b'{"error":{"message":"no"}}', "odd": b'{"error":[[1]]}'}
    for status, (name, body) in itertools.product(
        (
            199,
            201,
            299,
            300,
            304,
            307,
            400,
            401,
            404,
            408,
            409,
            413,
            418,
            422,
            425,
            429,
            499,
            500,
            501,
            503,
            505,
            529,
            599,
            600,
            999,
        ),
        bodies.items(),
    ):
        yield Behaviour(f"{status} {name}", (reply(body, f"{status} X"),))
    for line in (b"HTTP/1.1 2000 X", b"HTTP/1.1 -1 X", b"HTTP/1.1 abc X", b"HTTP/9.9 200 OK", b"HELLO", b"", b"\0" * 99):
        yield Behaviour(f"status line {line[:20]!r}", (line + b"\r\n\r\n" + completion(),))
    yield Behaviour("HTTP/0.9", (completion(),))
    yield Behaviour("says that it is HTTP/0.9", (b"HTTP/0.9 200 OK\r\n\r\n" + completion(),), answers="0.5")
    yield Behaviour("nothing at all", ())
    yield Behaviour("100 and then an answer", (b"HTTP/1.1 100 Continue\r\n\r\n" + reply(completion()),), answers="0.5")
    yield Behaviour("100 without end", (), last=b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
    yield Behaviour("103 first", (b"HTTP/1.1 103 Early Hints\r\n\r\n" + reply(completion()),))


RETRY_AFTER = (
    "0", "0.01", "00", "-1", "inf", "nan", "1e22", "10000000000000000000000", "a day", "86400", "", " ", "1,2", "\xb2", "0x1",
    "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 9999 07:28:00 GMT", "Wed, 99 Oct 2015 07:28:00 GMT", "9" * 5000, "0.01 s",
)  # fmt: skip
SPOKEN = (
    "Please retry after 6 seconds.", "retry after a while", "retry after 1e999 s", "try again in 20ms", "Try again in 0.01s",
    "retry after 99999999999999999999", "retry after -1 seconds", "retry after \u0663 seconds", "retry after ", "retry after 0",
)  # fmt: skip


def _pauses() -> Iterator[Behaviour]:
    for value in RETRY_AFTER:
        yield Behaviour(f"Retry-After {value[:20]}", (reply(b"", "429 X", f"Retry-After: {value}\r\n"),))
    for words in SPOKEN:
        yield Behaviour(f"says {words[:30]!r}", (reply(json.dumps({"error": {"message": words}}).encode(), "503 X"),))
    yield Behaviour("two Retry-After", (reply(b"", "429 X", "Retry-After: 0\r\nRetry-After: 9\r\n"),))


def _redirects(other: int) -> Iterator[Behaviour]:
    for status, to in itertools.product(
        (301, 302, 303, 307, 308),
        (
            f"http://127.0.0.1:{other}/x",
            f"http://localhost:{other}/x",
            f"//127.0.0.1:{other}/x",
            "/same",
            "",
            "\xff\x01",
            f"ftp://127.0.0.1:{other}",
        ),
    ):
        yield Behaviour(f"{status} to {to[:20]!r}", (reply(b"", f"{status} X", f"Location: {to}\r\n"),))
    yield Behaviour(
        "200 with Location", (reply(completion(), headers=f"Location: http://127.0.0.1:{other}/\r\n"),), answers="0.5"
    )
    yield Behaviour(
        "200 with Refresh", (reply(completion(), headers=f"Refresh: 0; url=http://127.0.0.1:{other}/\r\n"),), answers="0.5"
    )


def _headers() -> Iterator[Behaviour]:
    for name, header in {
        "many": "".join(f"X-{i}: y\r\n" for i in range(5000)),
        "long": "X: " + "y" * 200_000 + "\r\n",
        "no colon": "nothing\r\n",
        "continued first": " folded: x\r\n",
        "twice": "Content-Length: 7\r\n",
        "negative": "Content-Length: -1\r\n",
        "words": "Content-Length: many\r\n",
        "unknown coding": "Content-Encoding: br\r\n",
        "false gzip": "Content-Encoding: gzip\r\n",
        "false chunks": "Transfer-Encoding: chunked\r\n",
        "long digits": "Content-Length: " + "9" * 5000 + "\r\n",
    }.items():
        yield Behaviour(f"headers: {name}", (reply(completion(), headers=header, length=not header.startswith("Content-L")),))
    yield Behaviour("headers without end", (b"HTTP/1.1 200 OK\r\n",), last=b"X: y\r\n" * 1000)
    yield Behaviour("one header without end", (b"HTTP/1.1 200 OK\r\nX: ",), last=b"y" * 4096)
    yield Behaviour(
        "Latin-1 and controls", (reply(completion(), headers="X: \xe9\x1b[2J\r\nSet-Cookie: a=b\r\n"),), answers="0.5"
    )


def _bodies() -> Iterator[Behaviour]:
    deep = b'{"choices":' + b"[" * 200_000
    for name, body in {
        "brackets": deep,
        "closed brackets": deep + b"]" * 200_000 + b"}",
        "braces": b'{"a":' * 200_000,
        "nested after": completion()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "list": b"[]",
        "null": b"null",
        "text": b"hello",
        "nan": b"NaN",
        "number of digits": b"1" * 10_000,
        "no choices": b'{"choices":[]}',
        "choices object": b'{"choices":{"0":1}}',
        "choice null": b'{"choices":[null]}',
        "message text": b'{"choices":[{"message":"hi"}]}',
        "no content": b'{"choices":[{"message":{}}]}',
        "content null": completion(None),
        "content number": completion(5),
        "content object": completion({"text": "x"}),
        "content of numbers": completion([1, 2]),
        "not UTF-8": completion().replace(b"0.5", b"\xff\xfe"),
        "UTF-16": completion().decode().encode("utf-16"),
        "cut": completion()[:-5],
        "twice": completion() * 2,
        "NULs": completion() + b"\0" * 100,
        "empty lists": b"[" + b"[]," * (7 * MIB // 3) + b"[]]",
    }.items():
        yield Behaviour(f"body: {name}", (reply(body),))
    odd = (
        b"1e999",
        b"-1e999",
        b"NaN",
        b"Infinity",
        b'"12"',
        b"null",
        b"[]",
        b"true",
        b"-5",
        b"1.5",
        b"9" * 400,
        b"{}",
        b"9e99",
    )
    for number, where in itertools.product(odd, ("prompt_tokens", "completion_tokens")):
        usage = b'{"' + where.encode() + b'":' + number + b"}"
        yield Behaviour(f"{where} {number[:9]!r}", (reply(completion()[:-1] + b',"usage":' + usage + b"}"),), answers="0.5")
    for key, value in itertools.product(("usage", "model", "id", "object"), ([], 5, "x", None, {"prompt_tokens_details": 7})):
        yield Behaviour(f"{key} {value!r}", (reply(completion(**{key: value})),), answers="0.5")
    for text in ("\ud800", "a\udfffb", "\x1b[2J\x07", "\u202eabc", "\0", "x" * MIB, "", "\ufeff0.5", "\u2028"):
        yield Behaviour(f"text {text[:9]!r}", (reply(completion(text)),), answers=text.strip())
    yield Behaviour(
        "parts", (reply(completion([{"type": "text", "text": "0."}, {"type": "text", "text": "5"}])),), answers="0.5"
    )
    yield Behaviour("byte order mark", (reply(b"\xef\xbb\xbf" + completion()),), answers="0.5")
    yield Behaviour("fields that are not known", (reply(completion(x=[{"y": 1}] * 9)),), answers="0.5")


def _encodings() -> Iterator[Behaviour]:
    packed, coded = gzip.compress(completion()), "Content-Encoding: gzip\r\n"
    yield Behaviour("gzip", (reply(packed, headers=coded),), answers="0.5")
    yield Behaviour("deflate", (reply(zlib.compress(completion()), headers="Content-Encoding: deflate\r\n"),), answers="0.5")
    yield Behaviour("gzip, cut", (reply(packed[:-9], headers=coded),))
    yield Behaviour("gzip bomb", (reply(gzip.compress(bytes(64 * MIB), 9), headers=coded),))
    bomb = gzip.compress(gzip.compress(bytes(64 * MIB), 9), 9)
    yield Behaviour("gzip in gzip", (reply(bomb, headers="Content-Encoding: gzip, gzip\r\n"),))
    yield Behaviour("bomb as an error", (reply(gzip.compress(bytes(64 * MIB), 9), "500 X", coded),))
    yield Behaviour("chunks", (_chunked(completion()[:9], completion()[9:]),), answers="0.5")
    yield Behaviour("chunks, trailer", (_chunked(completion(), end=b"0\r\nX: y\r\n\r\n"),), answers="0.5")
    for name, end in {
        "no end": b"",
        "no size": b"zz\r\n",
        "negative": b"-5\r\nabc\r\n",
        "huge": b"f" * 99 + b"\r\nabc",
        "cut": b"ff\r\nabc",
    }.items():
        yield Behaviour(f"chunks: {name}", (_chunked(b'{"choices', end=end),))
    yield Behaviour("chunk size without end", (_chunked(b"{", end=b""),), last=b"0" * 4096)
    yield Behaviour("trailers without end", (_chunked(completion(), end=b"0\r\n"),), last=b"X: y\r\n" * 999)
    yield Behaviour("shorter than said", (reply(completion(), length=False, headers="Content-Length: 999\r\n"),))
    yield Behaviour("more than said", (reply(completion()) + b"{}" * 99,), answers="0.5")
    yield Behaviour("until the end", (reply(completion(), length=False),), answers="0.5")


def _slow() -> Iterator[Behaviour]:
    """Drips and silences; each takes the client's whole timeout, none much of a processor."""
    whole = reply(completion())
    yield Behaviour("silence", (), last=b"", pause=60)
    yield Behaviour("a byte now and then: status", tuple(whole[i : i + 1] for i in range(len(whole))), 0.2)
    yield Behaviour("a byte now and then: header", (whole[:17],), 0.2, last=b"X")
    yield Behaviour("a byte now and then: header lines", (whole[:17],), 0.2, last=b"X: y\r\n")
    yield Behaviour(
        "a byte now and then: body", (whole[:-20], *(whole[i : i + 1] for i in range(len(whole) - 20, len(whole)))), 0.2
    )
    yield Behaviour("a byte now and then: chunks", (_chunked(b"{", end=b""),), 0.2, last=b"1\r\n \r\n")
    yield Behaviour("100 now and then", (), 0.2, last=b"HTTP/1.1 100 Continue\r\n\r\n")
    yield Behaviour("headers, then silence", (whole[: whole.index(b"\r\n\r\n") + 4],), 60)
    for number in range(6):
        huge = reply(b"", headers="Content-Length: 4294967296\r\n", length=False)
        yield Behaviour(f"4 GB, number {number}", (huge,), last=b"x" * (1 << 18))


def _drawn(seed: int, count: int) -> Iterator[Behaviour]:
    """Good replies with bytes changed, left out or doubled."""
    chance = random.Random(seed)
    whole = reply(completion(usage={"prompt_tokens": 3}), headers="Content-Type: application/json\r\n")
    for number in range(count):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randint(1, 9)]
                case _:
                    data[at:at] = data[at : at + chance.randint(1, 9)]
        yield Behaviour(f"drawn {number}", (bytes(data),))


def behaviours(other: int, seed: int = 0) -> list[Behaviour]:
    """The table. `other`: the port of a server that nobody is to be sent to."""
    families = (_statuses(), _pauses(), _redirects(other), _headers(), _bodies(), _encodings(), _slow(), _drawn(seed, 60))
    return [each for family in families for each in family]


@dataclass
class Seen:
    """The heads of requests, by connection."""

    heads: list[bytes] = field(default_factory=list)


class Server(socketserver.ThreadingTCPServer):
    """Behaves as the number in the path says: /12/... is the twelfth of `table`."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.table: list[Behaviour] = []
        self.seen = Seen()
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class _Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        sock: socket.socket = self.request
        try:
            head = self._asked(sock)
            self.server.seen.heads.append(head)
            number = int(head.split(b" ")[1].split(b"/")[1])
            self._behave(sock, self.server.table[number])
        except (OSError, IndexError, ValueError):
            pass  # the client went away, or asked for nothing that is known

    def _asked(self, sock: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data and (more := sock.recv(1 << 16)):
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        left = (int(lengths[0].split(b":")[1]) if lengths else 0) - len(body)
        while left > 0 and (more := sock.recv(1 << 16)):
            left -= len(more)
        return head

    def _behave(self, sock: socket.socket, how: Behaviour) -> None:
        sock.settimeout(30)
        until = time.monotonic() + 30
        for piece in how.pieces:
            sock.sendall(piece)
            if how.pause and self.server.closing.wait(how.pause):
                return
        while (how.last or how.pause > 1) and time.monotonic() < until:
            sock.sendall(how.last)
            if how.pause and self.server.closing.wait(how.pause):
                return
