"""Finished runs against each other: what changed, how sure that is, and which questions flipped. Reads scores only.

The first run is the reference. A difference is of the benchmark's own headline (an F1, points), both runs resampled together by
image; p-values are Holm's over every test of one call. Runs whose protocols differ are not compared unless the field is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cos_core import evaluate, manifest, metrics, plug, statistics
from cos_core.errors import CosError, InputError
from cos_core.interfaces import Benchmark, BenchmarkData
from cos_core.metrics import Estimate
from cos_core.statistics import AggregateDifference, Floats
from cos_core.types import RunManifest, Score

ARM = ("policy",)
"""Fields of the protocol that may differ: they are what is compared."""

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class EvalRun:
    """One scored benchmark of a run."""

    path: Path
    manifest: RunManifest
    scores: Sequence[Score]

    @property
    def benchmark(self) -> str:
        return str(self.manifest.results.get("benchmark", "?"))

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for a fair comparison, the questions themselves included."""
        data = self.manifest.inputs.get("data", {}).get("questions_sha256")
        return {**self.manifest.results.get("protocol", {}), "data": data}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run `b` against the reference `a` on one benchmark. `p_holm` is set when all comparisons of a call are known.

    `unit` is the metric's; `test` names where `p` comes from; `won`, `lost`: ids that B got right (or better) and A did not,
    and the other way round; `differs`: protocol fields that were let pass.
    """

    benchmark: str
    a: str
    b: str
    metric: str
    unit: str
    found: AggregateDifference
    p: float
    test: str
    n: int
    won: Sequence[str]
    lost: Sequence[str]
    differs: Sequence[str] = ()
    p_holm: float = 1.0
    only_a: int = 0
    only_b: int = 0

    @property
    def verdict(self) -> str:
        """better, worse or unclear, at 5 % after Holm."""
        if self.p_holm >= LEVEL:
            return "unclear"
        return "better" if self.found.difference > 0 else "worse"

    def to_json(self) -> dict[str, Any]:
        own = {key: getattr(self, key) for key in ("benchmark", "a", "b", "metric", "unit", "p", "p_holm", "test", "n")}
        flips = {"won": list(self.won), "lost": list(self.lost), "differs": list(self.differs)}
        rest = {key: value for key, value in self.found.to_json().items() if key not in ("a", "b", "p")}
        values = {"value_a": self.found.a, "value_b": self.found.b, "only_a": self.only_a, "only_b": self.only_b}
        return {**own, **values, **rest, **flips, "verdict": self.verdict}


@dataclass(slots=True)
class Outcome:
    """All comparisons of one call, what could not be compared (in words), and the runs by the comparisons' names for them."""

    comparisons: list[Comparison] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    runs: Mapping[str, Mapping[str, EvalRun]] = field(default_factory=dict)

    def flips(self) -> list[dict[str, Any]]:
        """Every flipped question of every comparison."""
        rows = []
        for each in self.comparisons:
            sides = [{score.example_id: score for score in self.runs[name][each.benchmark].scores} for name in (each.a, each.b)]
            rows += flipped(each, *sides)
        return rows


def runs_below(path: Path) -> dict[str, EvalRun]:
    """The finished benchmarks of a run by name: the folder's own, or one a sub-folder.

    Raises InputError when there is none, or two of one benchmark (a run of several arms: name one arm's folder).
    """
    folders = [path] if (path / manifest.FILE).is_file() else sorted(p.parent for p in path.glob(f"*/{manifest.FILE}"))
    found: dict[str, EvalRun] = {}
    for folder in folders:
        read = manifest.read(folder)
        if read.stage != "eval":
            continue
        run = EvalRun(folder, read, evaluate.read_scores(folder) if (folder / evaluate.SCORES).is_file() else ())
        if run.benchmark in found:
            raise InputError(f"{path} holds two runs of {run.benchmark}: {found[run.benchmark].path} and {folder}")
        found[run.benchmark] = run
    if not found:
        arms = sorted({p.parent.parent.name for p in path.glob(f"*/*/{manifest.FILE}")})
        advice = f"; name one of its arms: {', '.join(arms)}" if arms else ""
        raise InputError(f"{path} holds no finished run of cos eval{advice}")
    return found


def compare(
    paths: Sequence[Path], *, despite: Collection[str] = (), replicates: int = statistics.REPLICATES, seed: int = 0
) -> Outcome:
    """Every later run against the first, benchmark by benchmark, over those that both have.

    `despite`: protocol fields whose difference is let pass ("all" for any). Raises InputError when the runs share no benchmark,
    or when another field of their protocols differs, naming it.
    """
    if len(paths) < 2:
        raise InputError("a comparison needs at least two runs")
    reference, *others = runs = [runs_below(path) for path in paths]
    outcome = Outcome(runs=dict(zip(map(str, paths), runs, strict=True)))
    for path, other in zip(paths[1:], others, strict=True):
        shared = [name for name in reference if name in other]
        if not shared:
            raise InputError(f"{paths[0]} ({', '.join(reference)}) and {path} ({', '.join(other)}) share no benchmark")
        outcome.skipped += [f"{name}: only in {paths[0]}" for name in reference if name not in other]
        outcome.skipped += [f"{name}: only in {path}" for name in other if name not in reference]
        for name in shared:
            a, b = reference[name], other[name]
            differs = fair(a, b, despite)
            if not a.scores or not b.scores:
                outcome.skipped.append(f"{name}: scored by a server, no scores to compare")
                continue
            names = (str(paths[0]), str(path))
            outcome.comparisons.append(pair(a, b, names=names, differs=differs, replicates=replicates, seed=seed))
    outcome.comparisons = adjusted(outcome.comparisons)
    return outcome


def fair(a: EvalRun, b: EvalRun, despite: Collection[str] = ()) -> list[str]:
    """The protocol fields in which the runs differ and may (`despite`). Raises InputError for any other that differs."""
    first, second = a.protocol, b.protocol
    differing = [key for key in dict.fromkeys([*first, *second]) if key not in ARM and first.get(key) != second.get(key)]
    refused = [key for key in differing if key not in despite and "all" not in despite]
    if refused:
        said = "; ".join(f"{key}: {_short(first.get(key))} against {_short(second.get(key))}" for key in refused)
        raise InputError(f"{a.path} and {b.path} were not made alike ({said}); --despite {refused[0]} lets that pass")
    return differing


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with Holm's p-values over all of them."""
    p_values = statistics.holm([c.p for c in comparisons])
    return [replace(c, p_holm=p) for c, p in zip(comparisons, p_values, strict=True)]


def pair(
    a: EvalRun,
    b: EvalRun,
    *,
    names: tuple[str, str],
    differs: Sequence[str] = (),
    replicates: int = statistics.REPLICATES,
    seed: int = 0,
) -> Comparison:
    """One benchmark of two runs, over the questions that both scored. Raises InputError when they share none."""
    of_b = {score.example_id: score for score in b.scores}
    first = [score for score in a.scores if score.example_id in of_b]
    second = [of_b[score.example_id] for score in first]
    if not first:
        raise InputError(f"{a.path} and {b.path} have no question in common")
    benchmark, head = _benchmark(a), a.manifest.results.get("headline", {})
    name = str(head.get("metric", "accuracy"))
    of_first, of_second = (_estimate(benchmark, a, scores, name) for scores in (first, second))
    images = [score.groups.get(metrics.IMAGE, score.example_id) for score in first]
    found = statistics.aggregate_difference(
        of_first.columns, of_second.columns, images, _scaled(of_first), replicates=replicates, seed=seed
    )
    won = [x.example_id for x, y in zip(first, second, strict=True) if y.value > x.value]
    lost = [x.example_id for x, y in zip(first, second, strict=True) if y.value < x.value]
    exact = _is_exact(of_first, of_second, images)
    return Comparison(
        benchmark=a.benchmark,
        a=names[0],
        b=names[1],
        metric=name,
        unit=str(head.get("unit", "fraction")),
        found=found,
        p=statistics.mcnemar(*_discordant(of_first, of_second)) if exact else found.p,
        test="exact McNemar" if exact else "runs swapped image by image",
        n=len(first),
        won=won,
        lost=lost,
        differs=differs,
        only_a=len(a.scores) - len(first),
        only_b=len(b.scores) - len(first),
    )


def _benchmark(run: EvalRun) -> Benchmark | None:
    """The benchmark that scored the run; None when it cannot be found any more (a plug-in file that has moved)."""
    config = run.manifest.config
    options = {key: config[key] for key in ("split", "scorer") if config.get(key) is not None}
    try:
        made: Benchmark = plug.load("benchmarks", str(config.get("benchmark", run.benchmark)), **options)
    except (CosError, TypeError):
        return None
    return made


def _estimate(benchmark: Benchmark | None, run: EvalRun, scores: Sequence[Score], name: str) -> Estimate:
    """The headline as a statistic of sums; the mean score where the benchmark does not say."""
    make = getattr(benchmark, "estimates", None)
    data = BenchmarkData(run.benchmark, str(run.protocol.get("split", "")), (), Path(), dict(run.protocol))
    found: Iterable[Estimate] = make(data, list(scores)) if make else ()
    return next((estimate for estimate in found if estimate.name == name), metrics.mean_estimate(name, scores))


def _scaled(estimate: Estimate) -> Callable[[Floats], Floats]:
    """The statistic in the metric's units."""
    return lambda sums: estimate.scale * estimate.statistic(sums)


def _counted(estimate: Estimate) -> Any:
    return estimate.columns[:, 1] == 1 if estimate.columns.shape[1] == 2 else np.zeros(len(estimate.columns), dtype=bool)


def _is_exact(a: Estimate, b: Estimate, images: Sequence[str]) -> bool:
    """Whether both are means of zeros and ones over the same questions, one on an image: then McNemar's test is exact."""
    if a.statistic is not statistics.ratio or b.statistic is not statistics.ratio:
        return False
    rows = _counted(a)
    if not np.array_equal(rows, _counted(b)):
        return False
    binary = statistics.is_binary(a.columns[rows, 0]) and statistics.is_binary(b.columns[rows, 0])
    alone = [images[row] for row in np.flatnonzero(rows).tolist()]
    return binary and len(set(alone)) == len(alone)


def _discordant(a: Estimate, b: Estimate) -> tuple[int, int]:
    gap = b.columns[:, 0] - a.columns[:, 0]
    return int(np.count_nonzero(gap > 0)), int(np.count_nonzero(gap < 0))


def flipped(comparison: Comparison, a: Mapping[str, Score], b: Mapping[str, Score]) -> list[dict[str, Any]]:
    """The questions that changed sides, with what was read from each run's answer."""
    rows = []
    for kind, ids in (("won", comparison.won), ("lost", comparison.lost)):
        for example_id in ids:
            x, y = a[example_id], b[example_id]
            row = {
                "benchmark": comparison.benchmark,
                "run": comparison.b,
                "id": example_id,
                "flip": kind,
                "expected": x.expected,
            }
            rows.append({**row, "a": x.extracted, "b": y.extracted, "value_a": x.value, "value_b": y.value})
    return rows
