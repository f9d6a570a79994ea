"""Settings of `cos store export` and `cos store import`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core import options
from cos_core.data.formats import Format
from cos_core.errors import InputError
from cos_core.options import INPUT, OUTPUT, REQUIRED, option


def _format() -> Any:
    return option("jsonl", "jsonl loses nothing; chain-of-spot is the authors' released file of squares.", OUTPUT)


def _images() -> Any:
    return option(None, "Folder that the image paths start from: pixels need picture sizes.", INPUT)


@dataclass(frozen=True, slots=True)
class StoreExportConfig:
    """A store, written as one file. With `data` the order is that file's; without `images`, sizes are those that it states."""

    store: Path = option(REQUIRED, "Store of `cos annotate`.", INPUT, argument=True, metavar="STORE", completes="store")
    out: Path = option(REQUIRED, "File to write.", OUTPUT)
    format: Format = _format()
    data: Path | None = option(None, "The questions' file; needed by chain-of-spot and visual-cot.", INPUT)
    images: Path | None = _images()
    failures: bool = option(False, "With the failures (jsonl).", OUTPUT)
    heats: bool = option(False, "With the relevance maps (jsonl).", OUTPUT)
    max_failures: int | None = options.max_failures_option()
    follow_links: bool = options.follow_links_option()

    def __post_init__(self) -> None:
        options.check(self)
        if self.format in ("chain-of-spot", "visual-cot") and self.data is None:
            raise InputError(f"the format {self.format} needs the questions' file (--data)")
        if self.format == "coco" and self.images is None and self.data is None:
            raise InputError("COCO boxes are in pixels; give the picture folder (--images) or data that states sizes (--data)")
        if self.format != "jsonl" and (self.failures or self.heats):
            raise InputError(f"the format {self.format} has no place for failures and maps; jsonl has")
        out = Path(os.path.realpath(self.out))  # not resolve(): links in a circle are an error when the file is written
        if Path(os.path.realpath(self.store)) in (out, out.parent):
            raise InputError(f"{self.out} lies in the store itself; name a file outside {self.store}")


@dataclass(frozen=True, slots=True)
class StoreImportConfig:
    """A file of another format, read into a store. Sizes in `images` are compared with those that the file states."""

    source: Path = option(REQUIRED, "File to read.", INPUT, argument=True, metavar="FILE")
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
