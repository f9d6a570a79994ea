"""The cards of a page: what each shows, as data that the page's own script turns into a searchable, sortable gallery.

Texts travel as JSON and become text nodes, never markup; pictures are stored once however many cards show them, inside the page
up to a limit, in a folder beside it beyond that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from cos_core.errors import InputError
from cos_core.files.durable import atomic_write, sync_folder
from cos_core.files.locks import FileLock
from cos_core.files.text import printable
from cos_core.geometry import Box
from cos_core.visualize.html import Html, element, encoded, fill, joined, text, uri

EMBED_BYTES = 30_000_000
"""Pictures up to this many bytes together stay inside the page (base64 adds a third)."""

BoxKind = Literal["predicted", "unseen", "sample", "other", "gold", "annotated"]
Mark = Literal["right", "wrong", ""]
_PICTURE_NAME = re.compile(r"[0-9a-f]{32}\.(png|webp|jpeg)")


class PagePictures:
    """The pictures of one page, each kept once, addressed by number.

    Embedded while they are at most `limit` bytes together; then all of them go to `folder`, beside the page, named by their
    content, so that no picture of the page already there is overwritten. `write_page` writes the page and then tidies.
    """

    def __init__(self, folder: Path, limit: int = EMBED_BYTES) -> None:
        self._folder = folder
        self._limit = limit
        self._numbers: dict[str, int] = {}
        self._waiting: dict[str, bytes] = {}
        self._new: list[Path] = []
        self._bytes = 0
        self._outside = False

    @property
    def in_folder(self) -> bool:
        """Whether the page needs its folder."""
        return self._outside

    def add(self, picture: Image.Image, lossless: bool = False) -> int:
        """Adds `picture`, encoded as by `encoded`, and returns its number."""
        kind, data = encoded(picture, lossless, quality=82)
        name = f"{hashlib.sha256(data).hexdigest()[:32]}.{kind}"
        if name in self._numbers:
            return self._numbers[name]
        self._numbers[name] = len(self._numbers)
        self._waiting[name] = data
        self._bytes += len(data)
        if self._outside or self._bytes > self._limit:
            self._outside = True
            self._write_waiting()
        return self._numbers[name]

    def addresses(self) -> list[str]:
        """The values of the `src` attributes, by number."""
        if self._outside:
            return [f"{self._folder.name}/{name}" for name in self._numbers]
        return [uri(name.rpartition(".")[2], self._waiting[name]) for name in self._numbers]

    def settle(self) -> None:
        """Waits until every picture is on the disk. Raises InputError."""
        try:
            for file in self._new:
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            if self._new:
                sync_folder(self._folder)
        except OSError as error:
            raise self._refused(error) from None

    def tidy(self) -> None:
        """Removes the pictures of an earlier page; to be called after that page was replaced."""
        self._remove(set(self._numbers) if self._outside else set())

    def withdraw(self, earlier: Path) -> None:
        """Removes the pictures written for a page that was not written, but for those that the page `earlier` names."""
        try:
            text = earlier.read_bytes()
        except FileNotFoundError:
            text = b""
        except OSError:
            return
        for file in self._new:
            if file.name.encode() not in text:
                with suppress(OSError):
                    file.unlink()
        with suppress(OSError):  # it is not there, or holds what an earlier page needs
            self._folder.rmdir()

    def _remove(self, needed: set[str]) -> None:
        with suppress(OSError):
            for file in self._folder.glob("*.*") if self._folder.is_dir() else ():
                if _PICTURE_NAME.fullmatch(file.name) and file.name not in needed:
                    file.unlink()
            if not needed:
                self._folder.rmdir()  # fails, as it should, where other files are left

    def _write_waiting(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name, data in self._waiting.items():
                file = self._folder / name
                if file.is_file() and file.read_bytes() == data:
                    continue  # an earlier page's, which still needs it
                scratch = self._folder / f".{name}.tmp"
                self._new.append(scratch)
                scratch.write_bytes(data)
                scratch.replace(file)
                self._new[-1] = file
        except OSError as error:
            raise self._refused(error) from None
        self._waiting.clear()

    def _refused(self, error: OSError) -> InputError:
        return InputError(f"the pictures' folder {self._folder} cannot be written: {error.strerror or error}")


@dataclass(frozen=True, slots=True)
class CardBox:
    """A box over the scene (frame "image"), with its name for screen readers."""

    kind: BoxKind
    name: str
    box: Box

    def words(self) -> str:
        """The name, and where the box lies."""
        return f"{printable(self.name)}: {in_words(self.box)}"


@dataclass(frozen=True, slots=True)
class SmallPicture:
    """A small picture beside the scene: its number in the album; "seen" is shown pixel by pixel, as the encoder gets it."""

    picture: int
    caption: str
    alt: str
    kind: Literal["seen", "crop"] = "crop"


@dataclass(frozen=True, slots=True)
class CardLine:
    """A term and its text; `mark` adds a sign for right or wrong; `code` sets it as what a model wrote; `note` follows it."""

    term: str
    text: str
    mark: Mark = ""
    code: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class GalleryCard:
    """One question. `scene`: (number in the album, width, height), or None, with the `problem` in words.

    `outcome`: the key of the button that filters by it; `facets`: list name -> this card's value; `sort`: order name -> number
    or text, None last; `label`: the card's name for screen readers.
    """

    example_id: str
    heading: str
    outcome: str
    scene: tuple[int, int, int] | None = None
    problem: str = ""
    shapes: tuple[CardBox, ...] = ()
    views: tuple[SmallPicture, ...] = ()
    rows: tuple[CardLine, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    facets: Mapping[str, str] = field(default_factory=dict)
    sort: Mapping[str, float | str | None] = field(default_factory=dict)
    label: str = ""

    def to_json(self) -> dict[str, Any]:
        """Short keys and lists: a page holds thousands of these."""
        return {
            "id": printable(self.example_id),
            "q": printable(self.heading),
            "o": self.outcome,
            "s": self.scene,
            "p": printable(self.problem),
            "b": [[s.kind, s.words(), *(round(v, 5) for v in s.box.corners)] for s in self.shapes],
            "v": [[v.picture, printable(v.caption), printable(v.alt), v.kind] for v in self.views],
            "r": [[printable(r.term), printable(r.text), r.mark, int(r.code), printable(r.note)] for r in self.rows],
            "t": [[printable(words), kind] for words, kind in self.tags],
            "f": {name: printable(value) for name, value in self.facets.items()},
            "k": {name: printable(value) if isinstance(value, str) else value for name, value in self.sort.items()},
            "l": printable(self.label),
        }


@dataclass(frozen=True, slots=True)
class Gallery:
    """All cards of a page. `outcomes`: key -> words on its button; `noun` names the counted thing ("scenes"); `note`: the text
    above the cards; `keys`: box kind -> its words in the legend."""

    cards: Sequence[GalleryCard]
    outcomes: Mapping[str, str]
    noun: str = "questions"
    note: str = ""
    keys: Mapping[BoxKind, str] = field(default_factory=dict)


def gallery(content: Gallery, album: PagePictures) -> Html:
    """The section: filters, legend, an empty place for cards, the template of one, and the data of all."""
    cards = content.cards
    counts = Counter(card.outcome for card in cards)
    outcomes = [_button("", f"All {len(cards):,}", True)]
    outcomes += [_button(key, f"{words} {counts[key]:,}", False) for key, words in content.outcomes.items() if counts[key]]
    data = {"pictures": album.addresses(), "cards": [card.to_json() for card in cards], "noun": content.noun}
    legend = [
        joined([element("span", class_=f"key {kind}", aria_hidden="true"), f" {words} "])
        for kind, words in content.keys.items()
    ]
    return fill(
        "gallery.html",
        outcomes=joined(outcomes) if len(outcomes) > 2 else "",
        facets=joined(_facet(number, name, cards) for number, name in enumerate(_names(cards, "facets"))),
        orders=joined(element("option", name, value=name) for name in _names(cards, "sort")),
        count=f"{len(cards):,} of {len(cards):,} {content.noun}",
        noun=content.noun,
        note=element("p", content.note, class_="about") if content.note else "",
        legend=element("p", joined(legend), class_="legend") if legend else "",
        data=Html(as_json(data)),
    )


def as_json(data: object) -> str:
    """JSON that may stand in a `<script>`: plain ASCII, and nothing that could end the element or open another."""
    plain = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def in_words(box: Box) -> str:
    """Left 25%, top 50%, ..."""
    sides = ("left", box.x0), ("top", box.y0), ("right", box.x1), ("bottom", box.y1)
    return ", ".join(f"{name} {value:.0%}" for name, value in sides)


def _button(key: str, words: str, pressed: bool) -> Html:
    return element("button", words, type="button", data_outcome=key, aria_pressed="true" if pressed else "false")


def _names(cards: Sequence[GalleryCard], part: Literal["facets", "sort"]) -> list[str]:
    """The names of all facets or orders, first come first; a facet with one value filters nothing and is left out."""
    names = dict.fromkeys(name for card in cards for name in getattr(card, part))
    if part == "sort":
        return list(names)
    return [name for name in names if len({card.facets.get(name) for card in cards}) > 1]


def _facet(number: int, name: str, cards: Sequence[GalleryCard]) -> Html:
    counts = Counter(card.facets.get(name, "") for card in cards)
    options = [element("option", f"{value} ({counts[value]:,})", value=value) for value in counts if value]
    choice = element("select", joined([element("option", "all", value=""), *options]), data_facet=name, id=f"facet-{number}")
    return element("label", joined([text(name), " ", choice]))


def page_folder(out: Path) -> Path:
    """The folder of a page's pictures, when they do not fit inside it; of no other page's."""
    name = out.stem if out.suffix == ".html" else out.name
    return out.with_name(f"{name}_pictures")


@contextmanager
def publishing(out: Path, limit: int = EMBED_BYTES) -> Iterator[PagePictures]:
    """The album of the page `out`, under the page's lock; `write_page` ends it.

    After an error the earlier page and all its pictures are still there. Raises LockedError when another process writes
    the page, InputError when its folder cannot be made.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent} cannot be made: {error.strerror}") from None
    target = Path(os.path.realpath(out))
    with FileLock(target.with_name(f".{target.name}.lock"), what=out):
        album = PagePictures(page_folder(out), limit)
        try:
            yield album
        except BaseException:
            album.withdraw(out)
            raise


def write_page(out: Path, page: Html, album: PagePictures) -> None:
    """Writes the pictures, then the page, whole or not at all; then removes the earlier page's pictures. Raises InputError."""
    album.settle()
    atomic_write(out, page)
    album.tidy()
