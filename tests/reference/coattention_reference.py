"""The slow way through two streams (Chefer et al. 2021, rules 5-11), kept as an oracle: one question, every sum a loop.

Written from the paper's rules alone. Maps are caught where they are made, at the softmax, in the order in which LXMERT runs:
language layers, vision layers, then for each cross layer text to regions, regions to text, text to text, regions to regions.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

Matrix = list[list[float]]


def region_relevance(model: Any, inputs: dict[str, torch.Tensor], score: Any, last_layers: int | None = None) -> list[float]:
    """Row [CLS] of R_ti for `score(logits (labels,))` of one question without padding."""
    maps: list[torch.Tensor] = []
    softmax = torch.nn.functional.softmax

    def keeping(values: torch.Tensor, dim: int) -> torch.Tensor:
        maps.append(softmax(values, dim=dim))
        return maps[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", keeping)
        logits = model(**inputs).question_answering_score[0]
    gradients = torch.autograd.grad(score(logits), maps, allow_unused=True)
    averaged = [_rule_5(a[0], g) for a, g in zip(maps, gradients, strict=True)]

    config = model.config
    assert len(averaged) == config.l_layers + config.r_layers + 4 * config.x_layers
    text, rest = averaged[: config.l_layers], averaged[config.l_layers :]
    vision, rest = rest[: config.r_layers], rest[config.r_layers :]
    cross = [rest[i : i + 4] for i in range(0, len(rest), 4)]
    if last_layers is not None:
        own = max(0, last_layers - len(cross))
        text, vision = text[len(text) - min(own, len(text)) :], vision[len(vision) - min(own, len(vision)) :]
        cross = cross[len(cross) - min(last_layers, len(cross)) :]
    return _propagate(text, vision, cross, inputs["input_ids"].shape[1], inputs["visual_feats"].shape[1])


def _propagate(text: list[Matrix], vision: list[Matrix], cross: list[list[Matrix]], t: int, i: int) -> list[float]:
    tt, ii, ti, it = _identity(t), _identity(i), _zeros(t, i), _zeros(i, t)
    for a in text:
        tt, ti = _plus(tt, _times(a, tt)), _plus(ti, _times(a, ti))  # rules 6, 7
    for a in vision:
        ii, it = _plus(ii, _times(a, ii)), _plus(it, _times(a, it))
    for number, (a_ti, a_it, a_tt, a_ii) in enumerate(cross):
        last = number == len(cross) - 1
        add_ti = _times(_transposed(_normalised(tt)), _times(a_ti, _normalised(ii)))  # rule 10
        add_tt = _times(a_ti, it)  # rule 11
        add_it = _times(_transposed(_normalised(ii)), _times(a_it, _normalised(tt)))
        add_ii = _times(a_it, ti)
        ti, tt = _plus(ti, add_ti), _plus(tt, add_tt)
        if not last:
            it, ii = _plus(it, add_it), _plus(ii, add_ii)
        tt, ti = _plus(tt, _times(a_tt, tt)), _plus(ti, _times(a_tt, ti))
        if not last:
            ii, it = _plus(ii, _times(a_ii, ii)), _plus(it, _times(a_ii, it))
    return ti[0]


def _rule_5(attention: torch.Tensor, gradient: torch.Tensor | None) -> Matrix:
    heads, rows, columns = attention.shape
    if gradient is None:
        return _zeros(rows, columns)
    a, g = attention.tolist(), gradient[0].tolist()
    return [[sum(max(0.0, g[h][r][c] * a[h][r][c]) for h in range(heads)) / heads for c in range(columns)] for r in range(rows)]


def _normalised(matrix: Matrix) -> Matrix:
    """Rules 8-9."""
    n = len(matrix)
    result = _identity(n)
    for r in range(n):
        hat = [matrix[r][c] - (r == c) for c in range(n)]
        total = sum(hat)
        for c in range(n):
            result[r][c] += hat[c] / total if total else 0.0
    return result


def _identity(n: int) -> Matrix:
    return [[float(r == c) for c in range(n)] for r in range(n)]


def _zeros(rows: int, columns: int) -> Matrix:
    return [[0.0] * columns for _ in range(rows)]


def _plus(a: Matrix, b: Matrix) -> Matrix:
    return [[x + y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def _times(a: Matrix, b: Matrix) -> Matrix:
    columns = list(zip(*b, strict=True))
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in a]


def _transposed(a: Matrix) -> Matrix:
    return [list(column) for column in zip(*a, strict=True)]
