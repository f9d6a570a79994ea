"""One prediction as a picture (CoS Fig. 3 and 5): image with boxes, the zoomed region beside it, question and answer below."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from cos_core.data import datasets
from cos_core.dialogue.cropping import assumed_crop
from cos_core.errors import InputError
from cos_core.files import images, manifest, outputs, plug
from cos_core.files.durable import atomic_write
from cos_core.files.picture_files import folder
from cos_core.files.text import one_line
from cos_core.geometry import Box, Frame
from cos_core.interfaces import Reporter
from cos_core.scoring.metrics import usable_box
from cos_core.store.annotations import Store
from cos_core.types import Annotation, Example, Prediction, RunManifest
from cos_core.visualize.config import PICTURES, OverlayConfig
from cos_core.visualize.draw import (
    HAIRLINE,
    INK,
    PAPER,
    SOFT_INK,
    Mark,
    draw_marks,
    font_at,
    image_box,
    show,
    wrap,
    zoom,
)
from cos_core.visualize.relevance_maps import Grid, blend, read_heat, stored_heat, with_bar
from cos_core.visualize.run_questions import fallback_words
from cos_core.visualize.source import PREDICTIONS, Cuts, read_predictions

_GAP = 20
_TEXT_PX = 17
_LINES_PER_NOTE = 4
_WIDE = 1.9  # a picture wider than this many heights gets its crop below instead of beside it
_MIN_WIDTH = 560  # narrower sheets would break the question into slivers

_SOFTWARE = 0x0131
"""The EXIF tag that names the program."""


@dataclass(frozen=True, slots=True)
class OverlayInput:
    """What is drawn: a picture, its marks, the region cut from it, a relevance map, and (heading, text) notes below."""

    image: Image.Image
    marks: tuple[Mark, ...] = ()
    crop: Image.Image | None = None
    heat: Grid | None = None
    heat_frame: Frame = "square"
    notes: tuple[tuple[str, str], ...] = ()


def run(config: OverlayConfig, reporter: Reporter) -> RunManifest:
    """Writes `config.out` and `<out>.manifest.json`.

    Raises InputError: no source or two given, no such example, an unreadable picture, an unknown picture format.
    """
    if config.out.suffix.lower() not in PICTURES:
        raise InputError(f"{config.out}: an overlay is written as {', '.join(PICTURES)}")
    if config.predictions is not None and config.image is not None:
        raise InputError("give either a predictions file or an image to draw")
    reads = (config.image, config.predictions, config.store, config.data)
    outputs.check_file(config.out, "visualize overlay", reads)
    work = manifest.started("visualize overlay", config)
    subject: Prediction | Annotation
    if config.predictions is not None:
        subject = _select_prediction(config.predictions, config.example)
    elif config.image is not None:
        subject = _prediction_by_hand(config)
    elif config.store is not None:
        subject = _select_annotation(config.store, config.example)
    else:
        raise InputError("give a predictions file, a store or an image to draw")
    scene = _scene(config, subject, reporter)
    sheet = render(scene, config.longest)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_picture(config.out, sheet)
    size = scene.image.size
    boxes = [{"label": m.label, "kind": m.kind, "pixels": image_box(m.box, size).pixels(*size)} for m in scene.marks]
    results = {"example_id": subject.example_id, "image_size": size, "boxes": boxes}
    result = work.finish({"ok": 1}, results=manifest.plain(results))
    manifest.write(manifest.path_for(config.out), result)
    return result


def mark() -> Image.Exif:
    """The EXIF block that marks a picture as written by this program (outputs.MARK)."""
    block = Image.Exif()
    block[_SOFTWARE] = outputs.MARK
    return block


def write_picture(out: Path, sheet: Image.Image) -> None:
    """Writes `sheet` as the format that `out` ends in (PICTURES), whole or not at all. WebP is lossless: text stays sharp."""
    data = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if out.suffix.lower() == ".webp" else {}
    if out.suffix.lower() == ".pdf":
        options["creator"] = outputs.MARK
    else:
        options["exif"] = mark()
    sheet.save(data, format=out.suffix[1:].upper(), **options)
    atomic_write(out, data.getvalue())


def _select_prediction(path: Path, example: str | None) -> Prediction:
    """The prediction of the example `example`, or the file's first with a box, else its first. Raises InputError."""
    first: Prediction | None = None
    for prediction in read_predictions(path):
        if example is not None:
            if prediction.example_id == example:
                return prediction
        elif prediction.box is not None:
            return prediction
        elif first is None:
            first = prediction
    if example is not None:
        raise InputError(f"{path} has no prediction for {example!r}")
    if first is None:
        raise InputError(f"{path} holds no predictions")
    return first


def _prediction_by_hand(config: OverlayConfig) -> Prediction:
    """The prediction that the options --image, --box, --question and --answer describe. Raises InputError for a bad box."""
    box = None if config.box is None else _fractions(config.box, config.image)
    status = config.box_status or ("skipped" if box is None else "ok")
    return Prediction(
        example_id=config.example or str(config.image),
        answer=config.answer,
        box=box,
        box_status=status,  # type: ignore[arg-type]
        question=config.question,
        image=str(config.image),
    )


def _fractions(corners: tuple[float, float, float, float], image: Path | None) -> Box:
    """The box with these corners. Raises InputError for a box in pixels; the message gives its fractions."""
    x0, y0, x1, y1 = corners
    if image is not None and max(corners) > 1 and 0 <= x0 < x1 and 0 <= y0 < y1:
        width, height = images.picture_size(None, str(image))
        if x1 <= width and y1 <= height:
            fractions = " ".join(f"{v:.4g}" for v in (x0 / width, y0 / height, x1 / width, y1 / height))
            raise InputError(f"a box is given in fractions of the picture; in pixels of {width}x{height} that is {fractions}")
    return Box(x0, y0, x1, y1)


def _select_annotation(path: Path, example: str | None) -> Annotation:
    """The annotation of the example `example` in the store, or the store's first with a box. Raises InputError."""
    with Store.read(path) as store:
        if example is None:
            first = next((a for a in store.annotations() if a.box is not None), None)
            if first is None:
                raise InputError(f"the store {path} holds no regions")
            return first
        annotation, failure = store.get(example), store.failure(example)
    if annotation is None:
        why = "knows no such example" if failure is None else f"has no annotation: {failure}"
        raise InputError(f"{example!r} cannot be drawn, the store {path} {why}")
    return annotation


def _scene(config: OverlayConfig, subject: Prediction | Annotation, reporter: Reporter) -> OverlayInput:
    """The picture, marks, map, crop and notes of one prediction or annotation. Raises InputError."""
    picture = _picture(config, subject)
    example = _example(config.data, subject.example_id) if config.data else None
    marks = _known_marks(config, picture, example)
    heat, frame = _heat(config, subject.example_id)
    annotation = subject if isinstance(subject, Annotation) else _annotation(config, subject.example_id, reporter)
    if annotation is not None and annotation.box is not None:
        marks.append(Mark(annotation.box, "annotated", "annotated"))
    if isinstance(subject, Annotation):
        crop = None if subject.box is None else assumed_crop(picture, subject.box)
        return OverlayInput(picture, tuple(marks), crop, heat, frame, _annotation_notes(subject, example))
    if usable_box(subject) is None and subject.box is not None:
        marks.append(Mark(subject.box, _instead(subject), "fallback"))
    elif subject.box is not None:
        marks.append(Mark(subject.box, "region of interest", "predicted"))
    lines = notes(subject, example, by_hand=config.predictions is None)
    return OverlayInput(picture, tuple(marks), _crop(config, picture, subject), heat, frame, lines)


def _picture(config: OverlayConfig, subject: Prediction | Annotation) -> Image.Image:
    if subject.image is None and isinstance(subject, Annotation):
        raise InputError(f"the store does not say the image of {subject.example_id!r}")
    if subject.image is None:
        raise InputError(f"{subject.example_id!r} was asked without an image: there is nothing to draw")
    return images.open_image(None if config.image else folder(config.images, config.follow_links), subject.image)


def _annotation(config: OverlayConfig, example_id: str, reporter: Reporter) -> Annotation | None:
    """The example's annotation in the store; None without a store, and, with a warning, where the store has none."""
    if config.store is None:
        return None
    with Store.read(config.store) as store:
        annotation = store.get(example_id)
    if annotation is None:
        known = one_line(example_id)
        reporter.warn(f"the store {config.store} has no annotation of {known!r}: no annotated region and no map is drawn")
    return annotation


def _crop(config: OverlayConfig, picture: Image.Image, prediction: Prediction) -> Image.Image | None:
    """The predicted region as the second pass saw it; None without a usable box (the fallback may be the whole picture)."""
    region = usable_box(prediction)
    if region is None:
        return None
    if config.predictions is None:
        return assumed_crop(picture, region)
    file = config.predictions
    return Cuts(file / PREDICTIONS if file.is_dir() else file).crop(picture, prediction)


def _instead(prediction: Prediction) -> str:
    """What was shown instead of a readable region, in words; empty where the region could be read."""
    return "" if prediction.box is None or usable_box(prediction) is not None else fallback_words(prediction.box)


def _known_marks(config: OverlayConfig, picture: Image.Image, example: Example | None) -> list[Mark]:
    """The detector's candidates with --detector, and the example's gold region."""
    marks: list[Mark] = []
    if config.detector is not None:
        marks += [Mark(box, "", "region") for box in plug.load("detectors", config.detector).detect(picture).boxes]
    if example is not None and example.gold is not None:
        marks.append(Mark(example.gold, "gold", "gold"))
    return marks


def _heat(config: OverlayConfig, example_id: str) -> tuple[Grid | None, Frame]:
    """The relevance map of --heat, else of the store, and its frame (a store's maps cover the padded square)."""
    if config.heat is not None:
        return read_heat(config.heat), config.heat_frame
    if config.store is None:
        return None, config.heat_frame
    with Store.read(config.store) as store:
        return stored_heat(store, example_id), "square"


def _example(path: Path, example_id: str) -> Example | None:
    return next((e for e in datasets.read_examples(path, text_only="keep") if e.id == example_id), None)


def _annotation_notes(annotation: Annotation, example: Example | None) -> tuple[tuple[str, str], ...]:
    """The (heading, text) lines under an annotated picture: question, how the region was made, and the truth if known."""
    region = f"none: {annotation.reason}"
    if annotation.box is not None:
        region = f"by {annotation.policy}, relevance {annotation.score:.4g}, {annotation.box.area:.0%} of the picture"
    question = example.question if example else f"of {annotation.example_id}"
    return ("Question", question), ("Region", region), *_truth(example)


def notes(prediction: Prediction, example: Example | None = None, by_hand: bool = False) -> tuple[tuple[str, str], ...]:
    """The (heading, text) lines under a picture: question, what was read as the region, answer, and the truth if known.

    `by_hand`: the box is from the command line, not from a model's answer.
    """
    region = {
        "ok": "read as written",
        "repaired": "read after mending the text",
        "clamped": "clipped to the picture",
        "degenerate": "no area: the region was not used",
        "unparsable": "not readable: the region was not used",
        "skipped": "not asked for",
    }[prediction.box_status]
    if prediction.box_status == "skipped" and prediction.box is not None:
        region = f"from {prediction.policy}"
    if (instead := _instead(prediction)) != "":
        region = f"{region}; {instead}"
    if prediction.box_text:
        region = f"{prediction.box_text.strip()}  ({region})"
    result = [("Question", prediction.question or (example.question if example else "") or "(not recorded)")]
    if not by_hand or prediction.box_status not in ("ok", "skipped"):
        result.append(("Region", region))
    result.append(("Answer", f"failed: {prediction.error}" if prediction.error else (prediction.answer or "(none)")))
    return (*result, *_truth(example))


def _truth(example: Example | None) -> tuple[tuple[str, str], ...]:
    return (("Truth", " / ".join(example.answers)),) if example is not None and example.answers else ()


def render(scene: OverlayInput, longest: int = 640) -> Image.Image:
    """The sheet, RGB: the marked picture (longer side at most `longest` pixels), relevance map, crop enlarged, notes.

    `scene.image` is not changed.
    """
    marked = draw_marks(show(scene.image, longest), scene.marks).image
    panels = [("Whole image", marked)]
    below = scene.image.width > _WIDE * scene.image.height
    if scene.heat is not None:
        heated = blend(show(scene.image, longest).image, scene.heat, scene.heat_frame)
        panels.append(("Relevance of each place to the answer", with_bar(heated, float(scene.heat.max()))))
    if scene.crop is not None:
        region = scene.crop
        # Beside a tall picture the crop may be as tall as it; below a wide one it gets half its length.
        zoomed = ImageOps.expand(zoom(region, longest // 2 if below else longest * 3 // 5), 1, HAIRLINE)
        panels.append((f"Zoomed region, {region.width} x {region.height} pixels", zoomed))
    width, body = _arranged(panels, below)
    text = _text_block(scene.notes, width - 2 * _GAP)
    sheet = Image.new("RGB", (width, body.height + text.height + _GAP), PAPER)
    sheet.paste(body, (0, 0))
    sheet.paste(text, (_GAP, body.height))
    return sheet


def _arranged(panels: list[tuple[str, Image.Image]], below: bool) -> tuple[int, Image.Image]:
    """Captioned panels side by side, or one below the other, and the sheet's width in pixels."""
    font = font_at(_TEXT_PX - 3)
    caption = _TEXT_PX + 8
    widths = [max(panel.width, round(font.getlength(name))) for name, panel in panels]
    heights = [panel.height + caption for _, panel in panels]
    inner = max(widths) if below else sum(widths) + _GAP * (len(panels) - 1)
    width = max(_MIN_WIDTH, inner + 2 * _GAP)
    height = (sum(heights) + _GAP * (len(panels) - 1) if below else max(heights)) + 2 * _GAP
    body = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(body)
    left = top = _GAP
    for (name, panel), panel_width, panel_height in zip(panels, widths, heights, strict=True):
        pen.text((left, top), name, fill=SOFT_INK, font=font)
        body.paste(panel, (left, top + caption))
        if below:
            top += panel_height + _GAP
        else:
            left += panel_width + _GAP
    return width, body


def _text_block(lines: tuple[tuple[str, str], ...], width: int) -> Image.Image:
    """The notes as a picture `width` pixels wide: headings in a column of their own."""
    plain, bold = font_at(_TEXT_PX), font_at(_TEXT_PX, bold=True)
    column = max((round(bold.getlength(heading)) for heading, _ in lines), default=0) + 16
    wrapped = [(heading, wrap(text, plain, width - column, _LINES_PER_NOTE)) for heading, text in lines]
    step = _TEXT_PX + 8
    block = Image.new("RGB", (width, step * sum(max(1, len(rows)) for _, rows in wrapped)), PAPER)
    pen = ImageDraw.Draw(block)
    top = 0
    for heading, rows in wrapped:
        pen.text((0, top), heading, fill=INK, font=bold)
        for row in rows or [""]:
            pen.text((column, top), row, fill=INK, font=plain)
            top += step
    return block
