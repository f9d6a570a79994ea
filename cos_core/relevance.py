"""Relevance of an answer to every input position of a decoder (CoS Eq. 4-6 = Chefer et al. 2021, single stream).

The rules, with L layers, H heads, N positions and a scalar y that the model computed:
  Eq. 4  A_l = softmax(Q_l K_l^T / sqrt(d))              (H, N, N), after the softmax, before any dropout
  Eq. 5  Abar_l = mean over heads of max(0, dy/dA_l * A_l)         (N, N)
  Eq. 6  R <- R + Abar_l R, from R = I, for l = 1..L; the scores are row t of R, t being where y was read.
Row t is e_t^T (I + Abar_L) ... (I + Abar_1), so it is enough to carry the row from the last layer down: r <- r + r Abar_l. A
backward pass visits the layers in just that order, and its gradient of the attention output holds dy/dA_l. `sweep` therefore
does both at once: attention runs as usual (SDPA), its backward rebuilds A_l a block of queries at a time and updates r on the
spot, and no (N, N) map outlives its block. tests/reference keeps the slow way; the two agree to 1e-12 in float64.

The rule is not indifferent to scale: y -> c y multiplies a path over k layers by c^k. The target is part of the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

from cos_core.encoding import IGNORE
from cos_core.errors import InputError

ATTENTION = "cos_relevance"
"""The name under which the attention of `sweep` is registered with `transformers`."""

TargetKind = Literal["log-odds", "logit", "logprob", "argmax"]
TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """How relevance is computed.

    `target`: the scalar y (see `target_score`); `last_layers`: how many layers, counted from the last, are walked (None: all);
    `block`: queries whose attention rows are rebuilt at a time, a bound on memory that leaves the result as it is.
    """

    target: TargetKind = "log-odds"
    last_layers: int | None = None
    block: int = 256

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"unknown relevance target {self.target!r}; one of {', '.join(TARGETS)}")
        if self.last_layers is not None and self.last_layers < 1:
            raise InputError(f"last_layers must be at least 1, got {self.last_layers}")
        if self.block < 1:
            raise InputError(f"block must be at least 1, got {self.block}")


@dataclass(frozen=True, slots=True)
class Readings:
    """Where y is read: for each sequence up to T positions and the token expected there.

    `positions`, `tokens`: (batch, T) integers; `valid`: (batch, T) booleans, False where a sequence has fewer than T.
    Position p predicts the token at p + 1. Every sequence has at least one valid reading. `mask`: (batch, length), 1 for tokens
    and 0 for padding; None is enough when padding stands on the right, where a causal model never looks.
    """

    positions: torch.Tensor
    tokens: torch.Tensor
    valid: torch.Tensor
    mask: torch.Tensor | None = None


def mean_positive(attention: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """CoS Eq. 5: (batch, heads, queries, keys) twice -> Abar (batch, queries, keys); the positive part, then the mean."""
    return (attention * gradient).clamp(min=0).mean(1)


def propagate_rows(rows: torch.Tensor, averaged: torch.Tensor) -> torch.Tensor:
    """CoS Eq. 6 for rows of R, from the last layer down: (batch, rows, n) and Abar (batch, n, n) -> (batch, rows, n)."""
    return rows + rows @ averaged.to(rows.dtype)


def initial_rows(readings: Readings, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of R = I where y is read, averaged over a sequence's readings: (batch, 1, length).

    Kept in float32 when the model computes in half precision.
    """
    kept = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    weights = readings.valid.to(kept)
    weights = weights / weights.sum(1, keepdim=True)
    rows = torch.zeros(readings.positions.shape[0], length, dtype=kept, device=readings.positions.device)
    return rows.scatter_add_(1, readings.positions, weights)[:, None]


def target_score(logits: torch.Tensor, readings: Readings, kind: TargetKind) -> torch.Tensor:
    """The scalar y, summed over readings and sequences (whose gradients do not mix): logits (batch, T, vocabulary) -> ().

    "log-odds": the expected token's logit minus the log-sum-exp of all others, that is log p / (1 - p); "logit": the logit
    alone (Chefer et al.); "logprob": log p; "argmax": the logit of the model's own choice, whatever is expected.
    """
    tokens = logits.argmax(-1) if kind == "argmax" else readings.tokens
    chosen = logits.gather(2, tokens[..., None])[..., 0]
    if kind == "log-odds":
        others = logits.scatter(2, tokens[..., None], -math.inf)
        chosen = chosen - others.logsumexp(-1)
    elif kind == "logprob":
        chosen = chosen - logits.logsumexp(-1)
    return chosen.masked_fill(~readings.valid, 0).sum()


def sweep(
    decoder: Any,
    head: Any,
    embeddings: torch.Tensor,
    readings: Readings,
    settings: SweepSettings,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Relevance of every input position: (batch, rows, length), one row (the mean over readings) unless `rows` are given.

    `decoder`: a Llama-like `transformers` decoder in eval mode, inside `relevance_attention`; `head`: its output projection;
    `embeddings`: (batch, length, hidden);
    `rows`: initial rows (batch, rows, length) instead of `initial_rows`. Freeze the weights: otherwise the graph holds more
    than it needs. Raises InputError for attention that the rule does not know (see `_attention`).
    """
    layers = decoder.layers
    count = min(settings.last_layers or len(layers), len(layers))
    state = _State(
        initial_rows(readings, embeddings.shape[1], embeddings.dtype) if rows is None else rows, settings.block, count
    )
    leaf: list[torch.Tensor] = []

    def start_here(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        leaf.append((args[0] if args else kwargs["hidden_states"]).detach().requires_grad_(True))
        return ((leaf[0], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": leaf[0]})

    # Below the last `count` layers no gradient is needed: the graph starts at the input of the lowest layer walked.
    hook = layers[len(layers) - count].register_forward_pre_hook(start_here, with_kwargs=True)
    try:
        with torch.enable_grad():
            hidden = decoder(
                inputs_embeds=embeddings.detach(), attention_mask=readings.mask, use_cache=False, **{ATTENTION: state}
            ).last_hidden_state
            picked = hidden.gather(1, readings.positions[..., None].expand(-1, -1, hidden.shape[-1]))
            score = target_score(head(picked).to(state.rows.dtype), readings, settings.target)
            torch.autograd.grad(score, leaf, allow_unused=True)
    finally:
        hook.remove()
    if state.left:
        raise InputError(
            f"{type(decoder).__name__} does not run its attention through the attention interface of transformers "
            f"({state.left} of {count} layers were not seen); relevance cannot be computed for it"
        )
    return state.rows


@contextmanager
def relevance_attention(decoder: Any) -> Iterator[None]:
    """Lets a decoder compute its attention by `_attention` for a while; the implementation used before is restored.

    Outside of `sweep` the decoder works as with "sdpa". Raises InputError for a model with sliding windows or soft caps.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    refuse_unknown(decoder.config)
    AttentionInterface.register(ATTENTION, _attention)
    # Without a mask function of the same name transformers would build no mask at all.
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def refuse_unknown(config: Any) -> None:
    """Raises InputError for a decoder whose attention is more than Eq. 4 under a causal mask."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        raise InputError(f"relevance knows full causal attention only; this model has {', '.join(sorted(kinds))} layers")
    for name in ("attn_logit_softcapping", "alibi"):
        if getattr(config, name, None):
            raise InputError(f"relevance knows plain softmax attention only; this model sets {name}")


class _State:
    """The rows on their way down, shared by the layers of one `sweep`; travels as an argument of the forward pass."""

    __slots__ = ("block", "left", "rows")

    def __init__(self, rows: torch.Tensor, block: int, layers: int) -> None:
        self.rows, self.block, self.left = rows, block, layers


def _off(option: Any) -> bool:
    return option is None or (isinstance(option, bool | int | float) and not option)


_HARMLESS = frozenset({"position_ids", "use_cache", "cache_position", "output_attentions", "return_dict"})


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that `transformers` calls: (batch, heads, n, d) -> (batch, n, heads, d).

    Raises InputError for an option that changes Eq. 4 (sliding window, soft cap, bias, sinks, dropout).
    """
    state: _State | None = options.pop(ATTENTION, None)
    if state is None or not query.requires_grad:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    scaling, causal = options.pop("scaling", None), options.pop("is_causal", None)
    strange = [name for name, given in options.items() if name not in _HARMLESS and not _off(given)]
    if strange:
        raise InputError(f"relevance knows plain softmax attention only; this model's attention uses {', '.join(strange)}")
    if query.shape[2] != key.shape[2]:
        raise InputError("relevance needs the whole sequence at once, not a continued cache")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    hidden = _Propagating.apply(query, key, value, attention_mask, scale, bool(causal) and attention_mask is None, state)
    return hidden.transpose(1, 2).contiguous(), None


class _Propagating(torch.autograd.Function):
    """SDPA whose backward also moves the relevance rows one layer down (Eq. 4-6), in blocks of queries."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        causal: bool,
        state: _State,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale, ctx.causal, ctx.state = scale, causal, state
        grouped = key.shape[1] != query.shape[1]
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, output_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        state: _State = ctx.state
        state.left -= 1
        # The lowest layer walked passes no gradient on: nothing below it is asked for.
        gradients = None if state.left == 0 else tuple(torch.zeros_like(t) for t in (query, key, value))
        added = torch.zeros_like(state.rows)
        for low, high in _live_blocks(output_gradient, state.block):
            block = _Block(query, key, value, low, high, ctx.scale)
            weights = block.weights(mask, ctx.causal)
            _walk(block, weights, output_gradient[:, :, low:high], state.rows[:, :, low:high], added, gradients)
        state.rows = state.rows + added
        return (*(gradients or (None, None, None)), None, None, None, None)


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries low..high of one layer; `key` and `value` are repeated to the number of query heads when these are grouped."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    low: int
    high: int
    scale: float

    @property
    def groups(self) -> int:
        return self.query.shape[1] // self.key.shape[1]

    def keys(self, tensor: torch.Tensor, seen: int) -> torch.Tensor:
        cut = tensor[:, :, :seen]
        return cut.repeat_interleave(self.groups, 1) if self.groups > 1 else cut

    def weights(self, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
        """Eq. 4 for these queries: (batch, heads, high - low, keys seen)."""
        seen = self.high if causal else self.key.shape[2]
        scores = (self.query[:, :, self.low : self.high] @ self.keys(self.key, seen).transpose(-1, -2)).mul_(self.scale)
        lowest = torch.finfo(scores.dtype).min
        if causal:
            hidden = torch.ones(self.high - self.low, seen, dtype=torch.bool, device=scores.device).triu_(self.low + 1)
            scores.masked_fill_(hidden, lowest)
        elif mask is not None:
            part = mask[:, :, self.low : self.high, :seen]
            scores = scores.masked_fill(~part, lowest) if part.dtype == torch.bool else scores + part
        wide = scores.dtype if scores.dtype == torch.float64 else torch.float32
        return torch.softmax(scores, -1, dtype=wide).to(self.query.dtype)


def _walk(
    block: _Block,
    weights: torch.Tensor,
    output_gradient: torch.Tensor,
    rows: torch.Tensor,
    added: torch.Tensor,
    gradients: tuple[torch.Tensor, ...] | None,
) -> None:
    """Adds the block's share of r Abar to `added` and of dy/dq, dy/dk, dy/dv to `gradients`."""
    seen = weights.shape[-1]
    # dy/dA is exactly (gradient of the attention output) V^T.
    product = weights * (output_gradient @ block.keys(block.value, seen).transpose(-1, -2))
    added[:, :, :seen] += rows @ product.clamp(min=0).mean(1).to(rows.dtype)
    if gradients is None:
        return
    by_query, by_key, by_value = gradients
    score_gradient = (product - weights * product.sum(-1, keepdim=True)).mul_(block.scale)
    queries = block.query[:, :, block.low : block.high]
    by_query[:, :, block.low : block.high] = score_gradient @ block.keys(block.key, seen)
    for total, part in (
        (by_key, score_gradient.transpose(-1, -2) @ queries),
        (by_value, weights.transpose(-1, -2) @ output_gradient),
    ):
        batch, heads, _, width = part.shape
        grouped = part.view(batch, heads // block.groups, block.groups, seen, width)
        total[:, :, :seen] += grouped.sum(2) if block.groups > 1 else part


def _live_blocks(output_gradient: torch.Tensor, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of queries that y depends on: in the last layer only the positions where y is read."""
    live = (output_gradient != 0).any(-1).any(1).any(0).nonzero()
    if len(live) == 0:
        return
    first, end = int(live[0]), int(live[-1]) + 1
    for low in range(first, end, size):
        yield low, min(low + size, end)


@dataclass(frozen=True, slots=True)
class Question:
    """One sequence to explain: token ids with labels (encoding.Encoded) and the features for its image positions.

    `features`: (image positions, hidden).
    """

    ids: Sequence[int]
    labels: Sequence[int]
    features: torch.Tensor


def explain(llava: Any, questions: Sequence[Question], settings: SweepSettings) -> list[torch.Tensor]:
    """For each question the relevance of its answer to its image positions, (image positions,), on the CPU.

    y is read wherever a label is not IGNORE, without the end mark and a blank in front, which say nothing of the answer; under
    target "argmax", which needs no labels, where the model begins to answer. `llava`: a cos_core.llava.Llava. Raises InputError
    for an answer without tokens.
    """
    if not questions:
        return []
    device = llava.device
    own_choice = settings.target == "argmax"
    cut = [_start(question) if own_choice else _cut(question, llava) for question in questions]
    length, most = max(len(ids) for ids, _, _ in cut), max(len(positions) for _, positions, _ in cut)
    filler = int(llava.image_token_id == 0)  # never seen: padding stands behind every position that is read
    ids = torch.tensor([[*row, *[filler] * (length - len(row))] for row, _, _ in cut], device=device)
    readings = Readings(
        torch.tensor([[*p, *[0] * (most - len(p))] for _, p, _ in cut], device=device),
        torch.tensor([[*t, *[0] * (most - len(t))] for _, _, t in cut], device=device),
        torch.tensor([[True] * len(p) + [False] * (most - len(p)) for _, p, _ in cut], device=device),
    )
    with torch.no_grad():
        embeddings = llava.embed(ids, torch.cat([question.features for question in questions]))
    decoder = llava.model.model.language_model
    with relevance_attention(decoder):
        rows = sweep(decoder, llava.model.lm_head, embeddings, readings, settings)[:, 0].cpu()
    places = (ids == llava.image_token_id).cpu()
    return [row[place] for row, place in zip(rows, places, strict=True)]


def _start(question: Question) -> tuple[list[int], list[int], list[int]]:
    """(ids up to the end of the prompt, its last position, a token that is not looked at)."""
    last = next((i for i, label in enumerate(question.labels) if label != IGNORE), len(question.ids)) - 1
    return list(question.ids[: last + 1]), [last], [0]


def _cut(question: Question, llava: Any) -> tuple[list[int], list[int], list[int]]:
    """(ids up to the last position read, positions read, tokens expected there)."""
    learnt = [i for i, label in enumerate(question.labels) if label != IGNORE]
    end_mark = llava.tokenizer(llava.profile.turn_end, add_special_tokens=False)["input_ids"]
    if end_mark and [question.ids[i] for i in learnt[-len(end_mark) :]] == end_mark:
        learnt = learnt[: -len(end_mark)]
    # Some tokenizers make a token of the space between role and answer.
    while learnt and not llava.tokenizer.decode([question.ids[learnt[0]]]).strip():
        learnt = learnt[1:]
    if not learnt:
        raise InputError("an answer needs at least one token to be explained")
    return list(question.ids[: learnt[-1]]), [i - 1 for i in learnt], [question.ids[i] for i in learnt]
