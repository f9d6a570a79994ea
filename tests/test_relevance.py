"""Eq. 4-6 by hand, and the fused row sweep against the kept N x N reference."""

from __future__ import annotations

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
from cos_core.encoding import IGNORE
from cos_core.errors import InputError
from cos_core.prompts import dialogue
from cos_core.relevance import Question, Readings, SweepSettings


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
        state = relevance._State(torch.tensor([[[0.0, 1.0]]]), block=1, layers=1)
        output, _ = relevance._attention(torch.nn.Identity(), zeros, zeros, values, None, scaling=1.0, cos_relevance=state)
        assert output.flatten().tolist() == [3.0, -1.0]
        torch.autograd.grad(output[0, 1].sum(), zeros, allow_unused=True)
        assert state.rows.tolist() == [[[1.5, 1.0]]]


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


def test_bfloat16_model_keeps_float32_rows() -> None:
    model = make_decoder(dtype=torch.float32)
    embeddings, readings = make_input(model, 1, 61, 1)
    exact = swept(model, embeddings, readings, SweepSettings())[0, 0]
    half = swept(model.to(torch.bfloat16), embeddings.to(torch.bfloat16), readings, SweepSettings())[0, 0]
    assert half.dtype == torch.float32
    ranks = torch.stack([exact.argsort().argsort(), half.argsort().argsort()]).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.95


class TestRefusals:
    def test_sliding_window(self) -> None:
        from transformers import MistralConfig, MistralForCausalLM

        sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        model = MistralForCausalLM(
            MistralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, sliding_window=4)
        ).eval()
        embeddings, readings = make_input(model.double(), 1, 9, 1)
        with pytest.raises(InputError, match=r"attention uses sliding_window"):
            swept(model, embeddings, readings, SweepSettings())

    def test_soft_cap(self) -> None:
        from transformers import Gemma2Config

        with pytest.raises(InputError, match="sliding_attention"):
            relevance.refuse_unknown(Gemma2Config())

    def test_attention_that_never_came_by(self) -> None:
        model = make_decoder()
        embeddings, readings = make_input(model, 1, 9, 1)
        with pytest.raises(InputError, match="3 of 3 layers were not seen"):
            relevance.sweep(model.model, model.lm_head, embeddings, readings, SweepSettings())

    def test_implementation_is_restored(self) -> None:
        model = make_decoder()
        with relevance.relevance_attention(model.model):
            assert model.config._attn_implementation == relevance.ATTENTION
        assert model.config._attn_implementation == "sdpa"


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
        (found,) = relevance.explain(tiny, [question], SweepSettings())
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

    def test_a_picture_of_576_tokens(self, tmp_path: Path) -> None:
        model = llava_module.load(make_checkpoint(tmp_path, image_size=336), device="cpu", dtype="float64")
        model.model.requires_grad_(False)
        assert model.image_tokens == 576
        encoded = model.encode(dialogue(model.profile, "what?", chain=False, answer="y"))
        features = torch.randn(576, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (found,) = relevance.explain(model, [Question(encoded.ids, encoded.labels, features)], SweepSettings())
        ids = torch.tensor([encoded.ids[:-2]])  # without the answer's byte and the end mark
        answer = Readings(torch.tensor([[0]]), torch.tensor([[encoded.ids[-2]]]), torch.tensor([[True]]))
        matrix = relevance_matrix(
            model.model.model.language_model,
            model.model.lm_head,
            model.embed(ids, features),
            lambda logits: relevance.target_score(logits[:, -1:], answer, "log-odds"),
        )
        assert (found - matrix[0, -1, ids[0] == model.image_token_id]).abs().max() <= 1e-12
        assert found.max() > 1e-6

    def test_a_batch_equals_one_by_one(self, tiny: llava_module.Llava) -> None:
        batch = questions(tiny, [("what?", "yes"), ("where is the longest of them?", "a much longer answer"), ("", "n")])
        together = relevance.explain(tiny, batch, SweepSettings())
        for question, found in zip(batch, together, strict=True):
            (alone,) = relevance.explain(tiny, [question], SweepSettings())
            assert (found - alone).abs().max() <= 1e-12

    def test_argmax_needs_no_answer(self, tiny: llava_module.Llava) -> None:
        (given,) = questions(tiny, [("what?", "yes")])
        prompt_length = next(i for i, label in enumerate(given.labels) if label != IGNORE)
        bare = Question(given.ids[:prompt_length], given.labels[:prompt_length], given.features)
        (first,) = relevance.explain(tiny, [given], SweepSettings("argmax"))
        (second,) = relevance.explain(tiny, [bare], SweepSettings("argmax"))
        assert torch.equal(first, second)

    def test_an_empty_answer_is_refused(self, tiny: llava_module.Llava) -> None:
        encoded = tiny.encode(dialogue(tiny.profile, "what?", chain=False))
        bare = Question(encoded.ids, encoded.labels, torch.zeros(tiny.image_tokens, 64, dtype=torch.float64))
        for nothing in (bare, *questions(tiny, [("what?", ""), ("what?", "  ")])):
            with pytest.raises(InputError, match="at least one token"):
                relevance.explain(tiny, [nothing], SweepSettings())

    def test_nothing_to_do(self, tiny: llava_module.Llava) -> None:
        assert relevance.explain(tiny, [], SweepSettings()) == []


def test_checkpoint_helper_is_deterministic(tmp_path: Path) -> None:
    one, two = (make_checkpoint(tmp_path / name, seed=5) for name in ("one", "two"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
