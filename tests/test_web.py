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
from cos_core.web.server_messages import requested_pause


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
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
        elif self.path.endswith("/busy"):
            self._say(503, b'{"error": {"message": "later"}}', {"Retry-After": "50"})
        else:
            self._say(200, b"{}", {"X-Word": "yes"})

    do_POST = do_HEAD = do_GET

    def _say(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
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
    answer = Client(f"http://127.0.0.1:{server.server_port}/v1/", key="secret").request("/models")
    assert (answer.status, answer.body, answer.headers["x-word"]) == (200, b"{}", "yes")
    ((path, key, _),) = server.seen  # type: ignore[attr-defined]
    assert (path, key) == ("/v1/models", "Bearer secret")


def test_connections_stay_open(server: ThreadingHTTPServer):
    client = Client(f"http://127.0.0.1:{server.server_port}")
    for _ in range(5):
        client.request("/x")
    assert len({address for _, _, address in server.seen}) == 1  # type: ignore[attr-defined]


def test_a_redirect_is_no_answer_and_is_not_followed(server: ThreadingHTTPServer):
    with pytest.raises(ServerError) as raised:
        Client(f"http://127.0.0.1:{server.server_port}", key="secret").request("/elsewhere")
    assert (raised.value.status, raised.value.again) == (307, False)
    assert "http://127.0.0.1:9/other" in str(raised.value)


@pytest.mark.parametrize("path", ["/long", "/bomb", "/short", "/drop"])
def test_a_reply_that_is_not_whole_is_one_line(server: ThreadingHTTPServer, path: str):
    client = Client(f"http://127.0.0.1:{server.server_port}", key="secret", timeout=20)
    with pytest.raises(ServerError) as raised:
        client.request(path)
    assert len(str(raised.value).splitlines()) == 1
    assert "secret" not in str(raised.value) + repr(client)
    assert client.request("/fine").status == 200, "the next request is not hurt by it"


def test_nobody_listens():
    client = Client("http://127.0.0.1:9")
    with pytest.raises(ServerError) as raised:
        client.request("/x")
    assert (raised.value.status, raised.value.again, raised.value.transient) == (None, True, True)
    assert not client.exists()


@pytest.mark.parametrize("path", ["", "/elsewhere", "/busy"])
def test_any_reply_shows_that_a_server_exists(server: ThreadingHTTPServer, path: str):
    assert Client(f"http://127.0.0.1:{server.server_port}{path}").exists()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/x", "http://", "", "http:///v1"])
def test_what_is_no_address(url: str):
    with pytest.raises(InputError):
        Client(url)


def test_the_environments_proxy_is_used(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    assert Client("http://models.example/v1").request("/models").status == 200
    assert server.seen[0][0] == "http://models.example/v1/models"  # type: ignore[attr-defined]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert Client(f"http://127.0.0.1:{server.server_port}").request("/models").status == 200
    assert server.seen[1][0] == "/models"  # type: ignore[attr-defined]


PAUSES = [
    ({"Retry-After": "7"}, "", 7.0), ({"Retry-After": " 0.5 "}, "", 0.5), ({"retry-after-ms": "250"}, "", 0.25),
    ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "", 0.0), ({"Retry-After": "86400"}, "", 86400.0),
    ({}, "Please retry after 6 seconds.", 6.0), ({}, "Rate limit. Please try again in 20ms.", 0.02),
    ({}, "try again in 2m", 120.0),
    *[({"Retry-After": odd}, "", None) for odd in ("-1", "inf", "nan", "1e22", "1" + "0" * 22, "a day", "", "1,2", "86401")],
    *[({}, words, None) for words in ("", "retry after a while", "later")],
]  # fmt: skip


@pytest.mark.parametrize(("headers", "message", "seconds"), PAUSES)
def test_how_long_a_busy_server_asks_to_wait(headers: dict[str, str], message: str, seconds: float | None):
    assert requested_pause(HTTPHeaderDict(headers), message) == seconds


def test_pauses_have_a_total(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(web.time, "sleep", slept.append)
    client = Client(f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(ServerError) as raised:
        client.ask("/busy", b"{}", bytes.decode, web.RetryPolicy(attempts=5))
    assert (raised.value.status, raised.value.after) == (503, 50.0)
    assert slept == [50.0, 10.0, 0.0, 0.0]
    assert len(server.seen) == 5  # type: ignore[attr-defined]
