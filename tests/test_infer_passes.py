"""The two passes and their fallbacks, with answers from a script."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reporters import Told
from two_passes import BOX, QUIET, Recorder, make_config, stored

from cos_core.engines.scripted import last_user_text
from cos_core.errors import InputError
from cos_core.files import manifest
from cos_core.infer import InferConfig, run
from cos_core.infer.chat import answer_one


@pytest.fixture
def config(tmp_path: Path) -> InferConfig:
    return make_config(tmp_path)


@pytest.fixture
def pictures(config: InferConfig) -> Path:
    assert config.images is not None
    return config.images


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


def test_a_format_kept_apart_goes_where_the_profile_says(config: InferConfig, tmp_path: Path) -> None:
    row = {"id": "s", "dataset": "d", "image": "a.png", "question": "Q?", "meta": {"suffix": "\nOne letter."}}
    data = tmp_path / "suffix.jsonl"
    data.write_text(json.dumps(row) + "\n")
    engine = Recorder()
    run(replace(config, data=data, profile="repo-2024"), QUIET, engine)
    first, second = map(last_user_text, engine.seen)
    assert "One letter" not in first
    assert second.endswith('"Q?"\nOne letter.')


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


def test_one_question(config: InferConfig, pictures: Path) -> None:
    config = InferConfig(model="no/model", engine="scripted", image=pictures / "a.png", question="colour?")
    p = answer_one(config, QUIET, Recorder())
    assert (p.answer, p.box_status, p.example_id) == ('answer to n: "colour?"', "ok", "a.png")
    notes = Told()
    assert answer_one(config, notes, Recorder("there")).box_status == "unparsable"
    assert notes.lines == ["the first pass named no usable region (unparsable); looked at: full"]
    assert answer_one(replace(config, on_bad_box="skip"), QUIET, Recorder("there")).answer is None
    with pytest.raises(InputError, match=r"broken\.png"):
        answer_one(replace(config, image=pictures / "broken.png"), QUIET, Recorder())
    with pytest.raises(InputError, match="gold"):
        answer_one(replace(config, roi="gold"), QUIET, Recorder())
    with pytest.raises(InputError, match="question"):
        answer_one(replace(config, question=None), QUIET, Recorder())
