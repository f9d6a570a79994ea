"""Relevance of every input position of a decoder, in one sweep from the last layer down.

Row t of R is e_t^T (I + Abar_L) ... (I + Abar_1), so it is enough to carry the row from the last layer down:
r <- r + r Abar_l. A backward pass visits the layers in just that order, and holds dy/dA_l on its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cos_core.errors import InputError
from cos_core.relevance.propagation import sweep_memory as memory
from cos_core.relevance.propagation.attention import Attended, Gradients, Tape, Workspace, walk
from cos_core.relevance.propagation.layers import DecoderPass, Piece
from cos_core.relevance.propagation.rules import Readings, SweepSettings, initial_rows, target_score

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def sweep(
    decoder: PreTrainedModel,
    head: nn.Module,
    embeddings: torch.Tensor,
    readings: Readings,
    settings: SweepSettings,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Relevance of every input position: (batch, rows, length), one row (the mean over readings) unless `rows` are given.

    `decoder`: a Llama-like `transformers` decoder in eval mode, inside `relevance_attention`; `head`: its output projection;
    `embeddings`: (batch, length, hidden); `rows`: initial rows (batch, rows, length) instead of `initial_rows`. Freeze the
    weights: otherwise the graph holds more than it needs. Raises InputError for attention that the rule does not know.
    """
    batch, length, _ = embeddings.shape
    tape = Tape(length)
    run = DecoderPass(decoder, walked_layers(decoder, settings), _streams(decoder, embeddings, settings, batch * length), tape)
    hidden = run.forward(embeddings, readings.mask)
    gradient = end_gradient(run, head, hidden, readings, settings)
    del hidden
    rows = initial_rows(readings, length, embeddings.dtype) if rows is None else rows
    workspace = Workspace(settings.block)
    for number in run.walked:
        piece = run.piece(number)
        attended = _cut(piece, decoder)
        lowest = number == run.walked[-1]
        # The lowest layer walked passes no gradient on: nothing below it is asked for.
        wanted = (attended.output,) if lowest else (attended.output, piece.entered)
        by_output, *passed = torch.autograd.grad(piece.left, wanted, gradient)
        gradients = None if lowest else Gradients.zeros(attended, 1)
        rows = rows + walk(attended, by_output[None], rows[None], gradients, workspace)[0]
        if gradients is not None:
            gradient = passed[0] + _through_projections(piece, attended, gradients, 0)
    return rows


def sweep_continuations(
    decoder: PreTrainedModel,
    head: nn.Module,
    prefix: torch.Tensor,
    suffixes: torch.Tensor,
    readings: Readings,
    settings: SweepSettings,
) -> torch.Tensor:
    """The same for questions that continue a common prefix: (questions, prefix length + suffix length), one row each.

    `prefix`: (images, prefix length, hidden); `suffixes`: (questions an image x images, suffix length, hidden), the first
    question on every image, then the second...; `readings`: positions in the suffixes, padded on the right. What the prefix's
    own positions compute is computed once an image: its forward pass, and in each layer the attention map, over which every
    question then passes its own gradient. (A question's relevance among the prefix's positions depends on the question.)
    """
    images, start, _ = prefix.shape
    per_image = suffixes.shape[0] // images
    tokens = prefix.shape[0] * start + suffixes.shape[0] * suffixes.shape[1]
    streamed = _streams(decoder, prefix, settings, tokens)
    count = walked_layers(decoder, settings)
    front_tape, back_tape = (Tape(start + suffixes.shape[1]) for _ in range(2))
    front = DecoderPass(decoder, count, streamed, front_tape)
    front_tape.recorded = []
    front.forward(prefix)
    back = DecoderPass(decoder, count, streamed, back_tape, front_tape.recorded)
    front_tape.recorded = None
    hidden = back.forward(suffixes, start=start)
    back.prefix = None
    after = end_gradient(back, head, hidden, readings, settings)
    before: torch.Tensor | None = None
    rows = initial_rows(readings, suffixes.shape[1], suffixes.dtype)[None]
    front_rows = rows.new_zeros(per_image, images, 1, start)
    workspace = Workspace(settings.block)
    for number in back.walked:
        lowest = number == back.walked[-1]
        piece = front.piece(number)
        attended = _cut(piece, decoder)
        back_tape.before = (attended.key.detach(), attended.value.detach())
        tail = back.piece(number)
        added, after, gradients = _walk_suffix(tail, _cut(tail, decoder), after, rows, lowest, workspace)
        for_front, rows = added[..., :start], rows + added[..., start:]
        continued = None if gradients is None else Gradients(
            torch.zeros(per_image, *attended.query.shape, dtype=attended.query.dtype, device=attended.query.device),
            gradients.key[0, :, :, :start].unflatten(0, (per_image, images)).contiguous(),
            gradients.value[0, :, :, :start].unflatten(0, (per_image, images)).contiguous(),
        )  # fmt: skip
        front_added, before = _walk_prefix(piece, attended, before, front_rows, continued, workspace)
        front_rows = front_rows + front_added + for_front.unflatten(1, (per_image, images))[0]
    return torch.cat([front_rows.flatten(0, 1), rows[0]], -1)[:, 0]


def _walk_suffix(
    piece: Piece, attended: Attended, gradient: torch.Tensor, rows: torch.Tensor, lowest: bool, workspace: Workspace
) -> tuple[torch.Tensor, torch.Tensor, Gradients | None]:
    """(what is added to rows over prefix and suffix, dy/d(the layer's input), gradients of keys and values)."""
    by_output, passed = torch.autograd.grad(piece.left, (attended.output, piece.entered), gradient)
    gradients = None if lowest else Gradients.zeros(attended, 1)
    added = walk(attended, by_output[None], rows, gradients, workspace)
    if gradients is not None:
        passed += _through_projections(piece, attended, gradients, 0, last=attended.key.shape[2])
    return added, passed, gradients


def _walk_prefix(
    piece: Piece,
    attended: Attended,
    before: torch.Tensor | None,
    rows: torch.Tensor,
    gradients: Gradients | None,
    workspace: Workspace,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(what is added to the rows, dy/d(the layer's input)), each for all questions; `before` None: nothing came from above."""
    per_image = rows.shape[0]
    added = torch.zeros_like(rows)
    passed = None
    if before is not None:
        parts = [
            torch.autograd.grad(piece.left, (attended.output, piece.entered), before[i], retain_graph=i < per_image - 1)
            for i in range(per_image)
        ]
        by_output = torch.stack([output for output, _ in parts])
        passed = torch.stack([entered for _, entered in parts])
        del parts
        added = walk(attended, by_output, rows, gradients, workspace)
    if gradients is None:
        return added, None
    inner = torch.stack([_through_projections(piece, attended, gradients, i, keep=i < per_image - 1) for i in range(per_image)])
    return added, inner if passed is None else passed.add_(inner)


def _through_projections(
    piece: Piece, attended: Attended, gradients: Gradients, i: int, keep: bool = False, last: int | None = None
) -> torch.Tensor:
    """dy/d(the layer's input) by way of queries, keys and values (of these the `last` ones) for the i-th y."""
    inputs = (attended.query, attended.key, attended.value)
    by_key, by_value = gradients.key[i], gradients.value[i]
    if last is not None:
        by_key, by_value = by_key[:, :, -last:], by_value[:, :, -last:]
    outer = [g.to(t.dtype) for g, t in zip((gradients.query[i], by_key, by_value), inputs, strict=True)]
    (passed,) = torch.autograd.grad(inputs, piece.entered, outer, retain_graph=keep)
    return passed


def end_gradient(
    run: DecoderPass, head: nn.Module, hidden: torch.Tensor, readings: Readings, settings: SweepSettings
) -> torch.Tensor:
    """dy/d(what the last layer gave), (batch, n, hidden)."""
    with torch.enable_grad():
        picked = hidden.gather(1, readings.positions[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = head(picked)
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        score = target_score(logits.to(wide), readings, settings.target)
        (gradient,) = torch.autograd.grad(score, run.end)
    return gradient


def walked_layers(decoder: PreTrainedModel, settings: SweepSettings) -> int:
    layers = len(decoder.layers)
    return min(settings.last_layers or layers, layers)


def _streams(decoder: PreTrainedModel, embeddings: torch.Tensor, settings: SweepSettings, tokens: int) -> bool:
    return memory.streams(decoder.config, embeddings.dtype, settings, tokens)


def _cut(piece: Piece, decoder: PreTrainedModel) -> Attended:
    if piece.attended is None:
        raise InputError(
            f"{type(decoder).__name__} does not run its attention through the attention interface of transformers; "
            "relevance cannot be computed for it in this way"
        )
    return piece.attended
