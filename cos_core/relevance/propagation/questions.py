"""From questions about pictures to relevance of their image tokens: token sequences, shared prefixes, the right sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cos_core.dialogue.encoding import IGNORE
from cos_core.errors import InputError
from cos_core.models.llava import Llava
from cos_core.relevance.propagation.fallback import sweep_maps, unknown_attention
from cos_core.relevance.propagation.layers import Sequences
from cos_core.relevance.propagation.rules import Readings, SweepSettings
from cos_core.relevance.propagation.sweep import sweep, sweep_continuations
from cos_core.relevance.propagation.tape import relevance_attention

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig

    from cos_core.models.loaded import LoadedModel

_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
_QUERY_TRANSFORMERS = frozenset({"qformer", "perceiver_resampler", "resampler"})
"""What modules are called that sum a picture up in tokens of which each looks at all of it."""


@dataclass(frozen=True, slots=True)
class Question:
    """One sequence to explain: a dialogue that shows one picture, with the answer.

    `ids` and `labels`: of encoding.Encoded; `features`: what `LoadedModel.features` gave for the picture (LLaVA: (image tokens,
    hidden), of any number of tokens); one object for one picture. `positions`: position ids as `LoadedModel.positions` gives
    them, (length,) or (axes, length); None: 0, 1, 2...
    """

    ids: Sequence[int]
    labels: Sequence[int]
    features: Any
    positions: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class _Cut:
    """What of a question goes through the model: `ids` up to the last position read, `read` positions, `tokens` there.

    `prompt`: how many of the ids stand in front of the answer; `positions`: position ids, (..., length).
    """

    ids: np.ndarray
    read: list[int]
    tokens: list[int]
    prompt: int
    positions: np.ndarray
    features: Any

    def image(self, token: int) -> np.ndarray:
        """Where the picture's tokens stand, (length,)."""
        where: np.ndarray = self.ids == token
        return where


def explain(model: LoadedModel, groups: Sequence[Sequence[Question]], settings: SweepSettings) -> list[list[torch.Tensor]]:
    """For each question the relevance of its answer to its image tokens, (image tokens,), on the CPU.

    `groups`: for each of some pictures its questions, as many for each picture; all go through the model together, those on one
    picture sharing what they have in common in front. y is read wherever a label is not IGNORE, without the end mark and a
    blank in front, which say nothing of the answer; under target "argmax", which needs no labels, where the model begins to
    answer. Raises InputError for an answer without tokens, for unequal groups, and for a model that the rule does not know.
    """
    if not groups:
        return []
    per_picture = len(groups[0])
    if not per_picture or any(len(group) != per_picture for group in groups):
        raise InputError("pictures that are explained together need as many questions each, at least one")
    check_model(model)
    cuts = [[_cut(question, model, settings) for question in group] for group in groups]
    if isinstance(model, Llava) and unknown_attention(model.decoder) is not None:
        rows = _plain(model, cuts, settings, sweep_maps)
    else:
        rows = [[] for _ in groups]
        with relevance_attention(model.decoder):
            for shared, places in _prefixes(model, cuts).items():
                some = [cuts[place] for place in places]
                found = _continued(model, some, shared, settings) if shared else _plain(model, some, settings, sweep)
                for place, of_group in zip(places, found, strict=True):
                    rows[place] = of_group
    token = model.image_token_id
    return [
        [row[: len(cut.ids)][torch.from_numpy(cut.image(token))] for row, cut in zip(row_group, group, strict=True)]
        for row_group, group in zip(rows, cuts, strict=True)
    ]


def check_model(model: LoadedModel) -> None:
    """Raises InputError for a model none of whose image tokens looks at a part of a picture, or whose attention is known to be
    more than the rule."""
    network = model.model
    if not hasattr(network.base_model, "get_image_features"):
        raise InputError(
            f"{model.name} reads pictures by cross-attention and has no image tokens in the sequence; relevance cannot be "
            "given to parts of a picture"
        )
    for name, _ in network.named_modules():
        if name.rpartition(".")[2] in _QUERY_TRANSFORMERS:
            raise InputError(
                f"the image tokens of {model.name} come from a query transformer ({name}), each of the whole picture; "
                "relevance cannot be given to parts of a picture"
            )
    why = unknown_attention(model.decoder)
    if why is not None and not isinstance(model, Llava):
        raise InputError(f"{why}, which the rules of relevance do not know; take another model")


def may_share(config: PreTrainedConfig) -> bool:
    """Whether a prefix's keys are the same whatever follows: not where rotary frequencies depend on the sequence's length."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # Models whose layers differ have parameters for each kind of layer.
    kinds = {each.get("rope_type") for each in (rope, *rope.values()) if isinstance(each, dict)}
    return not kinds & _LENGTH_DEPENDENT_ROPE


def _prefixes(model: LoadedModel, cuts: Sequence[Sequence[_Cut]]) -> dict[int, list[int]]:
    """Which groups go through the model together, by how many positions their questions share; 0: none."""
    everyone = list(range(len(cuts)))
    if len(cuts[0]) == 1 or not model.continues or not may_share(model.model.config):
        return {0: everyone}
    if all(isinstance(group[0].features, torch.Tensor) for group in cuts):
        return {shared_length(cuts): everyone}
    prefixes: dict[int, list[int]] = {}
    for place, group in enumerate(cuts):
        shared = _common(group)
        inside = np.flatnonzero(group[0].image(model.image_token_id))
        if len(inside) and inside[0] < shared <= inside[-1]:
            # Features of other kinds cannot be cut.
            shared = int(inside[0])
        prefixes.setdefault(shared, []).append(place)
    return prefixes


def shared_length(groups: Sequence[Sequence[_Cut]]) -> int:
    """How many positions in front all questions of each group have in common, short of where y is read; one number for all."""
    return min(_common(group) for group in groups)


def _common(group: Sequence[_Cut]) -> int:
    most = min(position for cut in group for position in cut.read)
    first = group[0]
    for cut in group[1:]:
        same = (cut.ids[:most] == first.ids[:most]) & (cut.positions[..., :most] == first.positions[..., :most])
        differ = np.flatnonzero(~same.reshape(-1, most).all(0))
        most = int(differ[0]) if len(differ) else most
    return most


def _plain(model: LoadedModel, cuts: Sequence[Sequence[_Cut]], settings: SweepSettings, way: Any) -> list[list[torch.Tensor]]:
    """Every question a sequence of its own, padded on the right; `way`: sweep or sweep_maps."""
    flat = [cut for group in cuts for cut in group]
    found: Iterator[torch.Tensor] = iter(way(_sequences(model, flat), _readings(model, flat), settings)[:, 0].cpu())
    return [[next(found) for _ in group] for group in cuts]


def _continued(
    model: LoadedModel, cuts: Sequence[Sequence[_Cut]], shared: int, settings: SweepSettings
) -> list[list[torch.Tensor]]:
    """The first `shared` positions once a picture, and what follows a question."""
    per_picture = len(cuts[0])
    by_turn = [group[i] for i in range(per_picture) for group in cuts]
    front = _sequences(model, [group[0] for group in cuts], stop=shared)
    back = _sequences(model, by_turn, start=shared)
    rows = sweep_continuations(front, back, _readings(model, by_turn, shared), settings).cpu()
    return [[rows[i * len(cuts) + g] for i in range(per_picture)] for g in range(len(cuts))]


def _sequences(model: LoadedModel, cuts: Sequence[_Cut], start: int = 0, stop: int | None = None) -> Sequences:
    """Positions [start, stop) of each, padded on the right, as the whole model runs them."""
    longest = max(len(cut.ids[:stop]) for cut in cuts)
    filler = int(model.image_token_id == 0)  # never seen: padding stands behind every position that is read
    whole = torch.full((len(cuts), longest), filler)
    positions = torch.empty((*cuts[0].positions.shape[:-1], len(cuts), longest), dtype=torch.long)
    replied = torch.ones((len(cuts), longest), dtype=torch.bool)
    for row, cut in enumerate(cuts):
        length = len(cut.ids[:stop])
        whole[row, :length] = torch.from_numpy(cut.ids[:stop])
        positions[..., row, :length] = torch.from_numpy(cut.positions[..., :stop])
        # Position ids go on by one: a leap would begin another sequence.
        positions[..., row, length:] = positions[..., row, length - 1 : length] + torch.arange(1, longest - length + 1)
        replied[row, : cut.prompt] = False
    token, device = model.image_token_id, model.device
    shown = [each for cut in cuts if (each := _shown(cut, token, start, stop)) is not None]
    ids, positions = whole[:, start:].to(device), positions[..., start:].to(device)

    def run(cache: Cache | None) -> torch.Tensor:
        return model.forward(
            ids, shown, position_ids=positions, past_key_values=cache, use_cache=False, whole=whole, replied=replied
        )

    return Sequences(model.model, len(cuts), longest - start, run)


def _shown(cut: _Cut, token: int, start: int, stop: int | None) -> tuple[Any, int] | None:
    """The features of a picture with tokens in [start, stop), and how many of them stand in front; None: it has none there."""
    where = cut.image(token)
    before, after = int(where[:start].sum()), int(where[:stop].sum())
    if before == after:
        return None
    # The shortest prefix of a batch may end inside another picture, whose other positions are then each question's own.
    return cut.features if stop is None or after == where.sum() else cut.features[:after], before


def _readings(model: LoadedModel, cuts: Sequence[_Cut], start: int = 0) -> Readings:
    """Where y is read, counted from `start`."""
    most = max(len(cut.read) for cut in cuts)

    def wide(rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor([[*row, *[0] * (most - len(row))] for row in rows], device=model.device)

    positions = wide([[p - start for p in cut.read] for cut in cuts])
    return Readings(positions, wide([cut.tokens for cut in cuts]), wide([[1] * len(cut.read) for cut in cuts]).bool())


def _cut(question: Question, model: LoadedModel, settings: SweepSettings) -> _Cut:
    ids = np.asarray(question.ids, dtype=np.int64)
    positions = np.arange(len(ids)) if question.positions is None else question.positions
    learnt = [i for i, label in enumerate(question.labels) if label != IGNORE]
    prompt = learnt[0] if learnt else len(ids)

    def cut(end: int, read: list[int], tokens: list[int]) -> _Cut:
        return _Cut(ids[:end], read, tokens, prompt, positions[..., :end], question.features)

    if settings.target == "argmax":
        # The model's own choice is explained: which token stands there is not looked at.
        return cut(prompt, [prompt - 1], [0])
    learnt = learnt[: len(learnt) - model.encoder.end_length(ids[learnt].tolist())]
    # Some tokenizers make a token of the space between role and answer.
    while learnt and not model.tokenizer.decode([int(ids[learnt[0]])]).strip():
        learnt = learnt[1:]
    if not learnt:
        raise InputError("an answer needs at least one token to be explained")
    return cut(learnt[-1], [i - 1 for i in learnt], ids[learnt].tolist())
