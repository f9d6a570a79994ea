"""From questions about pictures to relevance of their image positions: token sequences, shared prefixes, the right sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cos_core.dialogue.encoding import IGNORE
from cos_core.errors import InputError
from cos_core.relevance.propagation.attention import relevance_attention, unknown_attention
from cos_core.relevance.propagation.fallback import sweep_maps
from cos_core.relevance.propagation.rules import Readings, SweepSettings
from cos_core.relevance.propagation.sweep import sweep, sweep_continuations

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from cos_core.models.llava import Llava

_Way = Callable[[torch.Tensor, Readings], torch.Tensor]
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class Question:
    """One sequence to explain: token ids with labels (encoding.Encoded) and the features for its image positions.

    `features`: (image positions, hidden).
    """

    ids: Sequence[int]
    labels: Sequence[int]
    features: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Cut:
    """What of a question goes through the model: `ids` up to the last position read, `positions` read, `tokens` there."""

    ids: list[int]
    positions: list[int]
    tokens: list[int]
    features: torch.Tensor


def explain(llava: Llava, groups: Sequence[Sequence[Question]], settings: SweepSettings) -> list[list[torch.Tensor]]:
    """For each question the relevance of its answer to its image positions, (image positions,), on the CPU.

    `groups`: for each of some pictures its questions, as many for each picture; all go through the model together, those on one
    picture sharing what they have in common in front. y is read wherever a label is not IGNORE, without the end mark and a
    blank in front, which say nothing of the answer; under target "argmax", which needs no labels, where the model begins to
    answer. `llava`: a cos_core.models.llava.Llava. Raises InputError for an answer without tokens and for unequal groups.
    """
    if not groups:
        return []
    per_picture = len(groups[0])
    if not per_picture or any(len(group) != per_picture for group in groups):
        raise InputError("pictures that are explained together need as many questions each, at least one")
    cuts = [[_cut(question, llava, settings) for question in group] for group in groups]
    decoder, head = llava.model.model.language_model, llava.model.lm_head
    longest = max(len(cut.ids) for group in cuts for cut in group)
    if unknown_attention(decoder, longest) is not None:
        rows = _plain(llava, cuts, lambda sequences, read: sweep_maps(decoder, head, sequences, read, settings))
    else:
        shared = shared_length(cuts) if per_picture > 1 and may_share(decoder.config) else 0
        with relevance_attention(decoder):
            if shared:
                rows = _continued(llava, cuts, shared, settings)
            else:
                rows = _plain(llava, cuts, lambda sequences, read: sweep(decoder, head, sequences, read, settings))
    return [
        [row[: len(cut.ids)][torch.tensor(cut.ids) == llava.image_token_id] for row, cut in zip(row_group, group, strict=True)]
        for row_group, group in zip(rows, cuts, strict=True)
    ]


def may_share(config: PreTrainedConfig) -> bool:
    """Whether a prefix's keys are the same whatever follows: not where rotary frequencies depend on the sequence's length."""
    return (getattr(config, "rope_parameters", None) or {}).get("rope_type") not in _LENGTH_DEPENDENT_ROPE


def shared_length(groups: Sequence[Sequence[_Cut]]) -> int:
    """How many positions in front all questions of each group have in common, short of where y is read; one number for all."""
    return min(_common(group) for group in groups)


def _common(group: Sequence[_Cut]) -> int:
    most = min(position for cut in group for position in cut.positions)
    first = group[0].ids
    for cut in group[1:]:
        most = next((i for i in range(most) if cut.ids[i] != first[i]), most)
    return most


def _plain(llava: Llava, cuts: Sequence[Sequence[_Cut]], way: _Way) -> list[list[torch.Tensor]]:
    """Every question a sequence of its own, padded on the right."""
    flat = [cut for group in cuts for cut in group]
    ids, readings = _padded(llava, flat, 0)
    with torch.no_grad():
        embeddings = llava.embed(ids, torch.cat([cut.features for cut in flat]))
    rows = iter(way(embeddings, readings)[:, 0].cpu())
    return [[next(rows) for _ in group] for group in cuts]


def _continued(llava: Llava, cuts: Sequence[Sequence[_Cut]], shared: int, settings: SweepSettings) -> list[list[torch.Tensor]]:
    """The first `shared` positions once a picture, and what follows a question."""
    per_picture = len(cuts[0])
    by_turn = [group[i] for i in range(per_picture) for group in cuts]
    ids, readings = _padded(llava, by_turn, shared)
    front = torch.tensor([group[0].ids[:shared] for group in cuts], device=llava.device)
    # The shortest prefix of a batch may end inside another picture, whose other positions are then each question's own.
    inside = (front == llava.image_token_id).sum(1).tolist() * per_picture
    with torch.no_grad():
        prefix = llava.embed(front, torch.cat([cut.features[:n] for cut, n in zip(by_turn[: len(cuts)], inside, strict=False)]))
        suffixes = llava.embed(ids, torch.cat([cut.features[n:] for cut, n in zip(by_turn, inside, strict=True)]))
    decoder, head = llava.model.model.language_model, llava.model.lm_head
    rows = sweep_continuations(decoder, head, prefix, suffixes, readings, settings).cpu()
    return [[rows[i * len(cuts) + g] for i in range(per_picture)] for g in range(len(cuts))]


def _padded(llava: Llava, cuts: Sequence[_Cut], start: int) -> tuple[torch.Tensor, Readings]:
    """Token ids from `start` on, (sequences, longest), and where they are read."""
    device = llava.device
    length, most = max(len(cut.ids) for cut in cuts) - start, max(len(cut.positions) for cut in cuts)
    filler = int(llava.image_token_id == 0)  # never seen: padding stands behind every position that is read

    def wide(rows: Sequence[Sequence[int]], width: int, fill: int) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)

    positions = wide([[p - start for p in cut.positions] for cut in cuts], most, 0)
    valid = wide([[1] * len(cut.positions) for cut in cuts], most, 0).bool()
    readings = Readings(positions, wide([cut.tokens for cut in cuts], most, 0), valid)
    return wide([cut.ids[start:] for cut in cuts], length, filler), readings


def _cut(question: Question, llava: Llava, settings: SweepSettings) -> _Cut:
    if settings.target == "argmax":
        last = next((i for i, label in enumerate(question.labels) if label != IGNORE), len(question.ids)) - 1
        # The model's own choice is explained: which token stands there is not looked at.
        return _Cut(list(question.ids[: last + 1]), [last], [0], question.features)
    learnt = [i for i, label in enumerate(question.labels) if label != IGNORE]
    end_mark = llava.tokenizer(llava.profile.turn_end, add_special_tokens=False)["input_ids"]
    if end_mark and [question.ids[i] for i in learnt[-len(end_mark) :]] == end_mark:
        learnt = learnt[: -len(end_mark)]
    # Some tokenizers make a token of the space between role and answer.
    while learnt and not llava.tokenizer.decode([question.ids[learnt[0]]]).strip():
        learnt = learnt[1:]
    if not learnt:
        raise InputError("an answer needs at least one token to be explained")
    tokens = [question.ids[i] for i in learnt]
    return _Cut(list(question.ids[: learnt[-1]]), [i - 1 for i in learnt], tokens, question.features)
