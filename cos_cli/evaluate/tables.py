"""The results as a person reads them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cos_cli.console import columns
from cos_cli.evaluate import gate_table
from cos_cli.evaluate.figures import WIDTH, interval, number
from cos_core.files.text import Lines, escaped
from cos_core.suite.scored import Scored, flat

if TYPE_CHECKING:
    from cos_core.types import RunManifest


def table(manifest: RunManifest) -> Lines:
    """The results for a person: how they were made, then one number a line, with its 95 % interval where there is one; the
    headline comes first."""
    from cos_core.evaluate.counted import remark_lines

    results = manifest.results
    intervals: Mapping[str, Any] = results.get("intervals", {})
    # A list stands for single questions (ScienceQA's per_question): they are in the files, not in a table of aggregates.
    metrics = {name: value for name, value in flat(results.get("metrics", {})) if not isinstance(value, list)}
    if metrics.pop("server_scored", False):
        metrics = {"score": "server-scored", **metrics}
    head = results.get("headline", {})
    unit = str(head.get("unit", "fraction"))
    order = sorted(metrics, key=lambda name: name != head.get("metric"))
    rows = [("metric", unit, "95 %")]
    rows += [(name, number(metrics[name], unit), interval(intervals.get(name), unit)) for name in order]
    rows[2:2] = [
        (f"{name} {figure['metric']}", number(figure["value"], unit), interval(_ends(figure), unit))
        for name, figure in sample_figures(results)
    ]
    for name, value in flat({"regions": results.get("regions", {})}):
        rows.append((name, number(value, "fraction"), interval(intervals.get(name), "fraction")))
    shares = [f"{name} {share:.1%}" for name, share in results.get("box_status", {}).items() if share]
    counts = ", ".join(f"{n} {name}" for name, n in manifest.counts.items() if n and name != "reordered")
    counts += f"; the official split has {results['n_official']:,}" if "n_official" in results else ""
    below = ["boxes: " + ", ".join(shares)] if shares else []
    regions = results.get("regions", {})
    below += [f"regions: {regions['usable']:,} of {regions['n']:,} boxes usable; the others are no hits"] if regions else []
    below += sample_words(results)
    below += [f"beside the score: {words}" for words in remark_lines(results.get("beside", {}))]
    if recorded := results.get("recorded"):
        about = f"recorded by {recorded['harness']} of {recorded['model'] or 'a model without name'}, to its own prompts"
        below += textwrap.wrap(escaped(f"{about}; questions found by {recorded['found_by']}"), WIDTH)
    below += (
        textwrap.wrap(escaped(f"joined in part only: {results['partial_join']}"), WIDTH) if "partial_join" in results else []
    )
    below += [f"PARTIAL: {partial}"] if (partial := limited(results)) else []
    gated = [*gate_table.lines(results["gate"]), ""] if "gate" in results else []
    return Lines([_protocol_line(results.get("protocol", {})), "", columns(rows), "", *gated, *below, f"questions: {counts}"])


def sample_figures(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """avg@k and maj@k by these names, each {metric, value, unit, low, high}; none for one answer a question."""
    found = results.get("samples", {})
    return [(f"{kind}@{found['k']}", found[kind]) for kind in ("avg", "maj") if kind in found]


def sample_words(results: Mapping[str, Any]) -> list[str]:
    """Words for a run with several samples: how many, how often they agree, and what the other figures are of."""
    found = results.get("samples")
    if not found:
        return []
    agree = f", the same in all on {found['agree']:.1%} of the questions" if found.get("agree") is not None else ""
    reason = f"; {found['reason']}" if "reason" in found else ""
    words = f"samples: {found['k']} answers a question{agree}; all but avg and maj is of the first sample{reason}"
    return textwrap.wrap(words, WIDTH)


def _ends(figure: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if figure.get("low") is None else (figure["low"], figure["high"])


def limited(results: Mapping[str, Any]) -> str:
    """Words for a score of the first questions only; empty for one of all."""
    limit = results.get("protocol", {}).get("limit")
    return f"only the first {results['n']:,} questions (--limit {limit}), no score of the benchmark" if limit else ""


def _protocol_line(protocol: Mapping[str, Any]) -> str:
    """`pope, split coco; scorer official; profile paper; policy none`: the simple fields of a protocol."""
    parts = [f"{protocol.get('benchmark', '?')}, split {protocol.get('split', '?')}"]
    for name, value in protocol.items():
        if name not in ("benchmark", "split") and isinstance(value, str):
            parts.append(f"{name.replace('_', ' ')} {value}")
    return "; ".join(parts)


def overview(runs: Sequence[Scored]) -> Lines:
    """One line a run: benchmark, arm, headline with interval, answered questions, boxes that could be read; below it avg@k and
    maj@k of a run with several samples."""
    rows: list[tuple[str, ...]] = [("benchmark", "roi", "metric", "value", "95 %", "answered", "unread", "boxes")]
    for each in runs:
        results = each.manifest.results
        head, status = results.get("headline", {}), results.get("box_status", {})
        unit = str(head.get("unit", "fraction"))
        scored = not results.get("metrics", {}).get("server_scored")
        shown = number(head.get("value"), unit) if scored else "server-scored"
        read = sum(status.get(name, 0.0) for name in ("ok", "repaired", "clamped"))
        boxes = f"{read / requested:.1%}" if (requested := 1 - status.get("skipped", 0.0)) and status else ""
        counts = f"{each.manifest.counts.get('ok', 0)}/{each.manifest.counts.get('total', 0)}"
        counts += " (--limit)" if limited(results) else ""
        unread = sum(results.get("beside", {}).values())
        between = interval(_ends(head), unit)
        rows.append(
            (each.benchmark, each.arm or "", str(head.get("metric", "")), shown, between, counts, str(unread or ""), boxes)
        )
        for name, figure in sample_figures(results):
            rows.append(("", "", name, number(figure["value"], unit), interval(_ends(figure), unit), "", "", ""))
    return columns(rows)
