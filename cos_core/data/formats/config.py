"""Settings of `cos store export` and `cos store import`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core import options
from cos_core.data.formats import SUFFIXES, TRAINERS, ExportFormat, Format
from cos_core.errors import InputError
from cos_core.options import INPUT, MODEL, OUTPUT, REQUIRED, option


def _format() -> Any:
    words = "jsonl loses nothing; parquet is for publishing; chain-of-spot is the authors' released file of squares."
    return option("jsonl", words, OUTPUT)


def _images() -> Any:
    return option(None, "Folder that the image paths start from: pixels need picture sizes.", INPUT)


@dataclass(frozen=True, slots=True)
class StoreExportConfig:
    """A store, written as one file, or as a folder (parquet).

    With `data` the order is that file's; without `images`, sizes are those that it states.
    """

    store: Path = option(REQUIRED, "Store of `cos annotate`.", INPUT, argument=True, metavar="STORE", completes="store")
    out: Path = option(REQUIRED, "File to write; parquet: folder.", OUTPUT)
    format: ExportFormat = _format()
    data: Path | None = option(
        None, "The questions' file; needed by chain-of-spot, visual-cot and the trainers' formats.", INPUT
    )
    images: Path | None = _images()
    failures: bool = option(False, "With the failures (jsonl).", OUTPUT)
    heats: bool = option(False, "With the relevance maps (jsonl, parquet).", OUTPUT)
    crops: Path | None = option(
        None,
        "Folder for the regions' pictures (llama-factory, ms-swift, trl, verl); without it ms-swift gets boxes alone.",
        OUTPUT,
        before=None,
    )
    profile: str | None = option(
        None, "Wording of the dialogues for a trainer.", MODEL, completes="profile", shown_default="chat", before=None
    )
    family: str | None = option(
        None,
        "The family of the model that is trained, which writes boxes in its way (llama-factory, trl, verl).",
        MODEL,
        parser=options.family_name,
        metavar="NAME",
        completes="family",
        shown_default="fractions of the picture",
        before=None,
    )
    max_failures: int | None = options.max_failures_option()
    follow_links: bool = options.follow_links_option()

    def __post_init__(self) -> None:
        options.check(self)
        self._check_trainer()
        if self.format in ("chain-of-spot", "visual-cot") and self.data is None:
            raise InputError(f"the format {self.format} needs the questions' file (--data)")
        if self.format == "coco" and self.images is None and self.data is None:
            raise InputError("COCO boxes are in pixels; give the picture folder (--images) or data that states sizes (--data)")
        if self.failures and self.format != "jsonl":
            raise InputError(f"the format {self.format} has no place for failures; jsonl has")
        if self.heats and self.format not in ("jsonl", "parquet"):
            raise InputError(f"the format {self.format} has no place for maps; jsonl and parquet have")
        out = Path(os.path.realpath(self.out))  # not resolve(): links in a circle are an error when the file is written
        if Path(os.path.realpath(self.store)) in (out, out.parent):
            raise InputError(f"{self.out} lies in the store itself; name a file outside {self.store}")

    def _check_trainer(self) -> None:
        if self.format not in TRAINERS:
            for name in ("crops", "profile", "family"):
                if getattr(self, name) is not None:
                    raise InputError(f"the format {self.format} holds no dialogues; --{name} belongs to {', '.join(TRAINERS)}")
            return
        if self.data is None or self.images is None:
            raise InputError(f"the format {self.format} needs the questions' file and the picture folder (--data, --images)")
        if self.crops is None and self.format != "ms-swift":
            raise InputError(f"the format {self.format} shows the regions as pictures; name a folder for them (--crops)")
        if self.crops is not None and os.path.realpath(self.crops) == os.path.realpath(self.out.parent):
            raise InputError(f"{self.crops} is the folder of --out; give the regions' pictures a folder of their own (--crops)")
        if self.format == "ms-swift" and self.family is not None:
            raise InputError("ms-swift writes boxes in the way of the model that it trains; leave out --family")
        if self.out.suffix not in (suffixes := SUFFIXES[self.format]):
            raise InputError(f"{self.format} reads files that end in {' or '.join(suffixes)}, got {self.out.name}")


@dataclass(frozen=True, slots=True)
class StoreImportConfig:
    """A file of another format, read into a store. Sizes in `images` are compared with those that the file states."""

    source: Path = option(REQUIRED, "File to read; parquet: or folder.", INPUT, argument=True, metavar="FILE")
    out: Path = option(REQUIRED, "Store to write or to continue.", OUTPUT)
    format: Format = _format()
    data: Path | None = option(None, "The questions' file; needed by chain-of-spot, else other ids are refused.", INPUT)
    images: Path | None = _images()
    questions: Path | None = option(None, "File for the questions that come along (visual-cot).", OUTPUT)
    max_failures: int | None = options.max_failures_option()
    follow_links: bool = options.follow_links_option()

    def __post_init__(self) -> None:
        options.check(self)
        if self.format == "chain-of-spot" and (self.data is None or self.images is None):
            raise InputError("the format chain-of-spot needs the questions' file and the picture folder (--data, --images)")
        if self.questions is not None and self.format != "visual-cot":
            raise InputError(f"the format {self.format} holds no questions; --questions belongs to visual-cot")
