"""What the two common harnesses read from an answer, where that is not what the official script reads.

`lmms-eval` is EvolvingLMMs-Lab/lmms-eval 0.7.3, `vlmevalkit` is VLMEvalKit as in ms-vlmeval 0.0.20; each function names the
one it keeps, quirks included. Only their scoring is here. Their figures differ by what they ask, too: lmms-eval asks TextVQA
without OCR tokens, OKVQA with VizWiz's sentence and SEED's videos with eight frames; VLMEvalKit never shows OCR tokens. Where
they let a judge decide what rules cannot, the rules decide alone.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cos_core.scoring import metrics
from cos_core.scoring.answers import remove_marks
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
    words = remove_marks(text.lower(), VLM).split()
    said = [word for word in ("yes", "no") if word in words]
    return said[0] if len(said) == 1 else "other"


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


_LMMS_LETTERS = "ABCDE"
_LMMS_FRAMES = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def lmms_option_letter(text: str, options: Mapping[str, str]) -> str | None:
    """lmms-eval's MMBench without a judge (`mmbench_en_dev_static`).

    One letter of A to E (whatever the options) as a word, unless there are more than three words and A among them; else one in
    the first of twelve frames ("B.", "(B)", ...) that exactly one letter fills; else the one option whose text occurs; else the
    likeliest letter of A to D. A missing option has the text "nan", which "banana" contains.
    """
    text = text.strip()
    words = text.split()
    named = [letter for letter in _LMMS_LETTERS if letter in words]
    if len(named) == 1 and not ("A" in words and len(words) > 3):
        return named[0]
    for frame in _LMMS_FRAMES:
        framed = [letter for letter in _LMMS_LETTERS if frame.format(letter) in words]
        if len(framed) == 1:
            return framed[0]
    lower = text.lower()
    quoted = [letter for letter in "ABCD" if options.get(letter, "nan").lower() in lower]
    return quoted[0] if len(quoted) == 1 else _likeliest(text, "ABCD")


_PHRASES = (
    *(f"{the}{which}answer is" for which in ("", "correct ", "best ") for the in ("the ", "")),
    *(f"{the}{which}option is" for which in ("correct ", "best ") for the in ("the ", "")),
    *(f"{the}{which}choice is" for which in ("", "correct ") for the in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def _likeliest(text: str, letters: str) -> str | None:
    """lmms-eval's `extract_mcq_answer`: the place of a letter in the most telling form, of several the last one."""
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare, text = text.strip(), f" {text} "
    found: list[tuple[int, int, str]] = []  # how telling, where, which
    for rank, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
        found += [(rank, text.rfind(form.format(letter)), letter) for letter in letters if form.format(letter) in text]
    lower = text.lower()
    for phrase in _PHRASES:
        if phrase in lower:
            end = lower.find(phrase) + len(phrase)
            found += [(7, text.find(letter, end), letter) for letter in letters if text.find(letter, end) >= 0]
    found += [(10, 0, letter) for letter in letters if bare.startswith(letter) and not bare[1:2].isalpha()]
    found += [(9, len(text) - 1, letter) for letter in letters if bare.endswith(letter) and not bare[-2:-1].isalpha()]
    found = found or [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found, key=lambda place: place[:2])[2] if found else None


_NOT_A_WORD = re.compile(r"[.()\[\],:;!*#{}]")
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
    words = _NOT_A_WORD.sub(" ", text).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return "Z"
    lower = text.lower()
    if len(lower) > 2 * sum(map(len, options.values())):
        return None
    quoted = [letter for letter, option in options.items() if option.lower() in lower]
    return quoted[0] if len(quoted) == 1 else None


Reader = Callable[[str, Mapping[str, str]], str | None]


def option_rule(read: Reader, shown: Callable[[str | None], str | None] = lambda letter: letter) -> metrics.Rule:
    """The letter that `read` finds against the right one; a letter of no option counts as nothing read. `shown`: what the score
    says was extracted."""

    def judged(example: Example, answer: str) -> Verdict:
        options, expected = by_letter(example.choices, example.letters or LETTERS), example.answers[0]
        letter = read(answer, options)
        return Verdict(float(letter == expected), shown(letter), expected, letter in options)

    return judged


LETTERS = "ABCDE"


def by_letter(choices: Sequence[str], letters: str = LETTERS) -> dict[str, str]:
    """Options by their letters; other `letters` where a table leaves some out."""
    return dict(zip(letters, choices, strict=False))
