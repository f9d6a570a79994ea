"""Eq. 4-6 by hand, and the fused row sweep against the kept N x N reference."""

from __future__ import annotations

import math

import pytest
import torch
from relevance_models import make_decoder, make_input, mean_rows, reference, swept
from torch.nn import functional

from cos_core.errors import InputError
from cos_core.relevance import propagation
from cos_core.relevance.propagation import Readings, SweepSettings, attention, tape


class TestRulesByHand:
    def test_eq5_takes_the_positive_part_before_the_mean(self) -> None:
        attention = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.25, 0.75]]]])  # (1, 2 heads, 2, 2)
        gradient = torch.tensor([[[[2.0, 9.0], [4.0, -4.0]], [[-2.0, 9.0], [4.0, 4.0]]]])
        expected = torch.tensor([[[1.0, 0.0], [1.5, 1.5]]])  # ((2 + 0) / 2, 0), ((2 + 1) / 2, (0 + 3) / 2)
        assert torch.equal(propagation.mean_positive(attention, gradient), expected)

    def test_eq6_two_layers_three_positions(self) -> None:
        first = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [3.0, 0.0, 1.0]]])
        second = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [2.0, 0.5, 0.0]]])
        # R1 = I + first; R2 = R1 + second R1. Row 2 of R2: (3, 0, 2) + 2 (2, 0, 0) + 0.5 (0.5, 3, 0) = (7.25, 1.5, 2).
        matrix = torch.eye(3) + first
        matrix = matrix + second @ matrix
        assert torch.equal(matrix[0, 2], torch.tensor([7.25, 1.5, 2.0]))
        rows = torch.tensor([[[0.0, 0.0, 1.0]]])
        for averaged in (second, first):
            rows = propagation.propagate_rows(rows, averaged)
        assert torch.equal(rows[0, 0], torch.tensor([7.25, 1.5, 2.0]))

    def test_initial_rows_are_the_mean_over_valid_readings(self) -> None:
        readings = Readings(torch.tensor([[3, 1], [2, 0]]), torch.zeros(2, 2), torch.tensor([[True, True], [True, False]]))
        rows = propagation.initial_rows(readings, 4, torch.bfloat16)
        assert rows.dtype == torch.float32
        assert rows.tolist() == [[[0, 0.5, 0, 0.5]], [[0, 0, 1, 0]]]

    def test_a_whole_attention_of_two_positions(self) -> None:
        """One head of width 1: q = k = 0 gives A = (1/2, 1/2) in row 1; y = output of row 1, so G = v, Abar = max(0, v) / 2."""
        zeros, values = torch.zeros(1, 1, 2, 1, requires_grad=True), torch.tensor([[[[3.0], [-5.0]]]])
        on_tape = tape.Tape()
        with on_tape.running():
            output, _ = tape._attention(torch.nn.Identity(), zeros, zeros, values, None, scaling=1.0)
        assert output.flatten().tolist() == [3.0, -1.0]
        attended = on_tape.take()
        assert attended is not None
        assert on_tape.take() is None
        gradients = attention.Gradients.zeros(attended, 1)
        (by_output,) = torch.autograd.grad(output[0, 1].sum(), attended.output)
        added = attention.walk(attended, by_output[None], torch.tensor([[[[0.0, 1.0]]]]), gradients, attention.Workspace(1))
        assert added.tolist() == [[[[1.5, 0.0]]]]
        # dy/dA = (3, -5), less its mean under A, times A: dy/ds = (2, -2); with q = k = 0 it moves nothing. dy/dv = A.
        assert gradients.value.flatten().tolist() == [0.5, 0.5]
        assert gradients.query.abs().max() == gradients.key.abs().max() == 0


class TestTargets:
    logits = torch.tensor([[[0.0, math.log(2), math.log(5)]]], dtype=torch.float64)  # p = 1/8, 2/8, 5/8

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("logit", math.log(2)),
            ("logprob", math.log(2 / 8)),
            ("log-odds", math.log((2 / 8) / (6 / 8))),
            ("argmax", math.log(5)),
        ],
    )
    def test_values(self, kind: propagation.TargetKind, expected: float) -> None:
        readings = Readings(torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([[True]]))
        assert propagation.target_score(self.logits, readings, kind).item() == pytest.approx(expected, abs=1e-14)

    def test_readings_that_are_not_valid_do_not_count(self) -> None:
        readings = Readings(torch.tensor([[0, 0]]), torch.tensor([[1, 2]]), torch.tensor([[True, False]]))
        assert propagation.target_score(self.logits.expand(1, 2, 3), readings, "logit").item() == pytest.approx(math.log(2))

    def test_unknown_target(self) -> None:
        with pytest.raises(InputError, match=r"'loss'.*log-odds"):
            SweepSettings("loss")  # type: ignore[arg-type]


@pytest.mark.parametrize("target", propagation.TARGETS)
@pytest.mark.parametrize(
    ("length", "kv_heads", "batch", "count", "block"),
    [(31, 4, 1, 1, 256), (37, 2, 2, 3, 7), (29, 1, 3, 2, 1), (41, 4, 2, 5, 16)],
)
def test_sweep_equals_the_reference(
    target: propagation.TargetKind, length: int, kv_heads: int, batch: int, count: int, block: int
) -> None:
    model = make_decoder(num_key_value_heads=kv_heads)
    embeddings, readings = make_input(model, batch, length, count)
    expected = mean_rows(reference(model, embeddings, readings, target), readings)
    found = swept(model, embeddings, readings, SweepSettings(target, block=block))
    assert found.shape == (batch, 1, length)
    assert (found - expected).abs().max() <= 1e-12
    assert (expected - propagation.initial_rows(readings, length, torch.float64)).abs().max() > 1e-3  # not the empty product


def test_several_rows_share_one_sweep() -> None:
    model = make_decoder(num_key_value_heads=2)
    embeddings, readings = make_input(model, 2, 23, 3)
    matrix = reference(model, embeddings, readings, "logit")
    rows = functional.one_hot(readings.positions, 23).to(torch.float64)
    found = swept(model, embeddings, readings, SweepSettings("logit", block=5), rows)
    assert found.shape == (2, 3, 23)
    assert (found - rows @ matrix).abs().max() <= 1e-12


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_a_mask(side: str) -> None:
    model = make_decoder(num_key_value_heads=2)
    embeddings, readings = make_input(model, 2, 29, 1)
    mask = torch.ones(2, 29, dtype=torch.long)
    real = slice(11, None) if side == "left" else slice(None, 18)
    mask[1] = 0
    mask[1, real] = 1
    readings = Readings(torch.tensor([[28], [28 if side == "left" else 17]]), readings.tokens, readings.valid)
    expected = mean_rows(reference(model, embeddings, readings, "log-odds", mask), readings)
    found = swept(model, embeddings, readings, SweepSettings(block=8), mask=mask)
    assert (found[0] - expected[0]).abs().max() <= 1e-12
    assert (found[1, :, real] - expected[1, :, real]).abs().max() <= 1e-12


def test_right_padding_without_a_mask_equals_the_sequence_alone() -> None:
    model = make_decoder()
    embeddings, _ = make_input(model, 2, 29, 1)
    both = Readings(torch.tensor([[28], [17]]), torch.tensor([[3], [5]]), torch.ones(2, 1, dtype=torch.bool))
    alone = Readings(torch.tensor([[17]]), torch.tensor([[5]]), torch.ones(1, 1, dtype=torch.bool))
    found = swept(model, embeddings, both, SweepSettings())
    expected = swept(model, embeddings[1:, :18], alone, SweepSettings())
    assert (found[1, 0, :18] - expected[0, 0]).abs().max() <= 1e-12
    assert found[1, 0, 18:].abs().max() == 0


def test_last_layers_leaves_the_lower_ones_out() -> None:
    model = make_decoder(num_hidden_layers=4)
    embeddings, readings = make_input(model, 1, 19, 1)
    full = swept(model, embeddings, readings, SweepSettings())
    assert torch.equal(full, swept(model, embeddings, readings, SweepSettings(last_layers=9)))
    with torch.no_grad():
        states = model.model(inputs_embeds=embeddings, output_hidden_states=True, use_cache=False).hidden_states
    upper = make_decoder(num_hidden_layers=4)
    upper.model.layers = upper.model.layers[2:]
    upper.config.num_hidden_layers = 2
    expected = mean_rows(reference(upper, states[2], readings, "log-odds"), readings)
    assert (swept(model, embeddings, readings, SweepSettings(last_layers=2)) - expected).abs().max() <= 1e-12
    assert (full - expected).abs().max() > 1e-3


def test_float32_and_weights_that_would_learn() -> None:
    model = make_decoder(dtype=torch.float32).requires_grad_(True)
    embeddings, readings = make_input(model, 2, 31, 2)
    expected = mean_rows(reference(model, embeddings, readings, "logprob"), readings)
    found = swept(model, embeddings, readings, SweepSettings("logprob", block=9))
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-6 * max(1.0, float(scale))
    assert all(p.grad is None for p in model.parameters())
