"""Attention as a sweep has it computed: SDPA, with the graph cut at its output, which becomes a leaf.

A decoder computes its attention through `transformers`' AttentionInterface. For a sweep this module stands there. Between it
and the sweep passes a Tape, in a context variable: what runs the model, and what else the model does, need not know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from cos_core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "cos_relevance"
"""The name under which this attention is registered with `transformers`."""

_HARMLESS = frozenset({"position_ids", "use_cache", "cache_position", "output_attentions", "return_dict"})


@contextmanager
def relevance_attention(decoder: PreTrainedModel) -> Iterator[None]:
    """Lets a decoder compute its attention by `_attention` for a while; the implementation used before is restored.

    Without a tape the decoder works as with "sdpa".
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
    """What passes between `_attention` and a sweep.

    `before`: keys and values of a prefix that every sequence continues, for the layer that runs now; its batch divides the
    sequences', which repeat it. `recorded`: a list to which every layer's keys and values are added, or None. `output`: what
    the attention that ran last gave, (batch, heads, n, d); `known`: what the one that runs next gives, where it ran before.
    """

    __slots__ = ("_attended", "_causal", "before", "known", "output", "recorded")

    def __init__(self) -> None:
        self.before: tuple[torch.Tensor, torch.Tensor] | None = None
        self.recorded: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self.output: torch.Tensor | None = None
        self.known: torch.Tensor | None = None
        self._attended: Attended | None = None
        self._causal: dict[int, tuple[torch.Tensor, bool]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Attention that runs inside is put on this tape."""
        token = _RUNNING.set(self)
        try:
            yield
        finally:
            _RUNNING.reset(token)

    @property
    def start(self) -> int:
        """Positions of the prefix."""
        return 0 if self.before is None else self.before[0].shape[2]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """(batch, n, heads, d). With gradients the graph is cut here, and both ends are kept for `take`."""
        if self.recorded is not None:
            self.recorded.append((key.detach(), value.detach()))
        if mask is not None and self._says_causal(mask):
            mask = None
        output, self.known = self.known, None
        if output is None:
            keys, values = _continued(self.before, key.detach(), value.detach())
            output = _plain(query.detach(), keys, values, mask, scale)
        self.output = output.detach()
        if query.requires_grad and torch.is_grad_enabled():
            if self._attended is not None:
                raise InputError("relevance knows layers with one attention each; this model's have several")
            output.requires_grad_(True)
            self._attended = Attended(query, key, value, output, mask, scale, self.before)
        return output.transpose(1, 2).contiguous()

    def take(self) -> Attended | None:
        """What the layer that has just run left; None when its attention never came by."""
        attended, self._attended = self._attended, None
        return attended

    def _says_causal(self, mask: torch.Tensor) -> bool:
        """Whether a mask (batch, 1, n, m) only keeps what follows from being seen, for which none is needed."""
        if id(mask) not in self._causal:
            causal = False
            if mask.dtype == torch.bool:
                causal = bool((_once(mask) == _triangle(mask.shape[2], mask.shape[3], mask.device)).all())
            self._causal[id(mask)] = (mask, causal)
        return self._causal[id(mask)][1]


_RUNNING: ContextVar[Tape | None] = ContextVar("tape", default=None)


def _once(mask: torch.Tensor) -> torch.Tensor:
    """A mask that is the same for the whole batch, for one sequence of it."""
    return mask[:1] if mask.stride(0) == 0 else mask


def _triangle(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril_(keys - queries)


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    if mask is None and key.shape[2] != query.shape[2]:
        mask = _triangle(query.shape[2], key.shape[2], query.device)
    grouped = key.shape[1] != query.shape[1]
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that `transformers` calls: (batch, heads, n, d) -> (batch, n, heads, d).

    A mask says who sees whom; without one, a query sees itself and all keys before it. Raises InputError for what changes Eq. 4
    besides (soft cap, bias, sinks, dropout), and where a mask is missing that would say something else.
    """
    tape = _RUNNING.get()
    if tape is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    scaling, causal = options.pop("scaling", None), options.pop("is_causal", None)
    window = options.pop("sliding_window", None)
    strange = [name for name, value in options.items() if name not in _HARMLESS and not _off(value)]
    if strange:
        raise InputError(f"relevance knows plain softmax attention only; this model's attention uses {', '.join(strange)}")
    if query.shape[2] != key.shape[2]:
        raise InputError(
            "relevance knows attention of a sequence to itself; this model's decoder looks at something else as well, by "
            "cross-attention or in a cache"
        )
    columns = tape.start + key.shape[2]
    if attention_mask is None:
        if not (getattr(module, "is_causal", True) if causal is None else causal):
            raise InputError("this model's attention looks both ways and has no mask that says where; relevance needs it")
        if window is not None and window < columns:
            raise InputError(
                f"this model attends within a sliding window of {window} positions and has no mask that says so; relevance "
                "needs it"
            )
    elif attention_mask.ndim != 4 or attention_mask.shape[1] != 1 or attention_mask.shape[3] != columns:
        raise InputError(f"relevance knows one mask for all heads; this model's has the shape {list(attention_mask.shape)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return tape.attend(query, key, value, attention_mask, scale), None


def _off(option: Any) -> bool:
    return option is None or (isinstance(option, bool | int | float) and not option)
