"""Many questions at once: each goes its own way; answers and order are those of batches, and the engine's bound is kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from two_passes import QUIET, Recorder, comparable, make_config, make_pictures, questions, stored

from cos_core.engines.scripted import last_user_text
from cos_core.errors import FailuresError, InputError
from cos_core.files import images
from cos_core.files.images import ImageSource
from cos_core.infer import InferConfig, run
from cos_core.infer.side_by_side import AHEAD, SharedPictures
from cos_core.interfaces import Reply, Request

PATIENCE = 7200.0
"""Seconds until a test that waits for what never comes fails."""


class Threads(Recorder):
    """A Recorder that several threads may ask; `before` sees each request's text in the thread that asks."""

    def __init__(self, concurrency: int, before: Callable[[str], None] = lambda _: None) -> None:
        super().__init__()
        self.concurrency = concurrency
        self._before = before

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        for request in requests:
            self._before(last_user_text(request))
        return super().generate(list(requests))


@pytest.fixture
def config(tmp_path: Path) -> InferConfig:
    return make_config(tmp_path)


@pytest.fixture
def many(config: InferConfig, tmp_path: Path) -> InferConfig:
    rows = [(f"q{i}", ("a.png", "b.png")[i // 3 % 2], f"number {i}?") for i in range(60)]
    return replace(config, data=questions(tmp_path, rows, "many.jsonl"))


@pytest.mark.parametrize("roi", ["model", "none", "center", "from_image", "from_questions", "random"])
def test_answers_and_their_order_are_those_of_batches(many: InferConfig, tmp_path: Path, roi: str):
    batched = replace(many, roi=roi, out=tmp_path / "batched.jsonl")
    run(batched, QUIET, Recorder())
    run(replace(many, roi=roi), QUIET, Threads(5))
    # Who of several questions asked for all of them differs, and so do the counts of its tokens.
    assert [{**row, "tokens": 0} for row in comparable(many.out)] == [{**row, "tokens": 0} for row in comparable(batched.out)]


@pytest.mark.parametrize(("roi", "asked"), [("from_image", 2), ("from_questions", 2), ("model", 60)])
def test_a_first_pass_that_questions_share_is_asked_once(many: InferConfig, roi: str, asked: int):
    engine = Threads(8)
    run(replace(many, roi=roi), QUIET, engine)
    assert len(engine.first_passes()) == asked
    assert sum("pass1_in" in p.tokens for p in stored(many.out)) == asked


def test_as_many_requests_are_under_way_as_the_engine_likes(many: InferConfig):
    together = threading.Barrier(6)
    first = threading.Semaphore(6)

    def before(_text: str) -> None:
        if first.acquire(blocking=False):
            together.wait(PATIENCE)  # broken, and the test with it, unless six are here at once

    assert run(many, QUIET, Threads(6, before)).counts["ok"] == 60


def test_a_second_pass_waits_for_no_other_question(config: InferConfig):
    answered = threading.Event()

    def before(text: str) -> None:
        if "region of interest in the image?" not in text and "colour?" in text:
            answered.set()
        elif "shape?" in text:
            assert answered.wait(PATIENCE), "the first question's second pass did not come before this first pass was answered"

    assert run(config, QUIET, Threads(2, before)).counts["ok"] == 3


def test_questions_are_read_no_further_ahead_than_the_bound(config: InferConfig, tmp_path: Path):
    rows = [(f"q{i}", "a.png", f"number {i}?") for i in range(200)]
    engine = Threads(2)
    held, seen = threading.Event(), threading.Semaphore(0)

    def before(text: str) -> None:
        seen.release()
        if "number 0?" in text:
            held.wait(PATIENCE)

    engine._before = before
    worker = threading.Thread(target=run, args=(replace(config, data=questions(tmp_path, rows, "d.jsonl")), QUIET, engine))
    worker.start()
    # Everything but the first question's window is answered; then nothing more may begin.
    for _ in range(2 * (AHEAD * 2 - 1) + 1):
        assert seen.acquire(timeout=PATIENCE)
    assert not seen.acquire(timeout=0.5)
    held.set()
    worker.join(PATIENCE)
    assert len(stored(config.out)) == 200


def test_too_many_failures_stop_the_run_and_keep_what_was_finished(many: InferConfig):
    engine = Threads(4)
    engine.box = lambda text: (_ for _ in ()).throw(InputError("never")) if "number 20?" in text else "[0, 0, 1, 1]"
    with pytest.raises(InputError, match="never"):
        run(many, QUIET, engine)
    kept = [p.example_id for p in stored(many.out)]
    assert "q20" not in kept
    run(many, QUIET, Threads(4))
    every = [p.example_id for p in stored(many.out)]
    assert every[: len(kept)] == kept
    assert sorted(every) == sorted(f"q{i}" for i in range(60))


def test_failures_are_counted_and_stop_the_run(config: InferConfig, tmp_path: Path):
    rows = [(f"q{i}", "broken.png", "?") for i in range(100)]
    with pytest.raises(FailuresError):
        run(replace(config, data=questions(tmp_path, rows, "d.jsonl"), max_failures=3), QUIET, Threads(4))
    assert 4 <= len(stored(config.out)) < 100


def test_a_picture_is_opened_once_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    plain = images.open_image
    monkeypatch.setattr(images, "open_image", lambda root, name: opened.append(name) or plain(root, name))
    pictures = SharedPictures(ImageSource(make_pictures(tmp_path / "images")))
    with pictures.held("a.png") as first, pictures.held("a.png") as second:
        assert first is second
    with pictures.held("a.png") as third, pictures.held("broken.png") as broken:
        assert third is not first
        assert isinstance(broken, InputError)
    assert opened == ["a.png", "a.png", "broken.png"]
    assert not pictures._open, "nothing is held when no question holds it"


def test_the_answers_file_is_one_line_a_question(many: InferConfig):
    run(many, QUIET, Threads(7))
    lines = many.out.read_text().splitlines() if many.out else []
    assert sorted(json.loads(line)["example_id"] for line in lines) == sorted(f"q{i}" for i in range(60))


def test_a_picture_that_cannot_be_opened_for_any_reason_holds_up_nobody(config: InferConfig, monkeypatch: pytest.MonkeyPatch):
    def refuse(_root: object, _name: str) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(images, "open_image", refuse)
    with pytest.raises(MemoryError):
        run(config, QUIET, Threads(3))


def test_a_run_that_is_stopped_waits_for_no_request(config: InferConfig):
    never = threading.Event()
    threads = Threads(2, lambda text: None if "colour?" in text else never.wait(PATIENCE))
    threads.box = lambda text: (_ for _ in ()).throw(InputError("stop")) if "colour?" in text else "[0, 0, 1, 1]"
    begun = time.monotonic()
    with pytest.raises(InputError, match="stop"):
        run(config, QUIET, threads)
    assert time.monotonic() - begun < PATIENCE / 2
    never.set()
