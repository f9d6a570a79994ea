"""A gate's accuracy and cost over its settings, from one run that recorded both answers to every question.

A gate (dialogue/gate.py) decides which questions get a second look. A run under `--gate all` holds the plain answer, its
margin, the region and the answer of two passes, so that every other gate's run follows from it: its answers, its tokens, its
score. Beside the curve stand its controls: a gate that opens by chance (the straight line between one pass and two passes) and
one that knows where a second look repairs the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cos_core.dialogue.gate import Gate, read_gate
from cos_core.scoring import REPLICATES, cost, statistics
from cos_core.scoring.cost import AnswerFlops, Cost, TokenTable
from cos_core.scoring.mixture import Chosen, Mixture
from cos_core.scoring.statistics import Floats, Interval

FILES = CURVE, TABLE, PLOT = "gate.json", "gate.csv", "gate.png"
"""The files beside a run's scores that show the curves: everything, their points as a table, and a plot."""
SETTINGS = 100
"""The most settings of a curve, beside its ends."""
_ROWS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""The shares of second looks whose settings stand in tables."""

Kind = Literal["margin", "area_high", "area_low"]
KINDS: tuple[Kind, ...] = ("margin", "area_high", "area_low")
"""The curves: margin:X over X, area:0-HIGH over HIGH, area:LOW-1 over LOW."""


@dataclass(frozen=True, slots=True)
class FullRun:
    """What a run under the gate "all" recorded, a row a question in the order of the mixture's.

    `margins`: of the plain answers, `areas`: the regions' shares of the picture, nan where there is none: a question that
    failed before. `tokens`: its token table, a row a question. `per_picture`: a picture's questions share one first pass, whose
    tokens stand with one of them.
    """

    mixture: Mixture
    margins: Floats
    areas: Floats
    tokens: TokenTable
    per_picture: bool = False

    def opened(self, gate: Gate) -> Chosen:
        """Which questions' answers are those of two passes. A question that failed before an area gate stays failed."""
        if gate.kind == "margin":
            return self.margins < gate.below
        if gate.kind == "area":
            return np.isnan(self.areas) | ((self.areas >= gate.low) & (self.areas <= gate.high))
        return np.ones(len(self.margins), dtype=np.bool_)

    def looked(self, gate: Gate) -> Chosen:
        """Which questions' regions are looked at."""
        return self.opened(gate) & ~np.isnan(self.areas)

    def paid(self, gate: Gate) -> TokenTable:
        """The token table of a run under the gate."""
        opened = self.opened(gate)
        table = self.tokens.copy()
        plain, first, second = range(3)
        if gate.kind == "margin":
            self._close(table, first, ~opened)
        if gate.kind != "all":
            _clear(table, second, ~opened)
            table[~opened, cost.CROPS] = 0
        if gate.kind == "area":
            _clear(table, plain, opened)
        table[:, cost.WHOLE] = table[:, cost.SENT].any(axis=1)
        return table

    def alone(self, name: Literal["plain", "passes"]) -> TokenTable:
        """The token table of a run without a gate: of one pass ("plain"), or of two."""
        if name == "passes":
            return self.paid(Gate("area"))
        table = self.tokens.copy()
        for which in (1, 2):
            _clear(table, which, np.ones(len(table), dtype=np.bool_))
        table[:, cost.CROPS] = 0
        table[:, cost.WHOLE] = table[:, cost.SENT].any(axis=1)
        return table

    def _close(self, table: TokenTable, first: int, closed: Chosen) -> None:
        """Takes out the first passes that are not asked. One that belongs to a picture is asked by its first open question."""
        if self.per_picture:
            shared = table[:, [first, 3 + first]].copy()
            asked = np.zeros_like(shared)
            picture = self.mixture.index
            of_picture = np.zeros((self.mixture.clusters, 2), dtype=np.int64)
            np.maximum.at(of_picture, picture, shared)
            rows = np.flatnonzero(~closed)
            pictures, places = np.unique(picture[rows], return_index=True)
            asked[rows[places]] = of_picture[pictures]
            table[:, [first, 3 + first]] = asked
        else:
            _clear(table, first, closed)


def _clear(table: TokenTable, which: int, rows: Chosen) -> None:
    """Takes out the tokens of one of cost.PASSES, by its number."""
    table[rows, which] = table[rows, 3 + which] = 0


class Point(NamedTuple):
    """One setting. `looks`: the share of questions that get a second look; `value`: the headline, in the benchmark's units;
    `chance`: that of a gate which opens for as many questions at random."""

    gate: str
    looks: float
    value: float
    chance: float
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: number(value) for name, value in zip(self._fields[:4], self[:4], strict=True)},
            **self.cost.to_json(),
        }


def number(value: Any) -> Any:
    """A figure as JSON holds it: None for one that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _OnPictures(NamedTuple):
    """A setting by picture: `sums` (pictures, k) as in Mixed, `looks` (pictures,) second looks, `spent` (pictures, 3) tokens
    sent, tokens written and FLOPs."""

    sums: Floats
    looks: Floats
    spent: Floats


@dataclass(frozen=True)
class Curve:
    """The settings of one kind of gate, from the fewest second looks to the most.

    `points`: with their sums by picture in `_parts`, arrays of (points, pictures, ...).
    """

    kind: Kind
    run: FullRun
    gates: Sequence[Gate]
    points: Sequence[Point]
    parts: _OnPictures
    model: AnswerFlops | None

    @cached_property
    def prices(self) -> Floats:
        """(points, pictures) what each setting costs: FLOPs, or tokens where these are not known."""
        spent = self.parts.spent
        return spent[..., 2] if self.model is not None else spent[..., 0] + spent[..., 1]


class Ends(NamedTuple):
    """One pass and two passes, without a gate, and the gate that knows (`oracle`): value and cost; `sums`: (2, pictures, k) of
    the first two."""

    never: Point
    always: Point
    oracle: Point
    sums: Floats


def ends(run: FullRun, model: AnswerFlops | None) -> Ends:
    """The ends of every curve, and the gate that opens exactly where two passes are right and one pass is wrong (or scores
    higher): it asks for the plain answer always, as a margin gate does."""
    mixture, n = run.mixture, len(run.margins)
    nobody, everybody = np.zeros(n, dtype=np.bool_), np.ones(n, dtype=np.bool_)
    none, every = mixture.at(nobody), mixture.at(everybody)
    repaired = mixture.gains > 0
    known = mixture.at(repaired)
    reached = ~np.isnan(run.areas)
    guided = FullRun(mixture, np.where(repaired, 0.0, 1.0), run.areas, run.tokens, run.per_picture).paid(Gate("margin", 0.5))
    never = Point("never", 0.0, none.value, none.value, cost.mean_cost(run.alone("plain"), n, model))
    always = Point("always", float(reached.mean()), every.value, every.value, cost.mean_cost(run.alone("passes"), n, model))
    looks = float((repaired & reached).mean())
    chance = _chance(looks, never, always)
    oracle = Point("oracle", looks, known.value, chance, cost.mean_cost(guided, n, model))
    return Ends(never, always, oracle, np.stack([none.sums, every.sums]))


def _chance(looks: float, never: Point, always: Point) -> float:
    share = looks / always.looks if always.looks else 0.0
    return never.value + share * (always.value - never.value)


def curve(kind: Kind, run: FullRun, ends: Ends, model: AnswerFlops | None, most: int = SETTINGS) -> Curve | None:
    """The curve of one kind of gate with at most `most` settings beside its ends; None where the run has no such values."""
    gates = list(settings(kind, run, most))
    if not gates:
        return None
    points, parts = [], []
    for gate in gates:
        mixed, table, looked = run.mixture.at(run.opened(gate)), run.paid(gate), run.looked(gate)
        looks = float(looked.mean())
        price = cost.mean_cost(table, len(looked), model)
        points.append(Point(gate.text, looks, mixed.value, _chance(looks, ends.never, ends.always), price))
        spent = np.zeros((len(table), 3))
        spent[:, 0], spent[:, 1] = table[:, cost.SENT].sum(axis=1), table[:, cost.WRITTEN].sum(axis=1)
        if model is not None:
            spent[:, 2] = cost.flops_of(table, model)
        columns = np.column_stack([looked, spent]).astype(np.float64)
        by_picture = statistics.cluster_sums(columns, run.mixture.index)
        parts.append(_OnPictures(mixed.sums, by_picture[:, 0], by_picture[:, 1:]))
    stacked = _OnPictures(*(np.stack(part) for part in zip(*parts, strict=True)))
    return Curve(kind, run, gates, points, stacked, model)


def settings(kind: Kind, run: FullRun, most: int = SETTINGS) -> Iterator[Gate]:
    """The gates of a curve, from the fewest second looks to the most, as their texts say them: one for each distinct value of
    the run, thinned to `most` with even shares of the questions between them, and both ends. None where it has no value."""
    values = run.margins if kind == "margin" else run.areas
    distinct = _thinned(values[~np.isnan(values)], most)
    if not distinct:
        return
    if kind == "margin":
        texts = ["margin:0", *(f"margin:{value:g}" for value in distinct), "margin:inf"]
    elif kind == "area_high":
        highs = (float(f"{value:g}") for value in distinct)
        texts = [*(Gate("area", high=high).text for high in highs if high > 0), "area:0-1"]
    else:
        lows = (float(f"{value:g}") for value in reversed(distinct))
        texts = [*(Gate("area", low=low).text for low in lows if low < 1), "area:0-1"]
    for text in dict.fromkeys(texts):
        low, _, high = text.partition(":")[2].partition("-")
        if kind == "margin" or float(low) < float(high):
            yield read_gate(text)


def _thinned(values: Floats, most: int) -> list[float]:
    """The distinct values, or at most `most` of them with about as many of `values` from each to the next, least and largest
    included."""
    distinct = np.unique(values)
    if len(distinct) > most:
        ordered = np.sort(values)
        distinct = np.unique(ordered[np.linspace(0, len(ordered) - 1, most).round().astype(np.intp)])
    return [float(value) for value in distinct]


# --- intervals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resampling:
    """How often pictures are drawn, and from which seed: the same draws for every figure of a curve."""

    replicates: int = REPLICATES
    seed: int = 0

    def values(self, mixture: Mixture, sums: Floats) -> Floats:
        """(replicates, points) the headline of each sample of pictures; `sums` (points, pictures, k)."""
        points, pictures, k = sums.shape
        totals = statistics.resampled_sums(sums.transpose(1, 0, 2).reshape(pictures, points * k), self.replicates, self.seed)
        flat = mixture.statistic(totals.reshape(self.replicates * points, k))
        return flat.reshape(self.replicates, points)

    def totals(self, columns: Floats) -> Floats:
        """(replicates, k) sums of (pictures, k) over the same samples."""
        return statistics.resampled_sums(columns, self.replicates, self.seed)


class Difference(NamedTuple):
    """One setting's headline minus another's over the same questions, with its 95 % interval, pictures resampled."""

    difference: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return {name: number(value) for name, value in self._asdict().items()}


def differences(mixture: Mixture, sums: Floats, reference: Floats, how: Resampling) -> list[Difference]:
    """For each of `sums` (points, pictures, k) its headline minus that of `reference` (pictures, k)."""
    stack = np.concatenate([sums, reference[None]])
    exact = mixture.statistic(stack.sum(axis=1))
    drawn = how.values(mixture, stack)
    found = []
    for point in range(len(sums)):
        interval = statistics.percentile_interval(drawn[:, point] - drawn[:, -1], sums.shape[1])
        found.append(Difference(float(exact[point] - exact[-1]), interval.low, interval.high))
    return found


def knowledge(found: Curve, ends: Ends, how: Resampling) -> dict[str, Any]:
    """How much of what a gate can gain over chance this one gains: (its area - that of chance) / (that of the oracle - that of
    chance), areas under headline over second looks. 1: it knows which answers a second look repairs and which it breaks; 0: no
    better than chance. As the Qini coefficient of uplift models (Radcliffe 2007); pictures resampled.

    {"value", "low", "high"}, None where no second look changes an answer.
    """
    run, gains = found.run, found.run.mixture.gains
    reached = ~np.isnan(run.areas)
    masks = [gains > 0, gains >= 0]
    steps = [run.mixture.at(mask).sums for mask in masks]
    looks = statistics.cluster_sums(
        np.column_stack([*(mask & reached for mask in masks), reached]).astype(float), run.mixture.index
    )
    never, always = ends.sums
    sums = np.concatenate([np.stack([never, *steps, always]), found.parts.sums])
    columns = np.concatenate([looks, found.parts.looks.T], axis=1)

    def shares(values: Floats, totals: Floats) -> Floats:
        first, last = values[:, :1], values[:, 3:4]
        reached = totals[:, 2:3]
        nothing, everything = np.zeros_like(reached), np.ones_like(reached)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = totals / reached
            best = _under([nothing, share[:, :2], everything], [first, values[:, 1:3], last])
            mine = _under([nothing, share[:, 3:], everything], [first, values[:, 4:], last])
            chance = (first + last)[:, 0] / 2
            above = best - chance
            return np.where(above > 1e-12, (mine - chance) / above, np.nan)

    exact = shares(run.mixture.statistic(sums.sum(axis=1))[None], columns.sum(axis=0)[None])[0]
    drawn = shares(how.values(run.mixture, sums), how.totals(columns))
    low, high = statistics.percentile_interval(drawn, sums.shape[1]) if math.isfinite(exact) else Interval(math.nan, math.nan)
    return {name: number(float(value)) for name, value in (("value", exact), ("low", low), ("high", high))}


def _under(shares: Sequence[Floats], values: Sequence[Floats]) -> Floats:
    """(rows,) the area under straight lines through points whose shares and values stand in columns, left to right."""
    x, y = np.concatenate(shares, axis=1), np.concatenate(values, axis=1)
    return np.asarray(((x[:, 1:] - x[:, :-1]) * (y[:, 1:] + y[:, :-1]) / 2).sum(axis=1))


# --- a setting that is chosen ----------------------------------------------------------------------------------------


def cheapest(found: Curve, always: Floats, pictures: NDArray[np.intp], how: Resampling) -> int | None:
    """The cheapest setting that is not clearly worse than two passes on some pictures: the 95 % interval of its difference
    reaches zero. None where nothing is known of any."""
    against = differences(found.run.mixture, found.parts.sums[:, pictures], always[pictures], how)
    prices = found.prices[:, pictures].sum(axis=1)
    fit = [place for place, each in enumerate(against) if each.high >= 0]
    return min(fit, key=lambda place: float(prices[place]), default=None)


def chosen(found: Curve, ends: Ends, how: Resampling) -> dict[str, Any] | None:
    """The cheapest setting that is not clearly worse than two passes, and what such a choice is worth on other pictures.

    `gate` was chosen on the very questions that it is measured on, which flatters it. `halves`: chosen on one half of the
    pictures and measured on the other, both ways; `others`: both measurements together, every question decided by the setting
    that the other half chose. None where no setting qualifies, or there is one picture only.
    """
    pictures = np.arange(found.run.mixture.clusters)
    always = ends.sums[1]
    whole = cheapest(found, always, pictures, how)
    shuffled = np.random.default_rng(how.seed).permutation(len(pictures))
    halves = np.sort(shuffled[: len(pictures) // 2]), np.sort(shuffled[len(pictures) // 2 :])
    picks = [cheapest(found, always, half, how) for half in halves] if len(pictures) > 1 else [None]
    if whole is None or None in picks:
        return None
    merged, spent = np.empty_like(always), np.empty((len(pictures), 3))
    counts = np.bincount(found.run.mixture.index, minlength=len(pictures))
    rows = []
    for pick, half in zip([each for each in picks if each is not None], reversed(halves), strict=True):
        merged[half], spent[half] = found.parts.sums[pick][half], found.parts.spent[pick][half]
        row = {"gate": found.points[pick].gate, "pictures": len(half), "questions": int(counts[half].sum())}
        rows.append({**row, **_measured(found, merged[half], always[half], spent[half], counts[half], how)})
    against = differences(found.run.mixture, found.parts.sums[whole][None], always, how)[0]
    return {
        **found.points[whole].to_json(),
        "against_always": against.to_json(),
        "halves": rows,
        "others": _measured(found, merged, always, spent, counts, how),
    }


def _measured(
    found: Curve, sums: Floats, always: Floats, spent: Floats, counts: NDArray[np.intp], how: Resampling
) -> dict[str, Any]:
    """A setting on some pictures, given by picture; `counts`: their questions."""
    value = float(found.run.mixture.statistic(sums.sum(axis=0)[None])[0])
    sent, written, flops = (spent.sum(axis=0) / counts.sum()).tolist()
    price = Cost(sent, written, None if found.model is None else flops)
    against = differences(found.run.mixture, sums[None], always, how)[0]
    return {"value": number(value), **price.to_json(), "against_always": against.to_json()}


# --- everything of a run ---------------------------------------------------------------------------------------------


def summary(found: Curve, ends: Ends, how: Resampling) -> dict[str, Any]:
    """What is told of a curve without all of its points: some settings with their differences from one pass and from two
    passes, what the gate knows (`knowledge`), and the choice of a setting (`chosen`)."""
    looks = np.array([point.looks for point in found.points])
    always = ends.always.looks
    places = sorted({int(np.abs(looks - share * always).argmin()) for share in _ROWS})
    sums = found.parts.sums[places]
    against = [differences(found.run.mixture, sums, reference, how) for reference in ends.sums]
    rows = [
        {**found.points[place].to_json(), "against_never": never.to_json(), "against_always": whole.to_json()}
        for place, never, whole in zip(places, *against, strict=True)
    ]
    return {"rows": rows, "knows": knowledge(found, ends, how), "chosen": chosen(found, ends, how)}
