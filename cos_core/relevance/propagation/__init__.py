"""Relevance of an answer to every input position of a decoder (CoS Eq. 4-6 = Chefer et al. 2021, single stream).

The rules, with L layers, H heads, N positions and a scalar y that the model computed:
  Eq. 4  A_l = softmax(Q_l K_l^T / sqrt(d))              (H, N, N), after the softmax, before any dropout
  Eq. 5  Abar_l = mean over heads of max(0, dy/dA_l * A_l)         (N, N)
  Eq. 6  R <- R + Abar_l R, from R = I, for l = 1..L; the scores are row t of R, t being where y was read.

rules.py         targets, readings, Eq. 5 and 6 for themselves
tape.py          the attention that a model runs for a sweep, and what it leaves
layers.py        the whole model's forward pass, its layers' graphs kept or computed again
attention.py     Eq. 4-6 of one layer inside its backward pass, a block of queries at a time
sweep.py         the way down, for sequences one by one or continuing a common prefix
prefix.py        the cache that tells a model how long that prefix is
fallback.py      the slow way down, from the maps of LLaVAs whose attention is not Eq. 4 alone
sweep_memory.py  what a sweep takes
questions.py     questions about pictures to relevance of their image positions

The whole model is run, of any family: position ids, masks, what it does between two layers and to its logits are its own.

tests/reference keeps the slow way; they agree to 1e-12 in float64. The rule is not indifferent to scale: y -> c y multiplies a
path over k layers by c^k. The target is part of the result.
"""

from cos_core.relevance.propagation.fallback import sweep_maps, unknown_attention
from cos_core.relevance.propagation.layers import Sequences
from cos_core.relevance.propagation.questions import Question, check_model, explain
from cos_core.relevance.propagation.rules import (
    TARGETS,
    Readings,
    SweepSettings,
    TargetKind,
    initial_rows,
    mean_positive,
    propagate_rows,
    target_score,
)
from cos_core.relevance.propagation.sweep import sweep, sweep_continuations
from cos_core.relevance.propagation.sweep_memory import (
    ACTIVATION_BYTES,
    activation_bytes,
    sweep_bytes,
    tokens_per_call,
    wanted_bytes,
)
from cos_core.relevance.propagation.tape import ATTENTION, relevance_attention

__all__ = [
    "ACTIVATION_BYTES",
    "ATTENTION",
    "TARGETS",
    "Question",
    "Readings",
    "Sequences",
    "SweepSettings",
    "TargetKind",
    "activation_bytes",
    "check_model",
    "explain",
    "initial_rows",
    "mean_positive",
    "propagate_rows",
    "relevance_attention",
    "sweep",
    "sweep_bytes",
    "sweep_continuations",
    "sweep_maps",
    "target_score",
    "tokens_per_call",
    "unknown_attention",
    "wanted_bytes",
]
