"""What the crop did, as `cos eval compare` says it: cells, strata, MED's four terms, and the arms together."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cos_cli.console import columns
from cos_cli.evaluate.figures import WIDTH, interval, number
from cos_core.files.text import Lines, escaped

_MOST = 8
"""The most values of a question group that the table lists."""

if TYPE_CHECKING:
    from cos_core.evaluate.effects import Told
    from cos_core.scoring.arm_effects import Split, Step
    from cos_core.scoring.effects import Effect, Share, Stratum, Term


def lines(effect: Effect) -> list[str]:
    """The block of one pair; a single sentence where the second run never looked twice, as far as is known."""
    whole = effect.whole
    if not effect.terms:
        counts = ", ".join(f"{name} {share.n}" for name, share in whole.named_cells())
        return [_wrapped(f"of {whole.n} questions: {counts}"), *map(_wrapped, effect.remarks)]
    cells = [("", "questions", "share", "95 %"), *(_cell(name, share) for name, share in whole.named_cells())]
    shown, folded = _shown(effect)
    strata = [("", "questions", "fixed", "broken", "B - A", "95 %"), *map(_stratum, [whole, *shown])]
    terms = [("", "B - A", "95 %", "mass x policy x quality"), *map(_term, effect.terms)]
    return [
        *("", "What B did to the answers of A:", columns(cells)),
        *("", "By what B's second pass was shown, and by question group:", columns(strata)),
        *("", "MED's four terms, which add up to B - A:", columns(terms), ""),
        _wrapped(effect.reading()),
        *map(_wrapped, folded),
        *map(_wrapped, effect.remarks),
    ]


def _shown(effect: Effect) -> tuple[list[Stratum], list[str]]:
    """The strata that the table lists, and sentences on the question groups that have too many values for it."""
    from cos_core.scoring.effects import KINDS

    sizes = Counter(stratum.kind for stratum in effect.strata)
    long = [kind for kind, size in sizes.items() if size > _MOST and kind not in KINDS]
    shown = [stratum for stratum in effect.strata if stratum.kind not in long]
    return shown, [f"The {sizes[kind]} values of the question group {kind!r} stand in --json." for kind in long]


def arms(told: Told) -> list[str]:
    """What the arms among the runs say together; nothing where there are no such arms, or they cost alike."""
    parts: list[str] = []
    for split in told.splits:
        parts += ["", *_split(split)]
    unequal = [gap for gap in told.tokens if gap.differ]
    return [*parts, *([""] if unequal else []), *(_wrapped(f"{gap.benchmark}: {gap.words()}") for gap in unequal)]


def _split(split: Split) -> list[str]:
    rows = [row for step in (split.schema, split.call) for row in _step(step)]
    return [
        _wrapped(f"{split.benchmark}, {split.n} questions, from one pass to two in two steps:"),
        columns([("", "difference", "95 %", "p"), *rows]),
        *(_wrapped(f"{step.name}: {step.of} - {step.over}, {step.words}") for step in (split.schema, split.call)),
    ]


def _step(step: Step) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, (value, ends) in step.sides().items():
        rows.append((f"{step.name} {name}", number(value, "fraction", "+"), interval(ends, "fraction", "+"), ""))
    return [*rows, (f"{step.name} net", *_difference(step.net, step.low, step.high), number(step.p, "p"))]


def _cell(name: str, share: Share) -> tuple[str, ...]:
    return name, str(share.n), number(share.share, "fraction"), _ends(share)


def _stratum(stratum: Stratum) -> tuple[str, ...]:
    name, cells = stratum.words(), (str(share.n) for share in (stratum.fixed, stratum.broken))
    return name, str(stratum.n), *cells, *_difference(stratum.net, stratum.low, stratum.high)


def _term(term: Term) -> tuple[str, ...]:
    value, ends = term.signed()
    factors = " x ".join(
        "-" if math.isnan(each) else number(each, "fraction") for each in (term.mass, term.policy, term.quality)
    )
    return term.name, number(value, "fraction", "+"), interval(ends, "fraction", "+"), factors


def _difference(value: float, low: float, high: float) -> tuple[str, str]:
    ends = (low, high) if math.isfinite(low) and math.isfinite(high) else None
    return number(value, "fraction", "+"), interval(ends, "fraction", "+")


def _ends(share: Share) -> str:
    ends: Sequence[float] | None = None if share.low is None or share.high is None else (share.low, share.high)
    return interval(ends, "fraction")


def _wrapped(words: str) -> Lines:
    return Lines(textwrap.wrap(escaped(words), WIDTH))
