"""The page "Does your zoom do anything?": verdicts first, then the seven rows, the arms, what changed, and what it cannot tell.

Every figure is from `results`; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cos_core.evidence.arms import LABELS
from cos_core.evidence.results import PAGE
from cos_core.evidence.verdicts import TWICE
from cos_core.evidence.words import points, signed, signed_interval
from cos_core.interfaces import Reporter
from cos_core.visualize import runs
from cos_core.visualize.crop_section import CropStory, crop_section, crop_story, difference_bar
from cos_core.visualize.gallery import PagePictures, publishing, write_page
from cos_core.visualize.html import Html, Section, element, facts, fill, joined, page, percent, table, text
from cos_core.visualize.report_cards import CardMaker, CardSources
from cos_core.visualize.run_sections import amount

TITLE = "Does your zoom do anything?"
_ROLES = {"reads the crop": "good", "hurt by the crop": "bad"}
_ABOUT = (
    "The model answers the same questions in several ways. Each but the first two takes one thing away: what the crop shows, "
    "its place, its box, the sharpness of the whole picture. Where taking it away changes nothing, it was not used. All "
    "differences are paired, question by question, with 95 % intervals over pictures; a verdict needs p < 0.05 after Holm over "
    "all {tests} differences of the page."
)


def write(out: Path, found: Mapping[str, Any], reporter: Reporter) -> None:
    """Writes index.html, and beside it the folder of its pictures where they are many."""
    target = out / PAGE
    with publishing(target) as album:
        stories = [_story(each, album, found["settings"]["seed"], reporter) for each in found["benchmarks"]]
        write_page(target, whole(found, stories, album), album)


def whole(found: Mapping[str, Any], stories: Sequence[CropStory | None], album: PagePictures) -> Html:
    """The page of some results; `stories`: of each benchmark, what looking twice did to the answers of one look."""
    several = len(found["benchmarks"]) > 1
    sections: list[Section] = []
    for number, (each, story) in enumerate(zip(found["benchmarks"], stories, strict=True)):
        name = f": {each['benchmark']}" if several else ""
        sections.append((f"rows-{number}", f"Seven questions{name}", _rows(each)))
        sections.append((f"arms-{number}", f"The arms{name}", _arms(each)))
        if story is not None:
            sections.append((f"crop-{number}", f"Fixed and broken{name}", crop_section(story, album)))
    sections.append(("limits", "What this cannot tell", _list(found["caveats"])))
    sections.append(("made", "How this was made", _made(found)))
    return page(TITLE, sections, first=_first(found), banner=_banner(found), in_folder=album.in_folder)


def _story(each: Mapping[str, Any], album: PagePictures, seed: int, reporter: Reporter) -> CropStory | None:
    """What two looks did to the answers of one, also by way of the box without its crop; None without both."""
    folders = {arm["arm"]: Path(arm["folder"]) for arm in each["arms"]}
    names = [name for name in (TWICE.a, "absent", TWICE.b) if name in folders]
    if names[:1] != [TWICE.a] or names[-1] != TWICE.b:
        return None
    loaded = runs.load([folders[name] for name in names], runs.RunSources(), reporter, [LABELS[name] for name in names])
    return crop_story(loaded, CardMaker(loaded, album, CardSources()), seed)


def _first(found: Mapping[str, Any]) -> Html:
    verdicts = [
        element(
            "div",
            joined(
                [
                    element("p", each["benchmark"], class_="kicker"),
                    element("p", each["verdict"], class_=f"finding {_ROLES.get(each['verdict'], '')}".strip()),
                    element("p", each["words"]),
                    element("p", _asked(each), class_="source"),
                ]
            ),
            class_="worked",
        )
        for each in found["benchmarks"]
    ]
    return fill(
        "evidence.html",
        title=TITLE,
        model=found["model"],
        verdicts=joined(verdicts),
        about=_ABOUT.format(tests=found["tests"]),
    )


def _asked(each: Mapping[str, Any]) -> str:
    """What the verdict rests on: the questions, both headline scores, and how they were made."""
    arms = {arm["arm"]: arm for arm in each["arms"]}
    parts = [f"{max(arm['n'] for arm in each['arms']):,} questions"]
    for name in (TWICE.a, TWICE.b):
        if name in arms and arms[name]["value"] is not None:
            arm, unit = arms[name], each["unit"] or ""
            ends = "" if arm["low"] is None else f" ({amount(arm['low'], unit)} to {amount(arm['high'], unit)})"
            parts.append(f"{each['metric']} of {LABELS[name]} {amount(arm['value'], unit)}{ends}")
    how = {"split": "split", "profile": "profile", "pixel_budget": "pixels", "box_decode": "box decode", "limit": "limit"}
    parts += [f"{word} {each['protocol'][key]}" for key, word in how.items() if each["protocol"].get(key)]
    return " · ".join(parts)


def _banner(found: Mapping[str, Any]) -> Html:
    words = []
    for each in found["benchmarks"]:
        if limit := each["protocol"].get("limit"):
            words.append(f"{each['benchmark']}: only the first {limit:,} questions were asked.")
        failed = [f"{arm['failed']:,} under “{LABELS[arm['arm']]}”" for arm in each["arms"] if arm["failed"]]
        if failed:
            words.append(f"{each['benchmark']}: questions without an answer count as wrong: {', '.join(failed)}.")
    return element("p", " ".join(words), class_="banner", role="note") if words else text("")


# --- the rows ---


def _rows(each: Mapping[str, Any]) -> Html:
    lines = [line for row in each["rows"] for line in row["lines"]]
    ends = [abs(line[end]) for line in lines for end in ("low", "difference", "high") if line.get(end) is not None]
    room = max(ends, default=0.0) or 1.0
    caption = (
        f"Each line is a difference of {each['metric']}, with its 95 % interval; right of the middle the arm named first "
        "is better. “Would have been seen”: the smallest true difference that this verdict finds four times in five."
    )
    return joined([element("p", caption, class_="about"), *(_row(row, each, room) for row in each["rows"])])


def _row(row: Mapping[str, Any], each: Mapping[str, Any], room: float) -> Html:
    head = joined(
        [
            element("h3", row["question"]),
            element("p", joined([element("strong", row["verdict"]), ": ", row["words"]]), class_="answer"),
            element("p", f"Control of {row['source']}", class_="source"),
        ]
    )
    lines = [_line(line, room) for line in row["lines"]]
    boxes = [_boxes(each["boxes"])] if row["key"] == "place" and each["boxes"] else []
    return element("article", joined([head, *lines, *boxes]), class_="row")


def _line(line: Mapping[str, Any], room: float) -> Html:
    sides = " − ".join(LABELS.get(line[side], line[side]) for side in ("b", "a"))
    name = joined([element("b", sides), element("small", line["measures"])])
    if line.get("difference") is None:
        return element("div", joined([element("div", name), element("p", line["words"])]), class_="difference")
    unit, low, high = line["unit"], line["low"], line["high"]
    interval, ends = signed_interval(low, high, unit), None if low is None or high is None else (low, high)
    role = {"better": "yes", "worse": "no"}.get(line["verdict"], "same")
    figures = joined(
        [
            element("span", signed(line["difference"], unit), class_=f"size {role}"),
            element("span", f"{interval} (95 %)"),
            element("small", " · ".join(_behind(line))),
        ]
    )
    label = f"{sides}: {signed(line['difference'], unit)}, 95 % interval {interval}"
    parts = [
        element("div", name),
        difference_bar(line["difference"], ends, room, label),
        element("div", figures, class_="figures"),
    ]
    return element("div", joined(parts), class_="difference")


def _behind(line: Mapping[str, Any]) -> Iterator[str]:
    yield line["words"]
    if line["fixed"] or line["broken"]:
        yield f"{len(line['fixed']):,} fixed, {len(line['broken']):,} broken"
    yield f"{line['n']:,} questions on {line['pictures']:,} pictures"
    if any(line["failed"].values()):
        failed = line["failed"]
        yield f"failed: {failed['b']:,} in the first alone, {failed['a']:,} in the second alone, {failed['both']:,} in both"
    if line["p_holm"] is not None:
        yield f"p {line['p_holm']:.2g} after Holm ({line['test']})"
    if line["seen"] is not None and line["verdict"] != "unclear":
        yield f"{points(line['seen'], line['unit'])} would have been seen"
    if line["more_tokens_in"] is not None:
        more = line["more_tokens_in"]
        yield "as many tokens read" if abs(more) < 0.5 else f"{more:+,.0f} tokens read a question".replace("-", "−")


def _boxes(groups: Sequence[Mapping[str, Any]]) -> Html:
    words = [
        f"{group['boxes']} boxes (IoU {'at least' if group['boxes'] == 'right' else 'below'} 0.5): {group['n']:,} questions on "
        f"{group['pictures']:,} pictures, {percent(group['once'])} right with one look, {percent(group['twice'])} with two"
        for group in groups
    ]
    return element("p", f"With {'; with '.join(words)}.", class_="source")


# --- the arms ---


def _arms(each: Mapping[str, Any]) -> Html:
    unit = each["unit"] or ""
    rows = [
        element("tr", joined(_arm_cells(arm, unit)), class_="method" if arm["arm"] == TWICE.b else "") for arm in each["arms"]
    ]
    caption = (
        f"Score: {each['metric']}, with its 95 % interval. Costs are means over answered questions: tokens of an arm on its "
        "own, also where arms share a first pass, and the FLOPs that follow from them; seconds as the arms took them together, "
        "shared out evenly."
    )
    head = [
        "Arm",
        "Score",
        "Answered",
        "Tokens read",
        "Tokens written",
        "GFLOPs",
        "Seconds",
        "Last pass as long as two looks’",
        "Box not usable",
    ]
    listed = table(caption, head, rows, range(1, 9))
    reasons: dict[str, list[str]] = {}
    for name, words in each["gone"].items():
        reasons.setdefault(words, []).append(LABELS[name])
    gone = [f"Not run: {', '.join(names)} ({words})." for words, names in reasons.items()]
    return joined([listed, *(element("p", words, class_="about") for words in gone)])


def _arm_cells(arm: Mapping[str, Any], unit: str) -> Iterator[Html]:
    yield element("th", joined([LABELS[arm["arm"]], element("small", f"“{arm['arm']}”: {arm['title']}")]), scope="row")
    ends = "" if arm["low"] is None else f"{amount(arm['low'], unit)} to {amount(arm['high'], unit)}"
    yield _cell(amount(arm["value"], unit), ends)
    yield _cell(f"{arm['n'] - arm['failed']:,} / {arm['n']:,}", f"{arm['failed']:,} failed" if arm["failed"] else "")
    for key, scale, digits in (("tokens_in", 1, 0), ("tokens_out", 1, 1), ("flops", 1e-9, 2), ("seconds", 1, 3)):
        yield _cell("–" if arm[key] is None else f"{arm[key] * scale:,.{digits}f}")
    same = arm["as_many_tokens"]
    yield _cell("–" if same is None else f"{same[0]:,} / {same[1]:,}")
    read = sum(arm["box_status"].get(status, 0) for status in ("ok", "repaired", "clamped"))
    asked = sum(count for status, count in arm["box_status"].items() if status != "skipped")
    yield _cell(f"{asked - read:,} / {asked:,}" if asked else "–")


def _cell(value: object, below: str = "") -> Html:
    return element("td", joined([value, element("small", below)]) if below else value, class_="n")


# --- the rest ---


def _list(lines: Sequence[str]) -> Html:
    return element("ul", joined(element("li", line) for line in lines), class_="remarks")


def _made(found: Mapping[str, Any]) -> Html:
    parts = [facts(f"Protocol of {each['benchmark']}", each["protocol"]) for each in found["benchmarks"]]
    provenance = {**found["versions"], **{name: str(value) for name, value in found["hardware"].items()}}
    return joined([facts("Settings", found["settings"]), *parts, facts("Provenance", provenance)])
