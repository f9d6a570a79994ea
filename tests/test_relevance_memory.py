"""Relevance of long sequences: streamed layers, shared beginnings and half precision give what the plain sweep gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from relevance_models import continued, make_decoder, make_input, mean_rows, reference, swept
from transformers import PreTrainedConfig

from cos_core.relevance import propagation
from cos_core.relevance.propagation import Readings, SweepSettings
from cos_core.relevance.propagation import sweep_memory as memory


class TestStreaming:
    @pytest.mark.parametrize("layers", [None, 2, 1])
    @pytest.mark.parametrize("kv_heads", [4, 2])
    def test_is_the_same_to_the_bit(self, layers: int | None, kv_heads: int) -> None:
        model = make_decoder(num_key_value_heads=kv_heads)
        embeddings, readings = make_input(model, 2, 31, 3)
        kept = SweepSettings(last_layers=layers, stream_layers=False)
        ways = (kept, SweepSettings(last_layers=layers, stream_layers=True), kept.least())
        whole, streamed, least = (swept(model, embeddings, readings, way) for way in ways)
        assert torch.equal(whole, streamed)
        assert torch.equal(whole, least)

    def test_attention_is_computed_again_only_where_there_is_no_room_for_what_it_gave(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from cos_core.relevance.propagation import tape

        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        computed: list[int] = []
        compute = tape._plain
        monkeypatch.setattr(tape, "_plain", lambda *inputs: computed.append(1) or compute(*inputs))
        for settings, times in ((SweepSettings(stream_layers=True), 3), (SweepSettings().least(), 3 + 2)):
            computed.clear()
            swept(model, embeddings, readings, settings)
            assert len(computed) == times

    def test_with_a_mask(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 2, 29, 1)
        mask = torch.ones(2, 29, dtype=torch.long)
        mask[1, :11] = 0
        readings = Readings(torch.tensor([[28], [28]]), readings.tokens, readings.valid)
        whole, streamed = (
            swept(model, embeddings, readings, SweepSettings(stream_layers=way), mask=mask) for way in (False, True)
        )
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
        shared = continued(model, common, embeddings[:, 23:], last, SweepSettings())
        assert (shared - expected).abs().max() <= 1e-12


class TestMemory:
    Text = PreTrainedConfig(num_hidden_layers=32, hidden_size=4096, intermediate_size=11008)

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
        assert propagation.tokens_per_call(self.Text, torch.bfloat16, SweepSettings(), 8192) == 907
        assert propagation.tokens_per_call(self.Text, torch.bfloat16, SweepSettings(stream_layers=True), 8192) == 8192
        assert propagation.tokens_per_call(self.Text, torch.bfloat16, SweepSettings(), 5) == 5


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
        found = continued(model, prefix, suffixes, readings, settings)
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
        found = continued(model, prefix, suffixes, readings, SweepSettings())
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
        found = continued(half, whole[:, :290], whole[:, 290:].repeat(2, 1, 1), end, SweepSettings())
        assert found.dtype == torch.float32
        for row in found:
            self.close(row[:299], expected)

    def close(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        ranks = torch.stack([expected.argsort().argsort(), found.argsort().argsort()]).double()
        assert torch.corrcoef(ranks)[0, 1] > 0.99
        top, other = (set(row.topk(30).indices.tolist()) for row in (found, expected))
        assert len(top & other) >= 28
