"""Attention whose backward pass also moves relevance, a block of queries at a time: no (n, n) map outlives its block.

A decoder computes its attention through `transformers`' AttentionInterface. For a sweep this module stands there: the forward
pass is SDPA, and the graph is cut at its output, which becomes a leaf. The gradient of that leaf is all that is needed:
dy/dA = dy/d(output) V^T. `walk` rebuilds A for a block of queries, forms Eq. 5, contracts it with the rows on the spot (Eq. 6)
and gives the gradients of queries, keys and values, from which the caller goes on down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from cos_core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "cos_relevance"
"""The name under which this attention is registered with `transformers`; also the argument in which a Tape travels."""

_HARMLESS = frozenset({"position_ids", "use_cache", "cache_position", "output_attentions", "return_dict"})
_BLOCK_ENTRIES = {"cpu": 2**19, "cuda": 2**24}


@contextmanager
def relevance_attention(decoder: PreTrainedModel) -> Iterator[None]:
    """Lets a decoder compute its attention by `_attention` for a while; the implementation used before is restored.

    Outside of a sweep the decoder works as with "sdpa".
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attention)
    # Without a mask function of the same name transformers would build no mask at all.
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    with implementation(decoder, ATTENTION):
        yield


@contextmanager
def implementation(decoder: PreTrainedModel, name: str) -> Iterator[None]:
    """Sets a decoder's attention implementation for a while."""
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(name)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def unknown_attention(decoder: PreTrainedModel, length: int | None = None) -> str | None:
    """Why the fused sweep cannot be used on sequences of `length` positions (None: of any), or None where it can.

    It knows softmax attention under a causal mask (Eq. 4) that runs through the attention interface of `transformers`. A
    sliding window or a chunk that holds the whole sequence is just that.
    """
    config = decoder.config
    if not getattr(decoder, "_supports_attention_backend", False):
        return f"{type(decoder).__name__} does not run its attention through the attention interface of transformers"
    for name, word in (
        ("attn_logit_softcapping", "caps its attention scores"),
        ("alibi", "adds ALiBi to its attention scores"),
    ):
        if getattr(config, name, None):
            return f"this model {word}"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    strange = kinds - {"sliding_attention", "chunked_attention"}
    if strange:
        return f"this model has {', '.join(sorted(strange))} layers"
    for name, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        size = getattr(config, name, None)
        # Where a configuration names its layers' kinds, a window that no layer uses does not count.
        used = kind in kinds if getattr(config, "layer_types", None) else bool(size)
        if used and (length is None or size is None or size < length):
            return f"this model attends within {name.replace('_', ' ')}s of {size} positions"
    return None


def block_size(batch: int, heads: int, keys: int, device: torch.device) -> int:
    """How many queries to take at a time: 2 MiB of float32 attention entries on a CPU (its cache), 64 MiB on a GPU."""
    return max(8, _BLOCK_ENTRIES.get(device.type, _BLOCK_ENTRIES["cuda"]) // (batch * heads * keys))


@dataclass(frozen=True, slots=True)
class Attended:
    """One layer's attention as it ran: n queries over m keys, of which the first m - n stand before all queries.

    `query` (batch, heads, n, d), `key` and `value` (batch, key heads, n, d): as they entered, with their graph; `output`
    (batch, heads, n, d): a leaf. `mask`: (batch, 1, n, m), boolean or added; None: causal. `before`: see Tape.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    mask: torch.Tensor | None
    scale: float
    before: tuple[torch.Tensor, torch.Tensor] | None = None

    def whole(self) -> Attended:
        """The same without graphs, keys and values with what stands before them: (batch, key heads, m, d)."""
        key, value = _continued(self.before, self.key.detach(), self.value.detach())
        return Attended(self.query.detach(), key, value, self.output.detach(), self.mask, self.scale)


def _continued(
    before: tuple[torch.Tensor, torch.Tensor] | None, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if before is None:
        return key, value
    return _behind(before[0], key), _behind(before[1], value)


def _behind(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` (copies x batch, heads, n, d) behind `old` (batch, heads, m, d), which every copy repeats."""
    batch, heads, start, width = old.shape
    both = new.new_empty(new.shape[0], heads, start + new.shape[2], width)
    both[:, :, :start].unflatten(0, (-1, batch)).copy_(old)
    both[:, :, start:] = new
    return both


class Tape:
    """What passes between `_attention` and a sweep, as an argument of the decoder's forward pass.

    `length`: positions of a whole sequence (against which sliding windows are measured). `before`: keys and values of a prefix
    that every sequence continues, for the layer that runs now; its batch divides the sequences', which repeat it. `recorded`: a
    list to which every layer's keys and values are added, or None. `attended`: what the last layer run with gradients left.
    """

    __slots__ = ("attended", "before", "length", "recorded")

    def __init__(self, length: int) -> None:
        self.length = length
        self.before: tuple[torch.Tensor, torch.Tensor] | None = None
        self.recorded: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self.attended: Attended | None = None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """(batch, n, heads, d). With gradients the graph is cut here, and `attended` holds both ends."""
        if self.recorded is not None:
            self.recorded.append((key.detach(), value.detach()))
        keys, values = _continued(self.before, key.detach(), value.detach())
        output = _plain(query.detach(), keys, values, mask, scale)
        if query.requires_grad and torch.is_grad_enabled():
            output.requires_grad_(True)
            self.attended = Attended(query, key, value, output, mask, scale, self.before)
        return output.transpose(1, 2).contiguous()

    def take(self) -> Attended | None:
        """What the layer that has just run left; None when its attention never came by."""
        attended, self.attended = self.attended, None
        return attended


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    offset = key.shape[2] - query.shape[2]
    if mask is None and offset:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril_(offset)
    grouped = key.shape[1] != query.shape[1]
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def _off(option: Any) -> bool:
    return option is None or (isinstance(option, bool | int | float) and not option)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that `transformers` calls: (batch, heads, n, d) -> (batch, n, heads, d).

    Raises InputError for an option that changes Eq. 4 (sliding window, soft cap, bias, sinks, dropout).
    """
    tape: Tape | None = options.pop(ATTENTION, None)
    if tape is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    scaling, causal = options.pop("scaling", None), options.pop("is_causal", None)
    window = options.pop("sliding_window", None)
    strange = [name for name, value in options.items() if name not in _HARMLESS and not _off(value)]
    if window is not None and window < tape.length:
        strange.append("sliding_window")
    if strange:
        raise InputError(f"relevance knows plain softmax attention only; this model's attention uses {', '.join(strange)}")
    if query.shape[2] != key.shape[2]:
        raise InputError("relevance needs the whole sequence at once, not a continued cache")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise InputError("relevance knows causal attention only; this model's attention looks both ways")
    if attention_mask is not None and tape.before is not None:
        raise InputError("questions that share a prefix need no mask, but this model makes one")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return tape.attend(query, key, value, attention_mask, scale), None


# --- the way back ---


@dataclass(slots=True)
class Gradients:
    """dy/dq (c, batch, heads, n, d), dy/dk and dy/dv (c, batch, key heads, m, d) for c scalars y.

    Sums over blocks of queries are kept in float32 when the model computes in half precision.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    @classmethod
    def zeros(cls, attended: Attended, count: int) -> Gradients:
        query, key = attended.query, attended.key
        before = 0 if attended.before is None else attended.before[0].shape[2]
        wide = torch.float64 if key.dtype == torch.float64 else torch.float32
        batch, heads, length, width = key.shape
        by_key, by_value = (
            torch.zeros(count, batch, heads, before + length, width, dtype=wide, device=key.device) for _ in range(2)
        )
        return cls(torch.zeros(count, *query.shape, dtype=query.dtype, device=query.device), by_key, by_value)


class Workspace:
    """Memory for the blocks of one sweep, taken once: a system gives fresh pages slowly, and every block would want some.

    `block`: how many queries a block has; None: `block_size`.
    """

    def __init__(self, block: int | None = None) -> None:
        self.block = block
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """A tensor of that shape, with whatever was in it, in the memory of the last one of that name."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != like.dtype:
            buffer = self._buffers[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer[:size].view(shape)


def walk(
    attended: Attended, by_output: torch.Tensor, rows: torch.Tensor, gradients: Gradients | None, workspace: Workspace
) -> torch.Tensor:
    """What Eq. 6 adds to the rows, (c, batch, rows, m), for c scalars y on the same attention, whose map is built once.

    `by_output`: dy/d(output), (c, batch, heads, n, d); `rows`: (c, batch, rows, n), the rows at the queries. Adds dy/dq, dy/dk
    and dy/dv to `gradients`, unless None.
    """
    whole = attended.whole()
    batch, heads, length, _ = whole.query.shape
    keys = whole.key.shape[2]
    added = torch.zeros(*rows.shape[:3], keys, dtype=rows.dtype, device=rows.device)
    step = workspace.block or block_size(batch, heads, keys, whole.query.device)
    for low, high in _live_blocks(by_output, step):
        part = _Block(whole, low, high, keys - length + high if whole.mask is None else keys, workspace)
        weights = part.weights()
        for i, output_gradient in enumerate(map(part.grouped, by_output)):
            # dy/dA is exactly dy/d(output) V^T; `product` is dy/dA * A.
            product = part.product("product", output_gradient, whole.value[:, :, : part.seen].mT).mul_(weights)
            # The mean over heads and the step of Eq. 6 in one product: every head is a further stretch of queries.
            spread = rows[i, :, :, None, low:high].expand(-1, -1, heads, -1).flatten(2) / heads
            positive = torch.clamp(product, min=0, out=workspace.take("positive", product.shape, product)).to(rows.dtype)
            added[i, :, :, : part.seen] += spread @ positive.view(batch, -1, part.seen)
            if gradients is not None:
                part.back(weights, product, output_gradient, gradients, i)
    return added


def _live_blocks(by_output: torch.Tensor, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of queries that y depends on: in the last layer only the positions where y is read."""
    live = by_output.abs().amax((0, 1, 2, 4)).nonzero()
    if len(live) == 0:
        return
    first, end = int(live[0]), int(live[-1]) + 1
    for low in range(first, end, size):
        yield low, min(low + size, end)


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries low..high over the first `seen` keys. The queries of all heads that share a key's head stand below each other."""

    whole: Attended
    low: int
    high: int
    seen: int
    workspace: Workspace

    def product(self, name: str, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """left (batch, key heads, grouped queries, d) @ right (batch, key heads, d, keys seen), in the workspace."""
        out = self.workspace.take(name, (*left.shape[:3], right.shape[3]), left)
        torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out=out.flatten(0, 1))
        return out

    def grouped(self, tensor: torch.Tensor) -> torch.Tensor:
        """(batch, heads, n, d) -> (batch, key heads, grouped queries, d)."""
        batch, _, _, width = tensor.shape
        return tensor[:, :, self.low : self.high].reshape(batch, self.whole.key.shape[1], -1, width)

    def weights(self) -> torch.Tensor:
        """Eq. 4 for these queries: (batch, key heads, grouped queries, keys seen)."""
        whole, size = self.whole, self.high - self.low
        scores = self.product("product", self.grouped(whole.query) * whole.scale, whole.key[:, :, : self.seen].mT)
        lowest = torch.finfo(scores.dtype).min
        by_head = scores.view(*scores.shape[:2], -1, size, self.seen)
        if whole.mask is None:
            hidden = torch.ones(size, size, dtype=torch.bool, device=scores.device).triu_(1)
            by_head[..., self.seen - size :].masked_fill_(hidden, lowest)
        else:
            part = whole.mask[:, :, None, self.low : self.high, : self.seen]
            if part.dtype == torch.bool:
                by_head.masked_fill_(~part, lowest)
            else:
                by_head += part
        if scores.dtype in (torch.float32, torch.float64):
            return torch.softmax(scores, -1, out=self.workspace.take("weights", scores.shape, scores))
        return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)

    def back(
        self, weights: torch.Tensor, product: torch.Tensor, output_gradient: torch.Tensor, gradients: Gradients, i: int
    ) -> None:
        """Through the softmax, to the i-th gradients; `product` is used up."""
        whole = self.whole
        # The sum over keys of dy/dA * A is dy/d(output) . output, without another pass over the map.
        sums = (output_gradient * self.grouped(whole.output)).sum(-1, keepdim=True)
        by_score = product.addcmul_(weights, sums, value=-1)
        by_query = gradients.query[i, :, :, self.low : self.high]
        by_query.copy_((by_score @ whole.key[:, :, : self.seen]).mul_(whole.scale).view(by_query.shape))
        _add_product(gradients.key[i], by_score.mT, self.grouped(whole.query) * whole.scale)
        _add_product(gradients.value[i], weights.mT, output_gradient)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds left @ right (batch, heads, seen, d) to the first rows of `total` (batch, heads, m, d)."""
    part = total.view(-1, *total.shape[2:])[:, : left.shape[2]]
    if total.dtype == left.dtype:
        part.baddbmm_(left.flatten(0, 1), right.flatten(0, 1))
    else:
        part += left.flatten(0, 1) @ right.flatten(0, 1)
