"""One prediction as a picture (CoS Fig. 3 and 5): image with boxes, the zoomed region beside it, question and answer below."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cos_core.data import datasets
from cos_core.dialogue.cropping import assumed_crop, assumed_second_picture, seed_of
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
from cos_core.visualize import figures, overlay_vectors
from cos_core.visualize.config import PAGE_INCHES, PICTURES, VECTORS, OverlayConfig
from cos_core.visualize.draw import Mark, image_box
from cos_core.visualize.overlay_pixels import render
from cos_core.visualize.panels import OverlayInput
from cos_core.visualize.relevance_maps import Grid, read_heat, stored_heat
from cos_core.visualize.run_questions import NOTHING, RunQuestion, gate_words, sample_words, second_picture_words, seen_words
from cos_core.visualize.source import PREDICTIONS, Cuts, read_predictions


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer about OverlayConfig.image, with the settings of its run by name: `seed`, `global_scale`."""

    prediction: Prediction
    settings: Mapping[str, Any]


def run(config: OverlayConfig, reporter: Reporter, answered: Answered | None = None) -> RunManifest:
    """Writes `config.out` and `<out>.manifest.json`.

    `answered` is drawn instead of what the options describe. Raises InputError: no source or two given, no such example, an
    unreadable picture, an unknown picture format.
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
        subject = _prediction_by_hand(config) if answered is None else answered.prediction
    elif config.store is not None:
        subject = _select_annotation(config.store, config.example)
    else:
        raise InputError("give a predictions file, a store or an image to draw")
    scene = _scene(config, subject, reporter, {} if answered is None else answered.settings)
    data = drawn(config, scene)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(config.out, data)
    size = scene.image.size
    boxes = [{"label": m.label, "kind": m.kind, "pixels": image_box(m.box, size).pixels(*size)} for m in scene.marks]
    results = {"example_id": subject.example_id, "image_size": size, "boxes": boxes}
    result = work.finish({"ok": 1}, results=manifest.plain(results))
    manifest.write(manifest.path_for(config.out), result)
    return result


def drawn(config: OverlayConfig, scene: OverlayInput) -> bytes:
    """The drawing in the format that `config.out` ends in (PICTURES): pixels of --longest, or a figure in inches where vectors,
    a style, a width or dots per inch are asked for. Raises InputError. WebP is lossless: text stays sharp."""
    suffix, dpi = config.out.suffix.lower(), config.figure.dpi
    if suffix in VECTORS or config.figure.given:
        dpi = figures.picture_dpi(suffix, dpi)
        if suffix not in VECTORS:
            figures.check_pixels(config.figure.inches(PAGE_INCHES), dpi or 0)
        figure = overlay_vectors.draw(scene, config.figure, config.chosen(), dpi=dpi, raster=suffix not in VECTORS)
        return figures.encoded([figure], suffix, dpi)
    data = io.BytesIO()
    lossless = {"lossless": True} if suffix == ".webp" else {}
    sheet = render(scene, config.longest, config.chosen())
    sheet.save(data, format=suffix[1:].upper(), exif=figures.mark(), **lossless)
    return data.getvalue()


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


def _scene(
    config: OverlayConfig, subject: Prediction | Annotation, reporter: Reporter, settings: Mapping[str, Any]
) -> OverlayInput:
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
        return OverlayInput(picture, tuple(marks), crop, heat=heat, heat_frame=frame, notes=_annotation_notes(subject, example))
    marks += _named_regions(subject)
    lines = notes(subject, example, by_hand=config.predictions is None)
    cuts = _cuts(config)
    settings = settings if cuts is None else cuts.settings(subject)
    if (seen := seen_words(settings)) != "":
        lines = (*lines, ("Whole picture", seen))
    crop, problem = _second_picture(config, picture, subject, cuts, settings)
    if problem:
        reporter.warn(problem)
        lines = (*lines, ("Not drawn", problem))
    words = "Zoomed region" if subject.shown is None else f"Second picture, {second_picture_words(subject.shown)}"
    return OverlayInput(picture, tuple(marks), crop, words, heat, frame, lines)


def _named_regions(prediction: Prediction) -> list[Mark]:
    """The marks of an answer's boxes: those of its further samples, then its own, dashed where the model did not see what the
    box holds, and grey where it stood in for one that could not be read."""
    question = RunQuestion(prediction, None, None)
    marks = [Mark(box, "", "sample") for box in question.further_boxes]
    if question.box is not None:
        unseen = question.seen_otherwise
        marks.append(Mark(question.box, unseen or "region of interest", "unseen" if unseen else "predicted"))
    elif question.instead and prediction.box is not None:
        marks.append(Mark(prediction.box, question.instead, "fallback"))
    return marks


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


def _cuts(config: OverlayConfig) -> Cuts | None:
    """How the second pictures of the predictions file were made; None for a picture that is given directly."""
    file = config.predictions
    return None if file is None else Cuts(file / PREDICTIONS if file.is_dir() else file)


def _second_picture(
    config: OverlayConfig, picture: Image.Image, prediction: Prediction, cuts: Cuts | None, settings: Mapping[str, Any]
) -> tuple[Image.Image | None, str]:
    """The second picture, and why it cannot be made again; (None, "") where there was none, and for a region that stood in for
    one that could not be read (it may be the whole picture)."""
    if usable_box(prediction) is None and prediction.shown is None:
        return None, ""

    def other(name: str) -> Image.Image:
        if config.images is None:
            raise InputError("the other picture cannot be opened without --images")
        return images.open_image(folder(config.images, config.follow_links), name)

    try:
        if cuts is None:
            return assumed_second_picture(picture, prediction, seed_of(settings), other), ""
        return cuts.crop(picture, prediction, other), ""
    except InputError as error:
        return None, f"the second picture cannot be made again: {error}"


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
    if (instead := RunQuestion(prediction, None, None).instead) != "":
        region = f"{region}; {instead}"
    if prediction.box_text:
        region = f"{prediction.box_text.strip()}  ({region})"
    result = [("Question", prediction.question or (example.question if example else "") or "(not recorded)")]
    if not by_hand or prediction.box_status not in ("ok", "skipped"):
        result.append(("Region", region))
    result += look_notes(prediction)
    result.append(("Answer", f"failed: {prediction.error}" if prediction.error else (prediction.answer or "(none)")))
    return (*result, *_truth(example))


def look_notes(prediction: Prediction) -> list[tuple[str, str]]:
    """The (heading, text) lines of how an answer came about, where that is not one look at the region."""
    lines = []
    if prediction.shown is not None:
        lines.append(("Second picture", second_picture_words(prediction.shown)))
    if (gate := gate_words(prediction)) != "":
        lines.append(("Gate", gate))
    if prediction.plain is not None and prediction.gate == "open":
        lines.append(("Plain answer", prediction.plain or NOTHING))
    if prediction.samples:
        lines.append(("Samples", sample_words(prediction.samples)))
    return lines


def _truth(example: Example | None) -> tuple[tuple[str, str], ...]:
    return (("Truth", " / ".join(example.answers)),) if example is not None and example.answers else ()
