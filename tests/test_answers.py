"""Normalisers and extractors against the figures of the official scorers and their documented quirks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_core.scoring import answers

GOLDEN = Path(__file__).parent / "golden"
ROWS = [json.loads(line) for line in (GOLDEN / "vqa_accuracy.jsonl").read_text(encoding="utf-8").splitlines()]


def test_vqa_accuracy_and_normalisers_equal_both_scripts_on_all_golden_rows() -> None:
    assert len(ROWS) == 400
    for row in ROWS:
        prediction, given_answers = row["prediction"], row["answers"]
        assert answers.vqa_accuracy(prediction, given_answers) == pytest.approx(row["official_vqa_accuracy"], abs=1e-12), row
        assert answers.vqa_accuracy(prediction, given_answers, "m4c") == pytest.approx(row["evalai_vqa_accuracy"], abs=1e-12), (
            row
        )
        assert answers.vqa_official(prediction) == row["official_normalized"], row
        assert answers.vqa_m4c(prediction) == row["evalai_normalized"], row


@pytest.mark.parametrize(
    ("text", "official", "m4c"),
    [
        ("A red car.", "red car", "red car"),
        ("girl's", "girl's", "girl 's"),
        ("Two dogs", "2 dogs", "2 dogs"),
        ("it's", "it's", "it 's"),
        ("none", "0", "0"),
        ("t-shirt", "t shirt", "t shirt"),
        ("dont", "don't", "don't"),
        ("ping-pong - ball", "pingpong ball", "pingpong ball"),
        ("2:50 pm", "2:50 pm", "2:50 pm"),
        ("St. Louis", "st louis", "st louis"),
        ("100,978", "100978", "100978"),
        ("10%", "10%", "10%"),
        ("$5", "$5", "$5"),
        ("1,000,000", "1000000", "1000000"),
        ("a,b", "b", "ab"),
        ("5.", "5", "5"),
        ("3.5", "3.5", "3.5"),
        ("U.S.A", "usa", "usa"),
        ("the", "", ""),
        ("Im", "im", "im"),  # the table's keys with capitals never match
        ("somebody'd", "somebodyd", "somebodyd"),  # sic
        ("ow's'at", "'ow's'at", "ow 's'at"),
    ],
)
def test_vqa_normalisers(text: str, official: str, m4c: str) -> None:
    assert answers.vqa_official(text) == official
    assert answers.vqa_m4c(text) == m4c


def test_at_most_32_periods_go() -> None:
    assert answers.vqa_official("." * 40) == "." * 8


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_by_number_of_matches(matches: int, score: float) -> None:
    given_answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert answers.vqa_accuracy("red", given_answers) == pytest.approx(score)
    assert answers.vqa_accuracy("Red.", given_answers, "m4c") == pytest.approx(score)


def test_ten_equal_answers_switch_the_official_normaliser_off() -> None:
    assert answers.vqa_accuracy("Red", ["red"] * 10) == 0.0
    assert answers.vqa_accuracy("2", ["two"] * 10) == 0.0
    assert answers.vqa_accuracy("2", ["two"] * 10, "m4c") == 1.0
    assert answers.vqa_accuracy("2", ["two"] * 9 + ["3"]) == 1.0
    assert answers.vqa_accuracy("red\n", ["red"] * 10) == 1.0


def _transcribed(prediction: str, given_answers: list[str]) -> float:
    """The leave-one-out mean as the definition reads, over normalised texts."""
    said = [answers.vqa_m4c(a) for a in given_answers]
    parts = []
    for left_out in range(len(said)):
        others = said[:left_out] + said[left_out + 1 :]
        parts.append(min(1.0, sum(o == answers.vqa_m4c(prediction) for o in others) / 3))
    return sum(parts) / len(parts)


@given(st.sampled_from(["a", "one", "1", "no"]), st.lists(st.sampled_from(["one", "1", "no", "b"]), min_size=2, max_size=12))
def test_closed_form_equals_the_definition(prediction: str, given_answers: list[str]) -> None:
    assert answers.vqa_accuracy(prediction, given_answers, "m4c") == pytest.approx(_transcribed(prediction, given_answers))


@given(st.text())
def test_no_normaliser_raises(text: str) -> None:
    for rule in (answers.vqa_official, answers.vqa_m4c, answers.plain):
        assert isinstance(rule(text), str)
    answers.pope_yes(text)
    answers.mme_label(text)
    answers.scienceqa_letter(text)
    answers.option_letter(text, {"A": "one", "B": "two"})
    answers.textvqa_question(text)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no", False),
        ("NO", True),  # the script knows two spellings only
        ("No, there is not.", False),
        ("Yes. There is no car", True),  # the first sentence decides
        ("There is not a car", False),
        ("nothing", True),
        ("", True),
        ("no\n", True),  # split at spaces only
    ],
)
def test_pope_yes(text: str, yes: bool) -> None:
    assert answers.pope_yes(text) is yes


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes", "yes"),
        ("NO", "no"),
        ("Yes, it is", "yes"),
        ("no.", "no"),
        ("I say yes", "other"),
        ("", "other"),
        ("eyes", "yes"),
    ],
)
def test_mme_label(text: str, label: str) -> None:
    assert answers.mme_label(text) == label


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("E", "E"),
        ("F", None),
        ("A ", None),
        ("a", None),
        ("B. choice", "B"),
        ("B.", None),
        ("B) choice", None),
        ("The answer is C.", "C"),
        ("The answer is C", None),  # the pattern wants one more character
        ("The answer is C!", "C"),
        ("The answer is C. The answer is D.", None),
        ("So: The answer is Z.", "Z"),  # beyond the choices: read, and wrong
        ("", None),
    ],
)
def test_scienceqa_letter(text: str, letter: str | None) -> None:
    assert answers.scienceqa_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. two dogs", "B"),
        ("(C)", "C"),
        ("A or B", None),
        ("it is two dogs", "B"),
        ("two dogs and one cat", None),
        ("", None),
        ("D", None),
    ],
)
def test_option_letter(text: str, letter: str | None) -> None:
    assert answers.option_letter(text, {"A": "one cat", "B": "two dogs", "C": "none"}) == letter


def test_textvqa_question() -> None:
    suffix = "Answer the question using a single word or phrase."
    assert answers.textvqa_question(f"What IS it?\nReference OCR token: A, B\n{suffix}") == "what is it?"
    assert answers.textvqa_question(f"Reference OCR token: A, B\nWhat is it?\n{suffix}") == "what is it?"
    assert answers.textvqa_question(f"What is it?\n{suffix}") == "what is it?"
    assert answers.textvqa_question("OCR tokens: a. Question: What is it? Short answer:") == "what is it?"
    assert answers.textvqa_question("What is it?") is None


def test_plain() -> None:
    assert answers.plain(" The  Cat. ") == "the cat"
    assert answers.plain("'Blue!'") == "blue"
    assert answers.plain("3.5") == "3.5"
