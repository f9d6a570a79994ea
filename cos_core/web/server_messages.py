"""Error messages of servers: the reason, and how long a server asks to wait; and the reasons that urllib3 gives."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping

from cos_core.files.jsonl import decode
from cos_core.files.text import one_line

_MESSAGE_BYTES = 1 << 16
"""Of a longer error body, only the beginning is shown."""
_DAY = 86_400.0

_OBJECT = re.compile(r"^<?\w*Connection(?:Pool)?\([^)]*\)(?: at 0x\w+>)?: ")
_SECONDS = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?")
_IN_WORDS = re.compile(
    r"(?:retry|try again)\s+(?:after|in)\s+([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*"
    r"(ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?)?\b",
    re.I,
)


def requested_pause(headers: Mapping[str, str], message: str = "") -> float | None:
    """Seconds that a busy server asks to wait: `Retry-After` (seconds or a date), `retry-after-ms`, or in its message, as in
    "Please retry after 6 seconds." None where it asks for none, or for one that is negative, infinite or longer than a day.
    """
    seconds = None
    milliseconds, header = headers.get("retry-after-ms", ""), headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(milliseconds.strip()):
        seconds = float(milliseconds) / 1000
    elif _SECONDS.fullmatch(header):
        seconds = float(header)
    elif header:
        seconds = _until(header)
    elif (match := _IN_WORDS.search(message)) is not None:
        number, unit = float(match[1]), (match[2] or "s").lower()
        seconds = number / 1000 if unit.startswith(("ms", "mil")) else number * 60 if unit.startswith("m") else number
    return seconds if seconds is not None and seconds <= _DAY else None


def _until(date: str) -> float | None:
    """Seconds from now to an HTTP date; 0 for one that has passed, None for what is no date."""
    if len(date) > 64:
        return None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError, OSError, IndexError):
        return None


def error_message(body: bytes) -> str:
    """The beginning of an error's body on one line; of a JSON object its `message` or `detail` alone."""
    data = None
    if len(body) <= _MESSAGE_BYTES:
        try:
            data = decode(body)
        except ValueError:
            data = None
    inner = data.get("error", data) if isinstance(data, dict) else data
    text = inner.get("message") or inner.get("detail") if isinstance(inner, dict) else inner
    message = text if isinstance(text, str) else body[: 1 << 12].decode("utf-8", "replace")
    return one_line(" ".join(message[: 1 << 12].split()), 300)


def connection_error(error: Exception) -> str:
    """The message of an error of urllib3 or a socket on one line, without the name of the object at its beginning."""
    text = str(error).strip().splitlines()
    return one_line(_OBJECT.sub("", text[0])) if text else type(error).__name__
