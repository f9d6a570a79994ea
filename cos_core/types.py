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

import msgspec

from cos_core.errors import InputError
from cos_core.geometry import Box

BoxStatus = Literal["ok", "repaired", "clamped", "degenerate", "unparsable", "skipped"]
"""How a box was read from the model's text: as written; after mending syntax or swapped corners; after clipping to [0, 1];
read but without area; not readable; not asked for (the policy has no first pass)."""

BOX_STATUSES: tuple[BoxStatus, ...] = ("ok", "repaired", "clamped", "degenerate", "unparsable", "skipped")

UNUSABLE_BOXES: tuple[BoxStatus, ...] = ("degenerate", "unparsable")
"""Statuses of a box that was asked for and could not be used: what was looked at instead is no region of the model's."""

USABLE_BOXES: tuple[BoxStatus, ...] = ("ok", "repaired", "clamped")
"""Statuses of a box of the model's that is looked at."""

OnBadBox = Literal["full", "center", "skip"]
"""What replaces the region where the model's box cannot be used: the full picture, its centre crop, or no second pass."""

BoxDecode = Literal["free", "grammar"]
"""What the first pass may write: any text, or a box only."""

Slot = Literal["full", "roi"]
Role = Literal["user", "assistant"]


class Example(msgspec.Struct, frozen=True, eq=False):
    """One question on one image.

    `id` is unique and stable in its data set; `image` is a path relative to the image root, None for text-only samples;
    `answers` are the accepted answers (one for training data); `meta` names the slices that the question belongs to (`kind`,
    `category`, `split`...). `line` and `file`: where it was read, for messages; no part of the record.

    The fields from `sample` on steer what is done with the question. On disk they stand in `meta`; from a `meta` that is given
    here (plug-ins written for 0.1.0) they are moved to the fields.
    """

    id: str
    dataset: str
    image: str | None
    question: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    meta: Mapping[str, Any] = {}
    line: int | None = None
    file: str | None = None
    sample: str | None = None
    """The id of the conversation or record that the question was read from."""
    turn: int | None = None
    """The question's place in its conversation, from 0."""
    question_id: str | int | None = None
    """The official id, where it is not `id`."""
    index: int | None = None
    """The row of its record in the data set, from 0."""
    record_id: str | int | None = None
    """The id that the record has in its file, where another record had it before."""
    asked: str | None = None
    """The question without its format suffix, where `question` has one."""
    suffix: str | None = None
    """A format suffix that is not part of `question`: the prompt profile says where it stands."""
    gold: Box | None = None
    """The data set's own region, frame "image"."""
    targets: tuple[tuple[float, float], ...] | None = None
    """(x, y) of the centres of the objects that the question is about, frame "image"."""
    letters: str | None = None
    """The letters of `choices`, where they are not A, B, C..."""
    repeats: str | None = None
    """The id of the example whose official row this one is, once more."""

    def __post_init__(self) -> None:
        if not self.id:
            raise InputError("an example needs an id")
        if not STEERING.isdisjoint(self.meta):
            steering, slices = _split(self.meta, self.id)
            for name, value in (*steering.items(), ("meta", slices)):
                msgspec.structs.force_setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        return _record_of(self) == _record_of(other) if isinstance(other, Example) else NotImplemented

    def steering(self) -> dict[str, Any]:
        """The fields from `sample` on that are set, as plain JSON."""
        values = {name: value for name, value in zip(STEERING_NAMES, steering_of(self), strict=True) if value is not None}
        if self.gold is not None:
            values["gold"] = list(self.gold.corners)
        if self.targets is not None:
            values["targets"] = [list(each) for each in self.targets]
        return values

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without `line` and `file`; the fields from `sample` on stand in `meta`."""
        return {
            "id": self.id,
            "dataset": self.dataset,
            "image": self.image,
            "question": self.question,
            "answers": list(self.answers),
            "choices": list(self.choices),
            "meta": {**self.steering(), **self.meta},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Example:
        """The inverse of `to_json`; other keys are passed over. Raises InputError for an object that is no example."""
        if not isinstance(data, Mapping):
            raise InputError(f"an Example record must be a JSON object, got {type(data).__name__}")
        try:
            return msgspec.convert({name: data[name] for name in _ON_DISK if name in data}, cls)
        except msgspec.ValidationError as error:
            raise InputError(f"not an Example record: {error}") from None


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


def _split(meta: Mapping[str, Any], example_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return split_meta(meta)
    except InputError as error:
        raise InputError(f"the example {example_id!r}: {error}") from None


def split_meta(meta: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of an Example that its `meta` on disk holds, and the rest: its slices.

    A value of another kind than the field's stays a slice. Raises InputError for a gold region or targets that are none.
    """
    steering: dict[str, Any] = {}
    slices: dict[str, Any] = {}
    for key, value in meta.items():
        if key in STEERING and value is None:
            continue
        if key == "gold":
            steering[key] = _gold(value)
        elif key == "targets":
            steering[key] = _targets(value)
        elif key in _STEERING_KINDS and isinstance(value, _STEERING_KINDS[key]) and not isinstance(value, bool):
            steering[key] = value
        else:
            slices[key] = value
    return steering, slices


def _gold(value: object) -> Box:
    box = value if isinstance(value, Box) else Box.from_json(value)
    if box.frame != "image":
        raise InputError("`gold` must be a box in frame 'image'")
    return box


def _targets(value: Any) -> tuple[tuple[float, float], ...]:
    try:
        return tuple([(float(x), float(y)) for x, y in value])
    except (TypeError, ValueError):
        raise InputError(f"`targets` must be a list of [x, y], got {str(value)[:80]}") from None


_STEERING_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "sample": str,
    "turn": int,
    "question_id": (str, int),
    "index": int,
    "record_id": (str, int),
    "asked": str,
    "suffix": str,
    "letters": str,
    "repeats": str,
}
_ON_DISK = Example.__struct_fields__[:7]
STEERING_NAMES = Example.__struct_fields__[9:]
STEERING = frozenset(STEERING_NAMES)
"""The fields of an Example that stand in `meta` on disk."""
steering_of = attrgetter(*STEERING_NAMES)
"""Their values, None where there is none."""
_record_of = attrgetter(*_ON_DISK, *STEERING_NAMES)

# Pickled as the call that makes them: millions travel between processes, and a frozen dataclass's own way is ten times slower.
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
