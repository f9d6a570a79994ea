"""The results as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cos_cli.console import columns

if TYPE_CHECKING:
    from cos_cli.evaluate.suite import Scored
    from cos_core.types import RunManifest


def table(manifest: RunManifest) -> str:
    """The results for a person, one number a line, with its 95 % interval where there is one; the headline comes first."""
    results = manifest.results
    intervals: Mapping[str, Any] = results.get("intervals", {})
    # A list stands for single questions (ScienceQA's per_question): they are in the files, not in a table of aggregates.
    metrics = {name: value for name, value in flat(results.get("metrics", {})) if not isinstance(value, list)}
    if metrics.pop("server_scored", False):
        metrics = {"score": "server-scored", **metrics}
    headline = results.get("headline", {}).get("metric")
    rows = [(name, _number(metrics[name], intervals.get(name))) for name in sorted(metrics, key=lambda name: name != headline)]
    rows += [(name, _number(value, intervals.get(name))) for name, value in flat({"regions": results.get("regions", {})})]
    shares = [f"{name} {share:.1%}" for name, share in results.get("box_status", {}).items() if share]
    rows += [("box status", ", ".join(shares))] if shares else []
    rows.append(("questions", ", ".join(f"{n} {name}" for name, n in manifest.counts.items() if n)))
    return columns(rows)


def overview(runs: Sequence[Scored]) -> str:
    """One line a run: benchmark, arm, headline with interval, answered questions, boxes that could be read."""
    rows: list[tuple[str, ...]] = [("benchmark", "roi", "metric", "value", "95 %", "answered", "boxes read")]
    for each in runs:
        results = each.manifest.results
        head, status = results.get("headline", {}), results.get("box_status", {})
        value, low = head.get("value"), head.get("low")
        shown = "server-scored" if results.get("metrics", {}).get("server_scored") else _number(value, None)
        interval = f"{_number(low, None)} to {_number(head.get('high'), None)}" if low is not None else ""
        read = sum(status.get(name, 0.0) for name in ("ok", "repaired", "clamped"))
        boxes = f"{read / asked:.1%}" if (asked := 1 - status.get("skipped", 0.0)) and status else ""
        counts = f"{each.manifest.counts.get('ok', 0)} of {each.manifest.counts.get('total', 0)}"
        rows.append((each.benchmark, each.arm or "", str(head.get("metric", "")), shown, interval, counts, boxes))
    return columns(rows)


def _number(value: object, interval: Sequence[float] | None) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return f"{text}  [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else text


def flat(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """`{"a": {"b": 1}}` as ("a.b", 1)."""
    for key, value in results.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
