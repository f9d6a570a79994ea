"""The gate: how it is written and what it opens for."""

from __future__ import annotations

import pytest
from refusals import refused

from cos_core.dialogue.gate import gate_text, read_gate


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("margin:2", "margin:2"),
        (" margin:2.50 ", "margin:2.5"),
        ("area:0-0.25", "area:0-0.25"),
        ("all", "all"),
        ("area:0.00001-1.0", "area:0.00001-1"),
        ("margin:1e-7", "margin:0.0000001"),
        ("margin:inf", "margin:inf"),
        ("margin:1e3", "margin:1000"),
    ],
)
def test_a_gate_has_one_spelling(text: str, spelt: str) -> None:
    assert gate_text(text) == spelt
    assert read_gate(spelt).text == spelt


@pytest.mark.parametrize(
    "text",
    ["", "margin", "margin:", "margin:-1", "margin:nan", "margin:x", "area:0.5", "area:0.5-0.2", "area:0-2", "area:-", "all:1"],
)
def test_what_is_no_gate_is_refused(text: str) -> None:
    with refused("gate"):
        read_gate(text)


def test_what_is_recorded_of_a_margin_is_what_decides() -> None:
    gate = read_gate("margin:2")
    assert gate.opens_at_margin(1.999)
    assert not gate.opens_at_margin(1.9996)  # recorded as 2.000
    assert read_gate("all").opens_at_margin(1e9)


def test_both_ends_of_an_area_are_in() -> None:
    gate = read_gate("area:0.1-0.5")
    assert [gate.opens_at_area(area) for area in (0.09, 0.1, 0.5, 0.51)] == [False, True, True, False]
