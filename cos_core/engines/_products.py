"""Products with a model's large weights on a CPU, faster than torch's where few rows are multiplied.

For a few rows the library behind torch rearranges the whole weight in memory before it multiplies; of a block that fits in the
cache it does so there. Each output is the same sum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.functional import linear

LARGE = 4096
"""Outputs from which on a weight is worth cutting up."""
BLOCK = 512
"""Outputs of a block, for each thread."""
ROWS = range(2, 257)
"""Of one row every weight is read once anyway, of many the rearranging is a small part."""


@contextlib.contextmanager
def cpu_products(*parts: nn.Module) -> Iterator[None]:
    """Lets large float32 linear layers on a CPU within `parts` multiply few rows by `in_blocks`; any other stays as it is."""
    modules = (module for part in parts for module in part.modules())
    able = [module for module in modules if isinstance(module, nn.Linear) and _able(module)]
    for module in able:
        module.forward = partial(in_blocks, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in able:
            del module.forward


def in_blocks(module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """What the layer makes of `rows` (..., inputs): (..., outputs)."""
    if rows.shape[:-1].numel() not in ROWS:
        return linear(rows, module.weight, module.bias)
    size = BLOCK * torch.get_num_threads()
    biases = [None] * -(-module.out_features // size) if module.bias is None else module.bias.split(size)
    return torch.cat([linear(rows, *block) for block in zip(module.weight.split(size), biases, strict=True)], dim=-1)


def _able(module: nn.Linear) -> bool:
    # Layers of other types (quantised, adapted) have a forward of their own, and so has one that somebody else stands in for.
    if type(module) is not nn.Linear or "forward" in vars(module) or module.out_features < LARGE:
        return False
    return module.weight.device.type == "cpu" and module.weight.dtype is torch.float32
