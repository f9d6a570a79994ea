"""The completions of a prefix out of any number of sorted keys, by a few seeks instead of a scan."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

MOST = 100
"""Most ids offered one by one; of more, their shortest differing prefixes."""


class Keys(Protocol):
    """Sorted keys, UTF-8 or not."""

    def at_or_after(self, key: bytes) -> bytes | None: ...
    def before(self, key: bytes | None) -> bytes | None: ...


class SortedKeys:
    """Keys in memory."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = sorted(set(keys))

    def at_or_after(self, key: bytes) -> bytes | None:
        place = bisect_left(self._keys, key)
        return self._keys[place] if place < len(self._keys) else None

    def before(self, key: bytes | None) -> bytes | None:
        place = len(self._keys) if key is None else bisect_left(self._keys, key)
        return self._keys[place - 1] if place else None


def offers(keys: Keys, prefix: str, most: int = MOST) -> list[str]:
    """All keys that begin with `prefix`, when they are at most `most`; else their shortest differing prefixes, at most `most`.

    Every key begins with one of the offers, where `most` is large enough. A key is offered up to its first byte that is not
    UTF-8, where the store cuts over-long ids.
    """
    start = prefix.encode("utf-8", "surrogateescape")
    first = keys.at_or_after(start)
    last = keys.before(_past(start))
    if first is None or last is None or not first.startswith(start):
        return []
    keys_below: list[str] = []
    key: bytes | None = first
    while key is not None and key <= last:
        keys_below.append(_text(key))
        if len(keys_below) > most:
            return _branches(keys, first, last, most)
        key = keys.at_or_after(key + b"\0")
    return keys_below


def _branches(keys: Keys, first: bytes, last: bytes, most: int) -> list[str]:
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    # Two characters may share their first bytes.
    common = _text(first[:same])
    at = common.encode()
    branches: list[str] = []
    key: bytes | None = first
    while key is not None and key <= last and len(branches) < most:
        text = _text(key)
        branch = text[: len(common) + 1]
        following = keys.at_or_after(key + b"\0")
        alone = following is None or not following.startswith(branch.encode()) or branch == common
        branches.append(text if alone else branch)
        key = keys.at_or_after(key + b"\0" if len(branch.encode()) <= len(at) else _past(branch.encode()) or b"")
    return branches


def _past(prefix: bytes) -> bytes | None:
    """The smallest key after everything that begins with `prefix`; None for the empty beginning."""
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else None


def _text(key: bytes) -> str:
    # 0xff, which no UTF-8 contains, marks where the store cut an over-long id; a digest follows it.
    return key.partition(b"\xff")[0].decode("utf-8", "ignore")
