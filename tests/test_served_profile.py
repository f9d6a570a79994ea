"""The wording and the padding colour of a served model: where they come from, and what is said when they are assumed."""

from __future__ import annotations

import io
import json
import shutil
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import Behaviour, serving
from PIL import Image
from reporters import Told

from cos_cli import main
from cos_core.engines import _served
from cos_core.engines._messages import assumed
from cos_core.engines.openai import OpenAIEngine
from cos_core.files import assets
from cos_core.infer import InferConfig
from cos_core.infer.settings import build_engine, model_fingerprint, setting
from cos_core.models import hub

COLOUR = (140, 140, 140)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint somewhere on this machine: the miniature's files."""
    return Path(shutil.copytree(assets.miniature_checkpoint(), tmp_path / "somewhere" / "checkpoint"))


def listing(**entry: Any) -> Behaviour:
    return Behaviour(models=[{"id": "other", "root": "/elsewhere"}, {"id": "served", "object": "model", **entry}])


def config(url: str, **options: Any) -> InferConfig:
    return InferConfig(**{"model": "served", "engine": "openai", "server": url, **options})


def resolved(settings: InferConfig) -> _served.Served:
    """The served model; the engine and the setting of a run must have the same."""
    served = _served.of_model(settings.model, settings.server, settings.profile, settings.family)
    engine = build_engine(settings)
    assert isinstance(engine, OpenAIEngine)
    assert engine.dialogue == served.dialogue
    assert setting(settings).profile == served.dialogue.profile
    return served


def said(served: _served.Served) -> tuple[int, int]:
    """(notes, warnings)"""
    told = Told()
    served.report(told)
    return len(told.notes), len(told.warnings)


def test_the_server_says_where_its_folder_is(folder: Path) -> None:
    with serving(listing(root=str(folder))) as url:
        served = resolved(config(url))
        assert (served.dialogue.profile.name, served.dialogue.fill, said(served)) == ("miniature", COLOUR, (1, 0))
        assert model_fingerprint(config(url)) == hub.fingerprint(folder), "of content, not of the name"
        other = resolved(config(url, profile="repo-2024"))
        assert (other.dialogue.profile.name, other.dialogue.fill) == ("repo-2024", COLOUR), "the colour stays the folder's"


def test_a_name_that_is_a_checkpoint_here_is_not_asked_about(folder: Path) -> None:
    behaviour = listing(root="/elsewhere")
    with serving(behaviour) as url:
        for name in (str(folder), "miniature"):
            served = resolved(config(url, model=name))
            assert (served.dialogue.profile.name, served.dialogue.fill, said(served)) == ("miniature", COLOUR, (0, 0))
    assert behaviour.seen == []


@pytest.mark.parametrize(
    "behaviour",
    [
        listing(),
        listing(root="served"),
        listing(root="/no/such/folder"),
        listing(root=7),
        listing(root="a\0b"),
        listing(root="/" + "x" * 5000),
        listing(root=str(Path(__file__).parent)),  # a folder, but no checkpoint
        Behaviour(models=[{"id": 3}, "x", {"id": "another", "root": "miniature"}]),  # type: ignore[list-item]
        Behaviour(models=None),
        Behaviour(key="secret"),
    ],
)
def test_what_the_server_does_not_say_is_assumed_aloud(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(behaviour) as url:
        served = resolved(config(url))
        assert (served.dialogue, served.folder, said(served)) == (assumed(kind=""), None, (0, 1))
        assert model_fingerprint(config(url)) == hub.name_fingerprint("served")
        llava = resolved(config(url, family="llava"))
        assert (llava.dialogue, llava.folder, said(llava)) == (assumed(), None, (0, 1))
        named = resolved(config(url, profile="repo-2024"))
        assert (named.dialogue.profile.name, said(named)) == ("repo-2024", (1, 0)), "only the colour is assumed"
        assert len(behaviour.seen) == 1, "a run asks once and sees one answer"


def test_a_server_that_never_finishes_its_list_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for _ in range(3000):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        start = time.monotonic()
        answer = _served.ask(f"http://127.0.0.1:{server.getsockname()[1]}/v1", "/models", seconds=0.5)
    assert (answer.data, time.monotonic() - start < 120) == (None, True)


def test_the_key_stays_with_the_server_that_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(Behaviour(key="secret")) as url:
        assert _served.listed(_served.ask(url, "/models")) == {"served": None}
        with socket.create_server(("127.0.0.1", 0)) as redirects:

            def redirect() -> None:
                connection, _ = redirects.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {url}/models\r\n\r\n".encode())

            threading.Thread(target=redirect, daemon=True).start()
            # A redirection is an answer and is not followed.
            assert _served.ask(f"http://127.0.0.1:{redirects.getsockname()[1]}/v1", "/models").status == 302


WARNED = "the checkpoint behind the served model"


def test_infer_chat_and_eval_warn_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (30, 20), "red").save(picture)
    data = tmp_path / "data.jsonl"
    lines = [{"question_id": i, "image": "a.png", "text": f"what {i}?"} for i in range(3)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with serving(Behaviour()) as url:
        served = ["--engine", "openai", "--server", url, "--model", "served"]
        one = ["infer", *served, "--image", str(picture)]
        many = ["infer", *served, "--data", str(data), "--images", str(tmp_path), "--out", str(tmp_path / "out.jsonl")]
        golden = Path(__file__).parent / "golden" / "pope"
        scored = ["eval", "pope", *served, "--roi", "model,none", "--data", str(golden), "--out", str(tmp_path / "eval")]
        for arguments in ([*one, "--question", "what?"], [*one, "--chat"], many, scored):
            monkeypatch.setattr("sys.stdin", io.StringIO("what?\n\n"))
            main.run(arguments)
            assert capsys.readouterr().err.count(WARNED) == 1, arguments
        for kind, profile in ((None, "chat"), ("llava", "paper")):
            one = config(url, family=kind)
            again = replace(one, profile=profile)
            assert setting(again).fingerprint == setting(one).fingerprint, "an assumption that is named is no other setting"
