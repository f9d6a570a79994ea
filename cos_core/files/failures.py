"""A run's failures: their number, the most frequent reason, and whether they make the run itself fail.

A run ends with exit code 5 when more failed than --max-failures allows, when nothing was done, and, where no limit is given,
when more than half failed: a folder one level off or a server that went away is no result.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from cos_core.errors import FailuresError
from cos_core.files.text import one_line

_KINDS = 1000
"""Most reasons that are counted one by one."""
_PARTICULAR = re.compile(r"""'[^']*'|"[^"]*"|\S*[/\\]\S*|\S+\.\w{2,5}\b|\d+""")
"""The parts of a reason that differ from item to item: quoted words, paths, file names, numbers."""


@dataclass(slots=True)
class FailureReasons:
    """Counts reasons, those alike but for their file or number as one."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str) -> None:
        kind = _PARTICULAR.sub("*", reason[:500])
        if kind in self.counts or len(self.counts) < _KINDS:
            self.counts[kind] += 1
            self.first.setdefault(kind, reason)

    def most(self) -> str:
        """The most frequent reason, as a clause: `most often (12): there is no image ...`; "" without one."""
        if not self.counts:
            return ""
        kind, times = self.counts.most_common(1)[0]
        often = f"most often ({times})" if len(self.counts) > 1 else "the reason"
        return f"{often}: {one_line(self.first[kind])}"


def verdict(
    ok: int, failed: int, allowed: int | None, reasons: FailureReasons, *, of: str, listed: str, how: str = "failed"
) -> FailuresError | None:
    """Why a run failed as a whole, None when it did not. `of`, `how`: what its items are and what befell them; `listed`: how to
    see all reasons."""
    if not failed:
        return None
    if allowed is not None and failed > allowed:
        why = f"{failed} {of} {how}, more than the {allowed} allowed"
    elif not ok:
        why = f"all {failed} {of} {how}"
    elif allowed is None and failed > ok:
        why = f"{failed} of {ok + failed} {of} {how} (--max-failures says how many may)"
    else:
        return None
    return FailuresError("; ".join(part for part in (why, reasons.most(), listed) if part))
