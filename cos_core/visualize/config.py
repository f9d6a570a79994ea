"""Settings of `cos visualize`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cos_core import options
from cos_core.errors import InputError
from cos_core.geometry import Frame
from cos_core.options import INPUT, OUTPUT, REGION, REQUIRED, SELECTION, option

PICTURES = (".png", ".webp", ".pdf", ".svg")
VECTORS = (".pdf", ".svg")
PANELS = ("picture", "map", "crop", "notes")
COLUMN_INCHES, PAGE_INCHES = 3.25, 6.875
"""The widths of a figure in one column and over both, as two-column proceedings have them."""
Style = Literal["screen", "paper"]
Format = Literal["coco", "fiftyone", "label-studio", "lmms-eval"]
PlotFormat = Literal["png", "pdf", "svg"]
FORMATS: tuple[Format, ...] = get_args(Format)


def _runs() -> Any:
    help = "Folders of `cos eval`; the last is the one looked at."
    return option(REQUIRED, help, INPUT, argument=True, metavar="RUN [RUN...]", completes="run")


def _data() -> Any:
    return option(None, "The benchmark's folder or questions' file.", INPUT, shown_default="where the run found it")


def _images() -> Any:
    return option(None, "Folder that the image paths start from.", INPUT, shown_default="where the run found them")


@dataclass(frozen=True, slots=True)
class FigureOptions:
    """How a figure is drawn as vectors, or with them as a .png or .webp of so many dots per inch.

    On the style "paper" all type has 8 points; on "screen" it grows with the width. `dpi` of a vector file is that of the
    pictures in it.
    """

    style: Style = option("screen", "Or paper: white, type of 8 points, no titles and notes.", OUTPUT, before="screen")
    width: float | None = option(
        None,
        "Inches of a figure's width; a column has 3.25, a page 6.875.",
        OUTPUT,
        low=1,
        high=40,
        before=None,
        shown_default="3.25 with --style paper, else as the figure needs",
    )
    dpi: int | None = option(
        None,
        "Dots per inch of a .png or .webp; of a .pdf or .svg, those that its pictures are reduced to.",
        OUTPUT,
        low=30,
        high=2400,
        before=None,
        shown_default="300 where a figure has inches; of a .pdf or .svg every pixel",
    )

    def __post_init__(self) -> None:
        options.check(self)

    @property
    def given(self) -> bool:
        """Whether anything is asked for."""
        return self != FigureOptions()

    def inches(self, usual: float) -> float:
        """The width; `usual` on the style "screen"."""
        return self.width or (COLUMN_INCHES if self.style == "paper" else usual)


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters, all of which must hold; None and False filter nothing. `sample` is drawn with `seed`, in the data's order."""

    flipped: bool = option(False, "Only questions on which the first two runs' verdicts differ.", SELECTION)
    wrong: bool = option(False, "Only questions that the last run got wrong.", SELECTION)
    fallback: bool = option(False, "Only questions whose box could not be used.", SELECTION)
    min_area: float | None = option(
        None, "Only regions of at least this share of the picture.", SELECTION, low=0, high=1, shown_default="any"
    )
    question: str | None = option(None, "Only questions that match this regular expression.", SELECTION, shown_default="any")
    sample: int | None = option(
        None, "So many of them, drawn at random.", SELECTION, low=1, high=options.COUNT, shown_default="all"
    )
    seed: int = options.seed_option()

    def __post_init__(self) -> None:
        options.check(self)
        self.pattern()

    def pattern(self) -> re.Pattern[str] | None:
        """The expression of `question`, cases ignored. Raises InputError when it is none."""
        try:
            return None if self.question is None else re.compile(self.question, re.IGNORECASE)
        except re.error as error:
            raise InputError(f"--question {self.question!r} is not a regular expression: {error}") from None

    def words(self) -> str:
        """The filters in a few words; empty without any."""
        parts = [name for name in ("flipped", "wrong", "fallback") if getattr(self, name)]
        parts += [f"area ≥ {self.min_area:g}"] if self.min_area is not None else []
        parts += [f"question ~ {self.question}"] if self.question is not None else []
        parts += [f"sample of {self.sample}, seed {self.seed}"] if self.sample is not None else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """The page of runs. The last of `runs` is compared with the first; maps in `heat` come before the store's. At most
    `cards` questions get a card, drawn at random with the selection's seed."""

    runs: tuple[Path, ...] = _runs()
    out: Path = option(REQUIRED, "Page to write, .html.", OUTPUT)
    data: Path | None = _data()
    images: Path | None = _images()
    store: Path | None = option(
        None, "A store of `cos annotate`: adds the annotated regions and its relevance maps.", INPUT, completes="store"
    )
    heat: Path | None = option(None, "Folder of relevance maps, EXAMPLE_ID.npy or .json; '/' is written '_'.", INPUT)
    cards: int = option(2000, "Questions shown with their pictures, at most.", OUTPUT, low=0, high=options.BATCH)
    embed_mb: float = option(30.0, "Megabytes of pictures inside the page; more go to a folder.", OUTPUT, low=0, high=100_000)
    selection: Selection = field(default_factory=Selection)
    follow_links: bool = options.follow_links_option()

    def __post_init__(self) -> None:
        options.check(self)
        if not self.runs:
            raise InputError("a report needs at least one run")
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"{self.out}: a report is written as .html")
        if self.cards < 0 or self.embed_mb < 0:
            raise InputError("cards and embed_mb cannot be negative")


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """Contact sheets of runs. Further sheets of a .png or .webp are numbered; the table beside them names all that fits."""

    runs: tuple[Path, ...] = _runs()
    out: Path = option(REQUIRED, "Contact sheet to write: .pdf, .svg (vectors), .png or .webp; OUT.csv has the table.", OUTPUT)
    data: Path | None = _data()
    images: Path | None = _images()
    grid: str = option("4x3", "Columns x rows of a sheet; without --sample one sheet is filled.", OUTPUT)
    selection: Selection = field(default_factory=Selection)
    figure: FigureOptions = field(default_factory=FigureOptions)
    follow_links: bool = options.follow_links_option()

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("a comparison needs at least one run")
        if self.out.suffix.lower() not in PICTURES:
            raise InputError(f"{self.out}: contact sheets are written as {', '.join(PICTURES)}")
        self.shape()

    def shape(self) -> tuple[int, int]:
        """(columns, rows). Raises InputError."""
        match = re.fullmatch(r"(\d{1,2})x(\d{1,2})", self.grid)
        if match is None or not all(1 <= int(n) <= 20 for n in match.groups()):
            raise InputError(f"a grid is columns x rows, like 4x3, each 1 to 20; got {self.grid!r}")
        return int(match[1]), int(match[2])


@dataclass(frozen=True, slots=True)
class RunExportConfig:
    """A run for another viewer."""

    source: Path = option(
        REQUIRED, "Folder of `cos eval`, or a predictions file.", INPUT, argument=True, metavar="RUN", completes="run"
    )
    out: Path = option(REQUIRED, "File to write.", OUTPUT)
    format: Format = option(REQUIRED, "What reads it.", OUTPUT)
    data: Path | None = _data()
    images: Path | None = _images()
    image_prefix: str = option("", "What stands before a picture's path in label-studio.", OUTPUT)
    selection: Selection = field(default_factory=Selection)
    follow_links: bool = options.follow_links_option()

    def __post_init__(self) -> None:
        options.check(self)


@dataclass(frozen=True, slots=True)
class OverlayConfig:
    """A prediction of a file, an annotation of a store, or one picture with a question, an answer and a box.

    With `predictions`, `store` adds the annotated region; without, its annotation `example` is drawn. `box_status` belongs to
    `image`. `heat` replaces the store's map; `detector` needs no model.
    """

    out: Path = option(REQUIRED, "Picture to write: .pdf, .svg (vectors), .png or .webp.", OUTPUT)
    predictions: Path | None = option(None, "Predictions file, or the folder that holds predictions.jsonl.", INPUT)
    example: str | None = option(
        None, "Id of the prediction or annotation to draw.", INPUT, shown_default="the first with a box", completes="example"
    )
    images: Path | None = option(None, "Folder that the image paths in --predictions or --store start from.", INPUT)
    data: Path | None = option(None, "The questions' file: adds the true answer and the gold region.", INPUT)
    store: Path | None = option(
        None,
        "A store of `cos annotate`: adds the annotated region and relevance map, or is drawn by itself.",
        INPUT,
        completes="store",
    )
    image: Path | None = option(None, "A picture, instead of --predictions.", INPUT)
    box: tuple[float, float, float, float] | None = option(
        None, "Its box: left, top, right, bottom as fractions of the picture.", REGION
    )
    question: str | None = option(None, "The question on --image.", INPUT)
    answer: str | None = option(None, "The answer to it.", INPUT)
    box_status: str | None = None
    heat: Path | None = option(None, "A relevance map to lay over the picture: .npy, or rows of numbers as JSON.", REGION)
    heat_frame: Frame = option("square", "What the map's cells divide: the padded square, or the picture.", REGION)
    detector: str | None = option(
        None,
        "Also draw the candidate regions of this detector.",
        REGION,
        parser=options.plugin_name,
        metavar="NAME",
        completes="detectors",
        shown_default="none",
    )
    longest: int = option(
        640, "Longer side of the drawn picture, in pixels, where no --dpi is given.", OUTPUT, low=64, high=options.LONGEST_PX
    )
    panels: str | None = option(
        None,
        f"What is shown, with commas between: {', '.join(PANELS)}.",
        OUTPUT,
        before=None,
        shown_default="all; with --style paper all but notes",
    )
    figure: FigureOptions = field(default_factory=FigureOptions)
    follow_links: bool = options.follow_links_option()

    def __post_init__(self) -> None:
        self.chosen()

    def chosen(self) -> tuple[str, ...]:
        """The panels that are shown. Raises InputError for one that does not exist."""
        if self.panels is None:
            return PANELS if self.figure.style == "screen" else PANELS[:-1]
        names = tuple(name.strip() for name in self.panels.split(","))
        if wrong := [name for name in names if name not in PANELS]:
            raise InputError(f"an overlay has the panels {', '.join(PANELS)}, not {wrong[0]!r}")
        return names


@dataclass(frozen=True, slots=True)
class BoxStatsConfig:
    """Statistics of boxes. A data set is the first folder of the image paths, as in LLaVA's mixture."""

    source: Path = option(
        REQUIRED, "Store of `cos annotate`, or a predictions file.", INPUT, argument=True, metavar="SOURCE", completes="store"
    )
    out: Path = option(
        REQUIRED, "Folder for the plots and the numbers beside them.", OUTPUT, not_in_fingerprint="where the plots go"
    )
    images: Path | None = option(
        None, "Picture folder, for aspect ratios in pixels.", INPUT, shown_default="fractions of the picture"
    )
    reference: Path | None = option(
        None, "Regions to measure against: a store, predictions, or questions with gold regions.", INPUT
    )
    format: PlotFormat = option("png", "File format of the plots.", OUTPUT, before="png")
    figure: FigureOptions = field(default_factory=FigureOptions)
    follow_links: bool = options.follow_links_option(not_in_fingerprint="where the pictures may be")
