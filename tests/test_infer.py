"""The two passes, their fallbacks and the durable output, with answers from a script; last, the whole stage on a real model."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_llava import make_checkpoint

from cos_core import infer, manifest
from cos_core.engines.scripted import ScriptedEngine, last_user_text
from cos_core.errors import FailuresError, InputError, LockedError
from cos_core.infer import InferConfig, answer_one, run
from cos_core.interfaces import Reply, Request, SilentReporter
from cos_core.jsonl import DurableWriter
from cos_core.types import Prediction

QUIET = SilentReporter()
BOX = "[0.250, 0.500, 0.750, 1.000]"


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[int, int | None]] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        self.steps.append((done, total))


class Recorder:
    """An engine that answers Inst.1 with `box` and everything else with the question's own words, and keeps what it saw."""

    name = "scripted"

    def __init__(self, box: str | Callable[[str], str] = BOX) -> None:
        self.box = box
        self.seen: list[Request] = []
        self.calls: list[int] = []

    def generate(self, requests: list[Request]) -> list[Reply]:
        self.calls.append(len(requests))
        self.seen += requests
        return [self._one(last_user_text(request)) for request in requests]

    def _one(self, text: str) -> Reply:
        if "region of interest in the image?" not in text:
            return Reply(f"answer to {text[-12:]}", tokens_in=5, tokens_out=2)
        return Reply(self.box if isinstance(self.box, str) else self.box(text), tokens_in=7, tokens_out=3)

    def first_passes(self) -> list[str]:
        return [t for t in map(last_user_text, self.seen) if "region of interest in the image?" in t]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """a.png 40x20 (wide), b.png 17x31 (tall): each pixel's colour is its place."""
    root = tmp_path / "images"
    root.mkdir()
    for name, (width, height) in {"a.png": (40, 20), "b.png": (17, 31)}.items():
        image = Image.new("RGB", (width, height))
        image.putdata([(x, y, 200) for y in range(height) for x in range(width)])
        image.save(root / name)
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    return root


def questions(tmp_path: Path, rows: list[tuple[str, str, str]], name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps({"question_id": i, "image": image, "text": text}) + "\n" for i, image, text in rows))
    return path


@pytest.fixture
def config(tmp_path: Path, pictures: Path) -> InferConfig:
    data = questions(tmp_path, [("q1", "a.png", "colour?"), ("q2", "a.png", "shape?"), ("q3", "b.png", "digit?")])
    return InferConfig(
        model="no/model", engine="scripted", data=data, images=pictures, out=tmp_path / "out.jsonl", batch_size=2
    )


def stored(path: Path | None) -> list[Prediction]:
    assert path is not None
    return [Prediction.from_json(json.loads(line)) for line in path.read_text().splitlines()]


def comparable(path: Path | None) -> list[dict[str, Any]]:
    return [{**p.to_json(), "seconds": 0} for p in stored(path)]


# --- the passes ---------------------------------------------------------------------------------------------------------------


def test_two_passes_by_hand(config: InferConfig) -> None:
    engine = Recorder()
    done = run(config, QUIET, engine)
    first, second = engine.seen[0], engine.seen[2]
    assert last_user_text(first) == '<image>\nTo answer the question: "colour?", where is the region of interest in the image?'
    assert first.max_new_tokens == 48
    assert second.max_new_tokens == 128
    assert second.turns[0] == first.turns[0]
    assert second.turns[1].parts == (BOX,)
    assert last_user_text(second) == 'The region of interest in the image is <image>\n. Answer the question: "colour?"'
    assert second.images["full"] is first.images["full"], "the engine may then encode the picture once"
    # a.png is 40x20 in a square of 40, 10 rows of padding above: the box covers rows 20..40 of the square = 10..20 (and beyond,
    # which is padding) of the picture, columns 10..30.
    assert second.images["roi"].size == (20, 10)
    assert second.images["roi"].getpixel((0, 0)) == (10, 10, 200)
    p1, p2, p3 = stored(config.out)
    assert (p1.example_id, p2.example_id, p3.example_id) == ("q1", "q2", "q3")
    assert p1.box is not None
    assert p1.box.corners == (0.25, 0.5, 0.75, 1.0)
    assert (p1.answer, p1.box_text, p1.box_status) == ('answer to n: "colour?"', BOX, "ok")
    assert p1.tokens == {"pass1_in": 7, "pass1_out": 3, "pass2_in": 5, "pass2_out": 2}
    assert (p1.policy, p1.profile, p1.question, p1.image) == ("from_single_question", "paper", "colour?", "a.png")
    # b.png is 17x31, 7 columns of padding: x 7.75..23.25 of 31 -> 0.75..16.25 of 17; y 15.5..31 of 31.
    assert p3.box is not None
    assert p3.box.corners == pytest.approx((0.75 / 17, 0.5, 16.25 / 17, 1.0))
    assert done.status == "complete"
    assert {k: done.counts[k] for k in ("ok", "failed", "skipped", "box_ok")} == {
        "ok": 3,
        "failed": 0,
        "skipped": 0,
        "box_ok": 3,
    }
    assert manifest.read(manifest.path_for(config.out or Path())) == done
    assert engine.calls == [2, 2, 1, 1]


def test_plain_dialogue_is_one_pass(config: InferConfig) -> None:
    engine = Recorder()
    run(replace(config, roi="none"), QUIET, engine)
    assert engine.calls == [2, 1]
    assert last_user_text(engine.seen[0]) == "<image>\ncolour?"
    assert set(engine.seen[0].images) == {"full"}
    p = stored(config.out)[0]
    assert (p.box, p.box_text, p.box_status) == (None, None, "skipped")


@pytest.mark.parametrize(
    ("roi", "text", "size"),
    [
        ("center", "[0.250, 0.375, 0.750, 0.625]", (20, 10)),
        ("center_crop", "[0.250, 0.375, 0.750, 0.625]", (20, 10)),
        ("full", "[0.000, 0.250, 1.000, 0.750]", (40, 20)),
    ],
)
def test_given_regions_are_written_not_asked(config: InferConfig, roi: str, text: str, size: tuple[int, int]) -> None:
    engine = Recorder()
    run(replace(config, roi=roi, limit=1), QUIET, engine)
    (request,) = engine.seen
    assert request.turns[1].parts == (text,)
    assert request.images["roi"].size == size
    p = stored(config.out)[0]
    assert (p.box_text, p.box_status) == (text, "skipped"), "nothing was asked, so there is nothing to judge"
    assert p.box is not None


def test_gold_regions_and_their_absence(config: InferConfig, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    rows = [
        {"id": "g1", "dataset": "d", "image": "a.png", "question": "q", "meta": {"gold": [0.5, 0.0, 1.0, 0.5]}},
        {"id": "g2", "dataset": "d", "image": "a.png", "question": "q"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(replace(config, roi="gold", data=data), QUIET, Recorder())
    first, second = stored(config.out)
    assert first.box is not None
    assert first.box.corners == (0.5, 0.0, 1.0, 0.5)
    assert second.answer is None
    assert "no gold region" in (second.error or "")
    assert (done.counts["ok"], done.counts["failed"]) == (1, 1)


def test_one_box_an_image_without_a_question(config: InferConfig) -> None:
    engine = Recorder()
    run(replace(config, roi="from_image", batch_size=1), QUIET, engine)
    assert engine.first_passes() == ["<image>\nWhere is the region of interest in the image?"] * 2
    p1, p2, _ = stored(config.out)
    assert p1.box == p2.box
    assert "pass1_in" in p1.tokens
    assert "pass1_in" not in p2.tokens, "the second question of the image did not ask again"


@pytest.mark.parametrize("limit", [None, 1])
def test_one_box_an_image_for_all_its_questions(config: InferConfig, limit: int | None) -> None:
    engine = Recorder()
    run(replace(config, roi="from_questions", limit=limit), QUIET, engine)
    wanted = '<image>\nTo answer the questions: "colour? shape?", where is the region of interest in the image?'
    assert engine.first_passes()[0] == wanted, "a limit takes no question out of Inst.1"
    assert len(engine.first_passes()) == (2 if limit is None else 1)
    second = next(r for r in engine.seen if len(r.turns) == 3)
    assert second.turns[0].parts[-1] == wanted.removeprefix("<image>"), "pass 2 continues the very dialogue of pass 1"


# --- boxes that cannot be used ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status", "corners"),
    [
        ("[0.25, 0.5, 0.75, 0.75]", "ok", (0.25, 0.5, 0.75, 1.0)),
        ("It is at 0.25,0.5,0.75,0.75.", "repaired", (0.25, 0.5, 0.75, 1.0)),
        ("[0.75, 0.5, 0.25, 0.75]", "repaired", (0.25, 0.5, 0.75, 1.0)),
        ("[0.25, 0.5, 1.75, 0.75]", "clamped", (0.25, 0.5, 1.0, 1.0)),
        ("[0.25, 0.5, 0.25, 0.75]", "degenerate", None),
        ("[0.0, 0.8, 1.0, 0.9]", "degenerate", None),  # rows 32..36 of 40: only padding, the picture ends at 30
        ("the circle", "unparsable", None),
        ("", "unparsable", None),
        ("[nan, 0.1, 0.2, 0.3]", "unparsable", None),
    ],
)
@pytest.mark.parametrize("on_bad_box", ["full", "center", "skip"])
def test_every_status_and_every_fallback(
    config: InferConfig, text: str, status: str, corners: tuple[float, ...] | None, on_bad_box: Any
) -> None:
    engine = Recorder(text)
    done = run(replace(config, limit=1, on_bad_box=on_bad_box), QUIET, engine)
    (p,) = stored(config.out)
    assert (p.box_status, p.box_text) == (status, text), "the raw text is always kept"
    assert done.counts[f"box_{status}"] == 1
    if corners is None and on_bad_box == "skip":
        assert (p.box, p.answer) == (None, None)
        assert "skipped as asked" in (p.error or "")
        assert (done.counts["skipped"], done.counts["failed"], len(engine.seen)) == (1, 0, 1)
        return
    fallback = {"full": (0, 0, 1, 1), "center": (0.25, 0.25, 0.75, 0.75)}
    assert p.box is not None
    assert p.box.corners == pytest.approx(corners or fallback[on_bad_box])
    assert p.error is None
    assert engine.seen[1].turns[1].parts == (text,), "what the model wrote stays in the dialogue"


def test_crops_from_the_canvas_keep_the_padding(config: InferConfig) -> None:
    engine = Recorder("[0.0, 0.0, 0.5, 0.5]")
    run(replace(config, profile="repo-2024", limit=1), QUIET, engine)
    roi = engine.seen[-1].images["roi"]
    assert roi.size == (20, 20)
    assert roi.getpixel((0, 0)) == (122, 116, 104)
    assert roi.getpixel((0, 10)) == (0, 0, 200)
    (p,) = stored(config.out)
    assert p.box is not None
    assert p.box.corners == (0.0, 0.0, 0.5, 0.5), "stored is the part that lies on the picture"


# --- what fails ---------------------------------------------------------------------------------------------------------------


def failing_data(tmp_path: Path) -> Path:
    return questions(
        tmp_path,
        [
            ("1", "a.png", "fine?"),
            ("2", "absent.png", "?"),
            ("3", "broken.png", "?"),
            ("4", "../data.jsonl", "?"),
            ("5", "b.png", "ok?"),
        ],
        "failing.jsonl",
    )


def test_failures_are_recorded_and_the_rest_is_answered(config: InferConfig, tmp_path: Path) -> None:
    done = run(replace(config, data=failing_data(tmp_path)), QUIET, Recorder())
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
    with pytest.raises(FailuresError, match="2 questions failed, more than the 1 allowed"):
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
    notes = Notes()
    done = run(config, notes, Recorder())
    assert (done.counts["ok"], done.counts["failed"], done.counts["skipped"]) == (3, 1, 1)
    assert any("data.jsonl:5" in line for line in notes.lines)
    assert notes.steps == [(0, 3), (2, 3), (3, 3)]


def test_unusable_settings(config: InferConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no policies plug-in is called 'nowhere'"):
        run(replace(config, roi="nowhere"), QUIET, Recorder())
    with pytest.raises(InputError, match="on_bad_box is one of full, center, skip"):
        replace(config, on_bad_box="ignore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        replace(config, batch_size=0)
    with pytest.raises(InputError, match="needs a file of questions"):
        run(replace(config, data=None), QUIET, Recorder())
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no question about a picture"):
        run(replace(config, data=tmp_path / "empty.jsonl"), QUIET, Recorder())


# --- resuming -----------------------------------------------------------------------------------------------------------------


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
        with pytest.raises(InputError, match="made with other settings"):
            run(replace(config, **change), QUIET, Recorder())
    questions((config.data or Path()).parent, [("q1", "a.png", "something else?")])
    with pytest.raises(InputError, match="another question with the id 'q1'"):
        run(config, QUIET, Recorder())


def test_a_file_of_something_else_is_refused(config: InferConfig) -> None:
    assert config.out is not None
    config.out.write_text('{"a": 1}\n')
    with pytest.raises(InputError, match=r"out\.jsonl:1: not a prediction"):
        run(config, QUIET, Recorder())
    assert config.out.read_text() == '{"a": 1}\n'


def test_two_runs_on_one_file_are_refused(config: InferConfig) -> None:
    assert config.out is not None
    with DurableWriter(config.out), pytest.raises(LockedError):
        run(config, QUIET, Recorder())


def test_failures_are_asked_again_only_when_wished(config: InferConfig, tmp_path: Path, pictures: Path) -> None:
    config = replace(config, data=failing_data(tmp_path))
    run(config, QUIET, Recorder())
    Image.new("RGB", (9, 9)).save(pictures / "absent.png")
    assert run(config, QUIET, Recorder()).counts["failed"] == 3
    done = run(replace(config, retry_failed=True), QUIET, Recorder())
    assert (done.counts["ok"], done.counts["failed"]) == (3, 2)
    assert sorted(p.example_id for p in stored(config.out)) == ["1", "2", "3", "4", "5"]


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
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not config.out.exists() or config.out.read_bytes().count(b"\n") < lines):
            time.sleep(0.005)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert lines <= config.out.read_bytes().count(b"\n") < 120
        assert not manifest.path_for(config.out).exists()
    run(config, QUIET, Recorder())
    assert comparable(config.out) == comparable(tmp_path / "straight.jsonl")


# --- one question -------------------------------------------------------------------------------------------------------------


def test_one_question(config: InferConfig, pictures: Path) -> None:
    config = InferConfig(model="no/model", image=pictures / "a.png", question="colour?")
    p = answer_one(config, QUIET, Recorder())
    assert (p.answer, p.box_status, p.example_id) == ('answer to n: "colour?"', "ok", "a.png")
    notes = Notes()
    assert answer_one(config, notes, Recorder("there")).box_status == "unparsable"
    assert notes.lines == ["the first pass named no usable region (unparsable); looked at: full"]
    assert answer_one(replace(config, on_bad_box="skip"), QUIET, Recorder("there")).answer is None
    with pytest.raises(InputError, match=r"broken\.png"):
        answer_one(replace(config, image=pictures / "broken.png"), QUIET, Recorder())
    with pytest.raises(InputError, match="no gold region"):
        answer_one(replace(config, roi="gold"), QUIET, Recorder())
    with pytest.raises(InputError, match="needs an image and a question"):
        answer_one(replace(config, question=None), QUIET, Recorder())


# --- the scripted engine, and the real one ------------------------------------------------------------------------------------


def test_answers_from_a_table(config: InferConfig, tmp_path: Path) -> None:
    table = tmp_path / "answers.json"
    table.write_text(json.dumps({"<image>\ncolour?": "red"}))
    run(replace(config, model=table, roi="none"), QUIET)
    first, second, _ = stored(config.out)
    assert first.answer == "red"
    assert "no answer to '<image>\\nshape?'" in (second.error or "")
    table.write_text("[1]")
    with pytest.raises(InputError, match="must be a JSON object of texts"):
        run(replace(config, model=table, roi="none", out=tmp_path / "second.jsonl"), QUIET)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("roi", ["model", "center", "none", "from_questions"])
def test_on_a_real_model_the_batch_size_changes_nothing(config: InferConfig, model: Path, tmp_path: Path, roi: str) -> None:
    config = replace(config, model=model, engine="hf", roi=roi, device="cpu", max_new_tokens=6, box_tokens=9)
    done = run(config, QUIET)
    assert done.counts["ok"] == 3
    assert done.inputs["model"]["fingerprint"] == infer.llava.checkpoint_fingerprint(str(model))
    run(replace(config, out=tmp_path / "alone.jsonl", batch_size=1), QUIET)
    assert comparable(config.out) == comparable(tmp_path / "alone.jsonl")


# --- grouping, folders, grammar, verification ---------------------------------------------------------------------------------


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


def test_a_format_kept_apart_goes_where_the_profile_says(config: InferConfig, tmp_path: Path) -> None:
    row = {"id": "s", "dataset": "d", "image": "a.png", "question": "Q?", "meta": {"suffix": "\nOne letter."}}
    data = tmp_path / "suffix.jsonl"
    data.write_text(json.dumps(row) + "\n")
    engine = Recorder()
    run(replace(config, data=data, profile="repo-2024"), QUIET, engine)
    first, second = map(last_user_text, engine.seen)
    assert "One letter" not in first
    assert second.endswith('"Q?"\nOne letter.')


def test_grammar_and_verification_on_a_real_model(config: InferConfig, tmp_path: Path) -> None:
    from cos_core.infer.verify import verify

    where = make_checkpoint(tmp_path / "model")
    config = replace(config, model=where, engine="hf", device="cpu", box_decode="grammar", max_new_tokens=4)
    done = run(config, QUIET)
    assert done.counts["box_ok"] == 3
    assert all(p.tokens["pass1_steps"] < 0.6 * p.tokens["pass1_out"] for p in stored(config.out))
    with pytest.raises(InputError, match="other settings"):
        run(replace(config, box_decode="free"), QUIET)
    verdict = verify(config, 2, QUIET)
    assert (verdict["questions"], verdict["replies"]) == (2, 4)
    assert all(flip["margin"] < 1e-4 for flip in verdict["flips"])


def test_regions_from_relevance_need_no_training(config: InferConfig, tmp_path: Path) -> None:
    where = make_checkpoint(tmp_path / "model")
    config = replace(config, model=where, engine="hf", device="cpu", roi="relevance", max_new_tokens=4)
    assert run(config, QUIET).counts["ok"] == 3
    predictions = stored(config.out)
    assert all(p.policy == "relevance" and p.box is not None and p.box_status == "skipped" for p in predictions)
    assert any(p.box is not None and p.box.area < 0.9 for p in predictions), "a region, not always the whole picture"
    assert all(p.tokens["pass2_in"] > p.tokens["pass1_in"] + 16 for p in predictions)
