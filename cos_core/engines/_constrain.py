"""Grammars over characters, decoded over tokens: which tokens can stand next, and which must.

Of all ways to cut a text into tokens only the tokenizer's own is let through: it is what the model learnt, and the second pass,
which tokenises the text anew, finds every key and value of the first in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from cos_core.dialogue.encoding import tokenize
from cos_core.errors import InputError
from cos_core.interfaces import Grammar
from cos_core.models.loaded import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KNOWN_TEXTS = 20_000
"""How many beginnings are remembered with what they force; a long run meets millions."""


@dataclass(slots=True)
class TokenGrammar:
    """One grammar under one tokenizer; shared by all rows that decode by it.

    `role`: the text of the prompt in front of a reply, `gap`: what the reply begins with (LoadedModel). Raises InputError when
    the tokenizer merges the role with the text behind it, and when it writes the grammar's texts with special tokens, which
    may be left out of a reply's text.
    """

    grammar: Grammar
    tokenizer: PreTrainedTokenizerBase
    role: str
    gap: str = " "
    candidates: list[int] = field(default_factory=list)
    """Ids of every token that is made of the grammar's characters."""
    index: torch.Tensor = field(init=False, repr=False)
    """`candidates` as a tensor on the model's device, made once by the engine."""
    _role: list[int] = field(default_factory=list)
    _texts: dict[int, str] = field(default_factory=dict)
    _forced: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._role = self._ids(self.role)
        special = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        if (special - {self.tokenizer.unk_token_id}) & set(self.ids_of(self.grammar.finish(""))):
            raise InputError("this tokenizer writes a box with special tokens; decode boxes freely")
        self._texts = _made_of(self.grammar.alphabet | {" "}, self.tokenizer)
        self.candidates = list(self._texts)

    def ids_of(self, text: str) -> list[int]:
        """The tokenizer's own tokens of a reply, as they stand behind the assistant's role."""
        ids = self._ids(f"{self.role}{self.gap}{text}")
        if ids[: len(self._role)] != self._role:
            raise InputError("this tokenizer merges the assistant's role with its reply; decode boxes freely")
        return ids[len(self._role) :]

    def _ids(self, text: str) -> list[int]:
        return [token for token, _, _ in tokenize(text, self.tokenizer, first=False)]

    def text(self, ids: Sequence[int]) -> str:
        """The reply so far; the gap in front of it is no part of the grammar."""
        return "".join(self._texts[i] for i in ids).removeprefix(self.gap)

    def forced(self, ids: Sequence[int]) -> list[int]:
        """The tokens that every text that begins with `ids` goes on with; to its end when only one is left."""
        text = self.text(ids)
        if text not in self._forced:
            if len(self._forced) >= KNOWN_TEXTS:
                self._forced.clear()
            self._forced[text] = self._common(text)
        return self._forced[text][len(ids) :]

    def _common(self, text: str) -> list[int]:
        while len(follows := self.grammar.follows(text)) == 1:
            text += next(iter(follows))
        # What comes behind can change how this is cut: only what all continuations share is certain.
        ways = [self.ids_of(self.grammar.finish(text + c)) for c in sorted(follows)] or [self.ids_of(text)]
        return shared(ways)

    def choose(
        self, ids: Sequence[int], order: Sequence[int], scores: Sequence[float], drawn: Sequence[int] | None = None
    ) -> tuple[int, float]:
        """The likeliest token that can stand after `ids`, and its lead over the next one that could (infinite without one).

        `order`: indices into `candidates`, likeliest first; `scores`: their logits, in the same order. `drawn`: places in
        `order`, all of them, in another order (Draws.order): the token is then the first of these that can stand, and the lead
        is still the likeliest one's. Raises InputError when none can stand: the tokenizer cannot write the grammar's texts.
        """
        able = cache(lambda place: self._can(ids, self.candidates[order[place]]))
        likeliest = (place for place in range(len(order)) if able(place))
        first = next(likeliest, None)
        if first is None:
            raise InputError("this tokenizer cannot write a box by grammar; decode boxes freely")
        second = next(likeliest, None)
        taken = first if drawn is None else next(place for place in drawn if able(place))
        return self.candidates[order[taken]], math.inf if second is None else scores[first] - scores[second]

    def _can(self, ids: Sequence[int], token: int) -> bool:
        longer = self.text([*ids, token])
        if not self.grammar.viable(longer) or (ids and not self._texts[token]):
            return False
        return self.ids_of(self.grammar.finish(longer))[: len(ids) + 1] == [*ids, token]

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether `ids` are a whole text."""
        text = self.text(ids)
        return not self.grammar.follows(text) and self.grammar.viable(text)


_KNOWN_TOKENS: WeakKeyDictionary[PreTrainedTokenizerBase, dict[frozenset[str], dict[int, str]]] = WeakKeyDictionary()
"""What `_made_of` found: where boxes are in pixels every size of picture has its own grammar, and all have one alphabet."""


def _made_of(characters: frozenset[str], tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that are made of these characters, id to text; not to be changed."""
    known = _KNOWN_TOKENS.setdefault(tokenizer, {})
    if characters not in known:
        spaces = {"\N{LOWER ONE EIGHTH BLOCK}": " ", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}": " "}
        texts = known[characters] = {}
        for token, number in tokenizer.get_vocab().items():
            written = "".join(spaces.get(c, c) for c in token)
            if written and set(written) <= characters:
                texts[number] = written
    return known[characters]


GRAMMARS = 32
"""Grammars that are remembered: boxes in pixels have one for every size of a picture."""


class TokenGrammars:
    """The grammars of one model, the last ones remembered; `device`: where its logits are."""

    def __init__(self, loaded: LoadedModel, device: torch.device) -> None:
        self._loaded, self._device = loaded, device
        self._known: dict[Grammar, TokenGrammar] = {}

    def of(self, grammar: Grammar) -> TokenGrammar:
        """Raises InputError for one that the model's tokenizer cannot write."""
        tokens = self._known.pop(grammar, None)
        if tokens is None:
            tokens = TokenGrammar(grammar, self._loaded.tokenizer, self._loaded.role, self._loaded.gap)
            tokens.index = torch.tensor(tokens.candidates, dtype=torch.long, device=self._device)
        self._known[grammar] = tokens
        if len(self._known) > GRAMMARS:
            del self._known[next(iter(self._known))]
        return tokens


def shared(ways: Sequence[list[int]]) -> list[int]:
    """The longest common beginning of the lists."""
    first = ways[0]
    for i, token in enumerate(first):
        if any(len(way) <= i or way[i] != token for way in ways):
            return first[:i]
    return first
