"""What people see of a second look: the picture that was shown, the gate's decision, the sampled answers."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reporters import Told
from two_passes import QUIET, Recorder, make_config, stored

from cos_cli.infer import describe
from cos_core.dialogue import crop_content
from cos_core.errors import InputError
from cos_core.files.images import open_image
from cos_core.geometry import Box
from cos_core.infer import InferConfig
from cos_core.infer import run as infer
from cos_core.infer.chat import answer_one
from cos_core.interfaces import Reply, Request
from cos_core.scoring.metrics import region_scores
from cos_core.types import CropContent, Example, Prediction, Sample
from cos_core.visualize import boxes, contact_sheets, overlay, run_report, runs
from cos_core.visualize.config import BoxStatsConfig, CompareConfig, OverlayConfig, ReportConfig, RunExportConfig
from cos_core.visualize.draw import COLOURS, EncoderView
from cos_core.visualize.export import run as export
from cos_core.visualize.gallery import publishing
from cos_core.visualize.report_cards import CardMaker, CardSources
from cos_core.visualize.run_questions import MOST_ANSWERS, MOST_BOXES, RunQuestion, sample_words
from cos_core.visualize.source import Cuts
from cos_core.visualize.still_cards import still_card

REPLACED: tuple[CropContent, ...] = ("black", "noise", "swap")
REGION = Box(0.25, 0.5, 0.75, 1.0)
CORNER = Box(0.0, 0.0, 0.5, 0.5)


@pytest.fixture
def config(tmp_path: Path) -> InferConfig:
    return replace(make_config(tmp_path), seed=5)


def seen_and_shown(config: InferConfig, content: CropContent) -> list[tuple[Image.Image, Prediction]]:
    """Each question's second picture as the engine got it, and its record."""
    engine = Recorder()
    infer(replace(config, crop=content, batch_size=1), QUIET, engine)
    second = [request.images["roi"] for request in engine.seen if "roi" in request.images]
    return list(zip(second, stored(config.out), strict=True))


def opener(config: InferConfig) -> Callable[[str], Image.Image]:
    return lambda name: open_image(config.images, name)


def page(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def drawn(shown: dict[str, Any], number: int) -> Image.Image:
    """A picture of a page."""
    return Image.open(io.BytesIO(base64.b64decode(shown["pictures"][number].split(",")[1]))).convert("RGB")


def answers(path: Path, *rows: Prediction) -> Path:
    """A file of answers about the pictures of `make_pictures`."""
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return path


def answered(example_id: str = "q1", **changes: Any) -> Prediction:
    first = {"answer": "3", "box": REGION, "box_text": "[0.250, 0.500, 0.750, 1.000]", "box_status": "ok"}
    return Prediction(example_id, **{**first, "policy": "model", "question": "digit?", "image": "a.png", **changes})


CLOSED = answered(gate="closed", plain="3", margin=2.5, box=None, box_text=None, box_status="skipped")
CLOSED_BY_AREA = answered("q2", gate="closed", plain="3")
OPEN = answered("q3", gate="open", plain="7", margin=0.125)
SAMPLED = answered(
    "q4",
    samples=(
        Sample("3", REGION, "[0.25...", "ok"),
        Sample("7", CORNER, "[0...", "ok"),
        Sample("3 ", CORNER, "[0...", "ok"),
        Sample("1", Box(0, 0, 1, 1), "there", "unparsable"),
    ),
)


# --- the second picture, made again ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", REPLACED)
def test_what_is_made_again_is_what_the_model_was_shown(config: InferConfig, content: CropContent) -> None:
    cuts = Cuts(config.out or Path())
    for seen, prediction in seen_and_shown(config, content):
        picture = open_image(config.images, prediction.image or "")
        again = cuts.crop(picture, prediction, opener(config))
        assert again is not None
        assert (again.size, again.tobytes()) == (seen.size, seen.tobytes())
        region = cuts.crop(picture, Prediction.from_json({**prediction.to_json(), "shown": None}))
        assert region is not None
        assert region.size == seen.size
        assert region.tobytes() != seen.tobytes()


def test_absent_is_no_second_picture(config: InferConfig) -> None:
    engine = Recorder()
    infer(replace(config, crop="absent"), QUIET, engine)
    assert not [request for request in engine.seen if "roi" in request.images]
    for prediction in stored(config.out):
        assert prediction.shown == "absent"
        picture = open_image(config.images, prediction.image or "")
        assert Cuts(config.out or Path()).crop(picture, prediction, opener(config)) is None


@pytest.mark.parametrize(
    ("shown", "named"),
    [
        ("swap: ../out.jsonl", "leaves"),
        ("swap: /etc/passwd", "leaves"),
        ("swap: gone.png", "gone.png"),
        ("swap: broken.png", "broken.png"),
        ("swap: ", "images"),
        ("mirrored", "mirrored"),
        ("black ", "black"),
        ("", "''"),
    ],
)
def test_a_second_picture_that_cannot_be_made_again_is_no_region(config: InferConfig, shown: str, named: str) -> None:
    picture = open_image(config.images, "a.png")
    with pytest.raises(InputError, match=named):
        Cuts(config.out or Path()).crop(picture, answered(shown=shown), opener(config))


def test_noise_without_its_seed_and_a_swap_without_a_folder(config: InferConfig) -> None:
    picture, cuts = open_image(config.images, "a.png"), Cuts(config.out or Path())
    for shown in ("noise", "swap: b.png"):
        with pytest.raises(InputError):
            cuts.crop(picture, answered(shown=shown))
    black = cuts.crop(picture, answered(shown="black"))
    assert black is not None
    assert (black.size, black.getextrema()) == ((20, 10), ((0, 0),) * 3)


# --- cards -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", REPLACED)
def test_a_card_shows_the_second_picture_and_says_what_it_is(config: InferConfig, tmp_path: Path, content: CropContent) -> None:
    pairs = seen_and_shown(config, content)
    run_report.run(ReportConfig((config.out or Path(),), tmp_path / "r.html"), QUIET)
    shown = page(tmp_path / "r.html")
    for card, (seen, prediction) in zip(shown["cards"], pairs, strict=True):
        ((number, caption, alt, _),) = card["v"]
        assert caption in alt
        assert (content if content != "swap" else (prediction.shown or "").removeprefix(crop_content.SWAP)) in caption
        difference = np.asarray(drawn(shown, number), dtype=int) - np.asarray(seen.convert("RGB"), dtype=int)
        assert np.abs(difference).mean() < 12, "but for what the page's encoding loses"
        assert [shape[0] for shape in card["b"]] == ["unseen"]
        assert caption in card["b"][0][1]
        assert caption in [row[1] for row in card["r"]]
    assert content in (tmp_path / "r.html").read_text()


def test_a_card_without_a_second_picture_says_so(config: InferConfig, tmp_path: Path) -> None:
    infer(replace(config, crop="absent"), QUIET, Recorder())
    run_report.run(ReportConfig((config.out or Path(),), tmp_path / "r.html"), QUIET)
    for card in page(tmp_path / "r.html")["cards"]:
        assert card["v"] == []
        assert [shape[0] for shape in card["b"]] == ["unseen"]
        assert card["f"]["Second look"] == "absent"
        assert any("no second picture" in row[1] for row in card["r"])


def test_a_picture_out_of_the_folder_is_a_sentence_on_the_card(config: InferConfig, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes((tmp_path / "images" / "b.png").read_bytes())
    path = answers(tmp_path / "p.jsonl", answered(shown="swap: ../secret.png"), answered("q2", shown="<b>mirrored\n"))
    run_report.run(ReportConfig((path,), tmp_path / "r.html", images=config.images), QUIET)
    shown = page(tmp_path / "r.html")
    assert len(shown["pictures"]) == 1, "the scene"
    for card, named in zip(shown["cards"], ("secret.png", "mirrored"), strict=True):
        assert card["v"] == []
        (row,) = [row for row in card["r"] if row[0] == "second picture"]
        assert named in row[1]
        assert row[4]
    assert "<b>mirrored" not in (tmp_path / "r.html").read_text()


def test_a_card_shows_the_replacement_as_the_encoder_gets_it(config: InferConfig, tmp_path: Path) -> None:
    ((seen, _), *_) = seen_and_shown(config, "swap")
    (run,) = runs.load([config.out or Path()], runs.RunSources(), QUIET)
    encoder = EncoderView(16)
    with publishing(tmp_path / "p.html") as album:
        card = CardMaker([run], album, CardSources(encoder=encoder)).card("q1")
        shown = {"pictures": album.addresses()}
    assert [view.kind for view in card.views] == ["seen", "seen"]
    assert drawn(shown, card.views[1].picture).tobytes() == encoder.view(seen).tobytes()


def test_a_blurred_whole_picture_and_an_unshown_box_are_said(config: InferConfig, tmp_path: Path) -> None:
    infer(replace(config, global_scale=0.25, box_text="none"), QUIET, Recorder())
    run_report.run(ReportConfig((config.out or Path(),), tmp_path / "r.html"), QUIET)
    rows = {row[0]: row for row in page(tmp_path / "r.html")["cards"][0]["r"]}
    assert "0.25" in rows["whole picture"][1]
    assert rows["first pass"][4]
    (prediction, *_) = stored(config.out)
    told = Told()
    overlay.run(OverlayConfig(tmp_path / "o.png", config.out, prediction.example_id, config.images), told)
    assert not told.warnings


def test_gates_and_samples_on_cards(tmp_path: Path, config: InferConfig) -> None:
    path = answers(tmp_path / "p.jsonl", CLOSED, CLOSED_BY_AREA, OPEN, SAMPLED)
    run_report.run(ReportConfig((path,), tmp_path / "r.html", images=config.images), QUIET)
    closed, by_area, opened, sampled = page(tmp_path / "r.html")["cards"]
    assert closed["v"] == by_area["v"] == []
    assert closed["b"] == []
    assert [shape[0] for shape in by_area["b"]] == ["unseen"], "its box was named and not looked at"
    said = [{row[0]: row[1] for row in card["r"]} for card in (closed, by_area, opened, sampled)]
    assert "closed" in said[0]["gate"]
    assert "2.5" in said[0]["gate"]
    assert "plain answer" not in said[0], "it is the answer"
    assert "open" in said[2]["gate"]
    assert (said[2]["answer"], said[2]["plain answer"]) == ("3", "7")
    assert [view[1] for view in opened["v"]] == ["region"]
    assert said[3]["samples"].startswith("2 of 4 ")
    assert [shape[0] for shape in sampled["b"]] == ["sample", "predicted"]
    assert sampled["b"][0][2:] == list(CORNER.corners)


def test_sampled_answers_are_counted_and_bounded() -> None:
    many = [Sample(str(number), Box(number / 100, 0, 1, 1), "b", "ok") for number in range(99)]
    many += [Sample("7"), Sample(None)]
    words = sample_words(many)
    assert words.startswith("2 of 101 ")
    assert words.endswith(f"{100 - MOST_ANSWERS} others")
    assert len(sample_words([Sample("x" * 10_000)] * 3)) < 300
    assert sample_words([Sample("6"), Sample(" 6")]) == "2 of 2 agree: 6"
    assert sample_words([Sample("6"), Sample("7")]) == "no two of 2 agree: 6 (1), 7 (1)"
    assert len(RunQuestion(answered(samples=tuple(many)), None, None).further_boxes) == MOST_BOXES


# --- overlays, sheets, exports, statistics -------------------------------------------------------------------------------


def has(path: Path, colour: tuple[int, int, int]) -> bool:
    return any(found == colour for _, found in Image.open(path).convert("RGB").getcolors(2**24) or [])


@pytest.mark.parametrize(
    ("prediction", "kinds", "panel"),
    [
        (answered(), ["predicted"], (10, 10, 200)),
        (answered(shown="black"), ["unseen"], (0, 0, 0)),
        (answered(shown="absent"), ["unseen"], None),
        (CLOSED, [], None),
        (CLOSED_BY_AREA, ["unseen"], None),
        (answered(gate="closed", plain="3", box=Box(0, 0, 1, 1), box_text="there", box_status="unparsable"), [], None),
        (SAMPLED, ["sample", "predicted"], (10, 10, 200)),
    ],
    ids=["region", "black", "absent", "closed", "closed by area", "closed, unparsable", "sampled"],
)
def test_an_overlay_draws_what_was_shown(
    config: InferConfig, tmp_path: Path, prediction: Prediction, kinds: list[str], panel: tuple[int, int, int] | None
) -> None:
    path, out = answers(tmp_path / "p.jsonl", prediction), tmp_path / "o.png"
    told = Told()
    result = overlay.run(OverlayConfig(out, path, prediction.example_id, config.images), told)
    assert not told.warnings
    assert [mark["kind"] for mark in result.results["boxes"]] == kinds
    scene = overlay._scene(OverlayConfig(out, path, None, config.images), prediction, QUIET, {})
    assert (scene.crop is None) == (panel is None)
    if scene.crop is not None:
        assert scene.crop.getpixel((0, 0)) == panel
    assert has(out, COLOURS["predicted"]) == bool(kinds)


def test_an_overlay_of_a_swap_without_a_folder_says_why(config: InferConfig, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(config.images or Path())
    path, told = answers(tmp_path / "p.jsonl", answered(shown="swap: b.png")), Told()
    overlay.run(OverlayConfig(tmp_path / "o.png", path), told)
    assert len(told.warnings) == 1
    told = Told()
    overlay.run(OverlayConfig(tmp_path / "o.png", path, images=config.images), told)
    assert not told.warnings


def test_one_answer_is_drawn_with_everything_known_of_it(config: InferConfig, tmp_path: Path) -> None:
    picture = (config.images or Path()) / "a.png"
    prediction = answered(image=str(picture), shown="noise", gate="open", plain="7", margin=0.125)
    scene = OverlayConfig(tmp_path / "o.png", image=picture, question="digit?")
    told = Told()
    overlay.run(scene, told, overlay.Answered(prediction, {"seed": 5}))
    assert not told.warnings
    drawn_scene = overlay._scene(scene, prediction, QUIET, {"seed": 5, "global_scale": 0.5})
    expected = crop_content.noise((20, 10), open_image(None, str(picture)), 5, "q1")
    assert drawn_scene.crop is not None
    assert drawn_scene.crop.tobytes() == expected.tobytes()
    said = dict(drawn_scene.notes)
    assert said["Plain answer"] == "7"
    assert "0.125" in said["Gate"]
    assert "0.5" in said["Whole picture"]


def test_a_sheet_and_its_table(config: InferConfig, tmp_path: Path) -> None:
    rows = (answered(shown="black"), CLOSED_BY_AREA, OPEN, SAMPLED)
    path, out = answers(tmp_path / "p.jsonl", *rows), tmp_path / "c.png"
    contact_sheets.run(CompareConfig((path,), out, images=config.images), QUIET)
    head, *lines = [line.split(",") for line in out.with_name("c.png.csv").read_text().splitlines()]
    assert head[7:] == ["p.jsonl shown", "p.jsonl gate", "p.jsonl margin", "p.jsonl plain", "p.jsonl samples"]
    assert [line[7:11] for line in lines] == [
        ["black", "", "", ""],
        ["", "closed", "", "3"],
        ["", "open", "0.125", "7"],
        [""] * 4,
    ]
    (run,) = runs.load([path], runs.RunSources(images=config.images), QUIET)
    dashes = [[dash for _, dash, _ in contact_sheets._cell([run], row.example_id, 700).boxes] for row in rows]
    assert dashes == [["--"], ["--"], ["-"], ["-"]]
    lines_of = [contact_sheets._cell([run], row.example_id, 700).lines[1][0] for row in rows]
    for line, named in zip(lines_of, ("black", "closed", "open", "2 of 4"), strict=True):
        assert named in line
    plain = answers(tmp_path / "plain.jsonl", answered())
    contact_sheets.run(CompareConfig((plain,), tmp_path / "d.png", images=config.images), QUIET)
    assert len((tmp_path / "d.png.csv").read_text().splitlines()[0].split(",")) == 7, "as before"


@pytest.mark.parametrize("form", ["coco", "fiftyone", "label-studio", "lmms-eval"])
def test_exports_say_what_was_shown(config: InferConfig, tmp_path: Path, form: Any) -> None:
    path, out = answers(tmp_path / "p.jsonl", answered(shown="swap: b.png"), OPEN, SAMPLED), tmp_path / "out"
    assert export(RunExportConfig(path, out, form, images=config.images), QUIET).counts["ok"] == 3
    text = out.read_text()
    for named in ('"shown": "swap: b.png"', '"gate": "open"', '"margin": 0.125', '"plain": "7"'):
        assert text.count(named) == 1, named
    if form == "lmms-eval":
        assert [json.loads(line)["resps"] for line in text.splitlines()] == [[["3"]], [["3"]], [["3", "7", "3 ", "1"]]]


def test_a_closed_gate_has_no_region_that_was_looked_at(tmp_path: Path) -> None:
    unread = answered("q5", gate="closed", plain="3", box=Box(0, 0, 1, 1), box_text="there", box_status="unparsable")
    path = answers(tmp_path / "p.jsonl", CLOSED, CLOSED_BY_AREA, OPEN, unread)
    found = boxes.run(BoxStatsConfig(path, tmp_path / "stats"), QUIET).results
    assert (found["boxes"], found["not_readable"]) == (1, 1)
    assert {name: each["count"] for name, each in found["status"].items()} == {"no second look": 2, "ok": 1, "unparsable": 1}
    (run,) = runs.load([path], runs.RunSources(), QUIET)
    assert run.summary.boxes.boxes == 1
    assert dict(run.summary.looks) == {"gate closed": 3, "gate open": 1}


def test_region_hits_leave_out_what_was_never_asked_for() -> None:
    examples = [Example(f"q{i}", "d", "a.png", "?", meta={"gold": [0.3, 0.6, 0.5, 0.9]}) for i in (1, 2, 3)]
    fits = region_scores(examples, {each.example_id: each for each in (CLOSED, CLOSED_BY_AREA, OPEN)}, {})
    assert [(fit.example_id, fit.hit) for fit in fits] == [("q2", True), ("q3", True)]


# --- the terminal ------------------------------------------------------------------------------------------------------


def test_the_terminal_names_what_decided_an_answer() -> None:
    plain = describe(answered())
    assert plain.splitlines() == ["box     [0.250, 0.500, 0.750, 1.000]  left, top, right, bottom", "status  ok", "answer  3"]
    for prediction, parts in (
        (answered(shown="swap: b.png\nx"), ["b.png\\nx"]),
        (answered(shown="absent"), ["no second picture"]),
        (CLOSED, ["closed", "2.5"]),
        (OPEN, ["plain   7", "open", "0.125"]),
        (SAMPLED, ["samples 2 of 4 "]),
    ):
        words = describe(prediction)
        assert len(words.splitlines()) > 3
        for part in parts:
            assert part in words
    assert "plain   " not in describe(CLOSED)


class Spoken(Recorder):
    """Says each answer to whoever listens, and knows how sure it is."""

    def generate(self, requests: list[Request]) -> list[Reply]:
        replies = super().generate(requests)
        for request, reply in zip(requests, replies, strict=True):
            if request.listen is not None:
                request.listen(reply.text)
        return [replace(reply, margins=(1.0,), ended=True) for reply in replies]


@pytest.mark.parametrize(
    "settings",
    [{}, {"gate": "margin:0"}, {"gate": "margin:9"}, {"gate": "area:0-0.1"}, {"gate": "all"}, {"temperature": 1, "samples": 3}],
    ids=str,
)
def test_one_answer_is_streamed_the_one_that_counts(config: InferConfig, settings: dict[str, Any]) -> None:
    heard: list[str] = []
    alone = replace(config, data=None, images=None, out=None, image=(config.images or Path()) / "a.png", question="colour?")
    prediction = answer_one(replace(alone, **settings), QUIET, Spoken(), heard.append)
    assert heard == [prediction.answer]


def test_a_box_that_a_closed_gate_left_alone_is_no_warning(config: InferConfig) -> None:
    alone = replace(config, data=None, images=None, out=None, image=(config.images or Path()) / "a.png", question="colour?")
    for gate, warnings in (("area:0-0.1", 0), (None, 1)):
        told = Told()
        assert answer_one(replace(alone, gate=gate), told, Spoken("there")).answer is not None
        assert len(told.warnings) == warnings


def test_a_card_without_script_has_the_same_strokes(tmp_path: Path, config: InferConfig) -> None:
    path = answers(tmp_path / "p.jsonl", answered(shown="black"), SAMPLED)
    (run,) = runs.load([path], runs.RunSources(images=config.images), QUIET)
    with publishing(tmp_path / "p.html") as album:
        maker = CardMaker([run], album, CardSources())
        replaced, sampled = (still_card(maker.card(name), album.addresses()) for name in ("q1", "q4"))
    assert re.findall(r'<rect class="(\w+)"', replaced) == ["halo", "unseen"]
    assert re.findall(r'<rect class="(\w+)"', sampled) == ["hair", "sample", "halo", "predicted"]
