"""Extraction rules of the two common harnesses, where they differ from the official script's.

`lmms-eval` is EvolvingLMMs-Lab/lmms-eval 0.7.3, `vlmevalkit` is VLMEvalKit as in ms-vlmeval 0.0.20; each function names the
one it reproduces, quirks included. This module has their scoring only; their prompts differ, too: lmms-eval asks TextVQA
without OCR tokens, OKVQA with VizWiz's sentence and SEED's videos with eight frames; VLMEvalKit never shows OCR tokens. Where
they ask a judge about answers that rules do not decide, such an answer is wrong here.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cos_core.scoring import answers, metrics
from cos_core.scoring.metrics import Verdict
from cos_core.types import Example

OFFICIAL: Final = "official"
LMMS: Final = "lmms-eval"
VLM: Final = "vlmevalkit"
HARNESSES = (OFFICIAL, LMMS, VLM)

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def lmms_words(text: str) -> str:
    """lmms-eval's `exact_match` with ignore_case and ignore_punctuation: all 32 ASCII marks deleted, in either text."""
    return text.lower().translate(_NO_PUNCTUATION)


# --- yes or no -------------------------------------------------------------------------------------------------------


def lmms_mme_label(text: str) -> str:
    """lmms-eval's MME: as calculation.py after stripping and deleting periods; y and n alone count, too."""
    text = text.strip().lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def vlm_yes_no(text: str) -> str:
    """VLMEvalKit's yes/no questions (MME, POPE): yes or no when exactly one of the words occurs, else "other"."""
    words = answers.remove_marks(text.lower(), VLM).split()
    return answers.only([word for word in ("yes", "no") if word in words]) or "other"


# --- option letters --------------------------------------------------------------------------------------------------


def lmms_science_letter(text: str) -> str | None:
    """lmms-eval's ScienceQA: a letter alone, of either case, or a capital before a period; nothing else."""
    text = text.strip()
    if len(text) == 1:
        return text.upper()
    return text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else None


def lmms_first_letter(text: str) -> str | None:
    """lmms-eval's SEED-Bench: the first character, of either case: "apple" is A."""
    return text.strip()[:1].upper() or None


_LMMS_FRAMES = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def lmms_option_letter(text: str, options: Mapping[str, str]) -> str | None:
    """lmms-eval's MMBench without a judge (`mmbench_en_dev_static`).

    One letter of A to E (whatever the options) as a word, unless there are more than three words and A among them; else one in
    the first of twelve frames ("B.", "(B)", ...) that exactly one letter fills; else the one option whose text occurs; else the
    likeliest letter of A to D. A missing option has the text "nan", which "banana" contains.
    """
    text = text.strip()
    words = text.split()
    letters = [letter for letter in LETTERS if letter in words]
    if len(letters) == 1 and not ("A" in words and len(words) > 3):
        return letters[0]
    for frame in _LMMS_FRAMES:
        letter = answers.only([letter for letter in LETTERS if frame.format(letter) in words])
        if letter is not None:
            return letter
    return answers.quoted_option(text, {letter: options.get(letter, "nan") for letter in "ABCD"}) or _likeliest(text, "ABCD")


_PHRASES = (
    *(f"{the}{which}answer is" for which in ("", "correct ", "best ") for the in ("the ", "")),
    *(f"{the}{which}option is" for which in ("correct ", "best ") for the in ("the ", "")),
    *(f"{the}{which}choice is" for which in ("", "correct ") for the in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def _likeliest(text: str, letters: str) -> str | None:
    """lmms-eval's `extract_mcq_answer`: the letter in the form of the highest rank; of several, the last one."""
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare, text = text.strip(), f" {text} "
    places: list[tuple[int, int, str]] = []  # rank of the form, position, letter
    for rank, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
        places += [(rank, text.rfind(form.format(letter)), letter) for letter in letters if form.format(letter) in text]
    lower = text.lower()
    for phrase in _PHRASES:
        if phrase in lower:
            end = lower.find(phrase) + len(phrase)
            places += [(7, text.find(letter, end), letter) for letter in letters if text.find(letter, end) >= 0]
    places += [(10, 0, letter) for letter in letters if bare.startswith(letter) and not bare[1:2].isalpha()]
    places += [(9, len(text) - 1, letter) for letter in letters if bare.endswith(letter) and not bare[-2:-1].isalpha()]
    places = places or [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(places, key=lambda place: place[:2])[2] if places else None


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def vlm_option_letter(text: str, options: Mapping[str, str]) -> str | None:
    """VLMEvalKit's multiple choice without a judge (MMBench, SEED-Bench, ScienceQA).

    Exactly one option letter as a word, among the last four words; else, in an answer at most twice as long as all options
    together, the one option whose text occurs. None where a judge would be asked, "Z" for a refusal or Z itself.
    """
    if any(refusal in text for refusal in _REFUSALS):
        return "Z"
    words = answers.option_words(text)
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
        return letters[0]
    if not letters and "Z" in words:
        return "Z"
    if len(text.lower()) > 2 * sum(map(len, options.values())):
        return None
    return answers.quoted_option(text, options)


Reader = Callable[[str, Mapping[str, str]], str | None]


def option_rule(read: Reader, shown: Callable[[str | None], str | None] = lambda letter: letter) -> metrics.Rule:
    """Compares the letter that `read` returns with the right one; a letter of no option counts as unread.

    `shown`: the letter -> the score's `extracted`.
    """

    def judged(example: Example, answer: str) -> Verdict:
        options, expected = by_letter(example.choices, example.letters or LETTERS), example.answers[0]
        letter = read(answer, options)
        return Verdict(float(letter == expected), shown(letter), expected, letter in options)

    return judged


LETTERS = "ABCDE"


def by_letter(choices: Sequence[str], letters: str = LETTERS) -> dict[str, str]:
    """letter -> option; `letters` other than A to E where a table leaves some out."""
    return dict(zip(letters, choices, strict=False))
