"""The way back through one layer's attention, a block of queries at a time: no (n, n) map outlives its block.

The gradient of the attention's output, where tape.py cut the graph, is all that is needed: dy/dA = dy/d(output) V^T. `walk`
rebuilds A for a block of queries, forms Eq. 5, contracts it with the rows on the spot (Eq. 6) and gives the gradients of
queries, keys and values, from which the caller goes on down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cos_core.relevance.propagation.tape import Attended

_BLOCK_ENTRIES = {"cpu": 2**19, "cuda": 2**24}


def block_size(batch: int, heads: int, keys: int, device: torch.device) -> int:
    """How many queries to take at a time: 2 MiB of float32 attention entries on a CPU (its cache), 64 MiB on a GPU."""
    return max(8, _BLOCK_ENTRIES.get(device.type, _BLOCK_ENTRIES["cuda"]) // (batch * heads * keys))


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
