"""A gate's accuracy over its cost: the section of a report, and the plot that stands in it and beside the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cos_core.files import jsonl
from cos_core.files.durable import atomic_write
from cos_core.scoring.gate_curve import CURVE, PLOT
from cos_core.visualize.html import Html, element, joined, table, text, uri
from cos_core.visualize.plots import empty, png
from cos_core.visualize.run_sections import amount, signed
from cos_core.visualize.runs import FinishedRun

_NAMES = {"margin": "margin:X", "area_high": "area:0-HIGH", "area_low": "area:LOW-1"}
_STYLES: Mapping[str, Mapping[str, Any]] = {
    "margin": {"color": "#0072B2", "linewidth": 2.2},
    "area_high": {"color": "#D55E00", "linewidth": 1.6},
    "area_low": {"color": "#009E73", "linewidth": 1.6},
}
_ENDS = {"never": ("one pass", "o"), "always": ("two passes", "s"), "oracle": ("a gate that knows", "*")}


def read(folder: Path) -> Mapping[str, Any] | None:
    """The curves that a run's folder holds, with their points; None where it holds none, or none that can be read."""
    file = folder / CURVE
    if not file.is_file():
        return None
    try:
        found = jsonl.decode(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("curves") else None


def draw(folder: Path) -> None:
    """Writes the plot beside the curves in a run's folder, where it holds any. Raises InputError."""
    gate = read(folder)
    if gate is not None:
        atomic_write(folder / PLOT, png(figure(gate)))


def section(runs: Sequence[FinishedRun]) -> Html:
    """For each run that was answered under every gate: the plot, some settings in a table, and what the gate knows. Empty
    without any."""
    parts = []
    for run in runs:
        gate = read(run.path) if run.path.is_dir() else None
        if gate is None:
            continue
        parts += [element("h3", run.name)] if len(runs) > 1 else []
        try:
            parts += [_plot(gate), _table(gate), _knowledge(gate)]
        except (KeyError, TypeError, ValueError):
            parts.append(
                element("p", f"{run.path / CURVE} does not hold what cos eval writes; score the run again.", class_="empty")
            )
    return joined([element("p", _ABOUT), *parts]) if parts else text("")


_ABOUT = (
    "A gate decides which questions get a second look: margin:X those whose plain answer leads by less than X, area:LOW-HIGH "
    "those whose region is so large. Every setting follows from one run that recorded both answers. Read a curve against the "
    "line of chance, which opens for as many questions at random: a gate that lies on it knows nothing. The star opens exactly "
    "where the second look repairs the answer."
)


def figure(gate: Mapping[str, Any]) -> Figure:
    """The headline over the cost of a question, in FLOPs where they are known, else in tokens."""
    drawn, axes = empty(7.2, 4.2)
    in_flops = gate["never"]["flops"] is not None
    for kind, curve in gate["curves"].items():
        _line(axes, curve["points"], in_flops, marker=".", markersize=4, label=_NAMES[kind], **_STYLES[kind])
    margin = gate["curves"].get("margin")
    if margin is not None:
        ends = [margin["points"][0], margin["points"][-1]]
        _line(axes, ends, in_flops, color="#777777", linestyle="--", linewidth=1.2, label="margin by chance")
    for name, (words, marker) in _ENDS.items():
        _line(axes, [gate[name]], in_flops, marker=marker, color="black", linestyle="", label=words)
    axes.set_xlabel("FLOPs a question" if in_flops else "tokens a question, sent and written")
    axes.set_ylabel(f"{gate['metric']} ({gate['unit']})")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8)
    return drawn


def _line(axes: Any, points: Sequence[Mapping[str, Any]], in_flops: bool, **style: Any) -> None:
    known = [(_cost(point, in_flops), point["value"]) for point in points if point["value"] is not None]
    axes.plot([cost for cost, _ in known], [value for _, value in known], **style)


def _cost(point: Mapping[str, Any], in_flops: bool) -> float:
    value = point["flops"] if in_flops else point["sent"] + point["written"]
    return math.nan if value is None else float(value)


def _plot(gate: Mapping[str, Any]) -> Html:
    words = f"{gate['metric']} over the cost of a question, for every setting of the gate: {gate['n']:,} questions"
    return Html(f'<figure><img class="plot" src="{uri("png", png(figure(gate)))}" alt="{text(words)}"></figure>')


def _table(gate: Mapping[str, Any]) -> Html:
    unit = str(gate["unit"])
    rows = [_row("one pass", gate["never"], unit)]
    for curve in gate["curves"].values():
        rows += [_row(row["gate"], row, unit) for row in curve["rows"]]
    rows += [_row("two passes", gate["always"], unit), _row("a gate that knows", gate["oracle"], unit)]
    head = ["Gate", "Second looks", str(gate["metric"]), "By chance", "− one pass", "− two passes", "Tokens", "FLOPs"]
    caption = (
        "Settings of the gate and what each costs a question. Differences with 95 % intervals over the same questions, "
        "pictures resampled. FLOPs: the second pass continues the first, a picture is encoded once."
    )
    return table(caption, head, rows, range(1, len(head)))


def _row(name: str, row: Mapping[str, Any], unit: str) -> Html:
    cells: list[tuple[str, str]] = [(f"{100 * row['looks']:.1f} %", ""), (amount(row["value"], unit), "")]
    cells.append((amount(row["chance"], unit) if "against_never" in row else "", ""))
    cells += [_difference(row.get(key), unit) for key in ("against_never", "against_always")]
    cells.append((f"{row['sent'] + row['written']:,.1f}", f"{row['written']:,.1f} written"))
    cells.append(("–" if row["flops"] is None else f"{row['flops']:.3g}", ""))
    shown = [element("td", joined([value, element("small", below)]) if below else value, class_="n") for value, below in cells]
    return element("tr", joined([element("th", name, scope="row"), *shown]))


def _difference(found: Mapping[str, Any] | None, unit: str) -> tuple[str, str]:
    if found is None or found["difference"] is None:
        return "", ""
    ends = (found["low"], found["high"])
    between = "" if None in ends else f"{signed(ends[0], unit)} to {signed(ends[1], unit)}"
    return signed(found["difference"], unit), between


def _knowledge(gate: Mapping[str, Any]) -> Html:
    unit = str(gate["unit"])
    lines = [words for kind, curve in gate["curves"].items() for words in _sentences(_NAMES[kind], curve, unit)]
    lines += [f"FLOPs are not known: {gate['flops_unknown']}."] if "flops_unknown" in gate else []
    if gate.get("plain_failed"):
        lines.append(
            f"{gate['plain_failed']:,} questions failed in the plain answer, which an area gate would not have asked for."
        )
    if gate.get("without_tokens"):
        lines.append(f"{gate['without_tokens']:,} answers have no counts of tokens and count as free.")
    return element("ul", joined(element("li", line) for line in lines), class_="remarks")


def _sentences(name: str, curve: Mapping[str, Any], unit: str) -> list[str]:
    knows, chosen, lines = curve["knows"], curve["chosen"], []
    if knows["value"] is not None:
        value, *ends = ("" if knows[key] is None else f"{knows[key]:.2f}".replace("-", "−") for key in ("value", "low", "high"))
        between = f" ({' to '.join(ends)})" if all(ends) else ""
        lines.append(
            f"{name} gains {value}{between} of what a gate can gain over chance: 1 is a gate that knows which answers a second "
            "look repairs and which it breaks, 0 is chance."
        )
    if chosen is not None and (knows["value"] or 0) > 0:
        halves = " and ".join(half["gate"] for half in chosen["halves"])
        difference, between = _difference(chosen["others"]["against_always"], unit)
        lines.append(
            f"{chosen['gate']} is the cheapest setting that is not clearly worse than two passes; it was chosen on these very "
            f"questions, which flatters it. Chosen on one half of the pictures and measured on the other, both ways "
            f"({halves}): {difference} ({between}) against two passes."
        )
    return lines
