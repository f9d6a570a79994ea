"""Which settings decide a result: every field of a Config, unless the field's own declaration says that it does not.

A field is declared with `options.option(..., not_in_fingerprint="where the answers go")`, which is the reason, or with
`option(..., before=None)`, the value that stands for how it was before the field was added: with it the field is left out, so
that what was begun earlier goes on. `later` declares the same of a record that is no Config. `settings` is the one reader of
all; `manifest.fingerprint` hashes what it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from dataclasses import field as new_field
from typing import Any

ALWAYS: Any = object()
"""`before` of a field that has been there from the start: it counts whatever its value."""

_KEY = "deciding"


def declared(not_in_fingerprint: str | None, before: Any) -> dict[str, Any]:
    """The metadata of a field that decides never, with the reason, or not with the value `before`; empty for any other.

    Raises ValueError for a reason without words, and for a field that is declared in both ways.
    """
    if not_in_fingerprint is None:
        return {} if before is ALWAYS else {_KEY: (None, before)}
    if not not_in_fingerprint.strip():
        raise ValueError("not_in_fingerprint is the reason, in words")
    if before is not ALWAYS:
        raise ValueError("a field that never decides is left out with every value; `before` is for one that does")
    return {_KEY: (not_in_fingerprint, before)}


def later(before: Any) -> Any:
    """A field, which is no option, with the default `before`, that was added to a record after fingerprints were made of it."""
    return new_field(default=before, metadata=declared(None, before))


def reason(field: Field[Any]) -> str | None:
    """Why a field of a Config does not decide; None for one that does."""
    why: str | None = field.metadata.get(_KEY, (None, ALWAYS))[0]
    return why


def settings(config: Any, replaced: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The settings that decide, by name, of a Config and of the groups in it (as objects).

    `replaced`: field -> the settings that count in its place, where a field counts by what it means and not as it is written:
    `{"model": {"model": DIGEST}, "roi": {"policy": ...}}`. Fields that make one thing together have equal replacements; an
    empty one is of a field that means nothing beside the others. Raises ValueError for a replacement of a field that is not
    there or does not decide, and for two values of one setting.
    """
    replaced = replaced or {}
    known = {each.name: each for each in fields(config)}
    for name in replaced:
        if name not in known:
            raise ValueError(f"{type(config).__name__} has no field {name!r} that could be replaced in its fingerprint")
        if (why := reason(known[name])) is not None:
            raise ValueError(f"{name!r} of {type(config).__name__} is declared not to decide ({why}) and is replaced as well")
    decisive: dict[str, Any] = {}
    for name, each in known.items():
        if name not in replaced:
            decisive |= _own(config, each)
    written = set(decisive)
    for instead in replaced.values():
        for key, value in instead.items():
            if key in written or decisive.setdefault(key, value) != value:
                raise ValueError(f"{type(config).__name__} has two values of {key!r} in its fingerprint")
    return decisive


def _own(config: Any, each: Field[Any]) -> Mapping[str, Any]:
    """A field as it is written: {name: value}; empty where it does not decide."""
    value = getattr(config, each.name)
    why, before = each.metadata.get(_KEY, (None, ALWAYS))
    # False == 0 and True == 1, which are other settings.
    if why is not None or (before is not ALWAYS and type(value) is type(before) and value == before):
        return {}
    if is_dataclass(value) and not isinstance(value, type):
        group = settings(value)
        return {each.name: group} if group else {}
    return {each.name: value}
