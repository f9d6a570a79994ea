"""What a checkpoint's files say of it, without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cos_core.dialogue.prompts import checkpoint_profile
from cos_core.errors import InputError
from cos_core.files.images import FILL
from cos_core.files.jsonl import decode
from cos_core.files.manifest import plain
from cos_core.files.text import one_line, read_text
from cos_core.models import checkpoint_files as files
from cos_core.models import families, general_check, hub, support, wording
from cos_core.models.checkpoint_files import Tensor
from cos_core.models.layout import families as layout_families
from cos_core.models.layout.check import check, sizes

ANNOTATOR_FILE = "cos_annotator.json"
"""The record beside an annotator's weights: its backbone and detector, its parent and data, and the steps of training."""
_SHOWN = ("backbone", "detector", "region_tokens")


def annotator_provenance(model: str) -> dict[str, Any] | None:
    """How a checkpoint became an annotator (`cos train --annotator`); None for any other, and for one that is not here.

    `backbone`, `detector` (plug.described) and `region_tokens`: what it was shown; `parent` and `data`: path, fingerprint or
    digest; `steps`, `samples`; `settings`: the fingerprint of its run. Raises InputError for a file that cannot be read.
    """
    folder = hub.local(model)
    path = Path(folder or "") / ANNOTATOR_FILE
    if folder is None or not path.is_file():
        return None
    try:
        data = decode(read_text(path, files.MIB).encode())
        return {**{name: data[name] for name in (*_SHOWN, "parent", "data", "steps")}, **data}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not say how the annotator was made: {error}") from None


def annotator_differences(provenance: Mapping[str, Any], **shown: Any) -> list[str]:
    """The settings in which annotating differs from an annotator's training, a sentence each.

    `shown`: `backbone`, `detector` (plug.described) and `region_tokens`, those that apply.
    """
    now = plain({name: value for name, value in shown.items() if name in _SHOWN})
    return [
        f"this annotator was tuned with {name} {_quoted(provenance[name])}, and now sees {_quoted(value)}"
        for name, value in now.items()
        if provenance[name] != value
    ]


def _quoted(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Where a checkpoint's picture settings stand, in the order in which `transformers` looks (nested in the first of them)."""


def fill_of(folder: str | Path) -> tuple[int, int, int]:
    """The colour (RGB, 0-255) that pads a picture to a square for the checkpoint in `folder`, from its processor's file alone.

    `int(255 * mean)` per channel of `image_mean`, as `pixels.padding_colour` of the loaded processor gives: (122, 116, 104), of
    CLIP's mean, where the file names none. Needs neither torch nor transformers. Raises InputError when the folder holds no
    processor file, or one that cannot be read.
    """
    settings, path = _picture_settings(Path(folder))
    mean = settings.get("image_mean")
    if mean is None:
        return FILL
    if not isinstance(mean, list) or len(mean) != 3 or not all(_is_share(value) for value in mean):
        raise InputError(f"{path}: `image_mean` must be three numbers from 0 to 1, got {mean!r}")
    red, green, blue = (int(255 * value) for value in mean)
    return red, green, blue


def side_of(folder: str | Path) -> int | None:
    """The side in pixels to which the checkpoint resizes a square picture, bicubic, and cuts nothing off afterwards.

    None where its processor does something else. Raises InputError as `fill_of`.
    """
    settings, _ = _picture_settings(Path(folder))
    if settings.get("resample", BICUBIC) != BICUBIC or settings.get("do_resize") is False:
        return None
    sides: set[object] = set()
    for size in (settings.get("size"), settings.get("crop_size") if settings.get("do_center_crop", True) else None):
        # Older files have one number.
        sides |= {value for value in (size.values() if isinstance(size, dict) else [size]) if value is not None}
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) and side > 0 else None


BICUBIC = 3
"""Pillow's number for the filter, which is how processors name it."""


def _picture_settings(folder: Path) -> tuple[dict[str, Any], Path]:
    """The image processor's settings, and the file they stand in."""
    for name in PROCESSOR_FILES:
        data = files.settings(folder, name)
        if data is None:
            continue
        settings = data.get("image_processor") if name == PROCESSOR_FILES[0] else data
        if isinstance(settings, dict):
            return settings, folder / name
    raise InputError(f"{folder} does not say how pictures are prepared: it has neither of {', '.join(PROCESSOR_FILES)}")


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def describe(model: str) -> tuple[dict[str, Any], str | None]:
    """What a checkpoint is, what of `cos` works with it, and why nothing does: None where something does. No weights are read.

    `weights` (numbers), `dtype`, `MiB`, sizes, `profile`, `fingerprint`; `family`; `works`: by part, True or the sentence that
    says why not; `boxes`: frame, unit, order, an example, source; `budget`: options and what they are set to; `tokens` of a
    picture by its size; `template`: sha256 and its own system text. Of a folder that nothing here can ask, what its files tell.
    Raises InputError for a folder that is no checkpoint, and for files that cannot be read or do not fit one another;
    MissingError for another family's checkpoint without torch and transformers.
    """
    where = Path(hub.resolve(model))
    config = files.settings(where, files.CONFIG)
    if config is None:
        raise InputError(f"{where} is not a checkpoint: it has no config.json")
    if layout_families.is_llava_15(config) or not isinstance(config.get("model_type"), str):
        return _llava(where, config)
    return _general(where, config)


def _llava(where: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    if layout_families.is_original(config) or not layout_families.is_llava(config):
        raise InputError(layout_families.refusal(where, config))
    facts = sizes(where, config)
    profile = checkpoint_profile(where)
    family = families.of_type("llava")
    described = {
        **_held(where, facts.weights),
        "family": family.name,
        "layers": facts.layers,
        "hidden": facts.hidden,
        "vocabulary": facts.vocabulary,
        "image_side": facts.image_side,
        "image_tokens": facts.image_tokens,
        "profile": profile.name,
        "after_end": profile.after_end,
        "fingerprint": hub.fingerprint(where),
        "works": {"answer": True, "two_passes": True, "reuse": True, "annotate": True, "train": True},
        "boxes": support.boxes(profile, family),
        "budget": {},
    }
    try:
        check(where)
    except InputError as error:
        return {**described, "works": dict.fromkeys(described["works"], str(error))}, str(error)
    return described, None


def _general(where: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Facts of a folder of another family, and the sentence that refuses it where nothing works with it."""
    family, kind = families.of_config(config), one_line(config["model_type"], 60)
    named = {"family": family.name or layout_families.name_of(kind), "model_type": kind}
    try:
        facts = general_check.facts(where)
    except InputError as error:
        return {**_readable(where, config), **named}, str(error)
    profile = wording.resolved_profile(where)
    described = {
        **_held(where, facts.weights),
        **named,
        "layers": facts.layers,
        "hidden": facts.hidden,
        "vocabulary": facts.rows,
        "context": facts.context,
        "profile": profile.name,
        "fingerprint": hub.fingerprint(where),
    }
    try:
        described["works"] = support.works(where, config)
        if described["works"]["answer"] is True and not family.text_profile:
            described |= support.asked(where, profile, family)
    except InputError as error:
        return described, str(error)
    answer = described["works"]["answer"]
    return described, None if answer is True else str(answer)


def _readable(where: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What can be told of a folder that is refused."""
    text = config.get("text_config")
    sections = [section for section in (text, config) if isinstance(section, Mapping)]
    names = {"layers": "num_hidden_layers", "hidden": "hidden_size", "vocabulary": "vocab_size"}
    counts = {name: next((s[key] for s in sections if isinstance(s.get(key), int)), None) for name, key in names.items()}
    try:
        held = _held(where, files.tensors(where))
    except InputError:  # its weights may be kept in another way
        held = {"model": str(where)}
    return {**held, **{name: value for name, value in counts.items() if value is not None}}


def _held(where: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "model": str(where),
        "weights": sum(tensor.count for tensor in weights.values()),
        "dtype": ", ".join(sorted({one_line(tensor.dtype, 20) for tensor in weights.values()})),
        "MiB": round(sum(path.stat().st_size for path in files.weight_files(where)) / 2**20, 1),
    }
