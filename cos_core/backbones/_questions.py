"""What backbones on a LLaVA model share: examples to token sequences, and batches that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import torch

from cos_core.dialogue import encoding
from cos_core.dialogue.prompts import DIALOGUE_VERSION, dialogue
from cos_core.errors import InputError
from cos_core.models import llava
from cos_core.models.pixels import processed
from cos_core.relevance import propagation
from cos_core.relevance.propagation import Question, SweepSettings
from cos_core.system import memory, worker_process
from cos_core.types import Example

if TYPE_CHECKING:
    from PIL.Image import Image

Room = Callable[[int], int]
"""How many bytes a sweep may use, of those that it could; answered by the engine that shares the model and its memory."""
Pixels = torch.Tensor | Callable[[], torch.Tensor]
"""A picture as the model sees it, (3, side, side) on the CPU, or what makes it."""

MOST_TOKENS = 8192
MOST_TOGETHER = 8
"""Questions on one picture that share a sweep; beyond that sharing saves little more, and each holds a gradient of its own."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A LLaVA model with frozen weights that explains its answers.

    What memory allows, once it has run out for more: `bytes_allowed`, the activations that a sweep may keep;
    `questions_allowed`, on one picture, in one sweep; `pictures_allowed`, through the vision tower at once.
    """

    model: llava.Llava
    settings: SweepSettings
    bytes_allowed: memory.Allowance = field(default_factory=memory.Allowance)
    questions_allowed: memory.Allowance = field(default_factory=memory.Allowance)
    pictures_allowed: memory.Allowance = field(default_factory=memory.Allowance)

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
        encoded = encoding.encode(profile, turns, tokenizer, mark, features.shape[0], self.model.context)
        return Question(encoded.ids, encoded.labels, features)

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
        config, dtype = self.model.model.config.text_config, self.model.model.dtype
        tokens = len(units) * max(_tokens(unit, questions) for unit in units)
        size = propagation.sweep_bytes(config, dtype, self.settings, tokens)
        try:
            rows = propagation.explain(self.model, [[questions[i] for i in unit] for unit in units], self._within(settings))
            self.bytes_allowed.fitted(size)
            self.questions_allowed.fitted(len(units[0]))
            return rows
        except (RuntimeError, MemoryError, OSError) as error:
            alone = len(units) == 1 and len(units[0]) == 1
            if not memory.is_out_of_memory(error) or (alone and settings.stream_layers):
                raise
            memory.let_go(error)
            self.bytes_allowed.ran_out(size)
        if alone:
            return self._rows(units, questions, replace(settings, stream_layers=True))
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
        config, dtype = self.model.model.config.text_config, self.model.model.dtype
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
        why = propagation.unknown_attention(self.model.model.model.language_model)
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


def load(model: str | llava.Llava, device: str, dtype: str, settings: SweepSettings, room: Room | None = None) -> Asker:
    """The checkpoint with frozen weights; a model that is loaded already is used as it is, and shared.

    `room`: see Room; None: what is available on the device now.
    """
    loaded = model if isinstance(model, llava.Llava) else llava.load(model, device=device, dtype=dtype)
    loaded.model.requires_grad_(False)
    needed = propagation.wanted_bytes()
    bytes_there = room(needed) if room is not None else memory.available(loaded.device)
    return Asker(loaded, replace(settings, activation_bytes=propagation.activation_bytes(bytes_there)))


def pixels(model: llava.Llava, picture: Image) -> torch.Tensor:
    """As Llava.pixels for one picture, (3, side, side) in the model's dtype, but on the CPU; for use in any thread."""
    return processed(model.image_processor, [picture], model.fill)[0].to(model.model.dtype)


def pixel_bytes(model: llava.Llava) -> int:
    """What the pixels of one picture take."""
    return 3 * _side(model) ** 2 * int(model.model.dtype.itemsize)


def encoded(
    asker: Asker, pictures: Sequence[Pixels], read: Callable[[torch.Tensor], Sequence[torch.Tensor]] = list
) -> list[torch.Tensor]:
    """What `read` takes from the features (n, image tokens, hidden) of pictures, one result a picture.

    As many go through the vision tower together as `pixels_per_call` says, or fewer where memory runs out. Pixels are
    made in threads where need be: those of the next call while the model computes.
    """
    model, step = asker.model, pixels_per_call(_side(asker.model))
    making: dict[int, Future[torch.Tensor]] = {}

    def pixels_of(place: int) -> torch.Tensor:
        one = pictures[place]
        return one if isinstance(one, torch.Tensor) else making[place].result()

    def run(part: Sequence[int]) -> Sequence[torch.Tensor]:
        for place in range(part[0], min(part[-1] + 1 + step, len(pictures))):
            one = pictures[place]
            if place not in making and not isinstance(one, torch.Tensor):
                making[place] = pool.submit(one)
        results = read(model.image_features(torch.stack([pixels_of(place) for place in part]).to(model.device)))
        for place in part:
            making.pop(place, None)
        return results

    with ThreadPoolExecutor(worker_process.feeders(), thread_name_prefix="crops") as pool:
        return memory.in_parts(range(len(pictures)), run, step, asker.pictures_allowed)


def _side(model: llava.Llava) -> int:
    return int(model.model.config.vision_config.image_size)


def pixels_per_call(side: int) -> int:
    """How many pictures of `side` pixels go through the vision tower together: about two million pixels, 512 at most."""
    return max(8, min(512, 2**21 // (side * side)))
