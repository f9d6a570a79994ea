"""The rules of `cos evidence`: every cell of its table of verdicts, what failures and few pictures do to them, its arms."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from evidence_world import run_of
from refusals import refused

from cos_core.evidence import boxes, verdicts, words
from cos_core.evidence.arms import LABELS, NEEDED, ONE_LOOK, TITLES, arms
from cos_core.evidence.config import SET_BY_ARMS, EvidenceConfig
from cos_core.evidence.verdicts import BLACK, NOISE, PLACE, ROWS, SWAP, TWICE, Failed, Line, Overall
from cos_core.infer.config import AnsweringOptions, InferConfig
from cos_core.scoring import facts
from cos_core.scoring.comparison import Comparison
from cos_core.scoring.comparison import Verdict as Clear
from cos_core.scoring.statistics import AggregateDifference, mcnemar

FOUND = AggregateDifference(
    a=0.5, b=0.6, difference=0.1, low=0.05, high=0.15, error=0.025, p=0.001, detectable=0.07, clusters=200
)
PAIR = Comparison("scenes", "none", "model", "accuracy", "fraction", FOUND, 0.001, "exact McNemar", 200, ["1"], [], p_holm=0.01)
CLEAR = get_args(Clear)


def line(verdict: str, difference: float = 0.1, **more: object) -> Line:
    """A difference with this verdict; its interval is 5 points wide to either side."""
    signed = -abs(difference) if verdict == "worse" else difference
    found = replace(FOUND, difference=signed, b=0.5 + signed, low=signed - 0.05, high=signed + 0.05)
    pair = replace(PAIR, found=found, p_holm=0.5 if verdict == "unclear" else 0.01)
    if verdict == "undefined":
        pair = replace(pair, missing="the runs have no question in common")
    return Line(TWICE, pair, **more)  # type: ignore[arg-type]


def expected(twice: str, content: tuple[str, str, str], bounded: bool) -> Overall:
    """The rule once more, from the end: what each verdict needs."""
    black = content[0]
    if "undefined" in {twice, *content}:
        return "cannot tell"
    hurt = twice == "worse" or black == "worse"
    if not hurt and content == ("better",) * 3:
        return "reads the crop"
    if not hurt and content == ("unclear",) * 3:
        return "does not use the crop" if bounded else "cannot tell"
    return "hurt by the crop" if hurt else "mixed"


def test_every_cell_of_the_table_of_verdicts() -> None:
    counts: Counter[str] = Counter()
    for twice, *content, bounded in itertools.product(CLEAR, CLEAR, CLEAR, CLEAR, (True, False)):
        found = verdicts.overall(twice, content, bounded)
        assert found == expected(twice, tuple(content), bounded), (twice, content, bounded)
        counts[found] += 1
    # Of 512 cells 350 have something undefined: 4^4 - 3^4, twice. Of the others, by hand: hurt are 27 (worse than none) and
    # 18 (else, worse than black), twice; reads and unclear are 2 each (better or unclear against none).
    assert counts == {
        "cannot tell": 350 + 2,
        "hurt by the crop": 90,
        "reads the crop": 4,
        "does not use the crop": 2,
        "mixed": 512 - 352 - 90 - 4 - 2,
    }


def test_all_verdicts_have_words_with_their_figures() -> None:
    for verdict in get_args(Overall):
        said = words.overall_words(verdict, line("better"), [line("better"), line("unclear"), line("undefined")], 5.0)
        assert said.endswith(".")
        assert "{" not in said
    ignored = [replace(line("unclear", 0.0), contrast=contrast) for contrast in (BLACK, NOISE, SWAP)]
    assert "5.0 points" in words.overall_words("does not use the crop", line("unclear"), ignored, 6.0)
    read = [line("better", 0.3), line("better", 0.2), line("better", 0.4)]
    assert "20.0 points" in words.overall_words("reads the crop", line("better"), read, 5.0)


@pytest.mark.parametrize("verdict", CLEAR)
def test_one_look_that_loses_to_a_black_crop_is_no_reference(verdict: str) -> None:
    said = words.plain_words(line(verdict, 0.3))
    assert bool(said) == (verdict == "better")
    assert "30.0 points" in said or not said


@pytest.mark.parametrize(
    ("deciding", "answer"),
    [
        (("better", "better"), "yes"),
        (("worse", "worse"), "no: the reverse"),
        (("unclear", "unclear"), "no sign"),
        (("better", "unclear"), "partly"),
        (("better", "worse"), "partly"),
        (("better", "undefined"), "undefined"),
    ],
)
def test_a_row_is_decided_by_its_first_lines(deciding: tuple[str, ...], answer: str) -> None:
    row = next(row for row in ROWS if row.decide == 2)
    lines = [*map(line, deciding), line("worse")]
    assert verdicts.row_answer(row, lines) == answer
    assert words.row_words(verdicts.row_answer(row, lines), lines[:2])
    assert verdicts.row_answer(row, [Line(BLACK, absent="why"), *lines[1:]]) == "not run"


def test_failed_questions_cannot_make_a_verdict() -> None:
    """Of 200 questions, 10 points are 20."""
    assert line("better", failed=Failed(19, 200)).verdict == "better", "failures of the better arm make it no better"
    assert line("better", failed=Failed(20, 0)).verdict == "undefined"
    assert line("worse", failed=Failed(0, 20)).verdict == "undefined"
    assert line("worse", failed=Failed(200, 19)).verdict == "worse"
    assert line("unclear", failed=Failed(20, 20)).verdict == "unclear"
    assert line("unclear", 0.0, failed=Failed(0, 20)).most == pytest.approx(0.05 + 0.1)
    assert not verdicts.bounded([line("unclear", 0.0, failed=Failed(0, 20))], 5.5)
    assert not verdicts.bounded([line("unclear", 0.0, failed=Failed(both=20))], 5.5), "nothing is known of these either"
    assert verdicts.bounded([line("unclear", 0.0)], 5.5)


def test_the_margin_is_in_points_of_the_whole_range() -> None:
    assert verdicts.bounded([line("unclear", -0.01)] * 3, 4.1)
    assert not verdicts.bounded([line("unclear", -0.01)] * 3, 3.9)
    percent = replace(PAIR, unit="percent", found=replace(FOUND, difference=-1.0, low=-6.0, high=4.0), p_holm=1.0)
    assert verdicts.bounded([Line(BLACK, percent)], 4.1)
    assert not verdicts.bounded([Line(BLACK, percent)], 3.9)
    # MME's points have no range here: the larger of both values stands for it.
    of_1500 = replace(FOUND, a=1500.0, b=1490.0, difference=-10.0, low=-70.0, high=60.0)
    points = replace(PAIR, unit="points", found=of_1500, p_holm=1.0)
    assert Line(BLACK, points).scale == 1500
    assert verdicts.bounded([Line(BLACK, points)], 4.1)
    assert not verdicts.bounded([Line(BLACK, points)], 3.9)
    assert not verdicts.bounded([Line(BLACK, absent="not run")], 100.0)


def test_no_change_is_not_certainty() -> None:
    same = replace(FOUND, difference=0.0, b=0.5, low=0.0, high=0.0, error=0.0, clusters=100)
    alike = Line(BLACK, replace(PAIR, found=same, won=[], p_holm=1.0), tests=13)
    # A share s of changed pictures leaves 100 unchanged with probability (1 - s)^100.
    assert (1 - alike.ends.high) ** 100 == pytest.approx(0.025)
    assert alike.ends.low == -alike.ends.high
    assert alike.seen > alike.ends.high


def test_what_would_have_been_seen_is_what_the_sign_test_can_see() -> None:
    """By hand: at 5 % six changes one way are needed (2 / 2^6 = 0.031), at 0.05 / 13 nine (2 / 2^9 = 0.0039 is too much by a
    hair, so ten)."""
    for level, needed in ((0.05, 6), (0.05 / 13, 10)):
        assert mcnemar(needed, 0) <= level < mcnemar(needed - 1, 0)
        share = verdicts.one_way_share(100, level)
        tail = sum(math.comb(100, k) * share**k * (1 - share) ** (100 - k) for k in range(needed, 101))
        assert tail == pytest.approx(0.8, abs=1e-6)
        assert math.isinf(verdicts.one_way_share(needed - 1, level))
    assert verdicts.one_way_share(10, 0.05 / 13) == pytest.approx(0.8**0.1, abs=1e-6)
    assert Line(BLACK, PAIR, tests=1).seen == pytest.approx((1.959964 + 0.841621) * 0.025, rel=1e-4)
    assert Line(BLACK, PAIR, tests=13).seen > Line(BLACK, PAIR, tests=1).seen


def test_boxes_are_compared_by_what_they_gain() -> None:
    """Six pictures with a question each: right boxes go from 1 of 3 to 3 of 3, wrong ones stay at 2 of 3."""
    iou = {"0": 0.9, "1": 0.5, "2": 0.7, "3": 0.49, "4": 0.0, "5": 0.2}
    none, model = run_of(_floats("100110"), 1), run_of(_floats("111101"), 1)
    found = boxes.effect(none, model, iou, replicates=200)
    assert found is not None
    assert found.right == (3, 3, pytest.approx(1 / 3), 1.0)
    assert found.wrong == (3, 3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert found.comparison.found.difference == pytest.approx(2 / 3)
    assert boxes.effect(none, model, dict.fromkeys(iou, 1.0)) is None
    assert dict(facts.overlaps(Path("none"))) == {}
    lone = boxes.effect(none, model, {"0": 0.9, "1": 0.1, "2": 0.2}, replicates=200)
    assert lone is not None
    assert lone.comparison.verdict == "undefined"


def _floats(text: str) -> object:
    import numpy as np

    return np.array([float(each) for each in text])


def test_arms_have_titles_and_are_settings_of_infer() -> None:
    every = arms(blur=0.25, gold=True)
    assert [arm.name for arm in every] == list(TITLES) == list(LABELS)
    assert [arm.name for arm in arms(blur=0.25, fast=True, gold=True)] == list(NEEDED)
    assert "gold" not in [arm.name for arm in arms(blur=0.25)]
    asked = {arm.name: arm.of(InferConfig(model="miniature")) for arm in every}
    assert asked["blurred_model"].global_scale == 0.25
    assert {name for name, settings in asked.items() if settings.roi == "none"} == set(ONE_LOOK)
    named = {side for row in ROWS for contrast in row.contrasts if contrast != PLACE for side in contrast[:2]}
    assert named == set(TITLES)
    assert {c.a for c in (TWICE, BLACK, NOISE, SWAP)} | {"model"} == set(NEEDED)


def config(**answering: object) -> EvidenceConfig:
    options = AnsweringOptions(**answering)  # type: ignore[arg-type]
    return EvidenceConfig("miniature", "scenes, vstar,scenes", Path("data"), Path("out"), answering=options)


def test_what_the_arms_set_is_refused() -> None:
    assert config(temperature=0.5).names == ("scenes", "vstar")
    given = {"crop": "black", "box_text": "none", "global_scale": 0.5, "gate": "all"}
    for name, value in given.items():
        with refused(f"--{name.replace('_', '-')}"):
            config(**{name: value})
    with refused("--samples"):
        config(samples=2, temperature=1.0)
    assert set(SET_BY_ARMS) == {*given, "samples"}
    with refused("--benchmarks"):
        EvidenceConfig("miniature", " ,", Path("data"), Path("out"))
