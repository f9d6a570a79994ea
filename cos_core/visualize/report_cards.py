"""The cards of a report: one question in every run, with its picture, regions, answers and relevance map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image

from cos_core.errors import InputError
from cos_core.files import images
from cos_core.store.annotations import Store
from cos_core.visualize import relevance_maps
from cos_core.visualize.draw import EncoderView, reduced
from cos_core.visualize.gallery import BoxKind, CardBox, CardLine, GalleryCard, Mark, PagePictures, SmallPicture
from cos_core.visualize.run_questions import NO_IMAGE, RunQuestion, gold_answer, gold_region, image_name
from cos_core.visualize.runs import FinishedRun, picture_root

SCENE_PX, CROP_PX = 320, 180
_CACHED = 8
"""Pictures kept open: questions on one picture follow each other."""

SINGLE = {"right": "Right", "wrong": "Wrong", "unscored": "Not scored"}
PAIR = {"gained": "Gained", "both": "Both right", "lost": "Lost", "neither": "Both wrong", "unscored": "Not scored"}
"""Outcome of a card -> words: of one run, and of the last run against the first."""

LEGEND: dict[BoxKind, str] = {
    "predicted": "predicted",
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
        if name is not None:
            picture = self.picture(name)
            if isinstance(picture, str):
                problem = picture
                self.unreadable += 1
                self.first_problem = self.first_problem or picture
            else:
                scene = self._scene(name, picture)
                views = self._views(example_id, items, picture)
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
            tuple(self._rows(items)),
            ((words, {"gained": "helped", "lost": "hurt"}.get(outcome, outcome)), *tags),
            {"Kind": last.kind, "Box": status},
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

    def _shapes(self, example_id: str, items: Sequence[RunQuestion]) -> tuple[CardBox, ...]:
        shapes = []
        store = self._sources.store
        annotation = store.get(example_id) if store else None
        if annotation is not None and annotation.box is not None:
            shapes.append(CardBox("annotated", LEGEND["annotated"], annotation.box))
        if (gold := gold_region(items)) is not None:
            shapes.append(CardBox("gold", LEGEND["gold"], gold))
        for run, item in zip(self.runs, items, strict=True):
            if item.box is not None:
                kind: BoxKind = "predicted" if run is self.runs[-1] else "other"
                shapes.append(CardBox(kind, f"predicted by {run.name}", item.box))
        return tuple(shapes)

    def _rows(self, items: Sequence[RunQuestion]) -> list[CardLine]:
        rows, several = [], len(items) > 1
        for run, item in zip(self.runs, items, strict=True):
            mark: Mark = "" if item.right is None else "right" if item.right else "wrong"
            value = item.score.value if item.score else None
            part = f"scores {value:g}" if value is not None and value not in (0.0, 1.0) else ""
            rows.append(CardLine(run.name if several else "answer", item.answer, mark, note=part))
            if item.prediction is not None:
                read = "" if item.prediction.box_status == "ok" else f"({item.prediction.box_status})"
                read += f" {item.instead}" if item.instead else ""
                if item.prediction.box_text or item.prediction.box_status != "skipped":
                    rows.append(CardLine("first pass", item.prediction.box_text or "–", code=True, note=read))
                if run.summary.mixed:
                    rows.append(CardLine("asked", f"{item.prediction.policy}, {item.prediction.profile}"))
        truth = gold_answer(items)
        return [*rows, CardLine("gold", truth)] if truth else rows

    def _views(self, example_id: str, items: Sequence[RunQuestion], picture: Image.Image) -> list[SmallPicture]:
        encoder = self._sources.encoder
        views = []
        if encoder is not None:
            views.append(self._encoded(encoder.view(picture), "the whole picture", ""))
        for run, item in zip(self.runs, items, strict=True):
            region = run.cuts.crop(picture, item.prediction) if run.cuts and item.prediction else None
            if region is None:
                continue
            name = f", {run.name}" if len(items) > 1 else ""
            if encoder is not None and item.box is not None:
                views.append(self._encoded(encoder.view(picture, item.box), "the region", name))
                continue
            words = f"{item.instead or 'region'}{name}"
            alt = f"What was looked at ({words})" if item.instead else f"The {words}, enlarged"
            views.append(SmallPicture(self._album.add(reduced(region, CROP_PX)), words, alt))
        cells = self._relevance(example_id)
        if cells is not None:
            overlaid = relevance_maps.blend(reduced(picture, SCENE_PX), cells)
            alt = "Relevance of each place to the answer, bright where high"
            views.append(SmallPicture(self._album.add(overlaid), "relevance", alt))
        return views

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
