"""Checks of a scored run: limits of metrics, a baseline; and the link to the latest run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cos_core.errors import InputError
from cos_core.interfaces import Reporter
from cos_core.suite.scored import Scored, flat


class Missed(NamedTuple):
    """Messages about figures that fail a check: worse than allowed, or not defined."""

    worse: list[str]
    undefined: list[str]


def link(name: Path, folder: Path) -> None:
    """Points the link `name` at `folder` in one step: a reader sees the old run or the new one."""
    import os

    if name.exists() and not name.is_symlink():
        raise InputError(f"{name} exists and is no link; give --latest another name")
    scratch = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    try:
        name.parent.mkdir(parents=True, exist_ok=True)
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(os.path.relpath(folder.resolve(), name.parent.resolve()))
        scratch.replace(name)
    except OSError as error:
        raise InputError(f"{name} cannot be linked to {folder}: {error.strerror}") from None


def parsed_limits(texts: Sequence[str]) -> dict[str, float]:
    """`METRIC=VALUE` texts as a mapping. Raises InputError."""
    limits: dict[str, float] = {}
    for text in texts:
        name, mark, value = text.rpartition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            mark = ""
        if not mark or not name or math.isnan(limits[name]):
            raise InputError(f"--fail-under takes METRIC=VALUE, such as mean_f1=0.85 or pope.mean_f1=0.85, not {text!r}")
    return limits


def below(runs: Sequence[Scored], limits: Mapping[str, float]) -> Missed:
    """Messages about metrics below their limits, and about limited metrics that are not defined (no number).

    Raises InputError for a metric that no run has.
    """
    worse: list[str] = []
    undefined: list[str] = []
    for name, limit in limits.items():
        values: list[float | None] = []
        for run in runs:
            metrics = dict(flat(run.manifest.results.get("metrics", {})))
            arm = f"{run.arm}." if run.arm else ""
            for prefix in dict.fromkeys((f"{arm}{run.benchmark}.", f"{run.benchmark}.", "")):
                metric = name.removeprefix(prefix)
                if name.startswith(prefix) and metric in metrics and isinstance(value := metrics[metric], int | float | None):
                    values.append(value)
        if not values:
            raise InputError(f"--fail-under: no run has the metric {name!r}")
        for value in values:
            if value is None or math.isnan(value):
                undefined.append(f"{name} is not a number, so it cannot be held against {limit:g}")
            elif value < limit:
                worse.append(f"{name} is {value:g}, below {limit:g}")
    return Missed(worse, undefined)


def against(runs: Sequence[Scored], baseline: Path, reporter: Reporter) -> Missed:
    """Benchmarks that stand significantly below `baseline` (5 %, Holm over all of them), and those without a verdict.

    Raises InputError when a run was made otherwise than the baseline, or the baseline lacks its benchmark.
    """
    from cos_core.evaluate.compare_runs import runs_below
    from cos_core.scoring import comparison

    pairs = []
    for run in runs:
        if run.folder is None:
            raise InputError("--baseline needs --out: a comparison is of finished runs")
        arm = baseline / run.arm if run.arm and (baseline / run.arm).is_dir() else baseline
        theirs, ours = runs_below(arm), runs_below(run.folder)
        if run.benchmark not in theirs:
            raise InputError(f"the baseline {arm} has no run of {run.benchmark}")
        a, b = theirs[run.benchmark], ours[run.benchmark]
        comparison.fair(a, b)
        if a.scores and b.scores:
            pairs.append(comparison.pair(a, b, names=(str(arm), str(run.folder))))
    missed = Missed([], [])
    for result in comparison.adjusted(pairs):
        if result.undefined:
            missed.undefined.append(f"{result.metric} of {result.benchmark} against the baseline: {result.undefined}")
            continue
        gap = f"{result.metric} of {result.benchmark}: {result.found.a:.4g} -> {result.found.b:.4g}"
        reporter.note(f"baseline: {gap}, p {result.p_holm:.3g} (Holm), {result.verdict}")
        if result.verdict == "worse":
            missed.worse.append(f"{gap} (p {result.p_holm:.3g}, {len(result.lost)} questions lost, {len(result.won)} won)")
    return missed
