"""Drawing tokens: the softmax of logits over a temperature, cut to its likeliest tokens, and the random numbers of a request.

Every request draws from a generator of its own seed, one number a token, and a token is looked up in the order of the
vocabulary, not of its probability: two nearly equal logits that swap in another batch move no other token.

Under a grammar, which says of one token at a time whether it may stand, the Gumbel-max trick draws from what it lets through
without knowing all of it: of logits / temperature with independent Gumbel noise, the first that may stand is a draw from the
softmax over those that may (Maddison, Tarlow, Minka, "A* Sampling", 2014, section 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cos_core.interfaces import Request, Sampling

NUMBERS = 2**23
"""Probabilities that are computed at once at most, save for those of one row: what bounds the memory of drawing."""

_LEAST = 2.0**-54
"""Instead of a random number of zero, which has no logarithm; the next one is 2 ** -53."""


class Draws:
    """The random numbers of one request, from its own seed (PCG64)."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._numbers = np.random.Generator(np.random.PCG64(sampling.seed))

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        return float(self._numbers.random())

    def order(self, scores: Sequence[float]) -> list[int]:
        """The indices of logits in the order in which a draw without replacement takes them (Gumbel-max), by one number each.

        The first is a draw from the softmax of `scores` / temperature; the first of any subset is one from its part of it,
        renormalised.
        """
        noise = -np.log(-np.log(np.maximum(self._numbers.random(len(scores)), _LEAST)))
        keys = np.asarray(scores, dtype=np.float64) / self.sampling.temperature + noise
        order: list[int] = np.argsort(-keys, kind="stable").tolist()
        return order


def draws_of(request: Request) -> Draws | None:
    """The request's random numbers, from the first on; None where it takes the likeliest token each time."""
    return None if request.sampling is None else Draws(request.sampling)


def drawn(logits: torch.Tensor, draws: Sequence[Draws]) -> torch.Tensor:
    """One token id a row, (rows, 1) on the device of `logits` (rows, vocabulary); takes one number of each row's `draws`.

    A token is drawn from the row's nucleus by inverting its cumulative probabilities. Nothing waits for the device. A row whose
    largest logit is no finite number gets any id.
    """
    settings = [(each.sampling.temperature, each.sampling.top_p, each.uniform()) for each in draws]
    columns = torch.tensor(settings, dtype=torch.float64).to(logits.device)
    rows = max(1, NUMBERS // logits.shape[1])
    found = []
    for part in (slice(first, first + rows) for first in range(0, len(draws), rows)):
        temperature, top_p, at = columns[part].split(1, dim=1)
        weights = heated(logits[part], temperature)
        if any(each.sampling.top_p < 1 for each in draws[part]):
            weights = nucleus(weights, top_p)
        found.append(_inverted(weights, at))
    return torch.cat(found)


def heated(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """The softmax of logits (rows, vocabulary) over `temperature` (rows, 1), in float64."""
    # The largest is taken off first: nothing overflows at a small temperature.
    wide = logits.double()
    return ((wide - wide.amax(-1, keepdim=True)) / temperature).softmax(-1)


def nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Probabilities (rows, vocabulary), of which all but the likeliest that together reach `top_p` (rows, 1) are set to zero.

    The token that reaches `top_p` is in (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020, section 3.1);
    of equally likely tokens the first of the vocabulary comes first. What remains is not renormalised. At `top_p` 1 every token
    remains.
    """
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    reached_before = torch.cat([torch.zeros_like(ranked[:, :1]), ranked.cumsum(-1)[:, :-1]], dim=-1)
    kept = (reached_before < top_p) | (top_p >= 1)
    return torch.zeros_like(probabilities).scatter(-1, order, ranked * kept)


def _inverted(weights: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """For each row of weights (rows, n) the first index whose cumulative weight exceeds the share `at` (rows, 1) of all."""
    # A device may add in any order, so that sums can fall by a rounding: an index without weight is never taken.
    sums = weights.cumsum(-1).where(weights > 0, -1.0)
    return (sums > at * sums.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1, keepdim=True)
