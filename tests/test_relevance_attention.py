"""What models do besides causal softmax attention: windows and what stands between layers is followed, the rest refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from relevance_models import continued, make_decoder, make_input, mean_rows, reference, sequences, swept

from cos_core.errors import InputError
from cos_core.relevance import propagation
from cos_core.relevance.propagation import Readings, SweepSettings, tape


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
    score = propagation.target_score(model.lm_head(picked), readings, "log-odds")
    gradients = torch.autograd.grad(score, out.attentions)
    matrix = torch.eye(embeddings.shape[1], dtype=torch.float64).expand(embeddings.shape[0], -1, -1)
    for one, gradient in list(zip(out.attentions, gradients, strict=True))[-layers:]:
        matrix = matrix + propagation.mean_positive(one.detach(), gradient) @ matrix
    model.set_attn_implementation("sdpa")
    return mean_rows(matrix, readings)


class TestUnknownAttention:
    @pytest.mark.parametrize("layers", [1, 3])
    def test_the_slow_way_equals_the_kept_maps_of_a_sliding_window(self, layers: int) -> None:
        model = make_mistral(5)
        embeddings, readings = make_input(model, 2, 23, 3)
        expected = kept_maps(model, embeddings, readings, layers)
        found = propagation.sweep_maps(sequences(model, embeddings), readings, SweepSettings(last_layers=layers))
        assert (found - expected).abs().max() <= 1e-12
        assert model.config._attn_implementation == "sdpa"
        # The window is in the result: a window over everything gives another one.
        other = kept_maps(make_mistral(None), embeddings, readings, layers)
        assert (found - other).abs().max() > 1e-3

    @pytest.mark.parametrize("stream", [False, True])
    def test_the_model_s_own_mask_says_where_a_window_is(self, stream: bool) -> None:
        model = make_mistral(5)
        embeddings, readings = make_input(model, 2, 23, 3)
        expected = mean_rows(reference(model, embeddings, readings, "log-odds"), readings)
        found = swept(model, embeddings, readings, SweepSettings(stream_layers=stream, block=7))
        assert (found - expected).abs().max() <= 1e-12

    def test_windows_over_a_shared_prefix(self) -> None:
        model = make_mistral(5)
        prefix, _ = make_input(model, 2, 19, 1, seed=2)
        suffixes, readings = make_input(model, 6, 7, 2, seed=3)
        found = continued(model, prefix, suffixes, readings, SweepSettings(block=4))
        whole = torch.cat([prefix.repeat(3, 1, 1), suffixes], 1)
        moved = Readings(readings.positions + 19, readings.tokens, readings.valid)
        expected = mean_rows(reference(model, whole, moved, "log-odds"), moved)[:, 0]
        assert (found - expected).abs().max() <= 1e-12

    def test_a_window_over_the_whole_sequence_is_ordinary_attention(self) -> None:
        model = make_mistral(23)
        embeddings, readings = make_input(model, 2, 23, 3)
        expected = mean_rows(reference(make_mistral(None), embeddings, readings, "log-odds"), readings)
        assert (swept(model, embeddings, readings, SweepSettings(block=7)) - expected).abs().max() <= 1e-12

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"sliding_window": 3}, "window of 3"),
            ({"is_causal": False}, "both ways"),
            ({"softcap": 50.0}, "softcap"),
            ({"s_aux": torch.zeros(2)}, "s_aux"),
            ({"dropout": 0.1}, "dropout"),
            ({"attention_mask": torch.ones(1, 2, 4, 4, dtype=torch.bool)}, "one mask"),
        ],
    )
    def test_what_changes_the_rule_is_refused(self, options: dict[str, Any], word: str) -> None:
        query = torch.zeros(1, 2, 4, 8)
        with tape.Tape().running(), pytest.raises(InputError, match=word):
            tape._attention(torch.nn.Identity(), query, query, query, **{"attention_mask": None, **options})

    def test_windows_that_hold_everything_and_options_that_are_off(self) -> None:
        query = torch.zeros(1, 2, 4, 8)
        with tape.Tape().running():
            out, _ = tape._attention(
                torch.nn.Identity(), query, query, query, None, sliding_window=4, dropout=0.0, softcap=None
            )
        assert out.shape == (1, 4, 2, 8)

    def test_cross_attention(self) -> None:
        query, key = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 9, 8)
        with tape.Tape().running(), pytest.raises(InputError, match="cross-attention"):
            tape._attention(torch.nn.Identity(), query, key, key, None)

    def test_soft_caps(self) -> None:
        from transformers import Gemma2Config, Gemma2ForCausalLM

        sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
        config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, sliding_window=4)
        model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
        assert propagation.unknown_attention(model.model) == "this model caps its attention scores"
        embeddings, readings = make_input(model, 1, 9, 1)
        with pytest.raises(InputError, match="softcap"):
            swept(model, embeddings, readings, SweepSettings())

    def test_a_model_off_the_attention_interface(self) -> None:
        class Own:
            config = make_decoder().config

        assert "Own" in str(propagation.unknown_attention(Own()))

    def test_attention_that_never_came_by(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        with pytest.raises(InputError, match="LlamaModel"):
            propagation.sweep(sequences(model, embeddings), readings, SweepSettings())

    def test_maps_that_are_not_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        monkeypatch.setattr(type(model.model), "set_attn_implementation", lambda *_: None)  # stays with "sdpa"
        with pytest.raises(InputError, match=r"layer 2 of LlamaModel.*\b0\b"):
            propagation.sweep_maps(sequences(model, embeddings), readings, SweepSettings())

    def test_what_stands_between_layers_is_crossed(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 2, 9, 1)
        plain = swept(model, embeddings, readings, SweepSettings())
        added = torch.randn(9, 56, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        for layer in model.model.layers[1:]:
            layer.register_forward_pre_hook(lambda _, args: ((args[0] * 2 + added).sin(), *args[1:]))
        expected = mean_rows(reference(model, embeddings, readings, "log-odds"), readings)
        found = swept(model, embeddings, readings, SweepSettings())
        assert (found - expected).abs().max() <= 1e-12
        assert (found - plain).abs().max() > 1e-3
        prefix, suffixes = embeddings[:1, :6], embeddings[:, 6:]
        last = Readings(torch.tensor([[2], [1]]), readings.tokens, readings.valid)
        for layer in model.model.layers[1:]:
            layer._forward_pre_hooks.clear()
            layer.register_forward_pre_hook(lambda _, args: ((args[0] * 2).sin(), *args[1:]))
        whole = torch.cat([prefix.expand(2, -1, -1), suffixes], 1)
        moved = Readings(last.positions + 6, last.tokens, last.valid)
        expected = mean_rows(reference(model, whole, moved, "log-odds"), moved)[:, 0]
        assert (continued(model, prefix, suffixes, last, SweepSettings()) - expected).abs().max() <= 1e-12

    def test_what_skips_a_layer_is_refused(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        first, _, third = model.model.layers
        kept: list[torch.Tensor] = []
        first.register_forward_hook(lambda _m, _a, output: kept.append(output))
        third.register_forward_pre_hook(lambda _m, _a, kwargs: (_a, {**kwargs, "skipped": kept[0]}), with_kwargs=True)
        third.register_forward_pre_hook(lambda _m, args: args[0].detach() * 1)
        with pytest.raises(InputError, match="LlamaModel"):
            swept(model, embeddings, readings, SweepSettings())

    @pytest.mark.parametrize("stream", [False, True])
    def test_keys_of_another_layer_are_refused(self, stream: bool) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        first, second, _ = (layer.self_attn.k_proj for layer in model.model.layers)
        kept: list[torch.Tensor] = []
        first.register_forward_hook(lambda _m, _a, output: kept.append(output))
        second.register_forward_hook(lambda _m, _a, _output: kept[0])
        with pytest.raises(InputError, match="LlamaModel"):
            swept(model, embeddings, readings, SweepSettings(stream_layers=stream))

    def test_two_attentions_in_a_layer(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        layer = model.model.layers[1]
        once = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, **options: (once(*args, **options), once(*args, **options))[0]
        with pytest.raises(InputError, match="one attention each"):
            swept(model, embeddings, readings, SweepSettings())

    def test_implementation_is_restored(self) -> None:
        model = make_decoder()
        with propagation.relevance_attention(model.model):
            assert model.config._attn_implementation == propagation.ATTENTION
        assert model.config._attn_implementation == "sdpa"
