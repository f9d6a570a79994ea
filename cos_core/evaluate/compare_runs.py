"""Compares finished runs: differences, their intervals and tests, and the questions that flipped. Reads scores only.

The first run is the reference. comparison.py compares two runs; p-values are Holm's over every test of one call.
Runs whose protocols differ are not compared unless the field is named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.evaluate import stage as evaluate
from cos_core.files import manifest
from cos_core.scoring import comparison, samples, statistics
from cos_core.scoring.columns import Scores
from cos_core.scoring.comparison import Comparison, ScoredRun
from cos_core.types import Score


@dataclass(slots=True)
class RunComparison:
    """All comparisons of one call, messages about what was skipped, and the runs by the names that the comparisons use."""

    comparisons: list[Comparison] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    runs: Mapping[str, Mapping[str, ScoredRun]] = field(default_factory=dict)

    def flips(self, most: int | None = None) -> Iterator[dict[str, Any]]:
        """Every flipped question of every comparison; at most `most` of each kind."""
        for pair in self.comparisons:
            listed = pair if most is None else replace(pair, won=pair.won[:most], lost=pair.lost[:most])
            a, b = (samples.folded(self.runs[name][pair.benchmark].samples).by_id() for name in (pair.a, pair.b))
            yield from comparison.flipped(listed, a, b)


def runs_below(path: Path, like: Mapping[str, ScoredRun] | None = None) -> dict[str, ScoredRun]:
    """The finished benchmarks of a run by name: the folder's own, or one a sub-folder. `like`: a run of the same questions.

    Raises InputError when there is none, or two of one benchmark (a run of several arms: name one arm's folder).
    """
    folders = [path] if (path / manifest.FILE).is_file() else sorted(p.parent for p in path.glob(f"*/{manifest.FILE}"))
    runs: dict[str, ScoredRun] = {}
    like = dict(like or {})
    for folder in folders:
        finished = manifest.read(folder)
        if finished.stage != "eval":
            continue
        scores: Sequence[Score] = ()
        if (folder / evaluate.SCORES).is_file():
            other = like.get(str(finished.results.get("benchmark", "?")))
            known = other.scores.ids if other is not None and isinstance(other.scores, Scores) else None
            scores = evaluate.read_scores(folder, known)
        run = ScoredRun(folder, finished, scores, samples.read_further(folder, finished.results, scores))
        if run.benchmark in runs:
            raise InputError(f"{path} holds two runs of {run.benchmark}: {runs[run.benchmark].path} and {folder}")
        runs[run.benchmark] = run
    if not runs:
        arms = sorted({p.parent.parent.name for p in path.glob(f"*/*/{manifest.FILE}")})
        advice = f"; name one of its arms: {', '.join(arms)}" if arms else ""
        raise InputError(f"{path} holds no finished run of cos eval{advice}")
    return runs


def compare(
    paths: Sequence[Path], *, despite: Collection[str] = (), replicates: int = statistics.REPLICATES, seed: int = 0
) -> RunComparison:
    """Every later run against the first, benchmark by benchmark, over those that both have.

    `despite`: protocol fields that may differ ("all" for any). Raises InputError when the runs share no benchmark,
    or when another field of their protocols differs, naming it.
    """
    if len(paths) < 2:
        raise InputError("a comparison needs at least two runs")
    reference = runs_below(paths[0])
    others = [runs_below(path, reference) for path in paths[1:]]
    runs = [reference, *others]
    outcome = RunComparison(runs=dict(zip(map(str, paths), runs, strict=True)))
    for path, other in zip(paths[1:], others, strict=True):
        shared = [name for name in reference if name in other]
        if not shared:
            raise InputError(f"{paths[0]} ({', '.join(reference)}) and {path} ({', '.join(other)}) share no benchmark")
        outcome.skipped += [f"{name}: only in {paths[0]}" for name in reference if name not in other]
        outcome.skipped += [f"{name}: only in {path}" for name in other if name not in reference]
        for name in shared:
            a, b = reference[name], other[name]
            differs = comparison.fair(a, b, despite)
            if not a.scores or not b.scores:
                outcome.skipped.append(f"{name}: scored by a server, no scores to compare")
                continue
            names = (str(paths[0]), str(path))
            outcome.comparisons.append(comparison.pair(a, b, names=names, differs=differs, replicates=replicates, seed=seed))
    outcome.comparisons = comparison.adjusted(outcome.comparisons)
    return outcome
