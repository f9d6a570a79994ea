"""What a server says beside its answers: how long it asks to wait, and why it refuses; and what urllib3 says went wrong."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping

from cos_core.files.jsonl import decode
from cos_core.files.text import one_line

_WORDS_BYTES = 1 << 16
"""Of a longer error body, only the beginning is shown."""
_DAY = 86_400.0

_OBJECT = re.compile(r"^<?\w*Connection(?:Pool)?\([^)]*\)(?: at 0x\w+>)?: ")
_SECONDS = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?")
_SPOKEN = re.compile(
    r"(?:retry|try again)\s+(?:after|in)\s+([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*"
    r"(ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?)?\b",
    re.I,
)


def pause_named(headers: Mapping[str, str], words: str = "") -> float | None:
    """Seconds that a busy server asks to wait: `Retry-After` (seconds or a date), `retry-after-ms`, or words such as "Please
    retry after 6 seconds." None where it names none, or one that cannot be meant: negative, infinite, longer than a day.
    """
    found = None
    milliseconds, header = headers.get("retry-after-ms", ""), headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(milliseconds.strip()):
        found = float(milliseconds) / 1000
    elif _SECONDS.fullmatch(header):
        found = float(header)
    elif header:
        found = _until(header)
    elif (spoken := _SPOKEN.search(words)) is not None:
        number, unit = float(spoken[1]), (spoken[2] or "s").lower()
        found = number / 1000 if unit.startswith(("ms", "mil")) else number * 60 if unit.startswith("m") else number
    return found if found is not None and found <= _DAY else None


def _until(date: str) -> float | None:
    """Seconds from now to an HTTP date; 0 for one that has passed, None for what is no date."""
    if len(date) > 64:
        return None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError, OSError, IndexError):
        return None


def words_of(body: bytes) -> str:
    """The beginning of what a server says with an error, on one line; the `message` alone where it has one."""
    data = None
    if len(body) <= _WORDS_BYTES:
        try:
            data = decode(body)
        except ValueError:
            data = None
    inner = data.get("error", data) if isinstance(data, dict) else data
    text = inner.get("message") or inner.get("detail") if isinstance(inner, dict) else inner
    said = text if isinstance(text, str) else body[: 1 << 12].decode("utf-8", "replace")
    return one_line(" ".join(said[: 1 << 12].split()), 300)


def reason_of(error: Exception) -> str:
    """One line, without the object that urllib3 begins its messages with."""
    text = str(error).strip().splitlines()
    return one_line(_OBJECT.sub("", text[0])) if text else type(error).__name__
