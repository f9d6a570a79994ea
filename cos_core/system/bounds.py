"""Bounds of numbers that a user sets: one sentence for whatever lies outside, NaN and infinities included."""

from __future__ import annotations

from cos_core.errors import InputError

SEED = 2**32 - 1
"""The largest seed that every source of chance takes."""

REPLICATES = 100_000
"""Most bootstrap samples; the ends of an interval hardly move beyond a few thousand."""

COUNT = 10**9
"""The largest number of things that a user can mean to count: questions, steps, failures."""

BATCH = 10**6
"""The largest number of things that can go together through a model, or stand beside each other in memory."""

TOKENS = 100_000
"""Longest text a model is asked for, in tokens."""

FINER, REGION_SIDE, RANK = 64, 64, 4096
"""Times that a relevance map is made finer; visual tokens of a region along a side; the largest rank of an adapter."""

LONGEST_PX = 8192
"""Longer side of a drawn picture, in pixels."""

GIB = 100_000
"""The largest memory that can be meant, in GiB."""

PROCESSES = 1024
"""Most processes, workers or requests at once."""


def check(name: str, value: float | None, low: float, high: float) -> None:
    """Raises InputError when `value` is given and is not in [low, high]."""
    if value is not None and not low <= value <= high:
        said = str(value)
        raise InputError(f"{name} must lie between {low:,} and {high:,}, got {said if len(said) <= 40 else said[:39] + '…'}")
