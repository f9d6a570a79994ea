"""The HTTP client against servers that are strangers: bounded, no redirects, one line of reason, the key to one host."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from urllib3 import HTTPHeaderDict

from cos_core.errors import InputError
from cos_core.web import client as web
from cos_core.web.client import Client, ServerError
from cos_core.web.server_words import pause_named


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization"), self.client_address))  # type: ignore[attr-defined]
        if self.path.endswith("/elsewhere"):
            self._say(307, b"", {"Location": "http://127.0.0.1:9/other"})
        elif self.path.endswith("/long"):
            self._say(200, bytes(web.MAX_REPLY_BYTES + 1), {})
        elif self.path.endswith("/bomb"):
            self._say(200, gzip.compress(bytes(web.MAX_REPLY_BYTES + 1)), {"Content-Encoding": "gzip"})
        elif self.path.endswith("/short"):
            self._say(200, b"{}", {"Content-Length": "99"})
        elif self.path.endswith("/drop"):
            self.close_connection = True
        else:
            self._say(200, b"{}", {"X-Word": "yes"})

    def _say(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = "Content-Length" in headers

    def log_message(self, *_words: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_an_answer_has_status_headers_and_body(server: ThreadingHTTPServer):
    answer = Client(f"http://127.0.0.1:{server.server_port}/v1/", key="secret").get("/models")
    assert (answer.status, answer.body, answer.headers["x-word"]) == (200, b"{}", "yes")
    ((path, key, _),) = server.seen  # type: ignore[attr-defined]
    assert (path, key) == ("/v1/models", "Bearer secret")


def test_connections_stay_open(server: ThreadingHTTPServer):
    client = Client(f"http://127.0.0.1:{server.server_port}")
    for _ in range(5):
        client.get("/x")
    assert len({address for _, _, address in server.seen}) == 1  # type: ignore[attr-defined]


def test_a_redirect_is_no_answer_and_is_not_followed(server: ThreadingHTTPServer):
    with pytest.raises(ServerError, match=r"HTTP 307 redirects to http://127\.0\.0\.1:9/other, which is not followed") as told:
        Client(f"http://127.0.0.1:{server.server_port}", key="secret").get("/elsewhere")
    assert (told.value.status, told.value.again) == (307, False)


@pytest.mark.parametrize("path", ["/long", "/bomb", "/short", "/drop"])
def test_a_reply_that_is_not_whole_is_one_line(server: ThreadingHTTPServer, path: str):
    client = Client(f"http://127.0.0.1:{server.server_port}", key="secret", timeout=20)
    with pytest.raises(ServerError) as told:
        client.get(path)
    assert len(str(told.value).splitlines()) == 1
    assert "secret" not in str(told.value) + repr(client)
    assert client.get("/fine").status == 200, "the next request is not hurt by it"


def test_nobody_listens():
    with pytest.raises(ServerError, match="refused"):
        Client("http://127.0.0.1:9").get("/x")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/x", "http://", "", "http:///v1"])
def test_what_is_no_address(url: str):
    with pytest.raises(InputError):
        Client(url)


def test_the_environments_proxy_is_used(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    assert Client("http://models.example/v1").get("/models").status == 200
    assert server.seen[0][0] == "http://models.example/v1/models"  # type: ignore[attr-defined]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert Client(f"http://127.0.0.1:{server.server_port}").get("/models").status == 200
    assert server.seen[1][0] == "/models"  # type: ignore[attr-defined]


SAID = [
    ({"Retry-After": "7"}, "", 7.0), ({"Retry-After": " 0.5 "}, "", 0.5), ({"retry-after-ms": "250"}, "", 0.25),
    ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "", 0.0), ({"Retry-After": "86400"}, "", 86400.0),
    ({}, "Please retry after 6 seconds.", 6.0), ({}, "Rate limit. Please try again in 20ms.", 0.02),
    ({}, "try again in 2m", 120.0),
    *[({"Retry-After": odd}, "", None) for odd in ("-1", "inf", "nan", "1e22", "1" + "0" * 22, "a day", "", "1,2", "86401")],
    *[({}, words, None) for words in ("", "retry after a while", "later")],
]  # fmt: skip


@pytest.mark.parametrize(("headers", "words", "seconds"), SAID)
def test_how_long_a_busy_server_asks_to_wait(headers: dict[str, str], words: str, seconds: float | None):
    assert pause_named(HTTPHeaderDict(headers), words) == seconds


def test_pauses_have_a_total(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(web.time, "sleep", slept.append)
    monkeypatch.setattr(web, "pause_named", lambda headers, words: 50.0)
    client = Client(f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(Client, "post", lambda self, path, body: web.HttpReply(503, {}, b""))
    with pytest.raises(ServerError, match="503"):
        client.ask("/x", b"", bytes.decode, web.Patience(attempts=5))
    assert slept == [50.0, 10.0, 0.0, 0.0]
