"""Eq. 4-6 by hand, and the fused row sweep against the kept N x N reference."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.relevance_reference import relevance_matrix
from tiny_llava import make_checkpoint
from torch.nn import functional

from cos_core import llava as llava_module
from cos_core import relevance
from cos_core.encoding import IGNORE, encode
from cos_core.errors import InputError
from cos_core.prompts import dialogue
from cos_core.relevance import Question, Readings, SweepSettings, attention, memory
from cos_core.relevance.questions import _cut, may_share, shared_length


def make_decoder(seed: int = 0, dtype: torch.dtype = torch.float64, **config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 56, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 3}
    llama = LlamaConfig(**{**sizes, "vocab_size": 53, "intermediate_size": 61, "initializer_range": 0.2, **config})
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama).to(dtype).eval().requires_grad_(False)


def make_input(model: Any, batch: int, length: int, count: int, seed: int = 1) -> tuple[torch.Tensor, Readings]:
    generator = torch.Generator().manual_seed(seed)
    dtype = model.lm_head.weight.dtype
    embeddings = torch.randn(batch, length, model.config.hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    positions = torch.stack([torch.randperm(length - 1, generator=generator)[:count] + 1 for _ in range(batch)])
    tokens = torch.randint(0, model.config.vocab_size, (batch, count), generator=generator)
    return embeddings, Readings(positions, tokens, torch.ones(batch, count, dtype=torch.bool))


def swept(model: Any, embeddings: torch.Tensor, readings: Readings, settings: SweepSettings, rows: Any = None) -> torch.Tensor:
    with relevance.relevance_attention(model.model):
        return relevance.sweep(model.model, model.lm_head, embeddings, readings, settings, rows)


def reference(model: Any, embeddings: torch.Tensor, readings: Readings, target: relevance.TargetKind) -> torch.Tensor:
    def score(logits: torch.Tensor) -> torch.Tensor:
        index = readings.positions[..., None].expand(-1, -1, logits.shape[-1])
        return relevance.target_score(logits.gather(1, index), readings, target)

    return relevance_matrix(model.model, model.lm_head, embeddings, score, readings.mask)


def mean_rows(matrix: torch.Tensor, readings: Readings) -> torch.Tensor:
    return relevance.initial_rows(readings, matrix.shape[-1], matrix.dtype) @ matrix


class TestRulesByHand:
    def test_eq5_takes_the_positive_part_before_the_mean(self) -> None:
        attention = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.25, 0.75]]]])  # (1, 2 heads, 2, 2)
        gradient = torch.tensor([[[[2.0, 9.0], [4.0, -4.0]], [[-2.0, 9.0], [4.0, 4.0]]]])
        expected = torch.tensor([[[1.0, 0.0], [1.5, 1.5]]])  # ((2 + 0) / 2, 0), ((2 + 1) / 2, (0 + 3) / 2)
        assert torch.equal(relevance.mean_positive(attention, gradient), expected)

    def test_eq6_two_layers_three_positions(self) -> None:
        first = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [3.0, 0.0, 1.0]]])
        second = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [2.0, 0.5, 0.0]]])
        # R1 = I + first; R2 = R1 + second R1. Row 2 of R2: (3, 0, 2) + 2 (2, 0, 0) + 0.5 (0.5, 3, 0) = (7.25, 1.5, 2).
        matrix = torch.eye(3) + first
        matrix = matrix + second @ matrix
        assert torch.equal(matrix[0, 2], torch.tensor([7.25, 1.5, 2.0]))
        rows = torch.tensor([[[0.0, 0.0, 1.0]]])
        for averaged in (second, first):
            rows = relevance.propagate_rows(rows, averaged)
        assert torch.equal(rows[0, 0], torch.tensor([7.25, 1.5, 2.0]))

    def test_initial_rows_are_the_mean_over_valid_readings(self) -> None:
        readings = Readings(torch.tensor([[3, 1], [2, 0]]), torch.zeros(2, 2), torch.tensor([[True, True], [True, False]]))
        rows = relevance.initial_rows(readings, 4, torch.bfloat16)
        assert rows.dtype == torch.float32
        assert rows.tolist() == [[[0, 0.5, 0, 0.5]], [[0, 0, 1, 0]]]

    def test_a_whole_attention_of_two_positions(self) -> None:
        """One head of width 1: q = k = 0 gives A = (1/2, 1/2) in row 1; y = output of row 1, so G = v, Abar = max(0, v) / 2."""
        zeros, values = torch.zeros(1, 1, 2, 1, requires_grad=True), torch.tensor([[[[3.0], [-5.0]]]])
        tape = attention.Tape(2)
        output, _ = attention._attention(torch.nn.Identity(), zeros, zeros, values, None, scaling=1.0, cos_relevance=tape)
        assert output.flatten().tolist() == [3.0, -1.0]
        attended = tape.take()
        assert attended is not None
        assert tape.take() is None
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
    def test_values(self, kind: relevance.TargetKind, expected: float) -> None:
        readings = Readings(torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([[True]]))
        assert relevance.target_score(self.logits, readings, kind).item() == pytest.approx(expected, abs=1e-14)

    def test_readings_that_are_not_valid_do_not_count(self) -> None:
        readings = Readings(torch.tensor([[0, 0]]), torch.tensor([[1, 2]]), torch.tensor([[True, False]]))
        assert relevance.target_score(self.logits.expand(1, 2, 3), readings, "logit").item() == pytest.approx(math.log(2))

    def test_unknown_target(self) -> None:
        with pytest.raises(InputError, match="unknown relevance target 'loss'; one of log-odds"):
            SweepSettings("loss")  # type: ignore[arg-type]


@pytest.mark.parametrize("target", relevance.TARGETS)
@pytest.mark.parametrize(
    ("length", "kv_heads", "batch", "count", "block"),
    [(31, 4, 1, 1, 256), (37, 2, 2, 3, 7), (29, 1, 3, 2, 1), (41, 4, 2, 5, 16)],
)
def test_sweep_equals_the_reference(
    target: relevance.TargetKind, length: int, kv_heads: int, batch: int, count: int, block: int
) -> None:
    model = make_decoder(num_key_value_heads=kv_heads)
    embeddings, readings = make_input(model, batch, length, count)
    expected = mean_rows(reference(model, embeddings, readings, target), readings)
    found = swept(model, embeddings, readings, SweepSettings(target, block=block))
    assert found.shape == (batch, 1, length)
    assert (found - expected).abs().max() <= 1e-12
    assert (expected - relevance.initial_rows(readings, length, torch.float64)).abs().max() > 1e-3  # not the empty product


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
    readings = Readings(torch.tensor([[28], [28 if side == "left" else 17]]), readings.tokens, readings.valid, mask)
    expected = mean_rows(reference(model, embeddings, readings, "log-odds"), readings)
    found = swept(model, embeddings, readings, SweepSettings(block=8))
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


def make_mistral(window: int | None, **more: Any) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"vocab_size": 31, "hidden_size": 56, "intermediate_size": 61, "num_hidden_layers": 3, "initializer_range": 0.2}
    torch.manual_seed(0)
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=window, **more)
    return MistralForCausalLM(config).double().eval().requires_grad_(False)


def kept_maps(model: Any, embeddings: torch.Tensor, readings: Readings, layers: int = 3) -> torch.Tensor:
    """The plain way with `transformers` alone: all maps of "eager", their gradients, R."""
    model.set_attn_implementation("eager")
    leaf = embeddings.detach().requires_grad_(True)
    out = model.model(inputs_embeds=leaf, use_cache=False, output_attentions=True)
    picked = out.last_hidden_state.gather(1, readings.positions[..., None].expand(-1, -1, embeddings.shape[-1]))
    score = relevance.target_score(model.lm_head(picked), readings, "log-odds")
    gradients = torch.autograd.grad(score, out.attentions)
    matrix = torch.eye(embeddings.shape[1], dtype=torch.float64).expand(embeddings.shape[0], -1, -1)
    for one, gradient in list(zip(out.attentions, gradients, strict=True))[-layers:]:
        matrix = matrix + relevance.mean_positive(one.detach(), gradient) @ matrix
    model.set_attn_implementation("sdpa")
    return mean_rows(matrix, readings)


class TestUnknownAttention:
    @pytest.mark.parametrize("layers", [1, 3])
    def test_the_slow_way_equals_the_kept_maps_of_a_sliding_window(self, layers: int) -> None:
        model = make_mistral(5)
        embeddings, readings = make_input(model, 2, 23, 3)
        expected = kept_maps(model, embeddings, readings, layers)
        found = relevance.sweep_maps(model.model, model.lm_head, embeddings, readings, SweepSettings(last_layers=layers))
        assert (found - expected).abs().max() <= 1e-12
        assert model.config._attn_implementation == "sdpa"
        # The window is in the result: a window over everything gives another one.
        other = kept_maps(make_mistral(None), embeddings, readings, layers)
        assert (found - other).abs().max() > 1e-3

    def test_a_window_over_the_whole_sequence_is_ordinary_attention(self) -> None:
        model = make_mistral(23)
        embeddings, readings = make_input(model, 2, 23, 3)
        assert relevance.unknown_attention(model.model, 23) is None
        expected = mean_rows(reference(make_mistral(None), embeddings, readings, "log-odds"), readings)
        assert (swept(model, embeddings, readings, SweepSettings(block=7)) - expected).abs().max() <= 1e-12

    def test_a_window_that_was_not_noticed_is_refused(self) -> None:
        model = make_mistral(22)
        embeddings, readings = make_input(model, 1, 23, 1)
        with pytest.raises(InputError, match=r"attention uses sliding_window"):
            swept(model, embeddings, readings, SweepSettings())

    def test_soft_caps(self) -> None:
        from transformers import Gemma2Config, Gemma2Model

        sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
        model = Gemma2Model(Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, sliding_window=4))
        assert relevance.unknown_attention(model, 2) == "this model caps its attention scores"

    def test_what_it_says_of_windows(self) -> None:
        model = make_mistral(22).model
        assert relevance.unknown_attention(model) == "this model attends within sliding windows of 22 positions"
        assert relevance.unknown_attention(model, 23) == relevance.unknown_attention(model)
        assert relevance.unknown_attention(model, 22) is None
        assert relevance.unknown_attention(make_decoder().model) is None

    def test_a_model_off_the_attention_interface(self) -> None:
        class Own:
            config = make_decoder().config

        assert "attention interface" in str(relevance.unknown_attention(Own()))

    def test_attention_that_never_came_by(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        with pytest.raises(InputError, match="does not run its attention through the attention interface"):
            relevance.sweep(model.model, model.lm_head, embeddings, readings, SweepSettings())

    def test_maps_that_are_not_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        monkeypatch.setattr(type(model.model), "set_attn_implementation", lambda *_: None)  # stays with "sdpa"
        with pytest.raises(InputError, match="layer 2 of LlamaModel gives 0 attention maps"):
            relevance.sweep_maps(model.model, model.lm_head, embeddings, readings, SweepSettings())

    def test_something_between_the_layers_is_noticed(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        second = model.model.layers[1]
        second.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
        with pytest.raises(InputError, match="does something between its layers"):
            swept(model, embeddings, readings, SweepSettings())

    def test_implementation_is_restored(self) -> None:
        model = make_decoder()
        with relevance.relevance_attention(model.model):
            assert model.config._attn_implementation == relevance.ATTENTION
        assert model.config._attn_implementation == "sdpa"


class TestStreaming:
    @pytest.mark.parametrize("layers", [None, 2, 1])
    @pytest.mark.parametrize("kv_heads", [4, 2])
    def test_is_the_same_to_the_bit(self, layers: int | None, kv_heads: int) -> None:
        model = make_decoder(num_key_value_heads=kv_heads)
        embeddings, readings = make_input(model, 2, 31, 3)
        whole, streamed = (
            swept(model, embeddings, readings, SweepSettings(last_layers=layers, stream_layers=way)) for way in (False, True)
        )
        assert torch.equal(whole, streamed)

    def test_with_a_mask(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 2, 29, 1)
        mask = torch.ones(2, 29, dtype=torch.long)
        mask[1, :11] = 0
        readings = Readings(torch.tensor([[28], [28]]), readings.tokens, readings.valid, mask)
        whole, streamed = (swept(model, embeddings, readings, SweepSettings(stream_layers=way)) for way in (False, True))
        assert torch.equal(whole, streamed)

    def test_layers_are_called_again_one_by_one(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        called: list[tuple[int, bool]] = []
        for number, layer in enumerate(model.model.layers):
            layer.mlp.register_forward_hook(lambda _m, _a, out, n=number: called.append((n, out.requires_grad)))
        swept(model, embeddings, readings, SweepSettings(stream_layers=True))
        assert called == [(0, False), (1, False), (2, True), (1, True), (0, True)]
        called.clear()
        swept(model, embeddings, readings, SweepSettings(stream_layers=False, last_layers=2))
        assert called == [(0, False), (1, True), (2, True)]

    @pytest.mark.parametrize("family", ["Mistral", "Qwen2"])
    def test_of_other_families(self, family: str) -> None:
        import transformers

        sizes = {"vocab_size": 53, "hidden_size": 56, "intermediate_size": 61, "num_hidden_layers": 3, "initializer_range": 0.2}
        config = getattr(transformers, f"{family}Config")(**sizes, num_attention_heads=4, num_key_value_heads=2)
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval().requires_grad_(False)
        embeddings, readings = make_input(model, 2, 31, 3)
        expected = mean_rows(reference(model, embeddings, readings, "log-odds"), readings)
        found = swept(model, embeddings, readings, SweepSettings(stream_layers=True, block=8))
        assert (found - expected).abs().max() <= 1e-12
        common, last = embeddings[:1, :23], Readings(torch.tensor([[7], [7]]), readings.tokens[:, :1], readings.valid[:, :1])
        whole = torch.cat([common.repeat(2, 1, 1), embeddings[:, 23:]], 1)
        moved = Readings(last.positions + 23, last.tokens, last.valid)
        expected = mean_rows(reference(model, whole, moved, "log-odds"), moved)[:, 0]
        with relevance.relevance_attention(model.model):
            shared = relevance.sweep_continuations(
                model.model, model.lm_head, common, embeddings[:, 23:], last, SweepSettings()
            )
        assert (shared - expected).abs().max() <= 1e-12


class TestMemory:
    class Text:
        num_hidden_layers, hidden_size, intermediate_size = 32, 4096, 11008

    def test_of_a_token(self) -> None:
        a_layer = (10 * 4096 + 3 * 11008) * 2
        assert memory.layer_bytes(self.Text, torch.bfloat16) == a_layer == 147968
        assert memory.token_bytes(self.Text, torch.bfloat16, SweepSettings(), streamed=False) == 32 * a_layer
        assert memory.token_bytes(self.Text, torch.bfloat16, SweepSettings(last_layers=5), streamed=False) == 5 * a_layer
        assert memory.token_bytes(self.Text, torch.bfloat16, SweepSettings(), streamed=True) == 32 * 8192 + a_layer

    def test_decides_on_streaming(self) -> None:
        most = 2**32 // (32 * 147968)
        assert most == 907
        assert not memory.streams(self.Text, torch.bfloat16, SweepSettings(), most)
        assert memory.streams(self.Text, torch.bfloat16, SweepSettings(), most + 1)
        assert memory.streams(self.Text, torch.bfloat16, SweepSettings(stream_layers=True), 1)
        assert not memory.streams(self.Text, torch.bfloat16, SweepSettings(stream_layers=False), 10**9)

    def test_decides_on_batches(self) -> None:
        assert relevance.tokens_per_call(self.Text, torch.bfloat16, SweepSettings(), 8192) == 907
        assert relevance.tokens_per_call(self.Text, torch.bfloat16, SweepSettings(stream_layers=True), 8192) == 8192
        assert relevance.tokens_per_call(self.Text, torch.bfloat16, SweepSettings(), 5) == 5


class TestSharedPrefix:
    """Questions that continue a prefix, against each of them as a sequence of its own."""

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("images", "asked", "start", "rest", "kv", "last_layers", "block"),
        [(1, 3, 19, 7, 4, None, None), (2, 3, 23, 5, 2, None, 4), (3, 2, 1, 11, 1, 2, 3), (1, 5, 13, 3, 2, 1, None)],
    )
    def test_equals_the_reference(
        self,
        stream: bool,
        images: int,
        asked: int,
        start: int,
        rest: int,
        kv: int,
        last_layers: int | None,
        block: int | None,
    ) -> None:
        model = make_decoder(num_key_value_heads=kv)
        prefix, _ = make_input(model, images, start, 1, seed=2)
        suffixes, readings = make_input(model, images * asked, rest, min(2, rest - 1), seed=3)
        settings = SweepSettings("logprob", last_layers, stream, block)
        with relevance.relevance_attention(model.model):
            found = relevance.sweep_continuations(model.model, model.lm_head, prefix, suffixes, readings, settings)
        assert found.shape == (images * asked, start + rest)
        whole = torch.cat([prefix.repeat(asked, 1, 1), suffixes], 1)
        moved = Readings(readings.positions + start, readings.tokens, readings.valid)
        if last_layers is None:
            expected = mean_rows(reference(model, whole, moved, "logprob"), moved)[:, 0]
        else:
            expected = swept(model, whole, moved, SweepSettings("logprob", last_layers))[:, 0]
        assert (found - expected).abs().max() <= 1e-12
        assert found[:, :start].max() > 1e-4

    def test_float32(self) -> None:
        model = make_decoder(dtype=torch.float32)
        prefix, _ = make_input(model, 1, 29, 1, seed=2)
        suffixes, readings = make_input(model, 3, 7, 1, seed=3)
        with relevance.relevance_attention(model.model):
            found = relevance.sweep_continuations(model.model, model.lm_head, prefix, suffixes, readings, SweepSettings())
        moved = Readings(readings.positions + 29, readings.tokens, readings.valid)
        expected = mean_rows(reference(model, torch.cat([prefix.repeat(3, 1, 1), suffixes], 1), moved, "log-odds"), moved)[:, 0]
        assert (found - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))


class TestHalfPrecision:
    """A bfloat16 model of 12 layers and 300 positions against the same weights in float32."""

    @pytest.fixture
    def exact(self) -> tuple[Any, torch.Tensor, Readings, torch.Tensor]:
        sizes = {"hidden_size": 64, "num_hidden_layers": 12, "intermediate_size": 172, "initializer_range": 0.05}
        model = make_decoder(dtype=torch.float32, **sizes).to(torch.bfloat16).float()
        embeddings, readings = make_input(model, 1, 300, 1)
        embeddings = embeddings.to(torch.bfloat16).float()
        readings = Readings(torch.tensor([[299]]), readings.tokens, readings.valid)
        return model, embeddings, readings, swept(model, embeddings, readings, SweepSettings())[0, 0, :299]

    @pytest.mark.parametrize("stream", [False, True])
    def test_ranks_alike(self, exact: Any, stream: bool) -> None:
        model, embeddings, readings, expected = exact
        half = copy.deepcopy(model).to(torch.bfloat16)
        found = swept(half, embeddings.to(torch.bfloat16), readings, SweepSettings(stream_layers=stream))[0, 0]
        assert found.dtype == torch.float32
        self.close(found[:299], expected)

    def test_ranks_alike_with_a_shared_prefix(self, exact: Any) -> None:
        model, embeddings, readings, expected = exact
        half, whole = copy.deepcopy(model).to(torch.bfloat16), embeddings.to(torch.bfloat16)
        end = Readings(torch.tensor([[9], [9]]), readings.tokens.repeat(2, 1), readings.valid.repeat(2, 1))
        with relevance.relevance_attention(half.model):
            found = relevance.sweep_continuations(
                half.model, half.lm_head, whole[:, :290], whole[:, 290:].repeat(2, 1, 1), end, SweepSettings()
            )
        assert found.dtype == torch.float32
        for row in found:
            self.close(row[:299], expected)

    def close(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        ranks = torch.stack([expected.argsort().argsort(), found.argsort().argsort()]).double()
        assert torch.corrcoef(ranks)[0, 1] > 0.99
        top, other = (set(row.topk(30).indices.tolist()) for row in (found, expected))
        assert len(top & other) >= 28


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> llava_module.Llava:
    path = make_checkpoint(tmp_path_factory.mktemp("tiny"), num_key_value_heads=2)
    loaded = llava_module.load(path, device="cpu", dtype="float64")
    loaded.model.requires_grad_(False)
    return loaded


def questions(tiny: llava_module.Llava, texts: list[tuple[str, str]]) -> list[Question]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for question, answer in texts:
        encoded = tiny.encode(dialogue(tiny.profile, question, chain=False, answer=answer))
        features = torch.randn(tiny.image_tokens, 64, generator=generator, dtype=torch.float64)
        made.append(Question(encoded.ids, encoded.labels, features))
    return made


class TestExplain:
    def test_equals_the_reference_on_a_llava(self, tiny: llava_module.Llava) -> None:
        (question,) = questions(tiny, [("what is it?", "a cat")])
        ((found,),) = relevance.explain(tiny, [[question]], SweepSettings())
        ids = torch.tensor([question.ids])
        embeddings = tiny.embed(ids, question.features)
        start = len(question.ids) - len("a cat") - 1  # one byte a token, then the end mark
        assert question.ids[-1] == tiny.tokenizer.eos_token_id
        positions = torch.arange(start, start + 5)[None] - 1
        readings = Readings(positions, ids[:, start : start + 5], torch.ones(1, 5, dtype=torch.bool))

        def score(logits: torch.Tensor) -> torch.Tensor:
            return relevance.target_score(logits[:, positions[0]], readings, "log-odds")

        matrix = relevance_matrix(tiny.model.model.language_model, tiny.model.lm_head, embeddings, score)
        expected = mean_rows(matrix, readings)[0, 0][ids[0] == tiny.image_token_id]
        assert found.shape == (tiny.image_tokens,)
        assert (found - expected).abs().max() <= 1e-12

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_picture_of_576_tokens(self, tmp_path: Path, stream: bool) -> None:
        """Two questions on it, alone and sharing it."""
        model = llava_module.load(make_checkpoint(tmp_path, image_size=336), device="cpu", dtype="float64")
        model.model.requires_grad_(False)
        assert model.image_tokens == 576
        features = torch.randn(576, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        encoded = [model.encode(dialogue(model.profile, q, chain=False, answer="y")) for q in ("what?", "and so?")]
        asked = [Question(e.ids, e.labels, features) for e in encoded]
        settings = SweepSettings(stream_layers=stream)
        (shared,) = relevance.explain(model, [asked], settings)
        for question, found in zip(asked, shared, strict=True):
            ((alone,),) = relevance.explain(model, [[question]], settings)
            ids = torch.tensor([question.ids[:-2]])  # without the answer's byte and the end mark
            answer = Readings(torch.tensor([[0]]), torch.tensor([[question.ids[-2]]]), torch.tensor([[True]]))
            matrix = relevance_matrix(
                model.model.model.language_model,
                model.model.lm_head,
                model.embed(ids, features),
                lambda logits, answer=answer: relevance.target_score(logits[:, -1:], answer, "log-odds"),
            )
            expected = matrix[0, -1, ids[0] == model.image_token_id]
            assert (alone - expected).abs().max() <= 1e-12
            assert (found - expected).abs().max() <= 1e-12
            assert found.max() > 1e-6

    def test_a_batch_equals_one_by_one(self, tiny: llava_module.Llava) -> None:
        batch = questions(tiny, [("what?", "yes"), ("where is the longest of them?", "a much longer answer"), ("", "n")])
        together = relevance.explain(tiny, [[question] for question in batch], SweepSettings())
        for question, (found,) in zip(batch, together, strict=True):
            ((alone,),) = relevance.explain(tiny, [[question]], SweepSettings())
            assert (found - alone).abs().max() <= 1e-12

    @pytest.mark.parametrize("settings", [SweepSettings(), SweepSettings("argmax"), SweepSettings("logit", 1, True)])
    def test_questions_on_one_picture_equal_one_by_one(self, tiny: llava_module.Llava, settings: SweepSettings) -> None:
        asked = [("what?", "yes"), ("where is the longest of them?", "a much longer answer"), ("when was it?", "n")]
        groups = []
        for seed, tokens in ((0, tiny.image_tokens), (1, tiny.image_tokens - 5)):
            generator = torch.Generator().manual_seed(seed)
            features = torch.randn(tokens, 64, generator=generator, dtype=torch.float64)
            # Pictures of unequal length: the prefix of the batch ends inside the longer one.
            encoded = [
                encode(
                    tiny.profile, dialogue(tiny.profile, q, chain=False, answer=a), tiny.tokenizer, tiny.image_token_id, tokens
                )
                for q, a in asked
            ]
            groups.append([Question(e.ids, e.labels, features) for e in encoded])
        cuts = [[_cut(question, tiny, settings) for question in group] for group in groups]
        start = len(tiny.tokenizer(f"{tiny.profile.system}{tiny.profile.user}")["input_ids"])
        assert start + tiny.image_tokens - 5 <= shared_length(cuts) < start + tiny.image_tokens
        together = relevance.explain(tiny, groups, settings)
        for group, rows in zip(groups, together, strict=True):
            for question, found in zip(group, rows, strict=True):
                ((alone,),) = relevance.explain(tiny, [[question]], settings)
                assert found.shape == question.features.shape[:1]
                assert (found - alone).abs().max() <= 1e-12
        assert (together[0][0] - together[0][1]).abs().max() > 1e-6

    def test_the_same_question_twice(self, tiny: llava_module.Llava) -> None:
        (question,) = questions(tiny, [("what?", "yes")])
        ((first, second),) = relevance.explain(tiny, [[question, question]], SweepSettings())
        ((alone,),) = relevance.explain(tiny, [[question]], SweepSettings())
        assert (first - alone).abs().max() <= 1e-12
        assert (second - alone).abs().max() <= 1e-12

    def test_prefixes_whose_keys_depend_on_the_length_are_not_shared(self) -> None:
        config = make_decoder().config
        assert may_share(config)
        config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        assert not may_share(config)

    def test_unequal_groups(self, tiny: llava_module.Llava) -> None:
        one, other = questions(tiny, [("what?", "yes"), ("why?", "no")])
        with pytest.raises(InputError, match="as many questions each"):
            relevance.explain(tiny, [[one], [one, other]], SweepSettings())

    def test_argmax_needs_no_answer(self, tiny: llava_module.Llava) -> None:
        (given,) = questions(tiny, [("what?", "yes")])
        prompt_length = next(i for i, label in enumerate(given.labels) if label != IGNORE)
        bare = Question(given.ids[:prompt_length], given.labels[:prompt_length], given.features)
        ((first,),) = relevance.explain(tiny, [[given]], SweepSettings("argmax"))
        ((second,),) = relevance.explain(tiny, [[bare]], SweepSettings("argmax"))
        assert torch.equal(first, second)

    def test_an_empty_answer_is_refused(self, tiny: llava_module.Llava) -> None:
        encoded = tiny.encode(dialogue(tiny.profile, "what?", chain=False))
        bare = Question(encoded.ids, encoded.labels, torch.zeros(tiny.image_tokens, 64, dtype=torch.float64))
        for nothing in (bare, *questions(tiny, [("what?", ""), ("what?", "  ")])):
            with pytest.raises(InputError, match="at least one token"):
                relevance.explain(tiny, [[nothing]], SweepSettings())

    def test_nothing_to_do(self, tiny: llava_module.Llava) -> None:
        assert relevance.explain(tiny, [], SweepSettings()) == []


def test_checkpoint_helper_is_deterministic(tmp_path: Path) -> None:
    one, two = (make_checkpoint(tmp_path / name, seed=5) for name in ("one", "two"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
