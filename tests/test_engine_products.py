"""The engine's products on a CPU equal torch's, and stand in for them only where they help, and only for a while."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from cos_core.engines import _products
from cos_core.engines._products import LARGE, cpu_products, in_blocks


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (3, 1, 24), (16, 24), (5, 3, 24), (256, 24), (257, 24)])
def test_equal_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(4)
    layer = nn.Linear(24, LARGE + 37, bias=bias)
    rows = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(in_blocks(layer, rows), layer(rows), rtol=1e-6, atol=1e-6)


def test_large_plain_layers_only_and_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Linear):
        """As quantised layers are."""

    large, small, half = nn.Linear(4, LARGE), nn.Linear(4, 7), nn.Linear(4, LARGE, dtype=torch.bfloat16)
    model = nn.ModuleList([large, small, half, Own(4, LARGE)])
    called: list[nn.Module] = []
    monkeypatch.setattr(_products, "in_blocks", lambda layer, rows: called.append(layer))
    with contextlib.suppress(KeyError), cpu_products(model):
        for layer in model:
            layer(torch.ones(3, 4, dtype=layer.weight.dtype))
        raise KeyError
    assert called == [large]
    assert large(torch.ones(3, 4)).shape == (3, LARGE)
    assert "forward" not in vars(large)
