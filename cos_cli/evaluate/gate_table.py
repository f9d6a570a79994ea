"""The gate of a run in a few rows: settings with accuracy and cost beside one pass, two passes and a gate that knows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from cos_cli.console import columns
from cos_cli.evaluate.figures import WIDTH, interval, number
from cos_core.files.text import escaped

_SHOWN = 4
"""Settings of one curve between its ends."""
_PREFIXES = ("", " k", " M", " G", " T", " P", " E")
_NAMES = {"margin": "margin:X", "area_high": "area:0-HIGH", "area_low": "area:LOW-1"}


def lines(gate: Mapping[str, Any]) -> list[str]:
    """What `cos eval` says of a run under a gate (results["gate"] of its manifest)."""
    if "curves" not in gate:
        cost = gate["cost"]
        words = f"gate: {gate['looks']:.1%} second looks, {_tokens(cost)} tokens a question; no curve: {gate['not_drawn']}"
        return _wrapped(words)
    unit, told = str(gate["unit"]), []
    curves = gate["curves"]
    first = next(iter(curves), None)
    head = ("gate", "second looks", str(gate["metric"]), "- two passes", "95 %", "tokens", "FLOPs")
    rows = [("one pass", *_cells(gate["never"], unit))]
    if first is not None:
        middle = curves[first]["rows"][1:-1][:_SHOWN]
        rows += [(row["gate"], *_cells(row, unit, row["against_always"])) for row in middle]
    rows += [("two passes", *_cells(gate["always"], unit)), ("a gate that knows", *_cells(gate["oracle"], unit))]
    told += [columns([head, *rows]), ""]
    for kind, curve in curves.items():
        told += [line for words in _sentences(_NAMES[kind], curve, unit) for line in _wrapped(words)]
    if "flops_unknown" in gate:
        told += _wrapped(f"FLOPs are not known: {gate['flops_unknown']}")
    if gate.get("plain_failed"):
        told += _wrapped(f"{gate['plain_failed']} questions failed in the plain answer; area gates would not have asked for it")
    if gate.get("without_tokens"):
        told += _wrapped(f"{gate['without_tokens']} answers without counts of tokens; they count as free")
    return told


def _cells(row: Mapping[str, Any], unit: str, against: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    difference = ("", "") if against is None else _difference(against, unit)
    flops = "" if row["flops"] is None else short(row["flops"])
    return (f"{row['looks']:.1%}", number(row["value"], unit), *difference, _tokens(row), flops)


def _difference(against: Mapping[str, Any], unit: str) -> tuple[str, str]:
    ends = (against["low"], against["high"])
    return number(against["difference"], unit, "+"), "" if None in ends else interval(ends, unit, "+")


def _sentences(name: str, curve: Mapping[str, Any], unit: str) -> Iterator[str]:
    knows = curve["knows"]
    if knows["value"] is not None:
        ends = "" if knows["low"] is None or knows["high"] is None else f" ({knows['low']:.2f} to {knows['high']:.2f})"
        yield (
            f"{name} gains {knows['value']:.2f}{ends} of what a gate can gain over chance "
            "(1: it knows which answers a second look repairs; 0: chance)"
        )
    chosen = curve["chosen"]
    if chosen is None or (knows["value"] or 0) <= 0:
        return
    gates = " and ".join(half["gate"] for half in chosen["halves"])
    difference, ends = _difference(chosen["others"]["against_always"], unit)
    yield (
        f"{name}: {chosen['gate']} is the cheapest that is not clearly worse than two passes, chosen on these very questions, "
        f"which flatters it; chosen on half of the pictures and measured on the other half ({gates}): {difference} ({ends}) "
        f"against two passes at {_tokens(chosen['others'])} tokens a question"
    )


def _tokens(cost: Mapping[str, Any]) -> str:
    return f"{cost['sent'] + cost['written']:,.1f}"


def short(value: float) -> str:
    """A large number in three digits: `1.23 T`."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{_PREFIXES[power]}"


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(escaped(words), WIDTH)
