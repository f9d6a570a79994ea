"""Relevance of every input position of a decoder, in one sweep from the last layer down.

Row t of R is e_t^T (I + Abar_L) ... (I + Abar_1), so it is enough to carry the row from the last layer down:
r <- r + r Abar_l. A backward pass visits the layers in just that order, and holds dy/dA_l on its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cos_core.errors import InputError
from cos_core.relevance.propagation import sweep_memory as memory
from cos_core.relevance.propagation.attention import Gradients, Workspace, walk
from cos_core.relevance.propagation.layers import DecoderPass, Piece, Sequences
from cos_core.relevance.propagation.rules import Readings, SweepSettings, initial_rows, target_score
from cos_core.relevance.propagation.tape import Attended, Tape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sweep(sequences: Sequences, readings: Readings, settings: SweepSettings, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Relevance of every input position: (count, rows, length), one row (the mean over readings) unless `rows` are given.

    `rows`: initial rows (count, rows, length) instead of `initial_rows`. Raises InputError for attention that the rule does not
    know.
    """
    run = _pass(sequences, settings, sequences.tokens, Tape())
    gradient = end_gradient(run, run.forward(readings.positions), readings, settings)
    rows = initial_rows(readings, sequences.length, gradient.dtype) if rows is None else rows
    workspace = Workspace(settings.block)
    for number in run.walked:
        piece = run.piece(number)
        attended = _cut(piece, number, sequences)
        lowest = number == run.walked[-1]
        # The lowest layer walked passes no gradient on: nothing below it is asked for.
        wanted = (attended.output,) if lowest else (attended.output, piece.entered)
        keep = not lowest and piece.shares()
        by_output, *passed = torch.autograd.grad(piece.left, wanted, gradient, retain_graph=keep)
        gradients = None if lowest else Gradients.zeros(attended, 1)
        rows = rows + walk(attended, by_output[None], rows[None], gradients, workspace)[0]
        if gradients is not None:
            passed[0] += _through_projections(piece, attended, gradients, 0)
            gradient = run.across(number, passed[0][None])[0]
    return rows


def sweep_continuations(front: Sequences, back: Sequences, readings: Readings, settings: SweepSettings) -> torch.Tensor:
    """The same for questions that continue a common prefix: (questions, prefix length + suffix length), one row each.

    `front`: a prefix an image; `back`: what follows in each question, the first question on every image, then the second...;
    it is run with a cache that says how long the prefix is. `readings`: positions in the suffixes, padded on the right. What
    the prefix's own positions compute is computed once an image: its forward pass, and in each layer the attention map, over
    which every question then passes its own gradient. (A question's relevance among the prefix's positions depends on the
    question.)
    """
    from cos_core.relevance.propagation.prefix import recorded_cache

    images, start, per_image = front.count, front.length, back.count // front.count
    tokens = front.tokens + back.tokens
    front_tape, back_tape = Tape(), Tape()
    front_pass = _pass(front, settings, tokens, front_tape)
    front_tape.recorded = []
    front_pass.forward()
    back_pass = _pass(back, settings, tokens, back_tape)
    back_pass.prefix, front_tape.recorded = front_tape.recorded, None
    logits = back_pass.forward(readings.positions, recorded_cache(len(front.decoder.layers), start))
    back_pass.prefix = None
    after = end_gradient(back_pass, logits, readings, settings)
    del logits
    before: torch.Tensor | None = None
    rows = initial_rows(readings, back.length, after.dtype)[None]
    front_rows = rows.new_zeros(per_image, images, 1, start)
    workspace = Workspace(settings.block)
    for number in back_pass.walked:
        lowest = number == back_pass.walked[-1]
        piece = front_pass.piece(number)
        attended = _cut(piece, number, front)
        back_tape.before = (attended.key.detach(), attended.value.detach())
        tail = back_pass.piece(number)
        added, after, gradients = _walk_suffix(tail, _cut(tail, number, back), after, rows, lowest, workspace)
        for_front, rows = added[..., :start], rows + added[..., start:]
        continued = None if gradients is None else Gradients(
            torch.zeros(per_image, *attended.query.shape, dtype=attended.query.dtype, device=attended.query.device),
            gradients.key[0, :, :, :start].unflatten(0, (per_image, images)).contiguous(),
            gradients.value[0, :, :, :start].unflatten(0, (per_image, images)).contiguous(),
        )  # fmt: skip
        front_added, before = _walk_prefix(piece, attended, before, front_rows, continued, workspace)
        front_rows = front_rows + front_added + for_front.unflatten(1, (per_image, images))[0]
        if before is not None:
            after, before = back_pass.across(number, after[None])[0], front_pass.across(number, before)
    return torch.cat([front_rows.flatten(0, 1), rows[0]], -1)[:, 0]


def _walk_suffix(
    piece: Piece, attended: Attended, gradient: torch.Tensor, rows: torch.Tensor, lowest: bool, workspace: Workspace
) -> tuple[torch.Tensor, torch.Tensor, Gradients | None]:
    """(what is added to rows over prefix and suffix, dy/d(the layer's input), gradients of keys and values)."""
    keep = not lowest and piece.shares()
    by_output, passed = torch.autograd.grad(piece.left, (attended.output, piece.entered), gradient, retain_graph=keep)
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
        keep = gradients is not None and piece.shares()
        wanted = (attended.output, piece.entered)
        parts = [
            torch.autograd.grad(piece.left, wanted, before[i], retain_graph=keep or i < per_image - 1) for i in range(per_image)
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


def end_gradient(run: DecoderPass, logits: torch.Tensor, readings: Readings, settings: SweepSettings) -> torch.Tensor:
    """dy/d(what the last layer gave), (batch, n, hidden), from the logits that y is read from, (batch, T, vocabulary)."""
    with torch.enable_grad():
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        score = target_score(logits.to(wide), readings, settings.target)
        (gradient,) = torch.autograd.grad(score, run.end)
    return gradient


def walked_layers(sequences: Sequences, settings: SweepSettings) -> int:
    layers = len(sequences.decoder.layers)
    return min(settings.last_layers or layers, layers)


def _pass(sequences: Sequences, settings: SweepSettings, tokens: int, tape: Tape) -> DecoderPass:
    """A pass that keeps as much as a sweep over `tokens` positions in all may."""
    model: PreTrainedModel = sequences.model
    asked = model.config, model.dtype, settings, tokens
    streamed, outputs = memory.streams(*asked), memory.keeps_outputs(*asked)
    return DecoderPass(sequences, walked_layers(sequences, settings), streamed, tape, keep_outputs=outputs)


def _cut(piece: Piece, number: int, sequences: Sequences) -> Attended:
    attended: Any = piece.attended
    if attended is None:
        raise InputError(
            f"layer {number} of {type(sequences.decoder).__name__} has no softmax attention that runs through the attention "
            "interface of transformers (linear attention has none); relevance cannot be computed for this model"
        )
    return attended
