"""A tokenizer's regular expressions, tried before a question meets them.

tokenizer.json can hold patterns of any kind, and some of them take for ever, or end the process, on a text that looks harmless.
What is known or cannot repeat is trusted; anything else is tried in a process of its own, within bounds, on texts that make bad
patterns slow.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.files.text import one_line

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        _CONTRACTIONS + r"\p{N}{1,3}|" + _REST,
        _CONTRACTIONS + r"\p{N}|" + _REST,
    }
)
"""The patterns of GPT-2, Llama 3 and Qwen 2."""
_REPEATS = re.compile(r"[*+{]")
_SECONDS = 10
"""Of processor time: another job beside it changes nothing."""
_PATIENCE = 300
"""Seconds on the clock."""
_BYTES = 4 * 2**30
_TRIAL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2]) + 1))
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]), int(sys.argv[3])))
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
for letter in dict.fromkeys(sys.argv[4]):
    for unit in (letter, letter + " ", letter + "a"):
        for end in ("", "!", "\\x00", " \\n"):
            tokenizer.encode(unit * 1500 + end)
"""


def check_patterns(path: Path, tokenizer: Mapping[str, Any]) -> None:
    """Raises InputError when a text can keep the tokenizer in `path`, whose content is `tokenizer`, for ever or break it."""
    suspects = [
        p for key, part in tokenizer.items() if key not in ("model", "added_tokens") for p in _patterns(part) if not _is_safe(p)
    ]
    if not suspects:
        return
    letters = "".join(dict.fromkeys("aA1 \n!_.,\u00e9" + "".join(c for p in suspects for c in p if c.isprintable())))[:48]
    command = [sys.executable, "-P", "-c", _TRIAL, str(path.absolute()), str(_SECONDS), str(_BYTES), letters]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        shown = one_line(suspects[0], 80)
        raise InputError(f"the tokenizer {path} cannot be used: its pattern {shown!r} does not come to an end on some texts")


def _is_safe(pattern: str) -> bool:
    return pattern in KNOWN or not _REPEATS.search(re.sub(r"\\.", "", pattern, flags=re.DOTALL))


def _patterns(part: Any) -> Iterator[str]:
    """Every regular expression below a part of the file."""
    todo = [part]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if isinstance(value.get("Regex"), str):
                yield value["Regex"]
            todo += value.values()
        elif isinstance(value, list):
            todo += value
