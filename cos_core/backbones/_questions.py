"""What backbones on a LLaVA model share: examples to token sequences, and batches that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import torch

from cos_core import encoding, llava, relevance
from cos_core.errors import InputError
from cos_core.prompts import dialogue
from cos_core.relevance import Question, SweepSettings
from cos_core.types import Example

MOST_TOKENS = 8192
MOST_TOGETHER = 8
"""Questions on one picture that share a sweep; beyond that sharing saves little more, and each holds a gradient of its own."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A LLaVA model with frozen weights that explains its answers."""

    model: llava.Llava
    settings: SweepSettings

    def question(self, example: Example, features: torch.Tensor) -> Question:
        """The plain dialogue with the answer; without a question, Inst.1 about the image alone (policy from_image).

        `features`: (image positions, hidden). Raises InputError when there is no answer to explain.
        """
        profile = self.model.profile
        if not example.question:
            turns = dialogue(profile, "", asks="image")
        elif self.settings.target == "argmax":
            turns = dialogue(profile, example.question, chain=False)
        elif example.answers:
            turns = dialogue(profile, example.question, chain=False, answer=example.answers[0])
        else:
            raise InputError(f"example {example.id!r} has no answer whose relevance could be found")
        tokenizer, mark = self.model.tokenizer, self.model.image_token_id
        encoded = encoding.encode(profile, turns, tokenizer, mark, features.shape[0])
        return Question(encoded.ids, encoded.labels, features)

    def explain(self, examples: Sequence[Example], questions: Sequence[Question]) -> list[torch.Tensor]:
        """(image positions,) relevance for each; for an example without a question that of the model's own first word.

        Questions with the same `features` (one object) are on the same picture and share what it costs.
        """
        found: list[torch.Tensor | None] = [None] * len(questions)
        own_choice = replace(self.settings, target="argmax")
        for settings, kind in ((own_choice, False), (self.settings, True)):
            chosen = [i for i, example in enumerate(examples) if bool(example.question) == kind]
            for batch in self._batches(_units(chosen, questions), questions):
                rows = relevance.explain(self.model, [[questions[i] for i in unit] for unit in batch], settings)
                for i, row in zip(chain(*batch), chain(*rows), strict=True):
                    found[i] = row
        return [row for row in found if row is not None]

    def _batches(self, units: list[list[int]], questions: Sequence[Question]) -> Iterator[list[list[int]]]:
        """Units of one size and like length together, as many as memory allows for (at least one)."""
        config, dtype = self.model.model.config.text_config, self.model.model.dtype
        most = relevance.tokens_per_call(config, dtype, self.settings, MOST_TOKENS)
        batch: list[list[int]] = []
        longest = 0
        for unit in sorted(units, key=lambda unit: (len(unit), _tokens(unit, questions))):
            longest = max(longest, _tokens(unit, questions))
            if batch and (len(batch[0]) != len(unit) or (len(batch) + 1) * longest > most):
                yield batch
                batch, longest = [], _tokens(unit, questions)
            batch.append(unit)
        if batch:
            yield batch

    def described(self) -> dict[str, Any]:
        """The model and how its answers are explained, as far as scores depend on it (not how layers are kept meanwhile)."""
        return {
            "model": self.model.fingerprint,
            "dtype": str(self.model.model.dtype).removeprefix("torch."),
            "profile": self.model.profile,
            "target": self.settings.target,
            "last_layers": self.settings.last_layers,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of this model: that its relevance takes the slow way, and why."""
        why = relevance.unknown_attention(self.model.model.model.language_model)
        return () if why is None else (f"{why}: relevance is read from its own attention maps where need be, which is slow",)


def _units(chosen: Sequence[int], questions: Sequence[Question]) -> list[list[int]]:
    """The questions on one picture, MOST_TOGETHER at most, in parts of like size."""
    pictures: dict[int, list[int]] = {}
    for i in chosen:
        pictures.setdefault(id(questions[i].features), []).append(i)
    units = []
    for asked in pictures.values():
        parts = -(-len(asked) // MOST_TOGETHER)
        edges = [len(asked) * k // parts for k in range(parts + 1)]
        units += [asked[low:high] for low, high in pairwise(edges)]
    return units


def _tokens(unit: Sequence[int], questions: Sequence[Question]) -> int:
    """Positions of a unit's sequences, not counting what they may share: its gradients, at least, are not shared."""
    return sum(len(questions[i].ids) for i in unit)


def load(model: str, device: str, dtype: str, settings: SweepSettings) -> Asker:
    """The checkpoint with frozen weights."""
    loaded = llava.load(model, device=device, dtype=dtype)
    loaded.model.requires_grad_(False)
    return Asker(loaded, settings)


def pixels_per_call(side: int) -> int:
    """How many pictures of `side` pixels go through the vision tower together: about two million pixels, 512 at most."""
    return max(8, min(512, 2**21 // (side * side)))
