"""What backbones on a vision-language model share: examples to token sequences, and batches that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch

from cos_core.backbones._pictures import Shown
from cos_core.dialogue.prompts import DIALOGUE_VERSION, dialogue
from cos_core.errors import InputError
from cos_core.models import hub, loading, vision_input
from cos_core.models.families import PixelBudget
from cos_core.models.general import GeneralModel
from cos_core.models.loaded import LoadedModel
from cos_core.relevance import propagation
from cos_core.relevance.propagation import Question, SweepSettings
from cos_core.system import memory
from cos_core.types import Example

Room = Callable[[int], int]
"""How many bytes a sweep may use, of those that it could; answered by the engine that shares the model and its memory."""

MOST_TOKENS = 8192
MOST_TOGETHER = 8
"""Questions on one picture that share a sweep; beyond that sharing saves little more, and each holds a gradient of its own."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A model with frozen weights that explains its answers.

    What memory allows, once it has run out for more: `bytes_allowed`, the activations that a sweep may keep;
    `questions_allowed`, on one picture, in one sweep; `pictures_allowed`, through the vision tower at once.
    """

    model: LoadedModel
    settings: SweepSettings
    bytes_allowed: memory.Allowance = field(default_factory=memory.Allowance)
    questions_allowed: memory.Allowance = field(default_factory=memory.Allowance)
    pictures_allowed: memory.Allowance = field(default_factory=memory.Allowance)

    def question(self, example: Example, shown: Shown) -> Question:
        """The plain dialogue with the answer; without a question, Inst.1 about the image alone (policy from_image).

        Raises InputError when there is no answer to explain, and for a dialogue that is too long for the model.
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
        encoded = self.model.encode(turns, lambda _: shown.inputs)
        length, context = len(encoded), self.model.context
        if length > context:
            raise InputError(f"the dialogue takes {length} tokens, and the model's context has {context}: a text is too long")
        positions = self.model.positions(np.array(encoded.ids), lambda: [shown.inputs])
        return Question(encoded.ids, encoded.labels, shown.features, positions)

    def explain(self, examples: Sequence[Example], questions: Sequence[Question]) -> list[torch.Tensor]:
        """(image positions,) relevance for each; for an example without a question that of the model's own first word.

        Questions with the same `features` (one object) are on the same picture and share what it costs. Raises the error that
        memory ran out where it does so for one question alone.
        """
        relevances: list[torch.Tensor | None] = [None] * len(questions)
        argmax = replace(self.settings, target="argmax")
        for settings, kind in ((argmax, False), (self.settings, True)):
            places = [i for i, example in enumerate(examples) if bool(example.question) == kind]
            most = min(MOST_TOGETHER, self.questions_allowed.limit or MOST_TOGETHER)
            for batch in self._batches(_units(places, questions, most), questions):
                rows = self._rows(batch, questions, settings)
                for i, row in zip(chain(*batch), chain(*rows), strict=True):
                    relevances[i] = row
        return [row for row in relevances if row is not None]

    def _rows(
        self, units: Sequence[Sequence[int]], questions: Sequence[Question], settings: SweepSettings
    ) -> list[list[torch.Tensor]]:
        """As propagation.explain. Where memory runs out: fewer pictures at once, then fewer questions on one, then streamed."""
        config, dtype = self.model.model.config.get_text_config(), self.model.model.dtype
        tokens = len(units) * max(_tokens(unit, questions) for unit in units)
        size = propagation.sweep_bytes(config, dtype, self.settings, tokens)
        try:
            rows = propagation.explain(self.model, [[questions[i] for i in unit] for unit in units], self._within(settings))
            self.bytes_allowed.fitted(size)
            self.questions_allowed.fitted(len(units[0]))
            return rows
        except (RuntimeError, MemoryError, OSError) as error:
            alone = len(units) == 1 and len(units[0]) == 1
            if not memory.is_out_of_memory(error) or (alone and settings == settings.least()):
                raise
            memory.let_go(error)
            self.bytes_allowed.ran_out(size)
        if alone:
            return self._rows(units, questions, settings.least())
        if len(units) > 1:
            return [row for part in memory.halves(units) for row in self._rows(part, questions, settings)]
        (unit,) = units
        self.questions_allowed.ran_out(len(unit))
        return [[row for part in memory.halves(unit) for row in self._rows([part], questions, settings)[0]]]

    def _within(self, settings: SweepSettings) -> SweepSettings:
        """The settings with what a sweep may keep now: less than they say once memory has run out."""
        if self.bytes_allowed.limit is None:
            return settings
        allowed = settings.activation_bytes or propagation.ACTIVATION_BYTES
        return replace(settings, activation_bytes=min(allowed, self.bytes_allowed.limit))

    def _batches(self, units: list[list[int]], questions: Sequence[Question]) -> Iterator[list[list[int]]]:
        """Units of one size and like length together, as many as memory allows for (at least one)."""
        config, dtype = self.model.model.config.get_text_config(), self.model.model.dtype
        batch: list[list[int]] = []
        longest = 0
        for unit in sorted(units, key=lambda unit: (len(unit), _tokens(unit, questions))):
            longest = max(longest, _tokens(unit, questions))
            # Looked at anew for every unit: memory may have run out for the batch before.
            most = propagation.tokens_per_call(config, dtype, self._within(self.settings), MOST_TOKENS)
            if batch and (len(batch[0]) != len(unit) or (len(batch) + 1) * longest > most):
                yield batch
                batch, longest = [], _tokens(unit, questions)
            batch.append(unit)
        if batch:
            yield batch

    def described(self) -> dict[str, Any]:
        """The model and how its answers are explained, as far as scores depend on it (not how layers are kept meanwhile)."""
        return {
            **(vision_input.of_encoder(self.model.encoder).settings() if isinstance(self.model, GeneralModel) else {}),
            "model": self.model.fingerprint,
            "dtype": str(self.model.model.dtype).removeprefix("torch."),
            "profile": self.model.profile.to_json(),
            "dialogue": DIALOGUE_VERSION,
            "target": self.settings.target,
            "last_layers": self.settings.last_layers,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of this model: that its relevance takes the slow way, and why."""
        why = propagation.unknown_attention(self.model.decoder)
        return () if why is None else (f"{why}: relevance is read from its own attention maps where need be, which is slow",)


def _units(places: Sequence[int], questions: Sequence[Question], most: int = MOST_TOGETHER) -> list[list[int]]:
    """The questions on one picture, `most` at most, in parts of like size."""
    pictures: dict[int, list[int]] = {}
    for i in places:
        pictures.setdefault(id(questions[i].features), []).append(i)
    units = []
    for on_picture in pictures.values():
        parts = -(-len(on_picture) // most)
        edges = [len(on_picture) * k // parts for k in range(parts + 1)]
        units += [on_picture[low:high] for low, high in pairwise(edges)]
    return units


def _tokens(unit: Sequence[int], questions: Sequence[Question]) -> int:
    """Positions of a unit's sequences, not counting what they may share: its gradients, at least, are not shared."""
    return sum(len(questions[i].ids) for i in unit)


def load(
    model: str | LoadedModel,
    device: str,
    dtype: str,
    settings: SweepSettings,
    room: Room | None = None,
    budget: PixelBudget | None = None,
) -> Asker:
    """The checkpoint with frozen weights; a model that is loaded already is used as it is, and shared.

    `room`: see Room; None: what is available on the device now. `budget`: how finely pictures are shown. Raises what
    `loading.check_grids` and `loading.load` raise.
    """
    loaded = model if isinstance(model, LoadedModel) else _loaded(model, device, dtype, budget)
    loaded.model.requires_grad_(False)
    needed = propagation.wanted_bytes()
    bytes_there = room(needed) if room is not None else memory.available(loaded.device)
    return Asker(loaded, replace(settings, activation_bytes=propagation.activation_bytes(bytes_there)))


def _loaded(model: str, device: str, dtype: str, budget: PixelBudget | None) -> LoadedModel:
    loading.check_grids(hub.resolve(model), budget)
    loaded = loading.load(model, device=device, dtype=dtype, budget=budget)
    assert isinstance(loaded, LoadedModel)  # of a model without a dialogue, no token looks at a part of the picture
    return loaded
