"""The cards of a report: one question in every run, with its picture, regions, answers and relevance map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image

from cos_core.dialogue.crop_content import content_of
from cos_core.errors import InputError
from cos_core.files import images
from cos_core.store.annotations import Store
from cos_core.types import Prediction
from cos_core.visualize import relevance_maps
from cos_core.visualize.draw import EncoderView, reduced
from cos_core.visualize.gallery import BoxKind, CardBox, CardLine, GalleryCard, Mark, PagePictures, SmallPicture
from cos_core.visualize.run_questions import (
    NO_IMAGE,
    NOTHING,
    RunQuestion,
    gate_words,
    gold_answer,
    gold_region,
    image_name,
    sample_words,
    second_picture_words,
    seen_words,
)
from cos_core.visualize.runs import FinishedRun, picture_root

SCENE_PX, CROP_PX = 320, 180
_CACHED = 8
"""Pictures kept open: questions on one picture follow each other."""

SINGLE = {"right": "Right", "wrong": "Wrong", "unscored": "Not scored"}
PAIR = {"gained": "Gained", "both": "Both right", "lost": "Lost", "neither": "Both wrong", "unscored": "Not scored"}
"""Outcome of a card -> words: of one run, and of the last run against the first."""

LEGEND: dict[BoxKind, str] = {
    "predicted": "predicted",
    "unseen": "predicted, its content not shown",
    "sample": "predicted by a further sample",
    "other": "predicted by an earlier run",
    "gold": "gold region",
    "annotated": "annotation",
}


@dataclass(frozen=True, slots=True)
class CardSources:
    """Sources of cards beside the runs' records.

    store    adds annotated regions and the relevance maps it keeps
    heat     a folder of maps, `<example id>.npy` or `.json`, which come before the store's
    encoder  shows regions, and the whole picture, at the size that the vision encoder gets them
    """

    store: Store | None = None
    heat: Path | None = None
    encoder: EncoderView | None = None


@dataclass(frozen=True, slots=True)
class SecondPicture:
    """The second picture of one answer, made again: `picture` None where there was none, or for the reason `problem`."""

    picture: Image.Image | None = None
    problem: str = ""


class CardMaker:
    """Makes the cards of `runs`, with the last one highlighted; counts pictures that cannot be read or are newer."""

    def __init__(self, runs: Sequence[FinishedRun], album: PagePictures, sources: CardSources) -> None:
        self.runs, self._album, self._sources = runs, album, sources
        self.unreadable = self.newer = 0
        self.first_problem = ""
        self._open: dict[str, Image.Image | str] = {}
        self._scenes: dict[str, tuple[int, int, int]] = {}
        self._finished = min((run.finished for run in runs if run.finished is not None), default=None)
        self._root = picture_root(runs)

    def card(self, example_id: str) -> GalleryCard:
        """The card of one question, with a sentence in place of a picture that cannot be read."""
        items = [run.item(example_id) for run in self.runs]
        last = items[-1]
        name = image_name(items)
        tags = [(last.kind, "")] if last.kind else []
        scene, views, problem = None, [], NO_IMAGE
        seconds = [SecondPicture()] * len(items)
        if name is not None:
            picture = self.picture(name)
            if isinstance(picture, str):
                problem = picture
                self.unreadable += 1
                self.first_problem = self.first_problem or picture
            else:
                scene = self._scene(name, picture)
                seconds = [self._second(run, item, picture) for run, item in zip(self.runs, items, strict=True)]
                views = self._views(example_id, items, picture, seconds)
                if self._is_newer(name):
                    self.newer += 1
                    tags.append(("picture is newer than the answer", "wrong"))
        outcome = _outcome(items)
        words = {**SINGLE, **PAIR}[outcome]
        status = next((i.prediction.box_status for i in reversed(items) if i.prediction is not None), "")
        return GalleryCard(
            example_id,
            last.question,
            outcome,
            scene,
            problem,
            self._shapes(example_id, items),
            tuple(views),
            tuple(self._rows(items, seconds)),
            ((words, {"gained": "helped", "lost": "hurt"}.get(outcome, outcome)), *tags),
            {"Kind": last.kind, "Box": status, **_second_look(items)},
            _sort_values(example_id, items),
            f"{example_id}: {words}",
        )

    def picture(self, name: str) -> Image.Image | str:
        """The picture of an image path, or the sentence that says why there is none."""
        if name not in self._open:
            while len(self._open) >= _CACHED:
                del self._open[next(iter(self._open))]
            try:
                self._open[name] = images.open_image(self._root, name)
            except InputError as error:
                self._open[name] = str(error)
        return self._open[name]

    def _other(self, name: str) -> Image.Image:
        """Another picture of the runs, which an answer names. Raises InputError."""
        if self._root is None:
            raise InputError("the other picture cannot be opened, as the folder of the run's pictures is not known")
        picture = self.picture(name)
        if isinstance(picture, str):
            raise InputError(picture)
        return picture

    def _second(self, run: FinishedRun, item: RunQuestion, picture: Image.Image) -> SecondPicture:
        if run.cuts is None or item.prediction is None:
            return SecondPicture()
        try:
            return SecondPicture(run.cuts.crop(picture, item.prediction, self._other))
        except InputError as error:
            return SecondPicture(problem=str(error))

    def _shapes(self, example_id: str, items: Sequence[RunQuestion]) -> tuple[CardBox, ...]:
        shapes = []
        store = self._sources.store
        annotation = store.get(example_id) if store else None
        if annotation is not None and annotation.box is not None:
            shapes.append(CardBox("annotated", LEGEND["annotated"], annotation.box))
        if (gold := gold_region(items)) is not None:
            shapes.append(CardBox("gold", LEGEND["gold"], gold))
        shapes += [CardBox("sample", "predicted by a further sample", box) for box in items[-1].further_boxes]
        for run, item in zip(self.runs, items, strict=True):
            if item.box is not None:
                unseen = item.seen_otherwise
                kind: BoxKind = "other" if run is not self.runs[-1] else "unseen" if unseen else "predicted"
                shapes.append(CardBox(kind, f"predicted by {run.name}{f', {unseen}' if unseen else ''}", item.box))
        return tuple(shapes)

    def _rows(self, items: Sequence[RunQuestion], seconds: Sequence[SecondPicture]) -> list[CardLine]:
        rows, several = [], len(items) > 1
        for run, item, second in zip(self.runs, items, seconds, strict=True):
            mark: Mark = "" if item.right is None else "right" if item.right else "wrong"
            value = item.score.value if item.score else None
            part = f"scores {value:g}" if value is not None and value not in (0.0, 1.0) else ""
            rows.append(CardLine(run.name if several else "answer", item.answer, mark, note=part))
            if item.prediction is not None:
                rows += _look_rows(item.prediction, item.instead, run, second)
            if item.prediction is not None and run.summary.mixed:
                rows.append(CardLine("asked", f"{item.prediction.policy}, {item.prediction.profile}"))
        truth = gold_answer(items)
        return [*rows, CardLine("gold", truth)] if truth else rows

    def _views(
        self, example_id: str, items: Sequence[RunQuestion], picture: Image.Image, seconds: Sequence[SecondPicture]
    ) -> list[SmallPicture]:
        encoder = self._sources.encoder
        views = []
        if encoder is not None:
            views.append(self._encoded(encoder.view(picture), "the whole picture", ""))
        for run, item, second in zip(self.runs, items, seconds, strict=True):
            if second.picture is None:
                continue
            name = f", {run.name}" if len(items) > 1 else ""
            if item.prediction is not None and item.prediction.shown is not None:
                views.append(self._replacement(second.picture, second_picture_words(item.prediction.shown), name))
            elif encoder is not None and item.box is not None:
                views.append(self._encoded(encoder.view(picture, item.box), "the region", name))
            else:
                words = f"{item.instead or 'region'}{name}"
                alt = f"What was looked at ({words})" if item.instead else f"The {words}, enlarged"
                views.append(SmallPicture(self._album.add(reduced(second.picture, CROP_PX)), words, alt))
        cells = self._relevance(example_id)
        if cells is not None:
            overlaid = relevance_maps.blend(reduced(picture, SCENE_PX), cells)
            alt = "Relevance of each place to the answer, bright where high"
            views.append(SmallPicture(self._album.add(overlaid), "relevance", alt))
        return views

    def _replacement(self, second: Image.Image, words: str, name: str) -> SmallPicture:
        """What was shown in the region's place, as the vision encoder gets it where there is one."""
        encoder = self._sources.encoder
        if encoder is not None:
            return self._encoded(encoder.view(second), words, name)
        return SmallPicture(self._album.add(reduced(second, CROP_PX)), f"{words}{name}", f"The second picture, {words}{name}")

    def _encoded(self, view: Image.Image, what: str, name: str) -> SmallPicture:
        """`view` as the vision encoder gets it, shown pixel by pixel."""
        return SmallPicture(self._album.add(view, lossless=True), f"encoder: {what}{name}", encoded_words(view, what), "seen")

    def _relevance(self, example_id: str) -> relevance_maps.Grid | None:
        """The map in the folder, else the store's."""
        folder, store = self._sources.heat, self._sources.store
        if folder is not None:
            for suffix in (".npy", ".json"):
                file = folder / f"{relevance_maps.file_stem(example_id)}{suffix}"
                if file.is_file():
                    return relevance_maps.read_heat(file)
        return relevance_maps.stored_heat(store, example_id) if store else None

    def _scene(self, name: str, picture: Image.Image) -> tuple[int, int, int]:
        if name not in self._scenes:
            shown = reduced(picture, SCENE_PX)
            self._scenes[name] = (self._album.add(shown), shown.width, shown.height)
        return self._scenes[name]

    def _is_newer(self, name: str) -> bool:
        """Whether the file was written after the answers (whose time has whole seconds): the model may have seen another."""
        if self._finished is None:
            return False
        changed = images.image_path(self._root, name).stat().st_mtime
        return datetime.fromtimestamp(changed, UTC) > self._finished + timedelta(seconds=1)


def _look_rows(prediction: Prediction, instead: str, run: FinishedRun, second: SecondPicture) -> list[CardLine]:
    """How an answer came about: the first pass, what the second picture showed, what the gate decided, the other samples."""
    rows = []
    settings = run.cuts.settings(prediction) if run.cuts else {}
    read = [] if prediction.box_status == "ok" else [f"({prediction.box_status})"]
    read += [instead] if instead else []
    read += ["not shown to the second pass"] if settings.get("box_text") == "none" else []
    if prediction.box_text or prediction.box_status != "skipped":
        rows.append(CardLine("first pass", prediction.box_text or "–", code=True, note=" ".join(read)))
    if prediction.shown is not None or second.problem:
        words = "the region" if prediction.shown is None else second_picture_words(prediction.shown)
        rows.append(CardLine("second picture", words, note=f"not drawn: {second.problem}" if second.problem else ""))
    if (gate := gate_words(prediction)) != "":
        rows.append(CardLine("gate", gate))
    if prediction.plain is not None and prediction.gate == "open":
        rows.append(CardLine("plain answer", prediction.plain or NOTHING))
    if prediction.samples:
        rows.append(CardLine("samples", sample_words(prediction.samples)))
    if (seen := seen_words(settings)) != "":
        rows.append(CardLine("whole picture", seen))
    return rows


def _second_look(items: Sequence[RunQuestion]) -> dict[str, str]:
    """The facet of what the last run's second look was; empty for a run that neither replaces regions nor has a gate."""
    prediction = items[-1].prediction
    if prediction is None or (prediction.gate is None and prediction.shown is None):
        return {}
    if prediction.gate == "closed":
        return {"Second look": "none, gate closed"}
    return {"Second look": "the region" if prediction.shown is None else content_of(prediction.shown)}


def encoded_words(view: Image.Image, what: str) -> str:
    """The alternative text of an encoder's view of `what`."""
    return f"What the encoder is given of {what}: {view.width} by {view.height} pixels, shown enlarged"


def _outcome(items: Sequence[RunQuestion]) -> str:
    """A key of SINGLE or PAIR."""
    first, last = items[0].right, items[-1].right
    if last is None or first is None:
        return "unscored"
    if len(items) == 1:
        return "right" if last else "wrong"
    return {(False, True): "gained", (True, True): "both", (True, False): "lost", (False, False): "neither"}[first, last]


def _sort_values(example_id: str, items: Sequence[RunQuestion]) -> dict[str, float | str | None]:
    """Order name -> value of this card."""
    last = items[-1]
    overlap = last.box.iou(last.gold) if last.box is not None and last.gold is not None else None
    values: dict[str, float | str | None] = {
        "question": last.question[:80],
        "id": example_id,
        "score": None if last.score is None else last.score.value,
        "region area": None if last.box is None else round(last.box.area, 5),
        "overlap with gold": None if overlap is None else round(overlap, 5),
    }
    return {name: value for name, value in values.items() if value is not None}
