"""Attention that the sweep does not know: sliding windows and capped scores are read from their own maps, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from relevance_models import make_decoder, make_input, mean_rows, reference, swept

from cos_core.errors import InputError
from cos_core.relevance import propagation
from cos_core.relevance.propagation import Readings, SweepSettings


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
        found = propagation.sweep_maps(model.model, model.lm_head, embeddings, readings, SweepSettings(last_layers=layers))
        assert (found - expected).abs().max() <= 1e-12
        assert model.config._attn_implementation == "sdpa"
        # The window is in the result: a window over everything gives another one.
        other = kept_maps(make_mistral(None), embeddings, readings, layers)
        assert (found - other).abs().max() > 1e-3

    def test_a_window_over_the_whole_sequence_is_ordinary_attention(self) -> None:
        model = make_mistral(23)
        embeddings, readings = make_input(model, 2, 23, 3)
        assert propagation.unknown_attention(model.model, 23) is None
        expected = mean_rows(reference(make_mistral(None), embeddings, readings, "log-odds"), readings)
        assert (swept(model, embeddings, readings, SweepSettings(block=7)) - expected).abs().max() <= 1e-12

    def test_a_window_that_was_not_noticed_is_refused(self) -> None:
        model = make_mistral(22)
        embeddings, readings = make_input(model, 1, 23, 1)
        with pytest.raises(InputError, match="sliding_window"):
            swept(model, embeddings, readings, SweepSettings())

    def test_soft_caps(self) -> None:
        from transformers import Gemma2Config, Gemma2Model

        sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
        model = Gemma2Model(Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, sliding_window=4))
        assert propagation.unknown_attention(model, 2) == "this model caps its attention scores"

    def test_what_it_says_of_windows(self) -> None:
        model = make_mistral(22).model
        assert propagation.unknown_attention(model) == "this model attends within sliding windows of 22 positions"
        assert propagation.unknown_attention(model, 23) == propagation.unknown_attention(model)
        assert propagation.unknown_attention(model, 22) is None
        assert propagation.unknown_attention(make_decoder().model) is None

    def test_a_model_off_the_attention_interface(self) -> None:
        class Own:
            config = make_decoder().config

        assert "Own" in str(propagation.unknown_attention(Own()))

    def test_attention_that_never_came_by(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        with pytest.raises(InputError, match="LlamaModel"):
            propagation.sweep(model.model, model.lm_head, embeddings, readings, SweepSettings())

    def test_maps_that_are_not_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        monkeypatch.setattr(type(model.model), "set_attn_implementation", lambda *_: None)  # stays with "sdpa"
        with pytest.raises(InputError, match=r"layer 2 of LlamaModel.*\b0\b"):
            propagation.sweep_maps(model.model, model.lm_head, embeddings, readings, SweepSettings())

    def test_something_between_the_layers_is_noticed(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        second = model.model.layers[1]
        second.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
        with pytest.raises(InputError, match="LlamaModel"):
            swept(model, embeddings, readings, SweepSettings())

    def test_implementation_is_restored(self) -> None:
        model = make_decoder()
        with propagation.relevance_attention(model.model):
            assert model.config._attn_implementation == propagation.ATTENTION
        assert model.config._attn_implementation == "sdpa"
