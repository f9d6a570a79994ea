"""What backbones on a LLaVA model share: examples to token sequences, and batches that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cos_core import encoding, llava, relevance
from cos_core.errors import InputError
from cos_core.prompts import dialogue
from cos_core.relevance import Question, SweepSettings
from cos_core.types import Example

MOST_TOKENS = 8192
_ACTIVATION_BYTES = 2**31
# Kept for the backward pass, in vectors of the hidden size, a token and layer: norms, queries, keys, values, the wide MLP.
_KEPT_VECTORS = 16


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
        """(image positions,) relevance for each; for an example without a question that of the model's own first word."""
        found: list[torch.Tensor | None] = [None] * len(questions)
        own_choice = replace(self.settings, target="argmax")
        for settings, kind in ((own_choice, False), (self.settings, True)):
            chosen = [i for i, example in enumerate(examples) if bool(example.question) == kind]
            for batch in self._batches(chosen, questions):
                rows = relevance.explain(self.model, [questions[i] for i in batch], settings)
                for i, row in zip(batch, rows, strict=True):
                    found[i] = row
        return [row for row in found if row is not None]

    def _batches(self, chosen: Sequence[int], questions: Sequence[Question]) -> Iterator[list[int]]:
        """Indices of like length together, as many as memory allows for (at least one)."""
        most = tokens_per_call(self.model.model.config.text_config, self.model.model.dtype)
        batch: list[int] = []
        for i in sorted(chosen, key=lambda i: len(questions[i].ids)):
            if batch and (len(batch) + 1) * len(questions[i].ids) > most:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch


def load(model: str, device: str, dtype: str, settings: SweepSettings) -> Asker:
    """The checkpoint with frozen weights, checked for attention that the rules know."""
    loaded = llava.load(model, device=device, dtype=dtype)
    loaded.model.requires_grad_(False)
    relevance.refuse_unknown(loaded.model.config.text_config)
    return Asker(loaded, settings)


def tokens_per_call(config: Any, dtype: torch.dtype) -> int:
    """How many tokens one sweep may hold so that its activations stay near 2 GiB, 8192 at most."""
    a_token = int(config.num_hidden_layers) * int(config.hidden_size) * _KEPT_VECTORS * dtype.itemsize
    return max(1, min(MOST_TOKENS, _ACTIVATION_BYTES // a_token))


def pixels_per_call(side: int) -> int:
    """How many pictures of `side` pixels go through the vision tower together: about two million pixels, 512 at most."""
    return max(8, min(512, 2**21 // (side * side)))
