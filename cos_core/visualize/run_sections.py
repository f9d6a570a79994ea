"""The parts of a report that are tables: runs with their intervals, all metrics, differences, protocol, what is amiss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cos_core.scoring import comparison
from cos_core.scoring.comparison import Comparison
from cos_core.visualize.html import Html, element, joined, percent, share_bar, table
from cos_core.visualize.runs import FinishedRun

_FULL_SCALE = {"fraction": 1.0, "percent": 100.0}


def amount(value: object, unit: str = "") -> str:
    """A number for a person: shares as percent, anything else as it is; a dash for nothing, a word for nan."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if math.isnan(value):
        return "undefined"
    if unit == "fraction":
        return percent(value)
    if unit == "percent":
        return f"{value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def runs_table(runs: Sequence[FinishedRun], looked_at: FinishedRun) -> Html:
    """One row for each run: headline with its interval, questions, how its boxes were read, policy and profile."""
    roles = ["method" if run is looked_at else "arm" for run in runs]
    rows = [element("tr", joined(_run_cells(run, role)), class_=role) for run, role in zip(runs, roles, strict=True)]
    head = ["Run", "Score", "with 95 % interval", "Answered", "Region hits", "Box not usable", "Policy, profile"]
    caption = (
        "Every run as cos eval scored it; a dash where a run does not say. “Region hits”: the region holds the centre of the "
        "right object; below it the regions' mean share of the picture, as a large region hits easily."
    )
    return table(caption, head, rows, numbers=(2, 3, 4, 5))


def _run_cells(run: FinishedRun, role: str) -> list[Html]:
    headline: Mapping[str, Any] = run.results.get("headline", {})
    unit, value = str(headline.get("unit", "")), headline.get("value")
    low, high = headline.get("low"), headline.get("high")
    ends = None if low is None or high is None else f"{amount(low, unit)} to {amount(high, unit)}"
    chart: object = ""
    if isinstance(value, int | float) and unit in _FULL_SCALE:
        scale = _FULL_SCALE[unit]
        whisker = None if low is None or high is None else (low / scale, high / scale)
        words = f"{headline.get('metric')}: {amount(value, unit)}{f', 95 % interval {ends}' if ends else ''}"
        chart = share_bar(value / scale, whisker, role, words)
    counts = run.manifest.counts if run.manifest else {}
    answered = run.summary.answered
    total = len(run.scores) or len(run.predictions)
    failed = counts.get("failed", run.summary.failed)
    beside = {name.replace("_", " "): n for name, n in run.results.get("beside", {}).items()}
    named = {"failed": failed, "missing": counts.get("missing", 0), **beside}
    below = ", ".join(f"{n:,} {name}" for name, n in named.items() if n)
    below += f"; only the first {run.protocol['limit']:,} questions" if run.protocol.get("limit") else ""
    unused, requested = run.summary.unread, run.summary.requested
    regions: Mapping[str, Any] = run.results.get("regions", {})
    how = [_listed(run.protocol.get(key)) or _recorded_values(run, key) for key in ("policy", "profile")]
    how += [_listed(run.protocol.get("pixel_budget")), *_look_words(run)]
    return [
        element("th", joined([run.name, element("small", run.about or run.benchmark or "not scored")]), scope="row"),
        element("td", chart, class_="chart"),
        element("td", joined([amount(value, unit), *_below_score(run, ends)]), class_="n"),
        _cell(f"{answered:,} / {total:,}", below),
        _cell(percent(regions.get("hit")), "; ".join(_region_words(regions))),
        _cell(percent(unused / requested) if requested else "–", f"{unused:,} of {requested:,}" if requested else ""),
        element("td", ", ".join(words for words in how if words) or "–"),
    ]


def _some(kind: str, count: int, total: int) -> str:
    return kind if count == total else f"{kind} ({count:,} of {total:,})"


def _below_score(run: FinishedRun, ends: str | None) -> Iterator[Html]:
    """The score's interval; of a run with several samples also avg@k and maj@k with theirs, the score being of the first."""
    found: Mapping[str, Any] = run.results.get("samples", {})
    figures = [(f"{kind}@{found['k']}", found[kind]) for kind in ("avg", "maj") if kind in found]
    if ends:
        yield element("small", f"{ends} (sample 1)" if figures else ends)
    for name, figure in figures:
        unit, low, high = figure["unit"], figure["low"], figure["high"]
        between = "" if low is None else f" ({amount(low, unit)} to {amount(high, unit)})"
        yield element("small", f"{name} {amount(figure['value'], unit)}{between}")


def _region_words(regions: Mapping[str, Any]) -> Iterator[str]:
    if regions.get("area") is not None:
        yield f"{percent(regions['area'])} of the picture"
    if regions.get("usable", 0) < regions.get("n", 0):
        yield f"{regions['usable']:,} of {regions['n']:,} usable"


def _look_words(run: FinishedRun) -> list[str]:
    """What the run's answers say of their second looks: their share under a gate, what they showed, samples."""
    looks = dict(run.summary.looks)
    opened, closed = looks.pop("gate open", 0), looks.pop("gate closed", 0)
    words = [f"second look at {opened:,} of {opened + closed:,}"] if opened + closed else []
    words += [f"second picture: {_some(kind, n, run.summary.answered)}" for kind, n in sorted(looks.items())]
    return [*words, *([f"{run.summary.samples} samples"] if run.summary.samples else [])]


def metrics_table(runs: Sequence[FinishedRun]) -> Html | None:
    """Every metric of every run with its interval; None when no run has any."""
    metrics_of = [dict(_flat(run.results.get("metrics", {}))) | _regions(run) for run in runs]
    names = list(dict.fromkeys(name for metrics in metrics_of for name in metrics))
    if not names:
        return None
    rows = []
    for name in names:
        cells = [element("th", name, scope="row")]
        for run, metrics in zip(runs, metrics_of, strict=True):
            ends = run.results.get("intervals", {}).get(name)
            cells.append(_cell(amount(metrics.get(name)), f"{amount(ends[0])} to {amount(ends[1])}" if ends else ""))
        rows.append(element("tr", joined(cells)))
    return table(
        "Metrics in the benchmark's own units, with 95 % intervals.",
        ["Metric", *(r.name for r in runs)],
        rows,
        range(1, len(runs) + 1),
    )


def comparisons(runs: Sequence[FinishedRun]) -> tuple[list[Comparison], list[str]]:
    """Every further scored run against the first, as `cos eval compare` computes it, and what is not compared, in words."""
    scored = [run for run in runs if len(run.scores)]
    pairs, refused = [], [f"{run.name}: its answers are not scored" for run in runs if not run.scores]
    for other in scored[1:]:
        first = scored[0]
        a, b = (run.scored() for run in (first, other))
        if a is None or b is None:
            refused.append(
                f"{other.name} and {first.name}: a run that is not finished does not say by which metric it is scored"
            )
        elif a.benchmark != b.benchmark:
            refused.append(f"{other.name} and {first.name}: {b.benchmark} and {a.benchmark} are two benchmarks")
        else:
            pairs.append(comparison.pair(a, b, names=(first.name, other.name), differs=comparison.differing(a, b)))
    return comparison.adjusted(pairs), refused if len(runs) > 1 else []


def differences_table(compared: Sequence[Comparison], refused: Sequence[str]) -> Html | None:
    """A row a comparison, and below what was not compared; None when there is neither."""
    rows = []
    for each in compared:
        interval, unit = each.found, each.unit
        sign = {"better": "yes", "worse": "no"}.get(each.verdict, "same")
        only = f"{each.only_a + each.only_b:,} in one run only" if each.only_a + each.only_b else ""
        words = f"{each.metric}, {'points' if unit in _FULL_SCALE else unit}"
        words += "".join(
            f", {name}: mean of {n} samples" for name, n in zip((each.a, each.b), each.samples, strict=True) if n > 1
        )
        cells = [
            element("th", joined([f"{each.b} − {each.a}", element("small", words)]), scope="row"),
            _cell(
                element("span", signed(interval.difference, unit), class_=sign),
                f"{signed(interval.low, unit)} to {signed(interval.high, unit)}",
            ),
            _cell(f"{len(each.won):,} / {len(each.lost):,}"),
            _cell(_two_digits(each.p_holm), f"{_two_digits(each.p)} before Holm, {each.test}"),
            element("td", joined([each.verdict, element("small", each.undefined)]) if each.undefined else each.verdict),
            _cell(f"{each.n:,}", only),
        ]
        rows.append(element("tr", joined(cells)))
    notes = [
        f"{each.b} and {each.a} were not made alike: they differ in {', '.join(each.differs)}."
        for each in compared
        if each.differs
    ]
    notes += [f"Not compared: {words}." for words in refused]
    listed = element("ul", joined(element("li", words) for words in notes), class_="remarks") if notes else None
    if not rows:
        return listed
    caption = (
        "The benchmark's own headline, the run named first minus the other, on the questions that both scored, with its 95 % "
        "interval: the figures of cos eval compare. Images are resampled, p-values are Holm's over this table."
    )
    head = ["Difference", "of the headline", "Gained / lost questions", "p", "Verdict", "Questions"]
    differences = table(caption, head, rows, (1, 2, 3, 5))
    return differences if listed is None else joined([differences, listed])


def remarks(runs: Sequence[FinishedRun], more: Sequence[str] = ()) -> Html | None:
    """The list of the runs' remarks and of `more` (remarks on pictures); None when both are empty."""
    lines = [f"{run.name}: {remark}" for run in runs for remark in run.remarks] + list(more)
    return element("ul", joined(element("li", line) for line in lines), class_="remarks") if lines else None


def provenance(run: FinishedRun) -> dict[str, Any]:
    """What a reader needs to repeat the run: path, protocol, settings, seed and versions."""
    if run.manifest is None:
        return {"path": str(run.path)}
    record = run.manifest
    parts: dict[str, Any] = {"path": str(run.path), "status": record.status, "finished": record.finished, "seed": record.seed}
    return parts | dict(run.protocol) | {k: v for k, v in record.config.items() if v is not None} | dict(record.versions)


def _regions(run: FinishedRun) -> dict[str, Any]:
    regions = run.results.get("regions", {})
    return {f"regions.{name}": value for name, value in _flat(regions) if not name.startswith("kinds.")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def signed(value: float, unit: str = "fraction") -> str:
    """A difference for a person: of shares and percentages in points, "+51.1"; of anything else with three decimals."""
    if math.isnan(value):
        return "undefined"
    words = f"{100 * value / _FULL_SCALE[unit]:+.1f}" if unit in _FULL_SCALE else f"{value:+.3f}"
    return words.replace("-", "−")


def _two_digits(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2g}"


def _recorded_values(run: FinishedRun, key: str) -> str:
    """The values of `key` (policy or profile) in the run's predictions."""
    return _listed(sorted(run.summary.settings[key]))


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "")


def _cell(value: object, below: str = "") -> Html:
    return element("td", joined([value, element("small", below)]) if below else value, class_="n")
