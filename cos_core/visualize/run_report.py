"""`cos visualize report`: finished runs as one page that opens from disk: table, plots, and every answer with its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from cos_core.errors import FailuresError, InputError
from cos_core.files import images, manifest, outputs
from cos_core.files.text import one_line
from cos_core.interfaces import Reporter
from cos_core.scoring.comparison import Comparison
from cos_core.store.annotations import Store
from cos_core.types import RunManifest
from cos_core.visualize import plots, run_sections, runs, select
from cos_core.visualize import relevance_maps as heat
from cos_core.visualize.gallery import (
    BoxKind,
    CardBox,
    CardLine,
    Gallery,
    GalleryCard,
    PagePictures,
    SmallPicture,
    gallery,
    publishing,
    write_page,
)
from cos_core.visualize.html import Html, element, facts, fill, joined, page, text, uri
from cos_core.visualize.runs import FinishedRun, RunQuestion
from cos_core.visualize.select import Selection

SCENE_PX, CROP_PX = 320, 180
_CACHED = 8
_SINGLE = {"right": "Right", "wrong": "Wrong", "unscored": "Not scored"}
_PAIR = {"gained": "Gained", "both": "Both right", "lost": "Lost", "neither": "Both wrong", "unscored": "Not scored"}
_LEGEND: Mapping[BoxKind, str] = {
    "predicted": "predicted",
    "other": "predicted by an earlier run",
    "gold": "gold region",
    "annotated": "annotation",
}


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """`runs`: folders of `cos eval` (or of answers not yet scored), the last one is the one looked at, the first what it is
    compared with; `out`: the page. `data`, `images`: where questions and pictures are, when the runs do not say so or they have
    moved. `store` adds annotated regions and the relevance maps it keeps; `heat` is a folder of maps, `<example id>.npy` or
    `.json` over the padded square ("/" in an id written as "_"), which come before the store's. `cards`: at most so many
    questions get a card, drawn at random with the selection's seed; `embed_mb`: megabytes of pictures kept inside the page,
    more go to a folder beside it. `follow_links`: links in the picture folder may lead out of it."""

    runs: tuple[Path, ...]
    out: Path
    data: Path | None = None
    images: Path | None = None
    store: Path | None = None
    heat: Path | None = None
    cards: int = 2000
    embed_mb: float = 30.0
    selection: Selection = field(default_factory=Selection)
    follow_links: bool = False

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("a report needs at least one run")
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"{self.out}: a report is written as .html")
        if self.cards < 0 or self.embed_mb < 0:
            raise InputError("cards and embed_mb cannot be negative")


def run(config: ReportConfig, reporter: Reporter) -> RunManifest:
    """Writes the page, its folder of pictures if it needs one, and `<out>.manifest.json`.

    A picture that is gone or cannot be read leaves a sentence on its cards and is counted as failed. Raises InputError for a
    run that holds nothing, runs without a common question, and filters that these runs cannot answer.
    """
    outputs.check_file(config.out, "visualize report", (*config.runs, config.data, config.images, config.store, config.heat))
    work = manifest.started("visualize report", config)
    found = runs.load(config.runs, runs.RunSources(config.data, config.images, config.follow_links), reporter)
    ids = select.chosen(found, config.selection)
    shown = _drawn(ids, config)
    with ExitStack() as stack:
        album = stack.enter_context(publishing(config.out, round(config.embed_mb * 1e6)))
        store = stack.enter_context(Store.read(config.store)) if config.store else None
        maker = _Cards(found, config, store, album)
        cards = []
        for done, example_id in enumerate(shown, 1):
            cards.append(maker.card(example_id))
            reporter.progress("cards", done, len(shown))
        title = "Report: " + " and ".join(run.name for run in found)
        compared, refused = run_sections.comparisons(found)
        content = _sections(maker, cards, len(ids), (compared, refused))
        made = page(title, content, first=_first(found, maker), banner=_banner(found), in_folder=album.in_folder)
        write_page(config.out, made, album)
    if maker.unreadable:
        first = one_line(maker.first_problem)
        reporter.warn(f"{maker.unreadable:,} of {len(cards):,} cards have no picture; the first: {first}")
    counts = {"ok": len(cards) - maker.unreadable, "failed": maker.unreadable, "skipped": len(ids) - len(shown)}
    results: dict[str, Any] = {
        "questions": len(ids),
        "cards": len(cards),
        "newer_pictures": maker.newer,
        "first_problem": one_line(maker.first_problem),
        "in_folder": album.in_folder,
    }
    rows = [{key: value for key, value in each.to_json().items() if key not in ("won", "lost")} for each in compared]
    results |= {"comparisons": rows, "not_compared": refused}
    result = work.finish(counts, results=results)
    manifest.write(manifest.path_for(config.out), result)
    if cards and maker.unreadable == len(cards):
        raise FailuresError(f"none of {len(cards)} pictures could be read, {config.out} says why; give --images")
    reporter.note(f"{len(cards)} cards of {len(ids)} questions: {config.out}")
    return result


def _drawn(ids: Sequence[str], config: ReportConfig) -> list[str]:
    """The questions that get a card."""
    if len(ids) <= config.cards:
        return list(ids)
    import random

    kept = set(random.Random(config.selection.seed).sample(list(ids), config.cards))
    return [i for i in ids if i in kept]


# --- cards -----------------------------------------------------------------------------------------------------------


class _Cards:
    """Makes cards; keeps the last pictures open, since questions on one image follow each other."""

    def __init__(self, found: Sequence[FinishedRun], config: ReportConfig, store: Store | None, album: PagePictures) -> None:
        self.runs, self.config, self.store, self.album = found, config, store, album
        self.unreadable = self.newer = 0
        self.first_problem = ""
        self._open: dict[str, Image.Image | str] = {}
        self._scenes: dict[str, tuple[int, int, int]] = {}
        finished = [run.finished for run in found if run.finished is not None]
        self._finished = min(finished) if finished else None
        self._root = next((run.images for run in found if run.images is not None), None)

    def card(self, example_id: str) -> GalleryCard:
        items = [run.item(example_id) for run in self.runs]
        last = items[-1]
        name = next((item.image for item in items if item.image), None)
        shapes = self._shapes(example_id, items)
        tags = [(last.kind, "")] if last.kind else []
        scene, views, problem = None, [], "asked without an image"
        if name is not None:
            picture = self._picture(name)
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
        words = {**_SINGLE, **_PAIR}[outcome]
        status = next((i.prediction.box_status for i in reversed(items) if i.prediction is not None), "")
        return GalleryCard(
            example_id,
            last.question,
            outcome,
            scene,
            problem,
            shapes,
            tuple(views),
            tuple(self._rows(items)),
            ((words, {"gained": "helped", "lost": "hurt"}.get(outcome, outcome)), *tags),
            {"Kind": last.kind, "Box": status},
            _orders(example_id, items),
            f"{example_id}: {words}",
        )

    def _shapes(self, example_id: str, items: Sequence[RunQuestion]) -> tuple[CardBox, ...]:
        shapes = []
        annotation = self.store.get(example_id) if self.store else None
        if annotation is not None and annotation.box is not None:
            shapes.append(CardBox("annotated", _LEGEND["annotated"], annotation.box))
        gold = next((item.gold for item in items if item.gold is not None), None)
        if gold is not None:
            shapes.append(CardBox("gold", _LEGEND["gold"], gold))
        for place, (run, item) in enumerate(zip(self.runs, items, strict=True)):
            if item.box is not None:
                shapes.append(
                    CardBox("predicted" if place == len(items) - 1 else "other", f"predicted by {run.name}", item.box)
                )
        return tuple(shapes)

    def _rows(self, items: Sequence[RunQuestion]) -> list[CardLine]:
        rows, several = [], len(items) > 1
        for run, item in zip(self.runs, items, strict=True):
            mark = "" if item.right is None else "right" if item.right else "wrong"
            value = item.score.value if item.score else None
            part = f"scores {value:g}" if value is not None and value not in (0.0, 1.0) else ""
            rows.append(CardLine(run.name if several else "answer", item.answer, mark, note=part))  # type: ignore[arg-type]
            if item.prediction is not None:
                read = "" if item.prediction.box_status == "ok" else f"({item.prediction.box_status})"
                read += f" {item.instead}" if item.instead else ""
                if item.prediction.box_text or item.prediction.box_status != "skipped":
                    rows.append(CardLine("first pass", item.prediction.box_text or "–", code=True, note=read))
                rows.append(CardLine("asked", f"{item.prediction.policy}, {item.prediction.profile}"))
        truth = next((item.truth for item in items if item.truth), "")
        return [*rows, CardLine("gold", truth)] if truth else rows

    def _views(self, example_id: str, items: Sequence[RunQuestion], picture: Image.Image) -> list[SmallPicture]:
        views = []
        for run, item in zip(self.runs, items, strict=True):
            region = run.cuts.crop(picture, item.prediction) if run.cuts and item.prediction else None
            if region is None:
                continue
            crop = _reduced(region, CROP_PX)
            of = f"region, {run.name}" if len(items) > 1 else "region"
            if item.instead:
                of = f"{item.instead}, {run.name}" if len(items) > 1 else item.instead
                views.append(SmallPicture(self.album.add(crop), of, f"What was looked at ({of})"))
                continue
            views.append(SmallPicture(self.album.add(crop), of, f"The {of}, enlarged"))
        cells = self._heat(example_id)
        if cells is not None:
            heated = heat.blend(_reduced(picture, SCENE_PX), cells)
            views.append(
                SmallPicture(self.album.add(heated), "relevance", "Relevance of each place to the answer, bright where high")
            )
        return views

    def _heat(self, example_id: str) -> heat.Grid | None:
        """The map in the folder, else the store's."""
        if self.config.heat is not None:
            for suffix in (".npy", ".json"):
                file = self.config.heat / f"{heat.file_stem(example_id)}{suffix}"
                if file.is_file():
                    return heat.read_heat(file)
        return heat.stored_heat(self.store, example_id) if self.store else None

    def _picture(self, name: str) -> Image.Image | str:
        """The picture, or the sentence that says why there is none."""
        if name not in self._open:
            while len(self._open) >= _CACHED:
                del self._open[next(iter(self._open))]
            try:
                self._open[name] = images.open_image(self._root, name)
            except InputError as error:
                self._open[name] = str(error)
        return self._open[name]

    def _scene(self, name: str, picture: Image.Image) -> tuple[int, int, int]:
        if name not in self._scenes:
            shown = _reduced(picture, SCENE_PX)
            self._scenes[name] = (self.album.add(shown), shown.width, shown.height)
        return self._scenes[name]

    def _is_newer(self, name: str) -> bool:
        """Whether the file was written after the answers were, whose time is told to the second: it may not be the picture that
        the model saw."""
        if self._finished is None:
            return False
        changed = images.image_path(self._root, name).stat().st_mtime
        return datetime.fromtimestamp(changed, UTC) > self._finished + timedelta(seconds=1)


def _outcome(items: Sequence[RunQuestion]) -> str:
    first, last = items[0].right, items[-1].right
    if last is None or first is None:
        return "unscored"
    if len(items) == 1:
        return "right" if last else "wrong"
    return {(False, True): "gained", (True, True): "both", (True, False): "lost", (False, False): "neither"}[first, last]


def _orders(example_id: str, items: Sequence[RunQuestion]) -> dict[str, float | str | None]:
    last = items[-1]
    overlap = last.box.iou(last.gold) if last.box is not None and last.gold is not None else None
    orders: dict[str, float | str | None] = {
        "question": last.question[:80],
        "id": example_id,
        "score": None if last.score is None else last.score.value,
        "region area": None if last.box is None else round(last.box.area, 5),
        "overlap with gold": None if overlap is None else round(overlap, 5),
    }
    return {name: value for name, value in orders.items() if value is not None}


def _reduced(picture: Image.Image, longest: int) -> Image.Image:
    if max(picture.size) <= longest:
        return picture
    scale = longest / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


# --- the page --------------------------------------------------------------------------------------------------------


def _first(found: Sequence[FinishedRun], maker: _Cards) -> Html:
    bench = ", ".join(dict.fromkeys(run.benchmark for run in found if run.benchmark)) or "Answers that are not scored"
    words = " against ".join(run.name for run in reversed(found)) if len(found) > 1 else found[0].name
    more = [f"{maker.newer:,} cards show a picture whose file is newer than the answers."] if maker.newer else []
    more += [f"{maker.unreadable:,} cards have no picture: it is gone or cannot be read."] if maker.unreadable else []
    remarks, table = run_sections.remarks(found, more), run_sections.runs_table(found)
    return fill("report.html", title=bench, runs=words, table=table, remarks=remarks or "")


def _banner(found: Sequence[FinishedRun]) -> Html:
    partial_runs = [
        run.name for run in found if run.path.is_dir() and (run.manifest is None or run.manifest.status != "complete")
    ]
    if not partial_runs:
        return text("")
    words = f" {', '.join(partial_runs)}: read what is amiss below before comparing numbers."
    return element("p", joined([element("strong", "Not a complete run."), words]), class_="banner", role="note")


def _sections(
    maker: _Cards, cards: Sequence[GalleryCard], total: int, compared: tuple[Sequence[Comparison], Sequence[str]]
) -> list[tuple[str, str, Html]]:
    found, config, album = maker.runs, maker.config, maker.album
    note = [f"Shown: {words}." for words in (config.selection.words(),) if words]
    note += [f"{len(cards):,} of {total:,} questions, drawn at random."] if len(cards) < total else []
    used = {shape.kind for card in cards for shape in card.shapes}
    keys = {kind: words for kind, words in _LEGEND.items() if kind in used}
    content = Gallery(cards, _PAIR if len(found) > 1 else _SINGLE, "questions", " ".join(note), keys)
    made = joined(facts(run.name, run_sections.provenance(run)) for run in found)
    answers = gallery(content, album) if cards else element("p", "No question fits what was asked for.", class_="empty")
    return [
        ("differences", "Differences", run_sections.differences_table(*compared) or text("")),
        ("metrics", "All metrics", run_sections.metrics_table(found) or text("")),
        ("answers", "Answers", answers),
        ("plots", "Regions in numbers", joined(map(partial(_plots, several=len(found) > 1), found))),
        ("facts", "How this was made", made),
    ]


def _plots(run: FinishedRun, several: bool) -> Html:
    tally = run.summary.boxes
    heading = element("h3", run.name) if several else text("")
    if tally.boxes == 0:
        return joined([heading, element("p", f"{run.name} holds no boxes.", class_="empty")])
    n = f"{tally.boxes:,} boxes{plots.unread(tally)}"
    figures = [
        (plots.centre_bias(tally), f"Where the regions of {run.name} lie: {n}, every picture stretched to a square"),
        (plots.histogram(tally.area, "How large the regions are", "share of the picture's area"), f"Area of the regions, {n}"),
        (plots.status(tally), "How the regions were read"),
    ]
    shown = [
        Html(f'<figure><img class="plot" src="{uri("png", plots.png(figure))}" alt="{text(words)}"></figure>')
        for figure, words in figures
    ]
    return joined([heading, element("div", joined(shown), class_="plots")])
