"""`cos visualize report`: finished runs as one page that opens from disk: table, plots, and every answer with its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from cos_core.errors import FailuresError
from cos_core.files import manifest, outputs
from cos_core.files.text import one_line
from cos_core.interfaces import Reporter
from cos_core.scoring.comparison import Comparison
from cos_core.store.annotations import Store
from cos_core.types import RunManifest
from cos_core.visualize import gate_section, plots, run_sections, runs, select
from cos_core.visualize.config import ReportConfig
from cos_core.visualize.crop_section import CropStory, crop_section, crop_story
from cos_core.visualize.gallery import Gallery, GalleryCard, PagePictures, gallery, publishing, write_page
from cos_core.visualize.html import Html, Section, element, facts, fill, joined, page, text, uri
from cos_core.visualize.report_cards import LEGEND, PAIR, SINGLE, CardMaker, CardSources
from cos_core.visualize.runs import FinishedRun


@dataclass(frozen=True, slots=True)
class Story:
    """The parts that a demo's report has before the tables.

    `first`: the first screen; `sections` come before the last one, "How this was made", which begins with `facts`.
    """

    title: str
    first: Html
    banner: Html
    sections: tuple[Section, ...]
    facts: Html


@dataclass(frozen=True, slots=True)
class Report:
    """What a page shows.

    runs      the rows of the tables, `looked_at` is the highlighted one
    shown     the runs whose answers are on the cards; the last is highlighted, the first is its baseline
    compared  differences between runs; `refused`: what is not compared, in words
    note      how the cards were chosen
    crop      what the crop did, where a run looked twice
    remarks   problems with the pictures, a sentence each
    """

    runs: Sequence[FinishedRun]
    shown: Sequence[FinishedRun]
    cards: Sequence[GalleryCard]
    compared: Sequence[Comparison] = ()
    refused: Sequence[str] = ()
    note: str = ""
    remarks: Sequence[str] = ()
    crop: CropStory | None = None

    @property
    def looked_at(self) -> FinishedRun:
        return self.shown[-1]


def run(config: ReportConfig, reporter: Reporter) -> RunManifest:
    """Writes the page, its folder of pictures if it needs one, and `<out>.manifest.json`.

    A picture that is gone or cannot be read becomes a sentence on its cards and counts as failed. Raises InputError for a
    run that holds nothing, runs without a common question, and filters that these runs have no data for.
    """
    outputs.check_file(config.out, "visualize report", (*config.runs, config.data, config.images, config.store, config.heat))
    work = manifest.started("visualize report", config)
    loaded = runs.load(config.runs, runs.RunSources(config.data, config.images, config.follow_links), reporter)
    ids = select.selected_ids(loaded, config.selection)
    drawn = select.drawn(ids, config.cards, config.selection.seed)
    compared, refused = run_sections.comparisons(loaded)
    with ExitStack() as stack:
        album = stack.enter_context(publishing(config.out, round(config.embed_mb * 1e6)))
        store = stack.enter_context(Store.read(config.store)) if config.store else None
        sources = CardSources(store, config.heat)
        maker = CardMaker(loaded, album, sources)
        cards = []
        for done, example_id in enumerate(drawn, 1):
            cards.append(maker.card(example_id))
            reporter.progress("cards", done, len(drawn))
        crop = crop_story(loaded, CardMaker(loaded, album, sources), config.selection.seed)
        notes = [f"Shown: {words}." for words in (config.selection.words(),) if words]
        notes += [f"{len(cards):,} of {len(ids):,} questions, drawn at random."] if len(cards) < len(ids) else []
        report = Report(loaded, loaded, cards, compared, refused, " ".join(notes), _picture_remarks(maker), crop)
        write_page(config.out, report_page(report, album), album)
    if maker.unreadable:
        first = one_line(maker.first_problem)
        reporter.warn(f"{maker.unreadable:,} of {len(cards):,} cards have no picture; the first: {first}")
    counts = {"ok": len(cards) - maker.unreadable, "failed": maker.unreadable, "skipped": len(ids) - len(drawn)}
    results: dict[str, Any] = {
        "questions": len(ids),
        "cards": len(cards),
        "newer_pictures": maker.newer,
        "first_problem": one_line(maker.first_problem),
        "in_folder": album.in_folder,
        **({"crop": crop.to_json()} if crop is not None else {}),
    }
    rows = [{key: value for key, value in each.to_json().items() if key not in ("won", "lost")} for each in compared]
    results |= {"comparisons": rows, "not_compared": refused}
    result = work.finish(counts, results=results)
    manifest.write(manifest.path_for(config.out), result)
    if cards and maker.unreadable == len(cards):
        raise FailuresError(f"none of {len(cards)} pictures could be read, {config.out} says why; give --images")
    reporter.note(f"{len(cards)} cards of {len(ids)} questions: {config.out}")
    return result


def report_page(report: Report, album: PagePictures, story: Story | None = None) -> Html:
    """The whole page: the runs' table first, or the story first and the table below it."""
    remarks = run_sections.remarks(report.runs, report.remarks) or text("")
    table = run_sections.runs_table(report.runs, report.looked_at)
    sections = _sections(report, album)
    if story is None:
        names = [run.name for run in report.runs]
        benchmarks = ", ".join(dict.fromkeys(run.benchmark for run in report.runs if run.benchmark))
        first = fill(
            "report.html",
            title=benchmarks or "Answers that are not scored",
            runs=" against ".join(reversed(names)),
            table=table,
            remarks=remarks,
        )
        title, banner = "Report: " + " and ".join(names), _banner(report.runs)
    else:
        title, first, banner = story.title, story.first, story.banner
        *others, (anchor, name, content) = sections
        last = (anchor, name, joined([story.facts, content]))
        sections = [("runs", "The table", joined([remarks, table])), *others, *story.sections, last]
    return page(title, sections, first=first, banner=banner, in_folder=album.in_folder)


def _picture_remarks(maker: CardMaker) -> list[str]:
    remarks = [f"{maker.newer:,} cards show a picture whose file is newer than the answers."] if maker.newer else []
    return remarks + (
        [f"{maker.unreadable:,} cards have no picture: it is gone or cannot be read."] if maker.unreadable else []
    )


def _banner(loaded: Sequence[FinishedRun]) -> Html:
    folders = [run for run in loaded if run.path.is_dir()]
    incomplete = [run.name for run in folders if run.manifest is None or run.manifest.status != "complete"]
    if not incomplete:
        return text("")
    words = f" {', '.join(incomplete)}: read what is amiss below before comparing numbers."
    return element("p", joined([element("strong", "Not a complete run."), words]), class_="banner", role="note")


def _sections(report: Report, album: PagePictures) -> list[Section]:
    several = len(report.shown) > 1
    used = {shape.kind for card in report.cards for shape in card.shapes}
    keys = {kind: words for kind, words in LEGEND.items() if kind in used}
    content = Gallery(report.cards, PAIR if several else SINGLE, "questions", report.note, keys)
    answers = gallery(content, album) if report.cards else element("p", "No question fits what was asked for.", class_="empty")
    return [
        ("differences", "Differences", run_sections.differences_table(report.compared, report.refused) or text("")),
        ("crop", "What the crop did", crop_section(report.crop, album) if report.crop is not None else text("")),
        ("metrics", "All metrics", run_sections.metrics_table(report.runs) or text("")),
        ("gate", "Gate", gate_section.section(report.runs)),
        ("answers", "Answers", answers),
        ("plots", "Regions in numbers", joined(_plots(run, several) for run in report.shown)),
        ("facts", "How this was made", joined(facts(run.name, run_sections.provenance(run)) for run in report.runs)),
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
