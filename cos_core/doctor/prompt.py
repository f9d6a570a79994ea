"""A server's prompt against the local one, and the known departures of chat templates and servers that explain differences.

Each known departure is a change to the local rendering. A server's prompt is explained by the fewest changes under which the
local encoding gives its token ids or, where only counts are known, its counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from cos_core.dialogue.encoding import render
from cos_core.dialogue.prompts import AfterEnd, Profile
from cos_core.errors import InputError
from cos_core.models.llava import LlavaEncoder
from cos_core.types import ImageSlot, Turn

_MOST_BY_COUNTS, _MOST_BY_IDS = 2, 3
"""Most changes tried together: with counts alone, more changes would fit any prompt."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A server's report of one prompt: its number of tokens and its ids, each None where the server does not return it."""

    count: int | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Rendering:
    """A way to write dialogues: `starts` start tokens, then the turns under the profile; `whole`: tokenised in one piece."""

    profile: Profile
    dialogues: tuple[tuple[Turn, ...], ...]
    starts: int = 1
    whole: bool = False

    def ids(self, encoder: LlavaEncoder) -> tuple[tuple[int, ...], ...]:
        """The ids of each dialogue, with one image token a picture."""
        return tuple(self._ids(replace(encoder, image_tokens=1), turns) for turns in self.dialogues)

    def _ids(self, encoder: LlavaEncoder, turns: Sequence[Turn]) -> tuple[int, ...]:
        tokenizer = encoder.tokenizer
        if self.whole:
            mark = tokenizer.convert_ids_to_tokens(encoder.image_token_id)
            text = "".join(mark if isinstance(piece, ImageSlot) else piece[0] for piece in render(self.profile, turns))
            ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            ids = replace(encoder, profile=self.profile).encode(turns).ids
        start = tokenizer.bos_token_id
        if start is None:
            return ids
        return (start,) * self.starts + (ids[1:] if ids[:1] == (start,) else ids)


@dataclass(frozen=True, slots=True)
class Difference:
    """A departure from the local rendering: its description, and the change that makes it."""

    description: str
    change: Callable[[Rendering], Rendering]


def _system(description: str, changed: Callable[[Profile], str]) -> Difference:
    return Difference(description, lambda r: replace(r, profile=replace(r.profile, system=changed(r.profile))))


def _end(description: str, changed: Callable[[Profile], str]) -> Difference:
    return Difference(description, lambda r: replace(r, profile=replace(r.profile, turn_end=changed(r.profile))))


def _of_turns(description: str, changed: Callable[[Turn], Turn]) -> Difference:
    def change(rendering: Rendering) -> Rendering:
        return replace(rendering, dialogues=tuple(tuple(map(changed, turns)) for turns in rendering.dialogues))

    return Difference(description, change)


def _breaks(text: str) -> Callable[[Turn], Turn]:
    """The line break behind each picture becomes `text`."""

    def changed(turn: Turn) -> Turn:
        parts, after = [], False
        for part in turn.parts:
            parts.append(text + part[1:] if after and isinstance(part, str) and part.startswith("\n") else part)
            after = isinstance(part, ImageSlot)
        return replace(turn, parts=tuple(part for part in parts if part != ""))

    return changed


def _front(between: str, end: str = "") -> Callable[[Turn], Turn]:
    """Pictures and the line break behind each come first in their turn, then its texts with `between` them, then `end`."""

    def changed(turn: Turn) -> Turn:
        slots = [part for part in turn.parts if isinstance(part, ImageSlot)]
        if not slots or turn.role != "user":
            return turn
        plain = [part for part in _breaks("")(turn).parts if isinstance(part, str)]
        behind = "\n" if _breaks("")(turn) != turn else ""
        pictures = [part for slot in slots for part in (slot, behind) if part != ""]
        return replace(turn, parts=(*pictures, between.join(plain) + end))

    return changed


def _white(description: str, text: str) -> Difference:
    return _system(description, lambda profile: profile.system.rstrip() + text)


FAMILIES: tuple[tuple[Difference, ...], ...] = (
    (
        Difference("the start token <s> is missing", lambda r: replace(r, starts=0)),
        Difference("the start token <s> stands there twice", lambda r: replace(r, starts=2)),
    ),
    (
        _system("the system text is missing", lambda _: ""),
        _system("the system text stands there twice", lambda p: p.system * 2),
        _system(
            "the system text stands there twice, once as an assistant's turn",
            lambda p: f"{p.system}{p.assistant} {p.system.strip()}{p.turn_end}",
        ),
        _white("no space stands behind the system text", ""),
        _white("a line break stands behind the system text", "\n"),
        _white("an empty line stands behind the system text", "\n\n"),
    ),
    (
        _end("the end mark after the assistant's turn is missing", lambda _: ""),
        _end("a space stands where the end mark after the assistant's turn belongs", lambda _: " "),
        _end("a line break stands where the end mark after the assistant's turn belongs", lambda _: "\n"),
        _end("white space follows the end mark after the assistant's turn", lambda p: p.turn_end + "\n"),
    ),
    (
        _of_turns("the picture is moved to the front of its turn", _front("")),
        _of_turns("the picture is moved to the front of its turn, with a line break between the texts", _front("\n")),
        _of_turns("the picture is moved to the front of its turn, with a space between the texts", _front(" ")),
        _of_turns("the picture is moved to the front of its turn, with a space behind each text", _front(" ", " ")),
        _of_turns("the line break behind each picture is missing", _breaks("")),
        _of_turns("a space stands where the line break behind each picture belongs", _breaks(" ")),
        _of_turns("the line break behind each picture stands there twice", _breaks("\n\n")),
    ),
    (
        Difference("the text around pictures and end marks is tokenised in one piece", lambda r: replace(r, whole=True)),
        *(
            Difference(
                f"text behind the end mark is tokenised as after_end {way!r} does",
                lambda r, way=way: replace(r, profile=replace(r.profile, after_end=way)),  # type: ignore[misc]
            )
            for way in get_args(AfterEnd)
        ),
    ),
)
"""Families of departures; a prompt has at most one of each family."""


def matches(local: Rendering, encoder: LlavaEncoder, seen: Sequence[Seen]) -> bool:
    """Whether the server's reports of all dialogues agree with the local encoding."""
    return _left(local.ids(encoder), encoder, seen) == ()


def explanations(local: Rendering, encoder: LlavaEncoder, seen: Sequence[Seen]) -> list[tuple[str, ...]]:
    """The smallest sets of differences that explain the server's reports, as descriptions; empty when no known ones do."""
    most = _MOST_BY_IDS if any(each.ids is not None for each in seen) else _MOST_BY_COUNTS
    smallest: list[tuple[str, ...]] = []
    fewest = most
    for descriptions, ids in _renderings(local, encoder, most):
        if len(descriptions) > fewest:
            break
        if (left := _left(ids, encoder, seen)) is not None and len(descriptions) + len(left) <= fewest:
            smallest.append((*descriptions, *left))
            fewest = len(smallest[-1])
    return [descriptions for descriptions in smallest if len(descriptions) == fewest]


def _renderings(
    local: Rendering, encoder: LlavaEncoder, most: int
) -> Iterator[tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]]:
    """Sets of differences, the smallest first, and the ids that they give the dialogues, where no smaller set gives them."""
    base = local.ids(encoder)
    known = {base}
    yield (), base
    # A change without effect by itself (white space under a tokenizer that drops it) is not combined with others.
    telling = [[d for d in family if _ids(d.change(local), encoder) not in (None, base)] for family in FAMILIES]
    for number in range(1, most + 1):
        for families in itertools.combinations(telling, number):
            for differences in itertools.product(*families):
                rendering = local
                for difference in differences:
                    rendering = difference.change(rendering)
                ids = _ids(rendering, encoder)
                if ids is not None and ids not in known:
                    known.add(ids)
                    yield tuple(difference.description for difference in differences), ids


def _ids(rendering: Rendering, encoder: LlavaEncoder) -> tuple[tuple[int, ...], ...] | None:
    try:
        return rendering.ids(encoder)
    except InputError:  # the tokenizer does not support this change
        return None


def _left(ids: Sequence[Sequence[int]], encoder: LlavaEncoder, seen: Sequence[Seen]) -> tuple[str, ...] | None:
    """The remaining difference when the prompts are `ids`: none, or a picture's number of positions; None for other prompts."""
    positions: set[int] = set()
    for mine, theirs in zip(ids, seen, strict=True):
        pictures = mine.count(encoder.image_token_id)
        if theirs.ids is not None:
            texts, runs = collapsed(theirs.ids, encoder.image_token_id)
            if texts != tuple(mine):
                return None
            positions |= set(runs) if max(runs, default=1) > 1 or theirs.count is None else set()
        if theirs.count is not None and pictures:
            each, rest = divmod(theirs.count - len(mine) + pictures, pictures)
            if rest or each < 0:
                return None
            positions.add(each)
    if positions <= {encoder.image_tokens} or (positions == {1} and all(each.count is None for each in seen)):
        return ()  # ids alone may hold one placeholder a picture
    if len(positions) > 1:
        return None
    return (f"a picture takes {positions.pop()} positions there and {encoder.image_tokens} here",)


def collapsed(ids: Sequence[int], image_token_id: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids with one image token a picture, and how many each picture had."""
    texts: list[int] = []
    runs: list[int] = []
    for token, run in itertools.groupby(ids):
        length = len(tuple(run))
        if token == image_token_id:
            runs.append(length)
        texts += [token] * (1 if token == image_token_id else length)
    return tuple(texts), tuple(runs)


def first_difference(mine: Sequence[int], theirs: Sequence[int], encoder: LlavaEncoder) -> tuple[int, str, str] | None:
    """(place, text there, text here) where two prompts with one image token a picture part; None where they do not."""
    pairs: Iterator[tuple[int, tuple[int | None, int | None]]] = enumerate(itertools.zip_longest(mine, theirs))
    place = next((i for i, (a, b) in pairs if a != b), None)
    if place is None:
        return None
    here, there = ("".join(encoder.tokenizer.decode(list(ids[place : place + 8]))) for ids in (mine, theirs))
    return place, there, here
