"""The parts of the demo's page that are words and numbers: headline, tables, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cos_core.types import BOX_STATUSES
from cos_core.visualize.demo_records import ArmComparison, ArmRow, DemoReport, LabelRow
from cos_core.visualize.html import Html, element, joined, percent, share_bar, table, text

_BADGES = ("control", "reference")


def points(difference: float) -> str:
    """+51.1, with a true minus sign: percentage points."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def interval(comparison: ArmComparison) -> str:
    return f"{points(comparison.low)} to {points(comparison.high)}"


def headline(comparison: ArmComparison | None) -> str:
    """What the first screen says, and only what the interval bears."""
    if comparison is None:
        return "What each way of looking answers"
    if comparison.low > 0:
        return (
            "A model that first says where to look answers far better"
            if comparison.difference >= 0.2
            else ("A model that first says where to look answers better")
        )
    if comparison.high < 0:
        return "Here, looking first answered worse"
    return "Here, looking first made no clear difference"


def bar(arm: ArmRow, label: str) -> Html:
    """Accuracy as a bar on 0..100 % with its interval as a whisker."""
    return share_bar(arm.accuracy, (arm.low, arm.high), arm.role, label)


def duel(report: DemoReport, comparison: ArmComparison | None) -> Html:
    """The two arms of the headline, one bar each; without a comparison every arm."""
    arms = report.arms if comparison is None else (report.arm(comparison.arm), report.arm(comparison.against))
    rows = []
    for arm in arms:
        name = element("dt", joined([element("span", arm.name), element("b", percent(arm.accuracy))]))
        whisker = f"{percent(arm.accuracy)}, 95 % interval {percent(arm.low)} to {percent(arm.high)}"
        rows.append(element("div", joined([name, element("dd", bar(arm, whisker))]), class_=arm.role))
    return joined(rows)


def arms_table(report: DemoReport) -> Html:
    """Every arm: bar, accuracy, interval, counts, paired difference to the headline's other side, regions."""
    first = report.headline
    against = first.against if first else None
    paired = {c.arm: c for c in report.comparisons if c.kind is None and c.against == against}
    rows = []
    for arm in report.arms:
        label = f"{arm.name}: {percent(arm.accuracy)}"
        difference = paired.get(arm.name)
        rows.append(
            _row(
                [
                    _arm_heading(arm),
                    element("td", bar(arm, label), class_="chart"),
                    _number(percent(arm.accuracy), f"{percent(arm.low)} to {percent(arm.high)}"),
                    _number(f"{arm.correct:,} / {arm.total:,}"),
                    _number(points(difference.difference), interval(difference)) if difference else _number("–"),
                    _number(percent(arm.hit), f"{percent(arm.area)} of the picture" if arm.area is not None else ""),
                    _number(*_status(arm.status)),
                ],
                arm.role,
            )
        )
    name = f"Against “{against}”, points" if against else "Difference, points"
    head = ["Arm", "Accuracy", "with 95 % interval", "Correct", name, "Region hits", "Boxes read as written"]
    caption = "All arms start from one model, are trained for the same number of steps and answer the same held-out questions."
    return table(caption, head, rows, numbers=(2, 3, 4, 5, 6))


def shown_differences(report: DemoReport) -> list[ArmComparison]:
    """The differences over all questions that say more than the arms' table does."""
    return [c for c in report.comparisons if c.kind is None and (c.goal is not None or c.gained is not None)]


def comparisons_table(report: DemoReport) -> Html:
    """The differences that the arms' table cannot hold: with what was asked for beforehand, and questions gained and lost."""
    rows = []
    for c in shown_differences(report):
        verdict: object = "–"
        if c.goal is not None:
            reached = c.difference >= c.goal and c.low > 0
            verdict = joined(
                [
                    f"{points(c.goal)}: ",
                    element("span", "reached" if reached else "not reached", class_="yes" if reached else "no"),
                ]
            )
        changed = "–" if c.gained is None or c.lost is None else f"{c.gained:,} / {c.lost:,}"
        cells = [
            element("th", f"{c.arm} − {c.against}", scope="row"),
            _number(points(c.difference)),
            _number(interval(c)),
            _number(changed),
            element("td", verdict),
        ]
        rows.append(_row(cells))
    head = ["Difference", "Points", "95 % interval, paired", "Gained / lost questions", "Asked for beforehand"]
    return table("Differences on the same questions, with paired intervals.", head, rows, numbers=(1, 2, 3))


def kinds_table(report: DemoReport) -> Html:
    """Accuracy of every arm for each kind of question, and the headline's difference for each."""
    kinds = report.kinds or tuple(dict.fromkeys(kind for arm in report.arms for kind in arm.kinds))
    rows = []
    for arm in report.arms:
        cells = [_arm_heading(arm, short=True)]
        for kind in kinds:
            tally = arm.kinds.get(kind)
            cells.append(_number(percent(tally.share), f"of {tally.total:,}") if tally else _number("–"))
        rows.append(_row(cells, arm.role))
    first = report.headline
    per_kind = {c.kind: c for c in report.comparisons if first and (c.arm, c.against) == (first.arm, first.against)}
    if first and len(per_kind) > 1:
        cells = [element("th", f"{first.arm} − {first.against}, points", scope="row")]
        for kind in kinds:
            c = per_kind.get(kind)
            cells.append(_number(element("span", points(c.difference), class_=_sign(c)), interval(c)) if c else _number("–"))
        rows.append(_row(cells))
    return table("Accuracy for each kind of question.", ["Arm", *kinds], rows, numbers=range(1, len(kinds) + 1))


def labels_table(labels: Sequence[LabelRow]) -> Html:
    """How often a label that annotation made lies on the right object, for each kind of question."""
    with_chance = any(row.chance is not None for row in labels)
    rows = []
    for row in labels:
        cells = [
            element("th", row.kind, scope="row"),
            _number(f"{row.count:,}"),
            _number(percent(row.hit)),
            _number(f"{row.iou:.2f}"),
        ]
        rows.append(_row([*cells, _number(percent(row.chance))] if with_chance else cells))
    head = ["Question kind", "Labels", "Hold the centre of the right object", "Mean overlap (IoU)"]
    return table(
        "Labels against the gold regions.", [*head, "Hits by chance"] if with_chance else head, rows, numbers=(1, 2, 3, 4)
    )


def next_steps(steps: Sequence[tuple[str, str]]) -> Html:
    return joined(joined([element("p", words), element("pre", element("code", command))]) for words, command in steps)


def _row(cells: Sequence[object], role: str = "arm") -> Html:
    return element("tr", joined(cells), class_=role)


def _number(value: object, below: str = "") -> Html:
    return element("td", joined([value, element("small", below)]) if below else value, class_="n")


def _arm_heading(arm: ArmRow, short: bool = False) -> Html:
    wanted = arm.role in _BADGES and arm.role not in arm.name.lower()
    badge = element("span", arm.role, class_="role") if wanted else text("")
    small = element("small", arm.explain) if arm.explain and not short else text("")
    return element("th", joined([arm.name, badge, small]), scope="row")


def _status(status: Mapping[str, int]) -> tuple[str, str]:
    """The share of "ok" among boxes that were asked for, and the counts of the others; a dash when none was asked for."""
    asked = {name: count for name, count in status.items() if name != "skipped" and count}
    if not asked:
        return "–", ""
    names = [*(s for s in BOX_STATUSES if s in asked), *sorted(set(asked) - set(BOX_STATUSES))]
    others = ", ".join(f"{asked[name]:,} {name}" for name in names if name != "ok")
    return percent(asked.get("ok", 0) / sum(asked.values())), others


def _sign(comparison: ArmComparison) -> str:
    return "yes" if comparison.low > 0 else "no" if comparison.high < 0 else "same"
