"""`cos store stats`: what a store holds, in numbers, over millions of annotations."""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cos_core.interfaces import Reporter
from cos_core.scoring.box_tally import BoxTally
from cos_core.store.annotations import Store

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MOST_REASONS, OTHERS = 50, "(others)"
"""Most reasons that are counted one by one, and the name that the others share: a failure's reason may name its file."""


def statistics(path: Path, reporter: Reporter) -> dict[str, Any]:
    """Counts by policy, status and reason; of the boxes area, aspect (fractions of the picture) and offset of the centre as
    `BoxTally` gives them; quantiles of the boxes' scores.

    Read in pieces; what grows with the store are the scores, 8 bytes each. Raises InputError for a store that cannot be read.
    """
    tally, policies = BoxTally(), Counter[str]()
    reasons: dict[str, Counter[str]] = {"no region": Counter(), "failed": Counter()}
    scores = array("d")
    with Store.read(path) as store:
        info = store.info()
        total, done = info["annotations"] + info["failures"], 0
        for piece in store.columns():
            boxed = ~np.isnan(piece.boxes[:, 0])
            tally.add_many(piece.boxes[boxed], "labelled")
            tally.status["no region"] += int((~boxed).sum())
            policies.update(piece.policies)
            scores.frombytes(piece.scores[boxed].tobytes())
            for place in np.flatnonzero(~boxed).tolist():
                _count(reasons["no region"], piece.reasons[place] or "")
            done += len(boxed)
            reporter.progress("stats", done, total)
        for _, reason in store.failures():
            tally.status["failed"] += 1
            _count(reasons["failed"], reason)
        if done < total:
            reporter.progress("stats", total, total)
    tally.status = Counter({name: count for name, count in tally.status.items() if count})
    # quantile refuses an empty array.
    ranked = np.quantile(np.frombuffer(scores), QUANTILES, overwrite_input=True).tolist() if scores else [None] * len(QUANTILES)
    return {
        **tally.to_json(),
        "policies": dict(policies.most_common()),
        "reasons": {status: dict(counts.most_common()) for status, counts in reasons.items() if counts},
        "score": {f"q{round(100 * q):02d}": value for q, value in zip(QUANTILES, ranked, strict=True)},
        "heats": info["heats"],
        "bytes": info["bytes"],
    }


def _count(reasons: Counter[str], reason: str) -> None:
    reasons[reason if reason in reasons or len(reasons) < MOST_REASONS else OTHERS] += 1
