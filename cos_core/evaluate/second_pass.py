"""What a run's second passes were shown, and when they were run, as part of the protocol: crop, box text, picture, gate."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from cos_core.types import Prediction

DEFAULTS: Mapping[str, Any] = {"crop": "region", "box_text": "written", "global_scale": 1.0, "gate": None}
"""The settings by name, each with the value that no protocol mentions."""

UNKNOWN = "unknown"
"""The gate of answers that passed one of which nothing else is recorded."""


class SecondPass(NamedTuple):
    """What one prediction says of its second pass. `crop`: what its picture held, None without a second pass; `gated`: whether
    a gate decided about it, None for a prediction without an answer."""

    crop: str | None
    gated: bool | None


def of(prediction: Prediction) -> SecondPass:
    """What a prediction says of its second pass."""
    crop = None
    if prediction.shown is not None:
        crop = prediction.shown.partition(":")[0]
    elif prediction.box is not None and prediction.gate != "closed":
        crop = "region"
    return SecondPass(crop, None if prediction.answer is None else prediction.gate is not None)


def protocol(settings: Mapping[str, Any], kinds: Collection[SecondPass]) -> dict[str, Any]:
    """The fields of DEFAULTS that are not as there: those of the answers of several settings in one file as a list.

    `settings`: the run's that answered, by name, where known; `kinds`: what its predictions say, which comes first.
    """
    crops = {kind.crop for kind in kinds} - {None} or {settings.get("crop", DEFAULTS["crop"])}
    gated = {kind.gated for kind in kinds} - {None} or {"gate" in settings}
    gates = {settings.get("gate", UNKNOWN) if each else "none" for each in gated}
    found: dict[str, Any] = {"crop": _one_or_all(crops), "gate": None if gates == {"none"} else _one_or_all(gates)}
    found |= {name: settings[name] for name in ("box_text", "global_scale") if name in settings}
    return {name: found[name] for name in DEFAULTS if name in found and found[name] != DEFAULTS[name]}


def _one_or_all(values: Collection[Any]) -> Any:
    distinct = sorted(set(map(str, values)))
    return distinct[0] if len(distinct) == 1 else distinct
