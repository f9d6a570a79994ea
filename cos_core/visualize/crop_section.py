"""The part of a report that says what the crop did: fixed and broken questions, by stratum and by term, and a few of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cos_core.scoring import arm_effects, facts
from cos_core.scoring.arm_effects import Split, Step, TokenGap
from cos_core.scoring.effects import Effect, Share, Stratum, Term, effect, paired
from cos_core.visualize.gallery import GalleryCard, PagePictures
from cos_core.visualize.html import Html, element, joined, percent, share_bar, table
from cos_core.visualize.report_cards import CardMaker
from cos_core.visualize.run_sections import signed
from cos_core.visualize.runs import FinishedRun
from cos_core.visualize.still_cards import still_card

PICTURED = 3
"""The most questions of each kind, fixed and broken, that the section shows."""

Drawn = tuple[int, Sequence[GalleryCard]]
"""How many questions there are of a kind, and the cards of those that were drawn."""


@dataclass(frozen=True, slots=True)
class CropStory:
    """`effects`: of every run that looked twice against the first run; `splits` and `tokens`: of arms among the runs.

    `fixed`, `broken`: questions of the last of `effects`, drawn at random with `seed`.
    """

    effects: Sequence[Effect]
    splits: Sequence[Split]
    tokens: Sequence[TokenGap]
    fixed: Drawn
    broken: Drawn
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: the figures, as `cos eval compare --json` has them, and the ids of the questions that are shown."""
        parts = {name: [each.to_json() for each in getattr(self, name)] for name in ("effects", "splits", "tokens")}
        return parts | {name: [card.example_id for card in getattr(self, name)[1]] for name in ("fixed", "broken")}


def crop_story(runs: Sequence[FinishedRun], maker: CardMaker, seed: int) -> CropStory | None:
    """What the crop did in `runs`, the first of which is the reference; None where no later one is known to have looked twice.

    `maker` makes the cards of the questions that are shown.
    """
    scored = {run.name: each for run in runs if (each := run.scored()) is not None}
    first = next(iter(scored), "")
    alike = {name: run for name, run in scored.items() if run.benchmark == scored[first].benchmark}
    known = {name: facts.read(run) for name, run in alike.items()}
    looked = [name for name in alike if name != first and known[name].looked]
    if not looked:
        return None
    effects = [effect(scored[first], scored[name], known[name], names=(first, name)) for name in looked]
    values = paired(scored[first], scored[looked[-1]])
    fixed, broken = (_drawn(values.scores.ids.names, side * values.gap, maker, seed) for side in (1, -1))
    gaps = list(arm_effects.token_gaps(alike, known))
    return CropStory(effects, list(arm_effects.splits(alike)), gaps, fixed, broken, seed)


def _drawn(ids: Sequence[str], gap: Any, maker: CardMaker, seed: int) -> Drawn:
    """The cards of at most PICTURED of the questions whose gap is above 0."""
    changed = [ids[row] for row in np.flatnonzero(gap > 0).tolist()]
    chosen = random.Random(seed).sample(changed, min(PICTURED, len(changed)))
    return len(changed), [maker.card(example_id) for example_id in chosen]


def crop_section(story: CropStory, album: PagePictures) -> Html:
    """The section's content."""
    return joined(
        [
            *(_effect(each, each is story.effects[-1]) for each in story.effects),
            *map(_split, story.splits),
            *(element("p", f"{gap.words()}.", class_="about") for gap in story.tokens),
            _pictures(story, album),
        ]
    )


# --- one pair --------------------------------------------------------------------------------------------------------


def _effect(each: Effect, opened: bool) -> Html:
    """One pair, folded unless `opened`; its first line says the most."""
    whole = each.whole
    ends = f" ({signed(whole.low)} to {signed(whole.high)})" if math.isfinite(whole.low) and math.isfinite(whole.high) else ""
    words = (
        f"{each.b} against {each.a}: {whole.fixed.n:,} fixed, {whole.broken.n:,} broken of {whole.n:,} questions, "
        f"{signed(whole.net)} points{ends}"
    )
    notes = joined(element("p", note, class_="about") for note in (each.reading(), *each.remarks))
    parts = [element("summary", words), _cells_table(each), _strata_table(each), notes, _terms_table(each)]
    return element("details", joined(parts), **({"open": ""} if opened else {}))


def _cells_table(each: Effect) -> Html:
    rows = [
        _row(
            name,
            _number(percent(share.share), _ends(share)),
            element("td", _share_chart(name, share), class_="chart"),
            _number(f"{share.n:,}"),
        )
        for name, share in each.whole.named_cells()
    ]
    caption = f"What {each.b} did to the answers of {each.a}: {each.whole.n:,} questions on {each.whole.pictures:,} pictures."
    return table(caption, ["", "Share, 95 %", "", "Questions"], rows, numbers=(1, 3))


def _share_chart(name: str, share: Share) -> Html:
    role = {"fixed": "gain", "broken": "loss"}.get(name, "arm")
    ends = None if share.low is None or share.high is None else (share.low, share.high)
    return share_bar(share.share, ends, role, f"{name}: {percent(share.share)}")


def _terms_table(each: Effect) -> Html:
    limit = _limit((term.low, term.high, term.value) for term in each.terms)
    rows = [_term_row(term, limit) for term in each.terms]
    caption = (
        "MED's four terms (arXiv 2602.01334) add up to the difference. Call: the second pass was shown the region of a usable "
        "box; schema: it was not. Mass: what the other run had wrong (of harms: right); policy: how often it was called (not "
        "called) there; quality: how much of that turned."
    )
    return table(caption, ["", "Points, 95 %", "", "Mass × policy × quality"], rows, numbers=(1, 3))


def _term_row(term: Term, limit: float) -> Html:
    factors = " × ".join("–" if math.isnan(value) else percent(value) for value in (term.mass, term.policy, term.quality))
    return _row(term.name, *_difference(term.name, *term.signed(), limit), _number(factors))


def _strata_table(each: Effect) -> Html:
    strata = [each.whole, *each.strata]
    limit = _limit((stratum.low, stratum.high, stratum.net) for stratum in strata)
    rows = [_stratum_row(stratum, limit) for stratum in strata]
    caption = (
        f"{each.b} minus {each.a} by what the second pass was shown and by question group. IoU: of the usable box with the "
        "data's own region; area: the usable box's share of the picture."
    )
    head = ["", "Points, 95 %", "", "Questions", "Fixed / broken"]
    return table(caption, head, rows, numbers=(1, 3, 4))


def _stratum_row(stratum: Stratum, limit: float) -> Html:
    ends = (stratum.low, stratum.high) if math.isfinite(stratum.low) and math.isfinite(stratum.high) else None
    counts = _number(f"{stratum.n:,}"), _number(f"{stratum.fixed.n:,} / {stratum.broken.n:,}")
    return _row(stratum.words(), *_difference(stratum.words(), stratum.net, ends, limit), *counts)


def _difference(name: str, value: float, ends: Sequence[float] | None, limit: float) -> tuple[Html, Html]:
    """The cells of a difference: its number over its interval, and its bar."""
    words = f"{signed(ends[0])} to {signed(ends[1])}" if ends else ""
    label = f"{name}: {signed(value)} points{f', 95 % interval {words}' if words else ''}"
    return _number(signed(value), words), element("td", difference_bar(value, ends, limit, label), class_="chart")


def difference_bar(value: float, ends: Sequence[float] | None, limit: float, label: str) -> Html:
    """A difference as a bar from the middle, to the right above 0, with its interval as a whisker; `limit`: half the width."""
    x = [50 + 50 * max(-1.0, min(1.0, each / limit)) for each in (0.0, value, *(ends or ()))]
    marks = [
        element("rect", class_="track", x=0, y=4, width=100, height=8),
        element(
            "rect",
            class_=f"fill {'gain' if value > 0 else 'loss'}",
            x=f"{min(x[0], x[1]):.2f}",
            y=2,
            width=f"{abs(x[1] - x[0]):.2f}",
            height=12,
        ),
        element("line", class_="zero", x1=50, x2=50, y1=0, y2=16),
    ]
    if ends:
        low, high = (f"{each:.2f}" for each in x[2:])
        marks.append(element("line", x1=low, x2=high, y1=8, y2=8))
        marks += [element("line", x1=end, x2=end, y1=4, y2=12) for end in (low, high)]
    return element(
        "svg", joined(marks), class_="bar", viewBox="0 0 100 16", preserveAspectRatio="none", role="img", aria_label=label
    )


def _limit(rows: Any) -> float:
    """What the bars of a table reach to: the greatest distance from 0 of any finite value or end."""
    return max((abs(each) for row in rows for each in row if each is not None and math.isfinite(each)), default=0.0) or 1.0


# --- arms and pictures -----------------------------------------------------------------------------------------------


def _split(split: Split) -> Html:
    steps = (split.schema, split.call)
    limit = _limit((step.low, step.high, step.gain.share, step.harm.share, step.net) for step in steps)
    rows = [row for step in steps for row in _step_rows(step, limit)]
    caption = f"From one pass to two in two steps, over the {split.n:,} questions that all three runs scored."
    return table(caption, ["", "Points, 95 %", "", "p"], rows, numbers=(1, 3))


def _step_rows(step: Step, limit: float) -> list[Html]:
    named = joined([step.name, element("small", f"{step.of} − {step.over}: {step.words}")])
    net_ends = (step.low, step.high) if math.isfinite(step.low) and math.isfinite(step.high) else None
    rows = [_row(named, *_difference(step.name, step.net, net_ends, limit), _number(f"{step.p:.2g}"))]
    for side, (value, ends) in step.sides().items():
        name = f"{step.name} {side}"
        rows.append(_row(name, *_difference(name, value, ends, limit), _number("")))
    return rows


def _pictures(story: CropStory, album: PagePictures) -> Html:
    last, addresses = story.effects[-1], album.addresses()
    parts: list[Html] = []
    for verb, (count, cards) in (("fixed", story.fixed), ("broke", story.broken)):
        which = f"{len(cards):,} of the {count:,} questions" if count else "No question"
        drawn = f", drawn at random (seed {story.seed})" if len(cards) < count else ""
        parts.append(element("h3", f"{which} that {last.b} {verb}{drawn}"))
        if cards:
            parts.append(element("div", joined(still_card(card, addresses) for card in cards), class_="stills"))
    return joined(parts)


# --- cells -----------------------------------------------------------------------------------------------------------


def _row(name: object, *cells: Html) -> Html:
    return element("tr", joined([element("th", name, scope="row"), *cells]))


def _number(value: object, below: str = "") -> Html:
    return element("td", joined([value, element("small", below)]) if below else value, class_="n")


def _ends(share: Share) -> str:
    return "" if share.low is None or share.high is None else f"{percent(share.low)} to {percent(share.high)}"
