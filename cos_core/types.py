"""The records that travel between stages: frozen, checked when made, plain JSON on disk.

Example -> Annotation -> (checkpoint) -> Prediction -> Score, and a RunManifest beside every finished directory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, TypeVar

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

CropContent = Literal["region", "black", "noise", "swap", "absent"]
"""What the second picture shows: the region, or, as a control of the same size, black, noise, or the same box of another
question's picture; "absent": there is no second picture."""

BoxText = Literal["written", "none"]
"""Whether the second pass is shown the text of the box, or the region's crop alone."""

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
        return _read(cls, data, _ON_DISK)


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


class Annotation(msgspec.Struct, frozen=True):
    """The region of interest of one example, in frame "image"; `box` None with a `reason` when none was found.

    With a box, `reason` is what sets it apart from the others, if anything does (interfaces.Relevance.note).
    `score` is the relevance of the chosen region (arbitrary units, comparable within one fingerprint);
    `fingerprint` hashes the settings that made it, so that a resumed job never mixes settings.
    """

    example_id: str
    box: Box | None
    score: int | float
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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the box as its four corners, which are in frame "image"."""
        return {
            **msgspec.structs.asdict(self),
            "box": list(self.box.corners) if self.box else None,
            "regions_used": list(self.regions_used),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Annotation:
        """The inverse of `to_json`. Raises InputError for an object that is no annotation."""
        return _read(cls, data)


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


class Sample(msgspec.Struct, frozen=True):
    """One of several sampled answers to a question; fields as in Prediction."""

    answer: str | None
    box: Box | None = None
    box_text: str | None = None
    box_status: BoxStatus = "skipped"
    tokens: Mapping[str, int] = {}
    shown: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the box as its four corners, which are in frame "image"."""
        record = {
            **msgspec.structs.asdict(self),
            "box": list(self.box.corners) if self.box else None,
            "tokens": dict(self.tokens),
        }
        if self.shown is None:
            del record["shown"]
        return record


class Prediction(msgspec.Struct, frozen=True):
    """What one run answered to one example.

    `box` is in frame "image" and is the region whose crop the second pass saw (None when there was none or it was unusable);
    `box_text` is the model's raw first-pass text, always kept; `error` is set, and `answer` None, when the item failed.
    `tokens` counts each pass's: pass1_in, pass1_out, pass2_in, pass2_out, plain_in, plain_out.

    The rest is written only where it is set. `transient`: it failed for a reason outside it (no server, no such picture yet, no
    memory; errors.TransientError), and the next run asks it again. `shown`: what the second picture held in place of the
    region: "black", "noise", "swap: NAME" with the other picture's name, or "absent". Under a gate (dialogue/gate.py), `plain`
    is the answer of one pass, where it was asked for, and `margin` its lead; `gate` is "open" where the second pass decided the
    answer, "closed" where the plain answer stands. `samples`: all answers of a run with several, the first of which stands in
    the fields above.
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
    tokens: Mapping[str, int] = {}
    seconds: int | float = 0.0
    fingerprint: str = ""
    error: str | None = None
    transient: bool = False
    shown: str | None = None
    plain: str | None = None
    margin: float | int | None = None
    gate: Literal["open", "closed"] | None = None
    samples: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        if self.box_status not in BOX_STATUSES:
            raise InputError(f"unknown box status {self.box_status!r} for {self.example_id!r}")
        if self.box is not None and self.box.frame != "image":
            raise InputError(f"predicted boxes are kept in frame 'image', got {self.box.frame!r} for {self.example_id!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the box as its four corners, which are in frame "image"."""
        record = {
            **msgspec.structs.asdict(self),
            "box": list(self.box.corners) if self.box else None,
            "tokens": dict(self.tokens),
        }
        for name, unset in _ONLY_WHERE_SET.items():
            if record[name] == unset:
                del record[name]
        if self.samples:
            record["samples"] = [sample.to_json() for sample in self.samples]
        return record

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prediction:
        """The inverse of `to_json`. Raises InputError for an object that is no prediction."""
        samples = data.get("samples") if isinstance(data, Mapping) else None
        if samples is None:
            return _read(cls, data)
        if not isinstance(samples, list):
            raise InputError(f"`samples` of a Prediction record must be a list, got {type(samples).__name__}")
        read = _read(cls, {name: value for name, value in data.items() if name != "samples"})
        return msgspec.structs.replace(read, samples=tuple([_read(Sample, each) for each in samples]))


_ONLY_WHERE_SET: Mapping[str, Any] = {
    "transient": False,
    "shown": None,
    "plain": None,
    "margin": None,
    "gate": None,
    "samples": (),
}
"""The fields of a Prediction that stand on disk only where they have another value than this."""


class Score(msgspec.Struct, frozen=True):
    """The verdict on one example; every aggregate is computed from these and nothing else.

    `value` is in the metric's own units (0..1 for accuracies); `extracted` is what was read from the answer;
    `groups` names the slices it counts in (`{"kind": "reading"}`).
    """

    example_id: str
    value: int | float
    extracted: str | None = None
    expected: str | None = None
    groups: Mapping[str, str] = {}
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**msgspec.structs.asdict(self), "groups": dict(self.groups)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Score:
        """The inverse of `to_json`. Raises InputError for an object that is no score."""
        return _read(cls, data)


class RunManifest(msgspec.Struct, frozen=True):
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
    inputs: Mapping[str, Mapping[str, Any]] = {}
    results: Mapping[str, Any] = {}
    versions: Mapping[str, str] = {}
    hardware: Mapping[str, Any] = {}
    started: str = ""
    finished: str = ""
    seconds: int | float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as far as what was put in is; `manifest.write` checks."""
        return msgspec.structs.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunManifest:
        """The inverse of `to_json`. Raises InputError for an object that is no manifest."""
        return _read(cls, data)


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


R = TypeVar("R", bound=msgspec.Struct)


def _read(cls: type[R], data: Mapping[str, Any], names: Sequence[str] | None = None) -> R:
    """A record of the fields `names` (by default all) that plain JSON holds; other keys, of a newer version, are passed over.

    A box is its four corners. Raises InputError for an object that lacks a field, or has one of another kind or not finite.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"a {cls.__name__} record must be a JSON object, got {type(data).__name__}")
    values = {name: data[name] for name in names or cls.__struct_fields__ if name in data}
    for name, value in values.items():
        if type(value) is float and not math.isfinite(value):
            raise InputError(f"`{name}` of a {cls.__name__} record must be a finite number, got {value}")
    if values.get("box") is not None:
        values["box"] = Box.from_json(values["box"])
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        raise InputError(f"no {cls.__name__} record: {error}") from None
