"""Engine and judge against some four hundred ways of being no good server: an answer or a sentence, in a bounded time."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from strange_server import Behaviour, Server, behaviours

from cos_core.dialogue import prompts
from cos_core.engines.openai import build
from cos_core.errors import CosError
from cos_core.evaluate.judge import Endpoint
from cos_core.interfaces import Request
from cos_core.web.client import RetryPolicy

# pragma: allowlist nextline secret
KEY = "sk-0123456789-not-to-be-seen"
SHORT, LONG = 1.0, 120.0
"""Seconds that a request may take: of servers that never come to an end, and of those that do however slow this machine is."""
ATTEMPTS, PAUSES = 2, 0.1
SLACK = 60.0
"""Seconds beyond the bound that a busy machine may take."""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    """The strange one, and one that nobody may be sent to."""
    strange, other = Server(), Server()
    strange.table = behaviours(other.port)
    yield strange, other
    strange.close()
    other.close()


def engine(url: str, timeout: float) -> tuple[str | None, str]:
    """(answer, error)."""
    made = build("m", server=url, profile="paper", timeout=timeout, attempts=ATTEMPTS, pause=0.001, pauses=PAUSES)
    (reply,) = made.generate([Request(prompts.dialogue(prompts.load_profile("paper"), "q"), {"full": IMAGE}, 4)])
    return (None, reply.error) if reply.error is not None else (reply.text, "")


def judge(url: str, timeout: float) -> tuple[str | None, str]:
    try:
        return Endpoint(url, "m", timeout=timeout, patience=RetryPolicy(ATTEMPTS, 0.001, PAUSES)).ask("?", 0.0).text.strip(), ""
    except CosError as error:
        return None, str(error)


IMAGE = Image.new("RGB", (4, 4))


@pytest.mark.parametrize("client", [engine, judge])
def test_every_strange_server(
    client: Callable[[str, float], tuple[str | None, str]],
    servers: tuple[Server, Server],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("COS_JUDGE_KEY", raising=False)
    monkeypatch.setattr("cos_core.engines._served._root", lambda url, model: None)
    strange, other = servers
    assert len(strange.table) >= 200
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    strange.seen.heads.clear()

    def tried(number: int) -> tuple[Behaviour, str | None, str, float]:
        start = time.monotonic()
        how = strange.table[number]
        text, error = client(f"http://127.0.0.1:{strange.port}/{number}/v1", LONG if how.ends else SHORT)
        return how, text, error, time.monotonic() - start

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(tried, range(len(strange.table))))
    bound = 3 * SHORT + PAUSES + SLACK
    assert [how.name for how, _, _, seconds in found if not how.ends and seconds > bound] == []
    wrong = [(how.name, text, error[:99]) for how, text, error, _ in found if how.answers is not None and text != how.answers]
    assert wrong == []
    drawn = "drawn "
    taken = [
        (how.name, text)
        for how, text, error, _ in found
        if how.answers is None and text and not how.name.startswith((drawn, "201", "299", "headers: "))
    ]
    assert taken == []
    said = [error for _, _, error, _ in found]
    assert [error for error in said if KEY in error or len(error.splitlines()) > 1 or "\x1b" in error or len(error) > 700] == []
    assert all(error or text is not None for _, text, error, _ in found)
    # The key went to the server, and to no other.
    assert any(KEY.encode() in head for head in strange.seen.heads)
    assert other.seen.heads == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5 * 2**20  # KiB
    assert "Traceback" not in capfd.readouterr().err
