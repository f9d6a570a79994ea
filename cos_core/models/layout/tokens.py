"""A tokenizer whose ids of a whole dialogue in one text are those that `encoding.encode` makes of it stretch by stretch.

LLaVA tokenises the text between pictures in stretches, and what follows the end mark in one of three ways (encoding.py); a
server tokenises the whole text at once, with the tokenizer's own rules. SentencePiece's vocabularies allow either: which it is
depends on the rules around the vocabulary, and those are written into tokenizer.json here:

    every stretch between special tokens begins with a space mark, as each does where it is tokenised alone;
    joined, cut   save the one that begins with the user's role: it follows the end mark, inside a stretch;
    cut           and its first word comes apart where it would with a space mark in front ("US", "ER").

Vocabulary, merges and ids stay what they are.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cos_core.dialogue.encoding import SPACE_MARK, encode, render
from cos_core.dialogue.prompts import Profile, dialogue
from cos_core.errors import InputError
from cos_core.types import ImageSlot, Turn

_QUESTIONS = (
    "What colour is the car?",
    "Is 17 > 3, or not?\nAnswer the question using a single word or phrase.",
    "Où est l'étoile \N{BLACK STAR}  ? \N{CJK UNIFIED IDEOGRAPH-6771}",
    " USER: what?",
)
_BOX = "[0.125, 0.250, 0.375, 0.500]"


def whole_text(tokenizer: Any, profile: Profile, image_token_id: int, config: Path | None = None) -> Any | None:
    """`tokenizer` itself or one with other rules around the same vocabulary; None where neither gives the ids of `encode`.

    Whichever is returned was written, loaded again beside the checkpoint's `config` (config.json, which has a say in how a
    tokenizer is loaded), and compared on dialogues of every form that the profile has, labels included.
    """
    samples = list(_dialogues(profile))
    try:
        expected = [encode(profile, turns, tokenizer, image_token_id, 1) for turns in samples]
    except InputError:
        return None
    texts = [_text(profile, turns, tokenizer.convert_ids_to_tokens(image_token_id)) for turns in samples]
    for candidate in (tokenizer, *_with_other_rules(tokenizer, profile)):
        loaded = _loaded_again(candidate, config)
        whole = [tuple(loaded(text)["input_ids"]) for text in texts]
        if whole != [sample.ids for sample in expected]:
            continue
        if [encode(profile, turns, loaded, image_token_id, 1) for turns in samples] == expected:
            return candidate
    return None


def say_plainly(path: Path) -> None:
    """Rewrites a tokenizer_config.json in words that earlier releases of `transformers` know, too."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        extra = settings.pop("extra_special_tokens")
        if extra:
            settings["additional_special_tokens"] = extra
    for name in ("is_local", "local_files_only", "backend"):
        settings.pop(name, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _loaded_again(tokenizer: Any, config: Path | None) -> Any:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        say_plainly(Path(folder) / "tokenizer_config.json")
        if config is not None:
            shutil.copy(config, folder)
        return AutoTokenizer.from_pretrained(folder)


def _dialogues(profile: Profile) -> Iterator[tuple[Turn, ...]]:
    further = (("How many are there?", "3"), ("And now?", "None."))
    for question in _QUESTIONS:
        yield dialogue(profile, question, chain=False)
        yield dialogue(profile, question, chain=False, answer="red", extra_turns=further)
        yield dialogue(profile, question, asks="all", all_questions=_QUESTIONS)
        yield dialogue(profile, question, asks="image", box_text=_BOX)
        yield dialogue(profile, question, box_text=_BOX, answer=question, extra_turns=further)
        yield dialogue(profile, question, box_text="no box\n here", suffix="\nAnswer with the letter.")


def _text(profile: Profile, turns: tuple[Turn, ...], image_token: str) -> str:
    return "".join(image_token if isinstance(piece, ImageSlot) else piece[0] for piece in render(profile, turns))


def _with_other_rules(tokenizer: Any, profile: Profile) -> Iterator[Any]:
    """The same vocabulary as SentencePiece's: spaced, joined, cut. Nothing for vocabularies of another kind."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    if tokenizer.backend_tokenizer.token_to_id(SPACE_MARK) is None:
        return
    marks = [normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)]
    yield _rebuilt(tokenizer, marks, None)
    role = profile.user.replace(" ", SPACE_MARK)
    if not role.strip(SPACE_MARK):
        return
    # \A: nowhere but at the beginning of what stands between two special tokens.
    bare = [*marks, normalizers.Replace(Regex(rf"\A{SPACE_MARK}(?={re.escape(role)})"), "")]
    yield _rebuilt(tokenizer, bare, None)
    first = tokenizer.backend_tokenizer.model.tokenize(SPACE_MARK + role)[0].value.removeprefix(SPACE_MARK)
    if first:
        apart = pre_tokenizers.Split(Regex(rf"\A{re.escape(first)}(?={re.escape(role[len(first) :])})"), "isolated")
        yield _rebuilt(tokenizer, bare, apart)


def _rebuilt(tokenizer: Any, normalizer: list[Any], pre_tokenizer: Any) -> Any:
    """A tokenizer of no class of its own: those build their rules anew when they are loaded, whatever the file says."""
    from tokenizers import decoders, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.normalizer = normalizers.Sequence(normalizer)
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        additional_special_tokens=[str(t) for t in tokenizer.extra_special_tokens if str(t) not in named.values()],
        padding_side=tokenizer.padding_side,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
    )
