"""What the crop did in finished runs: `facts` reads a run's answers and regions, `effect` sets a run against its reference.

`told` does both for every pair of a comparison, and for what its arms say together. The figures are scoring/effects.py's and
scoring/arm_effects.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cos_core.evaluate.compare_runs import RunComparison
from cos_core.scoring import arm_effects, statistics
from cos_core.scoring.arm_effects import Split, TokenGap
from cos_core.scoring.comparison import ScoredRun
from cos_core.scoring.effects import Effect, effect
from cos_core.scoring.facts import Facts
from cos_core.scoring.facts import read as facts


@dataclass(slots=True)
class Told:
    """`effects`: one for each comparison, in its order; `splits` and `tokens`: of arms that are among the runs."""

    effects: list[Effect] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    tokens: list[TokenGap] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: three lists by name."""
        return {name: [each.to_json() for each in getattr(self, name)] for name in ("effects", "splits", "tokens")}


def told(outcome: RunComparison, *, replicates: int = statistics.REPLICATES, seed: int = 0) -> Told:
    """Every pair that `compare` compared, and the splits and tokens of the runs, benchmark by benchmark."""
    result = Told()
    for benchmark in dict.fromkeys(pair.benchmark for pair in outcome.comparisons):
        pairs = [pair for pair in outcome.comparisons if pair.benchmark == benchmark]
        names = dict.fromkeys([name for pair in pairs for name in (pair.a, pair.b)])
        runs: Mapping[str, ScoredRun] = {name: outcome.runs[name][benchmark] for name in names}
        known = {name: facts(run) for name, run in runs.items()}
        for pair in pairs:
            a, b = runs[pair.a], runs[pair.b]
            result.effects.append(effect(a, b, known[pair.b], names=(pair.a, pair.b), replicates=replicates, seed=seed))
        result.splits += arm_effects.splits(runs, replicates, seed)
        result.tokens += arm_effects.token_gaps(runs, known)
    return result


__all__ = ["Effect", "Facts", "Split", "TokenGap", "Told", "effect", "facts", "told"]
