"""Normalisers and extractors of the official scorers, as pure functions on an answer's text.

Each function names the script whose behaviour it reproduces, quirks included. Arguments are texts as the model wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

VqaRule = Literal["official", "m4c", "lmms-eval", "vlmevalkit"]
"""Which VQA scorer: GT-Vision-Lab/VQA `vqaEval.py`; `EvalAIAnswerProcessor` of LLaVA's `m4c_evaluator.py`, which is also what
lmms-eval 0.7.3 does for TextVQA, VizWiz and OKVQA; what lmms-eval does for VQAv2; `vqa_eval.py` of VLMEvalKit (ms-vlmeval
0.0.20)."""

LETTERS = ("A", "B", "C", "D", "E")

# --- exact match -----------------------------------------------------------------------------------------------------

_EDGES = " \t\r\n.,;:!?\"'`"


@lru_cache(maxsize=65536)
def plain(text: str) -> str:
    """Case, outer punctuation and runs of white space removed: `' The  Cat. '` -> `'the cat'`. A rule of our own."""
    return " ".join(text.casefold().split()).strip(_EDGES)


# --- VQA accuracy ----------------------------------------------------------------------------------------------------

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_COMMAS_IN_NUMBER = re.compile(r"\d,+\d")
# The official pattern `(?!<=\d)(\.)(?!\d)` means a lookbehind but spells a lookahead that always holds: what remains is this.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIOD_ALONE = re.compile(r"(?<!\d)\.(?!\d)")
# The official call hands re.UNICODE to `sub` where the count belongs.
_MOST_PERIODS = int(re.UNICODE)

_NUMBERS = {
    word: str(value)
    for value, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))

# The official table maps a form that lacks one apostrophe to the full one. Its keys with capitals (Im, Ive) never match, as the
# text is lower-case by then, and two of its entries map a word to itself: neither kind is listed.
_FULL_FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def _without_one_apostrophe(form: str) -> list[str]:
    return [form[:i] + form[i + 1 :] for i, mark in enumerate(form) if mark == "'"]


CONTRACTIONS: Mapping[str, str] = {short: form for form in _FULL_FORMS.split() for short in _without_one_apostrophe(form)} | {
    "somebody'd": "somebodyd"  # sic, in every copy of the table
}


def remove_marks(text: str, rule: VqaRule = "official") -> str:
    """`processPunctuation` of vqaEval.py: each mark deleted where it stands beside a space (or anywhere, when the text has a
    comma inside a number), else turned into a space; then periods that no digit follows deleted.

    lmms-eval takes several commas for one; VLMEvalKit keeps a period behind a digit ("5."), as vqaEval.py means to.
    """
    comma_in_number = (_COMMAS_IN_NUMBER if rule == "lmms-eval" else _COMMA_IN_NUMBER).search(text) is not None
    period = _PERIOD_ALONE if rule == "vlmevalkit" else _PERIOD
    result = text
    for mark in _MARKS:
        if mark in text:
            beside_space = f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if beside_space or comma_in_number else " ")
    return period.sub("", result, count=_MOST_PERIODS) if "." in result else result


def _digits_and_articles(text: str) -> str:
    """`processDigitArticle` of vqaEval.py: lower case, number words to digits, articles dropped, contractions restored."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=1 << 18)
def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 18)
def vqa_official(text: str) -> str:
    """Both normalising steps of vqaEval.py (a013f00), as they run when the ten answers are not all identical."""
    return _digits_and_articles(remove_marks(_one_line(text)))


@lru_cache(maxsize=1 << 18)
def vqa_lmms(text: str) -> str:
    """lmms-eval's VQAv2: both steps of vqaEval.py, whether or not the ten answers are identical."""
    return _digits_and_articles(remove_marks(_one_line(text), "lmms-eval"))


@lru_cache(maxsize=1 << 18)
def vqa_vlm(text: str) -> str:
    """`process_answer` of VLMEvalKit's vqa_eval.py, always applied."""
    return _digits_and_articles(remove_marks(_one_line(text), "vlmevalkit"))


@lru_cache(maxsize=1 << 18)
def vqa_m4c(text: str) -> str:
    """`EvalAIAnswerProcessor` of LLaVA's m4c_evaluator.py (c121f04): commas and question marks go first, `'s` is set apart."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _digits_and_articles(remove_marks(_one_line(text)))


_NORMALISERS: Mapping[VqaRule, Callable[[str], str]] = {
    "official": vqa_official,
    "m4c": vqa_m4c,
    "lmms-eval": vqa_lmms,
    "vlmevalkit": vqa_vlm,
}


def vqa_normalised(text: str, rule: VqaRule) -> str:
    """`text` as it is compared under `rule` (under "official", when the ten answers are not all identical)."""
    return _NORMALISERS[rule](text)


def vqa_accuracy(prediction: str, answers: Sequence[str], rule: VqaRule = "official") -> float:
    """VQA accuracy in [0, 1] of one prediction against the annotators' answers (ten, by convention; at least two).

    The mean over annotators of min(1, matches among the others / 3): with ten of them 0, 0.3, 0.6, 0.9 or 1.
    Under "official" nothing but line ends and outer spaces is normalised, not even case, when all answers are identical;
    under the others both sides always are.
    """
    matches = vqa_matches(prediction, answers, rule)
    total = len(answers)
    # An annotator who gave the prediction's answer sees one match fewer among the others.
    return (matches * min(1.0, (matches - 1) / 3) + (total - matches) * min(1.0, matches / 3)) / total if matches else 0.0


def vqa_matches(prediction: str, answers: Sequence[str], rule: VqaRule = "official") -> int:
    """How many of `answers` equal the prediction under `rule` (see `vqa_accuracy`)."""
    # All annotators together use few words, so nearly every text is one that was normalised before (lru_cache).
    normalise = _NORMALISERS[rule]
    if rule == "official" and len(set(map(_one_line, answers))) == 1:
        normalise = _one_line
    return tuple(map(normalise, answers)).count(normalise(prediction))


# --- yes or no -------------------------------------------------------------------------------------------------------


def pope_yes(text: str) -> bool:
    """LLaVA's eval_pope.py: "no" when the first sentence holds one of the words No, not, no; anything else is "yes"."""
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return not any(word in ("No", "not", "no") for word in words)


def mme_label(text: str) -> Literal["yes", "no", "other"]:
    """MME's calculation.py: exactly yes or no, else the first of them found in the first four characters, else "other"."""
    text = text.lower()
    if text in ("yes", "no"):
        return text  # type: ignore[return-value]
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


# --- option letters --------------------------------------------------------------------------------------------------

_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")


def scienceqa_letter(text: str) -> str | None:
    """The letter that LLaVA's eval_science_qa.py reads, or None ("FAILED" there).

    A bare letter A-E; a letter followed by ". "; or the one letter after "The answer is " (followed by any character).
    """
    if text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    return only(_THE_ANSWER_IS.findall(text))


_NOT_A_WORD = re.compile(r"[.()\[\],:;!*#{}]")


def option_letter(text: str, options: Mapping[str, str]) -> str | None:
    """The option an answer names, by MMBench's two rules without a judge; None when neither decides.

    `options`: letter -> text. First rule: exactly one option letter stands as a word of its own (punctuation counts as space).
    Second: exactly one option's text occurs in the answer, case aside.
    """
    words = option_words(text)
    return only([letter for letter in options if letter in words]) or quoted_option(text, options)


def option_words(text: str) -> list[str]:
    """The words of an answer, punctuation taken for space."""
    return _NOT_A_WORD.sub(" ", text).split()


def quoted_option(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the one option whose text occurs in the answer, case aside; None for none or several."""
    lower = text.lower()
    return only([letter for letter, option in options.items() if option.lower() in lower])


def only(letters: Sequence[str]) -> str | None:
    """The one letter of `letters`; None for none or several."""
    return letters[0] if len(letters) == 1 else None


# --- LLaVA's prompts -------------------------------------------------------------------------------------------------

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."

_OCR_FIRST = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def textvqa_question(prompt: str) -> str | None:
    """The lower-case question inside a TextVQA prompt, by LLaVA's eval_textvqa.py; None for a shape that it does not know."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        match = _OCR_FIRST.search(prompt)
        return match.group(1).lower() if match else None
    if "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    return lines[0].lower() if len(lines) == 2 else None
