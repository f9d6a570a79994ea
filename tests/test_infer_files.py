"""Runs over files of questions: what fails, what is resumed, what a kill leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs
from PIL import Image
from reporters import Told
from two_passes import BOX, QUIET, Recorder, comparable, failing_data, make_config, questions, stored

from cos_core.engines.scripted import ScriptedEngine, last_user_text
from cos_core.errors import FailuresError, InputError, LockedError
from cos_core.files import manifest
from cos_core.files.durable_writer import DurableWriter
from cos_core.infer import InferConfig, run
from cos_core.interfaces import Reply, Request


@pytest.fixture
def config(tmp_path: Path) -> InferConfig:
    return make_config(tmp_path)


@pytest.fixture
def pictures(config: InferConfig) -> Path:
    assert config.images is not None
    return config.images


def test_failures_are_recorded_and_the_rest_is_answered(config: InferConfig, tmp_path: Path) -> None:
    config = replace(config, data=failing_data(tmp_path))
    with pytest.raises(FailuresError, match=r"\b3 of 5\b"):
        run(config, QUIET, Recorder())
    done = run(replace(config, max_failures=3), QUIET, Recorder())
    predictions = stored(config.out)
    assert [p.example_id for p in predictions] == ["1", "2", "3", "4", "5"]
    assert [p.error is None for p in predictions] == [True, False, False, False, True]
    assert "absent.png" in (predictions[1].error or "")
    assert "broken.png" in (predictions[2].error or "")
    assert "leaves the image folder" in (predictions[3].error or "")
    assert (done.counts["ok"], done.counts["failed"]) == (2, 3)
    assert done.status == "complete"


def test_too_many_failures_stop_the_run(config: InferConfig, tmp_path: Path) -> None:
    config = replace(config, data=failing_data(tmp_path), batch_size=1, max_failures=1)
    with pytest.raises(FailuresError, match=r"\b2\b.*\b1\b"):
        run(config, QUIET, Recorder())
    assert [p.example_id for p in stored(config.out)] == ["1", "2", "3"]
    assert manifest.read(manifest.path_for(config.out or Path())).status == "failed"
    # Allowed more, the run goes on where it stopped.
    assert run(replace(config, max_failures=3), QUIET, Recorder()).counts["ok"] == 2


@pytest.mark.parametrize("which", ["where", "Answer"])
def test_an_engine_error_is_that_questions_alone(config: InferConfig, which: str) -> None:
    def answers(request: Request) -> str | Reply:
        text = last_user_text(request)
        return Reply("", error="too long") if which in text and "shape?" in text else BOX

    run(config, QUIET, ScriptedEngine(answers))
    assert [p.error for p in stored(config.out)] == [None, f"pass {1 if which == 'where' else 2}: too long", None]


def test_bad_lines_and_text_only_samples_are_counted(config: InferConfig) -> None:
    assert config.data is not None
    with config.data.open("a") as file:
        file.write('{"question_id": "t", "text": "no picture"}\n{broken\n')
    notes = Told()
    done = run(config, notes, Recorder())
    assert (done.counts["ok"], done.counts["failed"], done.counts["skipped"]) == (3, 1, 1)
    assert any("data.jsonl:5" in line for line in notes.lines)
    assert notes.steps == [(0, 3), (2, 3), (3, 3)]


def test_unusable_settings(config: InferConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'nowhere'"):
        run(replace(config, roi="nowhere"), QUIET, Recorder())
    with pytest.raises(InputError, match="on_bad_box"):
        replace(config, on_bad_box="ignore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size"):
        replace(config, batch_size=0)
    with pytest.raises(InputError, match="data"):
        run(replace(config, data=None), QUIET, Recorder())
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"\.json"):
        run(replace(config, data=tmp_path / "empty.jsonl"), QUIET, Recorder())


def test_a_second_run_asks_nothing(config: InferConfig) -> None:
    run(config, QUIET, Recorder())
    before = comparable(config.out)
    engine = Recorder()
    done = run(replace(config, batch_size=3), QUIET, engine)
    assert engine.calls == []
    assert comparable(config.out) == before
    assert done.counts["ok"] == 3, "the counts are the file's"


def test_a_torn_line_is_mended_and_asked_again(config: InferConfig) -> None:
    assert config.out is not None
    run(config, QUIET, Recorder())
    whole = comparable(config.out)
    data = config.out.read_bytes()
    config.out.write_bytes(data[: len(data) - 30])
    engine = Recorder()
    run(config, QUIET, engine)
    assert engine.calls == [1, 1]
    assert comparable(config.out) == whole


def test_other_settings_are_refused(config: InferConfig) -> None:
    run(config, QUIET, Recorder())
    for change in ({"roi": "none"}, {"on_bad_box": "skip"}, {"max_new_tokens": 5}, {"seed": 1}, {"profile": "repo-2024"}):
        with pytest.raises(InputError, match=r"out\.jsonl"):
            run(replace(config, **change), QUIET, Recorder())
    questions((config.data or Path()).parent, [("q1", "a.png", "something else?")])
    with pytest.raises(InputError, match="'q1'"):
        run(config, QUIET, Recorder())


def test_a_file_of_something_else_is_refused(config: InferConfig) -> None:
    assert config.out is not None
    config.out.write_text('{"a": 1}\n')
    with pytest.raises(InputError, match=r"out\.jsonl"):
        run(config, QUIET, Recorder())
    assert config.out.read_text() == '{"a": 1}\n'


def test_two_runs_on_one_file_are_refused(config: InferConfig) -> None:
    assert config.out is not None
    with DurableWriter(config.out), pytest.raises(LockedError):
        run(config, QUIET, Recorder())


def test_failures_are_asked_again_only_when_wished(config: InferConfig, tmp_path: Path, pictures: Path) -> None:
    config = replace(config, data=failing_data(tmp_path), max_failures=5)
    run(config, QUIET, Recorder())
    assert [p.transient for p in stored(config.out)] == [False, True, False, False, False]
    Image.new("RGB", (9, 9)).save(pictures / "absent.png")
    Image.new("RGB", (9, 9)).save(pictures / "broken.png")
    # What was not there is asked again; what was broken stays as it was recorded.
    done = run(config, QUIET, Recorder())
    assert (done.counts["ok"], done.counts["failed"]) == (3, 2)
    assert [p.example_id for p in stored(config.out)] == ["1", "2", "3", "4", "5"]
    done = run(replace(config, retry_failed=True), QUIET, Recorder())
    assert (done.counts["ok"], done.counts["failed"]) == (4, 1)
    straight = replace(config, out=tmp_path / "straight.jsonl")
    run(straight, QUIET, Recorder())
    assert [structs.replace(p, seconds=0) for p in stored(config.out)] == [
        structs.replace(p, seconds=0) for p in stored(straight.out)
    ]


def test_a_doubled_line_with_another_answer_is_warned_of(config: InferConfig) -> None:
    assert config.out is not None
    run(config, QUIET, Recorder())
    lines = config.out.read_text().splitlines()
    other = {**json.loads(lines[0]), "answer": "something else"}
    config.out.write_text("\n".join([*lines[:2], json.dumps(other), json.dumps(json.loads(lines[1]))]) + "\n")
    told = Told()
    run(config, told, Recorder())
    assert [w for w in told.warnings if "out.jsonl" in w]


@pytest.mark.parametrize("how", ["removed", "replaced", "folder"])
def test_an_output_that_vanishes_is_no_complete_one(config: InferConfig, how: str) -> None:
    assert config.out is not None
    out = config.out.parent / "into" / "answers.jsonl"

    def answers(request: Request) -> str:
        if how == "folder":
            out.parent.rename(out.parent.with_name("away")) if out.parent.exists() else None
        else:
            out.unlink(missing_ok=True)
            out.write_text("") if how == "replaced" else None
        return BOX

    with pytest.raises(InputError, match=r"answers\.jsonl"):
        run(replace(config, out=out), QUIET, ScriptedEngine(answers))


@pytest.mark.parametrize("folder", ["missing", "empty", "file"])
def test_a_folder_of_images_without_any_is_refused_at_once(config: InferConfig, tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="images"):
        run(replace(config, images=tmp_path / folder), QUIET, ScriptedEngine({}))
    assert config.out is not None
    assert not config.out.exists()


class Slow(Recorder):
    """Takes a while over each batch, so that the process can be killed in the middle."""

    def generate(self, requests: list[Request]) -> list[Reply]:
        time.sleep(0.04)
        return super().generate(requests)


def _run_slowly(config: InferConfig) -> None:
    run(config, QUIET, Slow())


def test_killed_at_any_moment_the_rerun_completes_the_file(config: InferConfig, tmp_path: Path) -> None:
    rows = [(str(i), "ab"[i % 2] + ".png", f"question {i}?") for i in range(120)]
    config = replace(config, data=questions(tmp_path, rows, "many.jsonl"))
    run(replace(config, out=tmp_path / "straight.jsonl"), QUIET, Recorder())
    assert config.out is not None
    start = multiprocessing.get_context("spawn").Process
    for lines in (4, 30, 70):
        process = start(target=_run_slowly, args=(config,))
        process.start()
        deadline = time.monotonic() + 7200
        while time.monotonic() < deadline and (not config.out.exists() or config.out.read_bytes().count(b"\n") < lines):
            time.sleep(0.005)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert lines <= config.out.read_bytes().count(b"\n") < 120
        assert not manifest.path_for(config.out).exists()
    run(config, QUIET, Recorder())
    assert comparable(config.out) == comparable(tmp_path / "straight.jsonl")


def test_questions_of_one_picture_stand_side_by_side(config: InferConfig, tmp_path: Path) -> None:
    rows = [("1", "b.png", "x"), ("2", "a.png", "y"), ("3", "b.png", "z"), ("4", "a.png", "w")]
    run(replace(config, data=questions(tmp_path, rows, "mixed.jsonl")), QUIET, Recorder())
    assert [p.example_id for p in stored(config.out)] == ["1", "3", "2", "4"]


def test_one_question_about_every_picture_of_a_folder(config: InferConfig, pictures: Path) -> None:
    (pictures / "notes.txt").write_text("no picture")
    config = replace(config, data=None, question="colour?")
    done = run(config, QUIET, Recorder())
    assert [p.example_id for p in stored(config.out)] == ["a.png", "b.png", "broken.png"]
    assert (done.counts["ok"], done.counts["failed"]) == (2, 1)


def test_answers_from_a_table(config: InferConfig, tmp_path: Path) -> None:
    table = tmp_path / "answers.json"
    table.write_text(json.dumps({"<image>\ncolour?": "red"}))
    run(replace(config, model=table, roi="none", max_failures=2), QUIET)
    first, second, _ = stored(config.out)
    assert first.answer == "red"
    assert "'<image>\\nshape?'" in (second.error or "")
    table.write_text("[1]")
    with pytest.raises(InputError, match=r"\.json"):
        run(replace(config, model=table, roi="none", out=tmp_path / "second.jsonl"), QUIET)
