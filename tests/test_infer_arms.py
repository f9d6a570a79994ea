"""Arms: what each shows a model, and that several together write what each would write alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusals import refused
from two_passes import QUIET, Recorder, comparable, make_config, questions, stored

from cos_core.dialogue import crop_content
from cos_core.engines.scripted import last_user_text
from cos_core.errors import FailuresError
from cos_core.infer import InferConfig, run
from cos_core.infer.arms import Arm
from cos_core.infer.stage import run_together
from cos_core.interfaces import Reply, Request
from cos_core.types import CropContent, ImageSlot

ARMS = (
    Arm("none", {"roi": "none"}),
    Arm("model", {}),
    Arm("black", {"crop": "black"}),
    Arm("noise", {"crop": "noise"}),
    Arm("swap", {"crop": "swap"}),
    Arm("absent", {"crop": "absent"}),
    Arm("unboxed", {"box_text": "none"}),
    Arm("blurred", {"global_scale": 0.25}),
    Arm("from_image", {"roi": "from_image"}),
    Arm("center", {"roi": "center"}),
    Arm("gated", {"gate": "margin:2"}),
    Arm("sampled", {"temperature": 0.8, "samples": 3}),
)


class Sure(Recorder):
    """A Recorder whose replies say how sure they are: 1 for questions about a colour, 3 for others; a drawn reply says its
    seed."""

    concurrency = 1

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        return [self._told(request, reply) for request, reply in zip(requests, super().generate(list(requests)), strict=True)]

    @staticmethod
    def _told(request: Request, reply: Reply) -> Reply:
        drawn = request.sampling is not None and not reply.text.startswith("[")
        words = f"{reply.text} {request.sampling.seed}" if drawn and request.sampling else reply.text
        margin = 1.0 if "colour" in last_user_text(request) else 3.0
        return replace(reply, text=words, margins=(9.0, margin, 0.1), ended=True)


class SureThreads(Sure):
    concurrency = 5


@pytest.fixture
def config(tmp_path: Path) -> InferConfig:
    return make_config(tmp_path)


def of_arms(config: InferConfig, folder: Path, arms: Sequence[Arm] = ARMS) -> list[InferConfig]:
    folder.mkdir(exist_ok=True)
    return [replace(arm.of(config), out=folder / f"{arm.name}.jsonl") for arm in arms]


def asked(config: InferConfig, **settings: Any) -> list[Request]:
    """The requests of a run."""
    engine = Sure()
    run(replace(config, **settings), QUIET, engine)
    return engine.seen


def second_passes(requests: Sequence[Request]) -> list[Request]:
    return [request for request in requests if "region of interest in the image?" not in last_user_text(request)]


@pytest.mark.parametrize("engine", [Sure, SureThreads])
def test_together_each_arm_writes_what_it_writes_alone(config: InferConfig, tmp_path: Path, engine: Callable[[], Sure]):
    together, alone = of_arms(config, tmp_path / "together"), of_arms(config, tmp_path / "alone")
    outcomes = run_together(together, QUIET, engine())
    for arm, outcome, both, own in zip(ARMS, outcomes, together, alone, strict=True):
        expected = run(own, QUIET, engine())
        # Of threads, any may be the one that asks for all questions of a picture, and counts its tokens.
        ignored = {"tokens": 0} if (arm.name, engine) == ("from_image", SureThreads) else {}
        assert [row | ignored for row in comparable(both.out)] == [row | ignored for row in comparable(own.out)], arm.name
        assert not isinstance(outcome, FailuresError)
        assert (outcome.fingerprint, outcome.counts, outcome.results) == (
            expected.fingerprint,
            expected.counts,
            expected.results,
        )


def test_a_first_pass_that_arms_share_is_asked_once(config: InferConfig, tmp_path: Path):
    engine = Recorder()
    run_together(of_arms(config, tmp_path / "runs", ARMS[1:7]), QUIET, engine)
    assert len(engine.first_passes()) == 3
    assert len(second_passes(engine.seen)) == 3 * 6


class Killed(Sure):
    """Ends the process's work at its n-th call."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self._left = calls

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return super().generate(requests)


@pytest.mark.parametrize("calls", range(7))
def test_arms_that_were_stopped_go_on(config: InferConfig, tmp_path: Path, calls: int):
    # Which of a picture's questions counts the first pass that they share depends on where the run goes on.
    arms = [arm for arm in ARMS if arm.name != "from_image"]
    whole, broken = of_arms(config, tmp_path / "whole", arms), of_arms(config, tmp_path / "broken", arms)
    run_together(whole, QUIET, Sure())
    with pytest.raises(KeyboardInterrupt):
        # One at a time: the files end at different questions.
        run_together([replace(each, batch_size=1) for each in broken], QUIET, Killed(calls))
    for each in broken[1::2]:
        run(each, QUIET, Sure())
    run_together(broken, QUIET, Sure())
    for a, b in zip(whole, broken, strict=True):
        assert comparable(a.out) == comparable(b.out)


def test_two_arms_with_the_same_settings_are_refused(config: InferConfig, tmp_path: Path):
    with refused("same settings"):
        run_together(of_arms(config, tmp_path / "runs", [Arm("a"), Arm("b")]), QUIET, Recorder())


def test_an_arm_that_fails_as_a_whole_leaves_the_others(config: InferConfig, tmp_path: Path):
    """No box on one arm's terms: its questions are skipped or fail; the plain arm is finished."""

    class Deaf(Recorder):
        def generate(self, requests: list[Request]) -> list[Reply]:
            replies = super().generate(requests)
            return [
                Reply("", error="no") if "roi" in request.images else reply
                for request, reply in zip(requests, replies, strict=True)
            ]

    none, model = run_together(of_arms(config, tmp_path / "runs", ARMS[:2]), QUIET, Deaf())
    assert isinstance(model, FailuresError)
    assert not isinstance(none, FailuresError)
    assert none.counts["ok"] == 3


# --- what the second picture shows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["black", "noise", "swap"])
def test_a_control_has_the_size_of_the_region_and_nothing_of_it(config: InferConfig, content: CropContent):
    regions = [request.images["roi"] for request in second_passes(asked(config, out=config.out))]
    requests = second_passes(asked(config, crop=content, out=config.out and config.out.with_name("control.jsonl")))
    controls = [request.images["roi"] for request in requests]
    assert [each.size for each in controls] == [each.size for each in regions]
    assert all(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in zip(controls, regions, strict=True))
    # Everything else is as it was: the whole picture, the box, the question.
    assert [request.turns for request in requests] == [
        request.turns for request in second_passes(asked(config, out=config.out and config.out.with_name("again.jsonl")))
    ]


def test_black_is_black(config: InferConfig):
    for request in second_passes(asked(config, crop="black")):
        assert request.images["roi"].getextrema() == ((0, 0), (0, 0), (0, 0))


def test_a_swapped_region_is_the_same_box_of_another_picture(config: InferConfig):
    requests = second_passes(asked(config, crop="swap"))
    a, b = (Image.open(Path(str(config.images)) / name) for name in ("a.png", "b.png"))
    records = {each.example_id: each for each in stored(config.out)}
    assert [records[name].shown for name in ("q1", "q2", "q3")] == ["swap: b.png", "swap: b.png", "swap: a.png"]
    for request, own, other in zip(requests, (a, a, b), (b, b, a), strict=True):
        # The box of the script: [0.25, 0.5, 0.75, 1] of the padded square, which on the picture differs with its shape.
        box = next(each.box for each in records.values() if each.image == Path(own.filename).name)
        assert box is not None
        expected = other.crop(box.pixels(*other.size)).resize(request.images["roi"].size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(expected, float) - np.asarray(request.images["roi"], float)).mean() < 8


def test_a_swap_needs_a_second_picture(config: InferConfig, tmp_path: Path):
    alone = questions(tmp_path, [("q1", "a.png", "colour?")], "alone.jsonl")
    with pytest.raises(FailuresError):
        run(replace(config, data=alone, crop="swap"), QUIET, Recorder())
    (record,) = stored(config.out)
    assert record.answer is None
    assert "another question's picture" in str(record.error)


def test_a_picture_to_swap_with_that_does_not_open_fails_the_question(config: InferConfig, tmp_path: Path):
    rows = [("q1", "a.png", "colour?"), ("q2", "broken.png", "shape?")]
    with pytest.raises(FailuresError):
        run(replace(config, data=questions(tmp_path, rows, "two.jsonl"), crop="swap"), QUIET, Recorder())
    assert "picture to swap with" in str(stored(config.out)[0].error)


def test_the_other_picture_is_any_other_one_and_never_the_own() -> None:
    names = ["a", "b", "c", "d"]
    for name in (*names, "not among them"):
        drawn = [crop_content.partner(names, name, 0, f"q{i}") for i in range(4000)]
        others = [each for each in names if each != name]
        counts = [drawn.count(each) for each in others]
        assert sum(counts) == 4000
        assert max(counts) - min(counts) < 250  # five standard deviations
    assert crop_content.partner(["a"], "a", 0, "q") is None


def test_noise_has_the_pictures_mean_and_spread_in_each_channel() -> None:
    generator = np.random.default_rng(0)
    pixels = np.clip(generator.normal((60, 128, 180), (10, 30, 20), (200, 300, 3)), 0, 255).astype(np.uint8)
    drawn = crop_content.noise((400, 300), Image.fromarray(pixels), 1, "q")
    assert drawn.size == (400, 300)
    shown = np.asarray(drawn, float).reshape(-1, 3)
    assert np.allclose(shown.mean(0), pixels.reshape(-1, 3).mean(0), atol=0.5)
    assert np.allclose(shown.std(0), pixels.reshape(-1, 3).std(0), atol=0.5)
    again, other = (crop_content.noise((400, 300), Image.fromarray(pixels), seed, "q") for seed in (1, 2))
    assert again.tobytes() == drawn.tobytes() != other.tobytes()


def test_a_large_noise_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (4, 4), (100, 100, 100))
    monkeypatch.setattr(crop_content, "_STRIP", 50)
    assert crop_content.noise((30, 7), picture, 0, "q").size == (30, 7)


def test_without_a_second_picture_the_box_is_said(config: InferConfig):
    for request in second_passes(asked(config, crop="absent")):
        assert list(request.images) == ["full"]
        assert [turn.role for turn in request.turns] == ["user", "assistant", "user"]
        assert not any(isinstance(part, ImageSlot) for part in request.turns[2].parts)
        assert request.turns[1].parts == ("[0.250, 0.500, 0.750, 1.000]",)


def test_without_its_text_the_region_stands_behind_the_whole_picture(config: InferConfig):
    for request in second_passes(asked(config, box_text="none")):
        (turn,) = request.turns
        assert [part.slot for part in turn.parts if isinstance(part, ImageSlot)] == ["full", "roi"]
        assert "[" not in "".join(part for part in turn.parts if isinstance(part, str))
    assert all(record.box is not None for record in stored(config.out))


def test_a_degraded_picture_keeps_its_size_and_the_region_is_the_originals(config: InferConfig):
    sharp = second_passes(asked(config))
    engine = Recorder()
    run(replace(config, global_scale=0.25, out=config.out and config.out.with_name("b.jsonl")), QUIET, engine)
    blurred = second_passes(engine.seen)
    for before, after in zip(sharp, blurred, strict=True):
        assert after.images["full"].size == before.images["full"].size
        assert after.images["full"].tobytes() != before.images["full"].tobytes()
        assert after.images["roi"].tobytes() == before.images["roi"].tobytes()
    views = {id(request.images["full"]) for request in engine.seen if request.images["full"].size == (40, 20)}
    assert len(views) == 1  # one object for all questions of a picture: its features are made once


def test_degrading_leaves_what_a_smaller_picture_can_hold() -> None:
    stripes = Image.fromarray(np.tile(np.array([[[0, 0, 0]], [[255, 255, 255]]], np.uint8), (8, 16, 1)))
    half = np.asarray(crop_content.degraded(stripes, 0.5), float)
    assert half.shape == (16, 16, 3)
    assert np.abs(half - 127.5).max() <= 1  # rows of black and white are one grey at half the sides
    assert crop_content.degraded(stripes, 1.0) is stripes


# --- the gate --------------------------------------------------------------------------------------------------------


def test_a_gate_by_margin_looks_twice_where_the_plain_answer_is_unsure(config: InferConfig):
    engine = Sure()
    run(replace(config, gate="margin:2"), QUIET, engine)
    records = {each.example_id: each for each in stored(config.out)}
    assert {name: (each.gate, each.margin) for name, each in records.items()} == {
        "q1": ("open", 1.0),
        "q2": ("closed", 3.0),
        "q3": ("closed", 3.0),
    }
    assert records["q2"].answer == records["q2"].plain
    assert records["q2"].box is None
    assert set(records["q2"].tokens) == {"plain_in", "plain_out"}
    assert set(records["q1"].tokens) == {"plain_in", "plain_out", "pass1_in", "pass1_out", "pass2_in", "pass2_out"}
    assert len(engine.first_passes()) == 1


def test_a_gate_by_area_answers_plainly_about_other_regions(config: InferConfig):
    whole = lambda text: "[0.000, 0.000, 1.000, 1.000]" if "shape" in text else "[0.250, 0.500, 0.750, 1.000]"  # noqa: E731
    run(replace(config, gate="area:0-0.5"), QUIET, Recorder(whole))
    records = {each.example_id: each for each in stored(config.out)}
    assert {name: each.gate for name, each in records.items()} == {"q1": "open", "q2": "closed", "q3": "open"}
    assert records["q2"].box is not None
    assert records["q2"].answer == records["q2"].plain
    assert set(records["q2"].tokens) == {"plain_in", "plain_out", "pass1_in", "pass1_out"}
    assert set(records["q1"].tokens) == {"pass1_in", "pass1_out", "pass2_in", "pass2_out"}


def test_an_engine_that_is_not_sure_of_anything_cannot_serve_a_margin(config: InferConfig):
    with pytest.raises(FailuresError):
        run(replace(config, gate="all"), QUIET, Recorder())
    assert all("margin" in str(record.error) for record in stored(config.out))


# --- samples ---------------------------------------------------------------------------------------------------------


def test_every_sample_is_drawn_with_a_seed_of_its_own(config: InferConfig):
    engine = Sure()
    run(replace(config, temperature=0.8, top_p=0.9, samples=4), QUIET, engine)
    draws = [request.sampling for request in engine.seen]
    assert None not in draws
    assert len({each.seed for each in draws if each is not None}) == 3 * 4 * 2  # questions, samples, passes
    for record in stored(config.out):
        assert len(record.samples) == 4
        assert len({sample.answer for sample in record.samples}) == 4
        assert record.answer == record.samples[0].answer
        assert record.samples[0].tokens == record.tokens


def test_one_sample_that_fails_fails_its_question(config: InferConfig):
    class Third(Sure):
        def generate(self, requests: Sequence[Request]) -> list[Reply]:
            seeds = sorted({request.sampling.seed for request in requests if request.sampling is not None})
            replies = super().generate(requests)
            return [
                Reply("", error="lost") if request.sampling is not None and request.sampling.seed == seeds[0] else reply
                for request, reply in zip(requests, replies, strict=True)
            ]

    with pytest.raises(FailuresError):
        run(replace(config, temperature=0.8, samples=3, batch_size=3), QUIET, Third())
    failed = [record for record in stored(config.out) if record.error is not None]
    assert failed
    assert all(record.answer is None and not record.samples and "of 3" in str(record.error) for record in failed)


# --- what cannot be meant --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"roi": "none", "crop": "black"}, "--crop"),
        ({"roi": "none", "box_text": "none"}, "--box-text"),
        ({"roi": "none", "gate": "all"}, "--gate"),
        ({"crop": "absent", "box_text": "none"}, "--roi none"),
        ({"samples": 4}, "temperature"),
        ({"top_p": 0.5}, "temperature"),
        ({"gate": "all", "samples": 4, "temperature": 1.0}, "gate"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config: InferConfig, settings: dict[str, Any], words: str):
    with refused(words):
        run(replace(config, **settings), QUIET, Recorder())
