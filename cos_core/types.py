"""The records that travel between stages: frozen, checked when made, plain JSON on disk.

Example -> Annotation -> (checkpoint) -> Prediction -> Score, and a RunManifest beside every finished directory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal

from cos_core.errors import InputError
from cos_core.geometry import Box

BoxStatus = Literal["ok", "repaired", "clamped", "degenerate", "unparsable", "skipped"]
"""How a box was read from the model's text: as written; after mending syntax or swapped corners; after clipping to [0, 1];
read but without area; not readable; not asked for (the policy has no first pass)."""

BOX_STATUSES: tuple[BoxStatus, ...] = ("ok", "repaired", "clamped", "degenerate", "unparsable", "skipped")

UNUSABLE_BOXES: tuple[BoxStatus, ...] = ("degenerate", "unparsable")
"""Statuses of a box that was asked for and could not be used: what was looked at instead is no region of the model's."""

Slot = Literal["full", "roi"]
Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class Example:
    """One question on one image.

    `id` is unique and stable in its data set; `image` is a path relative to the image root, None for text-only samples;
    `answers` are the accepted answers (one for training data); `meta` holds what only one data set knows
    (`gold`: the gold region, `kind`: the question's kind, `turn`: its place in the conversation...). `line` and `file`: where
    it was read, for messages; no part of the record.
    """

    id: str
    dataset: str
    image: str | None
    question: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    line: int | None = field(default=None, compare=False)
    file: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.id:
            raise InputError("an example needs an id")

    def __reduce__(self) -> tuple[Any, ...]:
        return Example, _EXAMPLE(self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without `line` and `file`."""
        record = {**_shallow(self), "answers": list(self.answers), "choices": list(self.choices), "meta": dict(self.meta)}
        del record["line"], record["file"]
        return record

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Example:
        """The inverse of `to_json`; a `line` or `file` is passed over. Raises InputError for an object that is no example."""
        data = _known(cls, data)
        for name in ("line", "file"):
            data.pop(name, None)
        return cls(**{**data, "answers": tuple(data.get("answers", ())), "choices": tuple(data.get("choices", ()))})


@dataclass(frozen=True, slots=True)
class Regions:
    """Candidate areas of one image, from a detector or a grid; relevance fills `scores` (same order as `boxes`)."""

    boxes: tuple[Box, ...]
    confidence: tuple[float, ...]
    features: Any | None = None
    scores: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.confidence) != len(self.boxes) or (self.scores is not None and len(self.scores) != len(self.boxes)):
            raise InputError(
                f"regions need one confidence and one score a box ({len(self.boxes)} boxes, {len(self.confidence)} confidences)"
            )


@dataclass(frozen=True, slots=True)
class Annotation:
    """The region of interest of one example, in frame "image"; `box` None with a `reason` when none was found.

    With a box, `reason` is what sets it apart from the others, if anything does (interfaces.Relevance.note).
    `score` is the relevance of the chosen region (arbitrary units, comparable within one fingerprint);
    `fingerprint` hashes the settings that made it, so that a resumed job never mixes settings.
    """

    example_id: str
    box: Box | None
    score: float
    policy: str
    fingerprint: str
    regions_used: tuple[int, ...] = ()
    reason: str | None = None
    image: str | None = None

    def __post_init__(self) -> None:
        if self.box is not None and self.box.frame != "image":
            raise InputError(f"stored boxes are in frame 'image', got {self.box.frame!r} for {self.example_id!r}")
        if self.box is None and not self.reason:
            raise InputError(f"an annotation without a box needs a reason ({self.example_id!r})")

    def __reduce__(self) -> tuple[Any, ...]:
        return Annotation, _ANNOTATION(self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the box as its four corners, which are in frame "image"."""
        return {
            **_shallow(self),
            "box": list(self.box.corners) if self.box else None,
            "regions_used": list(self.regions_used),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Annotation:
        """The inverse of `to_json`. Raises InputError for an object that is no annotation."""
        data = _known(cls, data)
        box = data.get("box")
        used = tuple(int(i) for i in data.get("regions_used", ()))
        return cls(**{**data, "box": None if box is None else Box.from_json(box), "regions_used": used})


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """Where a picture stands in a turn: the whole image ("full") or its zoomed region ("roi")."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue: text and image slots in order; the loss sees the turn's text only when `learn`."""

    role: Role
    parts: tuple[str | ImageSlot, ...]
    learn: bool = False

    def __post_init__(self) -> None:
        if self.learn and self.role != "assistant":
            raise InputError("only an assistant's turn can be learnt")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one run answered to one example.

    `box` is in frame "image" and is the region whose crop the second pass saw (None when there was none or it was unusable);
    `box_text` is the model's raw first-pass text, always kept; `error` is set, and `answer` None, when the item failed.
    `transient`: it failed for a reason outside it (no server, no such picture yet, no memory; errors.TransientError), and the
    next run asks it again; written only then.
    """

    example_id: str
    answer: str | None
    box: Box | None = None
    box_text: str | None = None
    box_status: BoxStatus = "skipped"
    policy: str = "none"
    profile: str = "paper"
    question: str | None = None
    image: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    fingerprint: str = ""
    error: str | None = None
    transient: bool = False

    def __post_init__(self) -> None:
        if self.box_status not in BOX_STATUSES:
            raise InputError(f"unknown box status {self.box_status!r} for {self.example_id!r}")
        if self.box is not None and self.box.frame != "image":
            raise InputError(f"predicted boxes are kept in frame 'image', got {self.box.frame!r} for {self.example_id!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the box as its four corners, which are in frame "image"."""
        record = {**_shallow(self), "box": list(self.box.corners) if self.box else None, "tokens": dict(self.tokens)}
        if not self.transient:
            del record["transient"]
        return record

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prediction:
        """The inverse of `to_json`. Raises InputError for an object that is no prediction."""
        data = _known(cls, data)
        box = data.get("box")
        data["transient"] = data.get("transient") is True
        return cls(**{**data, "box": None if box is None else Box.from_json(box)})


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict on one example; every aggregate is computed from these and nothing else.

    `value` is in the metric's own units (0..1 for accuracies); `extracted` is what was read from the answer;
    `groups` names the slices it counts in (`{"kind": "reading"}`).
    """

    example_id: str
    value: float
    extracted: str | None = None
    expected: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**_shallow(self), "groups": dict(self.groups)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Score:
        """The inverse of `to_json`. Raises InputError for an object that is no score."""
        return cls(**_known(cls, data))


@dataclass(frozen=True, slots=True)
class RunManifest:
    """Written last and atomically beside a stage's output: a directory without one is not finished.

    `counts` has at least `ok`, `failed` and `skipped`; `inputs` maps a name to {path, sha256 or fingerprint};
    times are UTC, ISO 8601; `seconds` is wall time.
    """

    stage: str
    status: Literal["complete", "partial", "failed"]
    config: Mapping[str, Any]
    fingerprint: str
    counts: Mapping[str, int]
    seed: int | None = None
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as far as what was put in is; `manifest.write` checks."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunManifest:
        """The inverse of `to_json`. Raises InputError for an object that is no manifest."""
        return cls(**_known(cls, data))


# Pickled as the call that makes them: millions travel between processes, and a frozen dataclass's own way is ten times slower.
_EXAMPLE = attrgetter(*(f.name for f in fields(Example)))
_ANNOTATION = attrgetter(*(f.name for f in fields(Annotation)))


def _shallow(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `cls` found in `data`, of the kinds that JSON gives them; keys from a newer version are ignored.

    Raises InputError when one is missing or of another kind. Boxes and lists are left to whoever makes them.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"a {cls.__name__} record must be a JSON object, got {type(data).__name__}")
    found = {}
    for name, required, kinds, words in _layout(cls):
        if name not in data:
            if required:
                raise InputError(f"a {cls.__name__} record lacks {name!r}")
            continue
        value = found[name] = data[name]
        fits = kinds is None or (isinstance(value, kinds) and not isinstance(value, bool))
        if not fits or (type(value) is float and not math.isfinite(value)):
            raise InputError(f"`{name}` of a {cls.__name__} record must be {words}, got {str(value)[:40]!r}")
    return found


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a finite number"),
    "Mapping": ((Mapping,), "an object"),
}
"""The beginning of a field's type: what JSON gives for it, and its name in a message."""


@lru_cache
def _layout(cls: type) -> tuple[tuple[str, bool, tuple[type, ...] | None, str], ...]:
    """Name, whether it must be there, kinds (None: anything) and their words, of each field."""
    rows: list[tuple[str, bool, tuple[type, ...] | None, str]] = []
    for f in fields(cls):
        kinds, words = _KINDS.get(re.split(r"\W", str(f.type))[0], (None, "something else"))
        if kinds is not None and str(f.type).endswith("| None"):
            kinds, words = (*kinds, type(None)), f"{words} or null"
        rows.append((f.name, f.default is MISSING and f.default_factory is MISSING, kinds, words))
    return tuple(rows)
