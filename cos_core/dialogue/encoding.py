"""From a dialogue to token ids and loss labels: one function for training and inference.

Text between image slots is tokenised in one piece per stretch and the repeated start mark is dropped, as LLaVA's own
`tokenizer_image_token` does; each image slot becomes `image_tokens` copies of the image token.
Knows tokenizers by their call signature only; imports neither torch nor transformers.

What follows the end mark (`</s>USER: ...`) has three tokenisations in the wild; a checkpoint answers best under the one it was
trained with. The profile's `after_end` names it:
  native   whatever the tokenizer itself does;
  spaced   as if a space stood there, `▁US ER` (`transformers` 4.31 with `legacy` true, and most later fast tokenizers);
  cut      as spaced, then the space mark is cut off the first piece, `US ER` (4.31 with `legacy` false, as LLaVA-1.5);
  joined   as in the middle of a word, `USER` (4.37 and later, slow tokenizer with `legacy` false).
The last three also put SentencePiece's space mark in front of every stretch, even one that begins with a space. A tokenizer
that writes no such mark has only its native way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cos_core.dialogue.messages import IMAGE_MARK
from cos_core.dialogue.prompts import AfterEnd, Profile
from cos_core.errors import InputError
from cos_core.files.text import one_line
from cos_core.types import ImageSlot, Slot, Turn

IGNORE = -100
"""The label that cross-entropy leaves out."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids with one label each (IGNORE where the loss does not look) and the image slots in order of appearance."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    slots: tuple[Slot, ...]

    def __len__(self) -> int:
        return len(self.ids)


def render(profile: Profile, turns: Sequence[Turn]) -> list[tuple[str, bool] | ImageSlot]:
    """The dialogue as stretches: (text, learnt) pairs and image slots, in order.

    A dialogue whose last turn is the user's ends with the assistant's role, ready for generation. A learnt stretch is an
    assistant's text with the space before it and its end mark, as LLaVA supervises it. Raises InputError for a profile that
    leaves the roles to a chat template.
    """
    if profile.roles != "profile":
        raise InputError(f"the profile {profile.name!r} has no roles of its own: the checkpoint's chat template writes them")
    pieces: list[tuple[str, bool] | ImageSlot] = [(profile.system, False)]
    for turn in turns:
        if turn.role == "user":
            pieces.append((profile.user, False))
            pieces += [p if isinstance(p, ImageSlot) else (p, False) for p in turn.parts]
            pieces.append((profile.assistant, False))
        else:
            text = "".join(p for p in turn.parts if isinstance(p, str))
            # The prompt ends right after the role, so the space is the answer's: where a tokenizer makes a token of it (before
            # a digit, say), the model has to write it, and LLaVA's own labels hold it.
            pieces.append((" " + text + profile.turn_end, turn.learn))
    return pieces


MOST_LETTERS = 2**20
"""Characters of a dialogue that is tokenised at all."""
_LETTERS_A_TOKEN = 64
"""No tokenizer in use makes longer pieces, blanks apart: what is longer than the context times this needs no tokenising."""


def encode(
    profile: Profile,
    turns: Sequence[Turn],
    tokenizer: Any,
    image_token_id: int,
    image_tokens: int,
    context: int | None = None,
) -> Encoded:
    """Token ids, labels and slots of a dialogue.

    `tokenizer`: a fast Hugging Face tokenizer (character offsets are needed for exact labels); `image_tokens`: how many
    positions one picture takes (576 for LLaVA-1.5); `context`: the most positions that the model has. A token is learnt when it
    reaches into a learnt stretch. Raises InputError for a dialogue that is longer than `context` tokens or MOST_LETTERS
    characters, for a tokenizer without offsets, for text that holds the image token's own mark, and for half a character.
    """
    pieces = render(profile, turns)
    check_letters([piece[0] for piece in pieces if not isinstance(piece, ImageSlot)], context)
    ids: list[int] = []
    labels: list[int] = []
    slots: list[Slot] = []
    stretch: list[tuple[str, bool]] = []

    def flush() -> None:
        if stretch:
            new_ids, new_labels = _encode_text(stretch, tokenizer, profile.after_end, first=not ids)
            if image_token_id in new_ids:
                raise InputError(IMAGE_MARK)
            ids.extend(new_ids)
            labels.extend(new_labels)
            stretch.clear()

    for piece in pieces:
        if isinstance(piece, ImageSlot):
            flush()
            slots.append(piece.slot)
            ids.extend([image_token_id] * image_tokens)
            labels.extend([IGNORE] * image_tokens)
        else:
            stretch.append(piece)
    flush()
    if context is not None and len(ids) > context:
        raise InputError(f"the dialogue takes {len(ids)} tokens, and the model's context has {context}: a text is too long")
    return Encoded(tuple(ids), tuple(labels), tuple(slots))


def check_letters(texts: Sequence[str], context: int | None = None) -> None:
    """Raises InputError for the texts of a dialogue that are too long together, or hold half a character.

    That can be told before a tokenizer sees them, whose time and memory grow with the text. `context`: as for `encode`.
    """
    letters = sum(map(len, texts))
    if letters > MOST_LETTERS or (context is not None and letters > _LETTERS_A_TOKEN * context):
        words = f"the dialogue has {letters:,} characters: a text is too long"
        raise InputError(words if context is None else f"{words} for the model's context of {context} tokens")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("a question or answer holds half a Unicode character (a lone surrogate)") from None


def _encode_text(
    stretch: Sequence[tuple[str, bool]], tokenizer: Any, after_end: AfterEnd, first: bool
) -> tuple[list[int], list[int]]:
    text = "".join(t for t, _ in stretch)
    learnt: list[tuple[int, int]] = []
    at = 0
    for piece, learn in stretch:
        if learn:
            learnt.append((at, at + len(piece)))
        at += len(piece)
    ids, labels = [], []
    for token, start, end in tokenize(text, tokenizer, after_end, first=first):
        ids.append(token)
        inside = any(end > low and start < high and end > start for low, high in learnt)
        labels.append(token if inside else IGNORE)
    return ids, labels


def tokenize(text: str, tokenizer: Any, after_end: AfterEnd = "native", *, first: bool) -> list[tuple[int, int, int]]:
    """(token id, start, end) of one stretch of text, in characters; the start mark in front when `first`.

    Raises InputError for a tokenizer that cannot say where its tokens stand.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("the checkpoint's tokenizer has no fast version; save it again with a current transformers")
    if after_end == "native" or tokenizer.backend_tokenizer.token_to_id(SPACE_MARK) is None:
        # split_special_tokens stays False: the end mark in the profile must become the end token.
        try:
            out = tokenizer(text, return_offsets_mapping=True, add_special_tokens=first)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # a library in Rust gave up on this text; no ordinary exception
                raise
            raise InputError(f"the tokenizer cannot read this text: {one_line(error)}") from error
        return [(int(t), *place) for t, place in zip(out["input_ids"], out["offset_mapping"], strict=True)]
    tokens: list[tuple[int, int, int]] = []
    if first and tokenizer.bos_token_id is not None:
        tokens.append((int(tokenizer.bos_token_id), 0, 0))
    marks = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
    at = 0
    for part in re.split(f"({'|'.join(map(re.escape, marks))})", text):
        if part in marks:
            tokens.append((int(tokenizer.convert_tokens_to_ids(part)), at, at + len(part)))
        elif part:
            tokens += [(token, at + low, at + high) for token, low, high in _pieces(part, tokenizer, after_end, inner=at > 0)]
        at += len(part)
    return tokens


SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""


def _pieces(text: str, tokenizer: Any, after_end: AfterEnd, *, inner: bool) -> Iterator[tuple[int, int, int]]:
    """SentencePiece's pieces of a text without special tokens; `inner`: it stands after one."""
    model = tokenizer.backend_tokenizer.model
    prefix = "" if inner and after_end == "joined" else SPACE_MARK
    written = prefix + text.replace(" ", SPACE_MARK)
    # The model counts bytes of what it is given; labels need characters of the text.
    character = [i for i, c in enumerate(written) for _ in c.encode("utf-8")] + [len(written)]
    shift = len(prefix)
    for token in model.tokenize(written):
        low, high = (max(0, character[place] - shift) for place in token.offsets)
        if inner and after_end == "cut" and token.offsets[0] == 0 and token.value.startswith(SPACE_MARK) and text[0] != " ":
            rest = token.value[len(SPACE_MARK) :]
            if rest:
                yield int(tokenizer.convert_tokens_to_ids(rest)), low, high
            continue
        # A byte of a character that has no piece ends inside that character; it still belongs to it.
        yield int(token.id), low, max(high, low + 1) if token.value.startswith("<0x") else high


def detokenize(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of generated ids, special tokens left out.

    Llama's tokenizers spell what they have no piece for in bytes. A run of them that is no valid UTF-8 is read as SentencePiece
    reads it, one replacement mark a byte that fits nowhere; newer tokenizers replace the whole run, valid characters and all.
    """
    if tokenizer.backend_tokenizer.token_to_id("<0x00>") is None:
        text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
    special = set(tokenizer.all_special_ids)
    parts: list[str] = []
    run = bytearray()
    for token in tokenizer.convert_ids_to_tokens([i for i in ids if i not in special]):
        if _BYTE.fullmatch(token):
            run.append(int(token[3:5], 16))
            continue
        parts += [_characters(bytes(run)), token.replace(SPACE_MARK, " ")]
        run.clear()
    return "".join([*parts, _characters(bytes(run))])


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def _characters(data: bytes) -> str:
    text, at = "", 0
    while at < len(data):
        for length in (1, 2, 3, 4):
            try:
                text += data[at : at + length].decode("utf-8")
            except UnicodeDecodeError:
                continue
            at += length
            break
        else:
            text += "\N{REPLACEMENT CHARACTER}"
            at += 1
    return text
