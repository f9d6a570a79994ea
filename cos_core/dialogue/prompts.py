"""Profiles, and the one function that builds a Chain-of-Spot dialogue, for training and inference alike.

A profile (templates/prompts/*.toml) holds everything about the text that changes what a checkpoint sees: system prompt, roles,
Inst.1 and Inst.2 (CoS Eq. 7 and 9), how a box is written (Eq. 8) and what is cropped. A checkpoint carries its own profile in
`cos_profile.json`; without one the profile "paper" is used. A profile may leave roles and end marks to the checkpoint's chat
template, and the writing of a box to its family (a BoxStyle).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from cos_core.errors import InputError
from cos_core.files import assets, deciding
from cos_core.files.jsonl import decode, why
from cos_core.files.text import one_line, read_text
from cos_core.geometry import Frame
from cos_core.types import ImageSlot, Turn

PROFILE_FILE = "cos_profile.json"
MAX_PROFILE_BYTES = 2**20
"""A wording is a page of text; what is longer is taken for something else."""
DIALOGUE_VERSION = 1
"""Raised by hand when the same settings show a model something else than before: the turns of `dialogue`, the text of a box and
how it is read, where a crop is cut, the boxes of the shipped policies. Part of every fingerprint; tests/test_fingerprints.py
holds what this version shows."""

FULL, ROI = ImageSlot("full"), ImageSlot("roi")

AfterEnd = Literal["native", "spaced", "cut", "joined"]
BoxUnit = Literal["fraction", "thousandth", "1024th", "pixel"]
BoxOrder = Literal["x0y0x1y1", "x0x1y0y1", "y0x0y1x1"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "crop_from": ("image", "canvas"),
    "box_reader": ("lenient", "released"),
    "after_end": get_args(AfterEnd),
    "suffix": ("inside", "after"),
    "roles": ("profile", "template"),
    "box": ("profile", "family"),
}
_BOX_CHOICES: dict[str, tuple[str, ...]] = {
    "frame": get_args(Frame),
    "unit": get_args(BoxUnit),
    "order": get_args(BoxOrder),
}
_PLACES = re.compile(r"\{([xy][01])\}")
_INSIDE_A_NUMBER = frozenset("0123456789.+-%")


@dataclass(frozen=True, slots=True)
class BoxStyle:
    """How a box is written.

    `frame`: what the numbers are shares of, the picture ("image") or the picture padded to a square ("square"). `unit`: what
    1 stands for: the whole side ("fraction", written with `decimals` digits), a thousandth or a 1024th of it, or a pixel of
    the picture as the model sees it; in the last three the numbers are whole, and `decimals` is 0. A 1024th has four digits,
    0000 to 1023. `order` names the four numbers as they stand in the text. `text`: what is written, with {x0} {y0} {x1} {y1}
    once each, in this order; other braces stand for themselves; "": the numbers in square brackets, `[x0, y0, x1, y1]`.

    Without arguments: the style of families that have no documented writing. Raises InputError for what cannot be read back.
    """

    frame: Frame = "image"
    unit: BoxUnit = "fraction"
    order: BoxOrder = "x0y0x1y1"
    text: str = ""
    decimals: int = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_kind("box style", "box_" + field.name, getattr(self, field.name))
        for key, allowed in _BOX_CHOICES.items():
            if getattr(self, key) not in allowed:
                raise InputError(f"unknown box_{key} {getattr(self, key)!r}; one of {', '.join(allowed)}")
        if self.unit == "fraction" and not 1 <= self.decimals <= 6:
            raise InputError(f"box_decimals must be 1 to 6, got {self.decimals}")
        if self.unit != "fraction" and self.decimals != 0:
            raise InputError(f"box_decimals must be 0 where box_unit is {self.unit!r}, got {self.decimals}")
        if self.unit == "pixel" and self.frame != "image":
            raise InputError("boxes in pixels are of the picture: box_frame must be 'image'")
        if self.text and _PLACES.findall(self.text) != self.places:
            wanted = " ".join(f"{{{place}}}" for place in self.places)
            raise InputError(
                f"box_text must hold {wanted} once each, in this order (box_order), got {one_line(self.text, 80)!r}"
            )
        between = self.literals
        if any(not part for part in between[1:4]):
            raise InputError(f"box_text needs something between its numbers, got {one_line(self.text, 80)!r}")
        beside = {part[-1:] for part in between[:4]} | {part[:1] for part in between[1:]}
        if beside & _INSIDE_A_NUMBER:
            raise InputError(f"box_text has a digit, point or sign beside a number, got {one_line(self.text, 80)!r}")

    @property
    def places(self) -> list[str]:
        """The names of the four numbers in the order of the text: "x0", "y0", ..."""
        return [self.order[i : i + 2] for i in range(0, 8, 2)]

    @property
    def literals(self) -> list[str]:
        """The five stretches of text around the four numbers."""
        return _PLACES.split(self.text)[::2] if self.text else ["[", ", ", ", ", ", ", "]"]


@dataclass(frozen=True, slots=True)
class Profile:
    """The wording and geometry that a checkpoint was trained with.

    Templates hold `{image}` (an image slot) and `{question}`. `box_decimals` digits are written, padded with zeros when
    `box_pad_zeros`; `box_step` (a fraction of the square's side, or None) snaps boxes to a coarser raster before writing;
    `box_order` names the four numbers. `crop_from`: "image" cuts the region from the original picture and pads it anew,
    "canvas" cuts from the padded square, as the released code does. `box_reader`: "lenient" reads what models write, "released"
    falls back wherever the released parser does. `after_end`: how text after the end mark is tokenised (encoding.py).
    `suffix`: whether a request for a format that a benchmark keeps apart from its question stands "inside" the quotes of both
    instructions or "after" the quote of Inst.2 alone (the released MMBench and ScienceQA scripts). `left_out`: a request for a
    format that this wording makes in its own way; a question that ends with it is asked without it.

    `roles`: who writes roles and end marks, this profile or the checkpoint's chat "template"; then `user`, `assistant` and
    `turn_end` are empty, and `system`, if not empty, is sent as a system message. `box`: whose writing of a box holds, this
    profile's or that of the checkpoint's "family"; the latter is put in by `with_boxes`. The fields that begin with `box_`
    and have a counterpart in BoxStyle are explained there.
    """

    name: str
    system: str
    user: str
    assistant: str
    turn_end: str
    plain: str
    inst1: str
    inst1_all: str
    inst1_image: str
    inst2: str
    box_order: BoxOrder = "x0y0x1y1"
    box_decimals: int = 3
    box_pad_zeros: bool = True
    box_step: float | None = None
    crop_from: Literal["image", "canvas"] = "image"
    extra_turn_prefix: str = ""
    box_reader: Literal["lenient", "released"] = "lenient"
    after_end: AfterEnd = "native"
    suffix: Literal["inside", "after"] = "inside"
    left_out: str = deciding.later("")
    roles: Literal["profile", "template"] = deciding.later("profile")
    box: Literal["profile", "family"] = deciding.later("profile")
    box_frame: Frame = deciding.later("square")
    box_unit: BoxUnit = deciding.later("fraction")
    box_text: str = deciding.later("")

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_kind(f"profile {one_line(self.name)!r}", field.name, getattr(self, field.name))
        for key in ("plain", "inst1", "inst1_all", "inst1_image", "inst2"):
            if getattr(self, key).count("{image}") != 1:
                raise InputError(f"profile {self.name!r}: {key} must hold {{image}} exactly once")
        for key in ("plain", "inst1", "inst1_all", "inst2"):
            if getattr(self, key).count("{question}") != 1:
                raise InputError(f"profile {self.name!r}: {key} must hold {{question}} exactly once")
        if self.box_step is not None and not 0 < self.box_step <= 0.5:
            raise InputError(f"profile {self.name!r}: box_step must lie in (0, 0.5], got {self.box_step}")
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise InputError(f"profile {self.name!r}: unknown {key} {getattr(self, key)!r}; one of {', '.join(allowed)}")
        if self.roles == "template" and (self.user or self.assistant or self.turn_end):
            raise InputError(f"profile {self.name!r}: a chat template writes the roles; leave user, assistant, turn_end empty")
        self._check_boxes()

    def _check_boxes(self) -> None:
        try:
            style = self.boxes
        except InputError as error:
            raise InputError(f"profile {self.name!r}: {error}") from None
        if self.box == "family":
            if style != _OWN_BOXES:
                named = ", ".join(f"box_{f.name}" for f in fields(BoxStyle))
                raise InputError(f"profile {self.name!r}: box = 'family' says how boxes are written; leave out {named}")
            return
        if style.unit != "fraction" and self.box_step is not None:
            raise InputError(f"profile {self.name!r}: box_step goes with fractions, not with box_unit {style.unit!r}")
        if self.box_reader == "released" and (style.unit != "fraction" or style.text):
            raise InputError(f"profile {self.name!r}: box_reader 'released' reads bracketed fractions only")
        if style.frame == "image" and self.crop_from == "canvas":
            raise InputError(f"profile {self.name!r}: crop_from 'canvas' goes with boxes in the frame 'square'")

    @property
    def boxes(self) -> BoxStyle:
        """How this profile writes a box, where `box` is "profile"."""
        return BoxStyle(self.box_frame, self.box_unit, self.box_order, self.box_text, self.box_decimals)

    def with_boxes(self, style: BoxStyle) -> Profile:
        """This profile for a checkpoint whose family writes boxes in `style`; the same where it has a writing of its own.

        Raises InputError where the rest of the profile (box_step, box_reader, crop_from) does not go with the style.
        """
        if self.box == "profile":
            return self
        return replace(self, box="profile", **{f"box_{f.name}": getattr(style, f.name) for f in fields(style)})

    def to_json(self) -> dict[str, Any]:
        """Every setting that decides, as it counts in a fingerprint (see deciding.settings)."""
        return deciding.settings(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "profile") -> Profile:
        """Raises InputError on unknown or missing keys; `where` names the source in the message."""
        names = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - names)
        if unknown:
            raise InputError(f"{where}: unknown key {unknown[0]!r}")
        try:
            return cls(**data)
        except (TypeError, AttributeError) as error:
            raise InputError(f"{where}: {error}") from None


def _check_kind(where: str, key: str, value: object) -> None:
    """Raises InputError for a value of another kind than the setting's, a text of whole characters in most cases."""
    kinds: dict[str, type] = {"box_decimals": int, "box_pad_zeros": bool, "box_step": float}
    wanted = kinds.get(key, str)
    fits = isinstance(value, wanted) or (key == "box_step" and (value is None or type(value) is int))
    if not fits or (wanted is int and isinstance(value, bool)):
        named = {str: "a text", int: "a whole number", bool: "true or false", float: "a number"}[wanted]
        raise InputError(f"{where}: {key} must be {named}, got {one_line(repr(value), 60)}")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{where}: {key} holds half a character, which is no text")


_OWN_BOXES = BoxStyle("square")
"""What the box fields of a profile say by default."""


def profile_names() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return assets.profile_names()


def load_profile(name: str) -> Profile:
    """A shipped profile by name, or one from a `.toml` or `.json` file. Raises InputError when it cannot be read."""
    path = Path(name)
    if path.suffix not in (".toml", ".json"):
        if name not in profile_names():
            raise InputError(f"no profile is called {name!r}; there are: {', '.join(profile_names())}")
        path = assets.template("prompts", f"{name}.toml")
    text = read_text(path, MAX_PROFILE_BYTES)
    try:
        data = decode(text.encode()) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the profile {path} cannot be read: {why(error)}") from None
    if not isinstance(data, dict):
        raise InputError(f"the profile {path} is not a table of settings")
    return Profile.from_json(data, str(path))


def checkpoint_profile(folder: str | Path | None, profile: str | Profile | None = None, usual: str | None = None) -> Profile:
    """The profile to use with a checkpoint: the given one, else the one stored with the checkpoint, else "paper".

    `folder`: the checkpoint's local folder (hub.resolve), None for a model that is known by its name alone. `profile`: a name
    or a file; a Profile has been resolved before and is returned as it is. `after_end` depends on the checkpoint's tokenizer,
    so the stored value stays. `usual`: what stands for "paper".
    """
    if isinstance(profile, Profile):
        return profile
    path = None if folder is None else Path(folder) / PROFILE_FILE
    stored = load_profile(str(path)) if path is not None and path.is_file() else None
    if not profile:
        return stored or load_profile(usual or "paper")
    return replace(load_profile(profile), after_end=stored.after_end) if stored else load_profile(profile)


def break_after_image(profile: Profile) -> bool:
    """Whether the wording has a line break behind every picture, so that a chat template can put it there by itself.

    A chat template that is not written after the profile knows of no such break: it stays part of the text.
    """
    templates = (profile.plain, profile.inst1, profile.inst1_all, profile.inst1_image, profile.inst2)
    return profile.roles == "profile" and all("{image}\n" in template for template in templates)


def dialogue(
    profile: Profile,
    question: str,
    *,
    chain: bool = True,
    box_text: str | None = None,
    answer: str | None = None,
    asks: Literal["single", "all", "image"] = "single",
    all_questions: Sequence[str] = (),
    learn_box: bool = True,
    suffix: str = "",
    extra_turns: Sequence[tuple[str, str]] = (),
    region: bool | None = None,
) -> tuple[Turn, ...]:
    """The turns of one sample, for training (with `answer`) and for each inference pass (without what is not known yet).

    `chain` False: the plain LLaVA dialogue, question then answer. With the chain (CoS Eq. 2-3): Inst.1, the box, Inst.2, the
    answer. Without `box_text` the dialogue ends after Inst.1 (pass 1); with it but without `answer`, after Inst.2 (pass 2).
    `asks` chooses what Inst.1 asks about (Table 3a); `learn_box` False leaves a box that was given, not predicted, out of the
    loss. `suffix`: a request for a format that was kept apart from the question; the profile says where it stands.
    `extra_turns` are further (question, answer) pairs of the image, supervised (the released code's variant). `region`: whether
    the region's picture is shown, by default in the chain alone. The chain without it says the box and shows no second picture;
    the plain dialogue with it shows it behind the whole picture and says nothing of it.
    """
    question, second = (text.removesuffix(profile.left_out) for text in (question, question + suffix))
    if profile.suffix == "inside":
        question = second
    if not chain:
        turns = [_user(profile.plain, (FULL, ROI) if region else (FULL,), second)]
    else:
        if asks == "image":
            first = _user(profile.inst1_image, (FULL,), None)
        elif asks == "all":
            first = _user(profile.inst1_all, (FULL,), " ".join(all_questions or (question,)))
        else:
            first = _user(profile.inst1, (FULL,), question)
        if box_text is None:
            return (first,)
        shown = () if region is False else (ROI,)
        turns = [first, Turn("assistant", (box_text,), learn=learn_box), _user(profile.inst2, shown, question)]
        if suffix and profile.suffix == "after":
            turns[-1] = Turn("user", (*turns[-1].parts, suffix))
    if answer is None:
        return tuple(turns)
    turns.append(Turn("assistant", (answer,), learn=True))
    prefix = profile.extra_turn_prefix
    for further, reply in extra_turns:
        turns += [Turn("user", (prefix + further,)), Turn("assistant", (reply,), learn=True)]
        prefix = ""
    return tuple(turns)


def text_dialogue(pairs: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
    """The turns of a text-only sample: every answer is learnt."""
    turns: list[Turn] = []
    for question, answer in pairs:
        turns += [Turn("user", (question,)), Turn("assistant", (answer,), learn=True)]
    return tuple(turns)


def _user(template: str, slots: Sequence[ImageSlot], question: str | None) -> Turn:
    """The user's turn of a template, with these pictures in its one place for a picture."""
    before, after = template.split("{image}")
    # The question is put in last, so that braces inside it stay what they are.
    before, after = (part if question is None else part.replace("{question}", question, 1) for part in (before, after))
    behind = "\n" if after.startswith("\n") else ""
    pictures = [part for slot in slots for part in (behind, slot)][1:] if slots else []
    parts = (before, *pictures, after) if slots else (before + after.removeprefix(behind),)
    return Turn("user", tuple(part for part in parts if part != ""))
