"""Profiles, and the one function that builds a Chain-of-Spot dialogue, for training and inference alike.

A profile (templates/prompts/*.toml) holds everything about the text that changes what a checkpoint sees: system prompt, roles,
Inst.1 and Inst.2 (CoS Eq. 7 and 9), how a box is written (Eq. 8) and what is cropped. A checkpoint carries its own profile in
`cos_profile.json`; without one the profile "paper" is used.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from cos_core.errors import InputError
from cos_core.files import assets
from cos_core.files.jsonl import decode, why
from cos_core.files.text import one_line, read_text
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

_CHOICES: dict[str, tuple[str, ...]] = {
    "box_order": ("x0y0x1y1", "x0x1y0y1"),
    "crop_from": ("image", "canvas"),
    "box_reader": ("lenient", "released"),
    "after_end": get_args(AfterEnd),
    "suffix": ("inside", "after"),
}


@dataclass(frozen=True, slots=True)
class Profile:
    """The wording and geometry that a checkpoint was trained with.

    Templates hold `{image}` (an image slot) and `{question}`. `box_decimals` digits are written, padded with zeros when
    `box_pad_zeros`; `box_step` (a fraction of the square's side, or None) snaps boxes to a coarser raster before writing;
    `box_order` names the four numbers. `crop_from`: "image" cuts the region from the original picture and pads it anew,
    "canvas" cuts from the padded square, as the released code does. `box_reader`: "lenient" reads what models write, "released"
    falls back wherever the released parser does. `after_end`: how text after the end mark is tokenised (encoding.py).
    `suffix`: whether a request for a format that a benchmark keeps apart from its question stands "inside" the quotes of both
    instructions or "after" the quote of Inst.2 alone (the released MMBench and ScienceQA scripts).
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
    box_order: Literal["x0y0x1y1", "x0x1y0y1"] = "x0y0x1y1"
    box_decimals: int = 3
    box_pad_zeros: bool = True
    box_step: float | None = None
    crop_from: Literal["image", "canvas"] = "image"
    extra_turn_prefix: str = ""
    box_reader: Literal["lenient", "released"] = "lenient"
    after_end: AfterEnd = "native"
    suffix: Literal["inside", "after"] = "inside"

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_kind(f"profile {one_line(self.name)!r}", field.name, getattr(self, field.name))
        for key in ("plain", "inst1", "inst1_all", "inst1_image", "inst2"):
            if getattr(self, key).count("{image}") != 1:
                raise InputError(f"profile {self.name!r}: {key} must hold {{image}} exactly once")
        for key in ("plain", "inst1", "inst1_all", "inst2"):
            if getattr(self, key).count("{question}") != 1:
                raise InputError(f"profile {self.name!r}: {key} must hold {{question}} exactly once")
        if not 1 <= self.box_decimals <= 6:
            raise InputError(f"profile {self.name!r}: box_decimals must be 1 to 6, got {self.box_decimals}")
        if self.box_step is not None and not 0 < self.box_step <= 0.5:
            raise InputError(f"profile {self.name!r}: box_step must lie in (0, 0.5], got {self.box_step}")
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise InputError(f"profile {self.name!r}: unknown {key} {getattr(self, key)!r}; one of {', '.join(allowed)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

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


def checkpoint_profile(folder: str | Path | None, profile: str | Profile | None = None) -> Profile:
    """The profile to use with a checkpoint: the given one, else the one stored with the checkpoint, else "paper".

    `folder`: the checkpoint's local folder (hub.resolve), None for a model that is known by its name alone. `profile`: a name
    or a file; a Profile has been resolved before and is returned as it is. `after_end` depends on the checkpoint's tokenizer,
    so the stored value stays.
    """
    if isinstance(profile, Profile):
        return profile
    path = None if folder is None else Path(folder) / PROFILE_FILE
    stored = load_profile(str(path)) if path is not None and path.is_file() else None
    if not profile:
        return stored or load_profile("paper")
    return replace(load_profile(profile), after_end=stored.after_end) if stored else load_profile(profile)


def break_after_image(profile: Profile) -> bool:
    """Whether the wording has a line break behind every picture, so that a chat template can put it there by itself."""
    templates = (profile.plain, profile.inst1, profile.inst1_all, profile.inst1_image, profile.inst2)
    return all("{image}\n" in template for template in templates)


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
) -> tuple[Turn, ...]:
    """The turns of one sample, for training (with `answer`) and for each inference pass (without what is not known yet).

    `chain` False: the plain LLaVA dialogue, question then answer. With the chain (CoS Eq. 2-3): Inst.1, the box, Inst.2, the
    answer. Without `box_text` the dialogue ends after Inst.1 (pass 1); with it but without `answer`, after Inst.2 (pass 2).
    `asks` chooses what Inst.1 asks about (Table 3a); `learn_box` False leaves a box that was given, not predicted, out of the
    loss. `suffix`: a request for a format that was kept apart from the question; the profile says where it stands.
    `extra_turns` are further (question, answer) pairs of the image, supervised (the released code's variant).
    """
    second = question + suffix
    if profile.suffix == "inside":
        question = second
    if not chain:
        turns = [_user(profile.plain, FULL, second)]
    else:
        if asks == "image":
            first = _user(profile.inst1_image, FULL, None)
        elif asks == "all":
            first = _user(profile.inst1_all, FULL, " ".join(all_questions or (question,)))
        else:
            first = _user(profile.inst1, FULL, question)
        if box_text is None:
            return (first,)
        turns = [first, Turn("assistant", (box_text,), learn=learn_box), _user(profile.inst2, ROI, question)]
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


def _user(template: str, slot: ImageSlot, question: str | None) -> Turn:
    before, after = template.split("{image}")
    # The question is put in last, so that braces inside it stay what they are.
    fill = [part if question is None else part.replace("{question}", question, 1) for part in (before, after)]
    return Turn("user", tuple(p for p in (fill[0], slot, fill[1]) if p != ""))
