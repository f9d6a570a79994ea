"""Relevance through the whole model, family by family, against the N x N matrix of what the library runs on pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference.decoder_only import decoder_only
from reference.relevance_reference import whole_matrix
from relevance_models import mean_rows
from tiny_families import HELD_OUT, WITH_DIALOGUE

from cos_core.dialogue.encoding import IGNORE
from cos_core.dialogue.prompts import dialogue
from cos_core.errors import InputError
from cos_core.models import general, loading
from cos_core.models.loaded import LoadedModel
from cos_core.relevance import propagation
from cos_core.relevance.propagation import Question, Readings, Sequences, SweepSettings, questions

FAST = ("llava", "qwen2_5_vl")
WITH_TOKENS = (*WITH_DIALOGUE, *(name for name in HELD_OUT if name != "mllama"))
SHAPES = ("usual", "other")
CASES = [
    pytest.param(name, shape, marks=() if name in FAST and shape == "usual" else pytest.mark.slow, id=f"{name}-{shape}")
    for name in WITH_TOKENS
    for shape in SHAPES
]
QUESTIONS = (("what is the colour of it?", "a red door"), ("what is the colour there?", "blue"))


def within(name: str) -> float:
    """How far results may be apart, as a share of the largest. The norms of Cohere's decoder compute in float32."""
    return 1e-6 if name == "aya_vision" else 1e-12


@dataclass(frozen=True)
class Shown:
    """A picture as a model sees it."""

    inputs: Any
    features: Any


@pytest.fixture(scope="module")
def load(tiny_checkpoint: Callable[..., Path]) -> Callable[[str, str], LoadedModel]:
    """The tiny model of a family in float64, one at a time: few tests need it twice."""
    last: dict[tuple[str, str], LoadedModel] = {}

    def loaded(name: str, shape: str = "usual") -> LoadedModel:
        if (name, shape) not in last:
            last.clear()
            model = loading.load(str(tiny_checkpoint(name, shape=shape)), device="cpu", dtype="float64")
            assert isinstance(model, LoadedModel)
            model.model.requires_grad_(False)
            last[name, shape] = model
        return last[name, shape]

    return loaded


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shown(model: LoadedModel, size: tuple[int, int], seed: int, pictures: int = 1) -> Shown:
    inputs = model.picture(picture(size, seed), model.variant(pictures))
    (features,) = model.features([inputs])
    return Shown(inputs, features)


def asked(model: LoadedModel, on: Shown, question: str, answer: str) -> Question:
    encoded = model.encode(dialogue(model.profile, question, chain=False, answer=answer), lambda _: on.inputs)
    positions = model.positions(np.array(encoded.ids), lambda: [on.inputs])
    return Question(encoded.ids, encoded.labels, on.features, positions)


def read_at(model: LoadedModel, ids: Sequence[int], labels: Sequence[int], answer: str) -> Readings:
    """The last answer's tokens, one byte each in all tiny tokenizers."""
    end = max(i for i, label in enumerate(labels) if label != IGNORE) + 1
    while model.tokenizer.decode(list(ids[end - len(answer) : end])) != answer:
        end -= 1
    places = torch.arange(end - len(answer), end)[None]
    return Readings(places - 1, torch.tensor(ids)[places], torch.ones_like(places, dtype=torch.bool))


def by_matrix(model: LoadedModel, ids: Sequence[int], pictures: Sequence[Any], readings: Readings) -> torch.Tensor:
    """Relevance of every position, (length,), from all maps of the library's own run on ids and pixels."""
    network, encoder = model.model, model.encoder
    row = torch.tensor([ids])
    inputs = {**encoder.tensors(pictures), **encoder.token_inputs(row)}
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    if network.config.model_type == "paligemma":
        inputs["token_type_ids"] = (torch.arange(len(ids)) > int(readings.positions[0, 0])).long()[None]
    if (network.config.model_type, network.config.vision_config.model_type) == ("llava", "pixtral"):
        inputs["image_sizes"] = torch.tensor([list(each.tensors["pixel_values"].shape[2:]) for each in pictures])
    if hasattr(network.base_model, "rope_deltas"):
        network.base_model.rope_deltas = None

    def score(logits: torch.Tensor) -> torch.Tensor:
        return propagation.target_score(logits[:, readings.positions[0]], readings, "log-odds")

    matrix = whole_matrix(network.get_decoder(), lambda: network(input_ids=row, **inputs, use_cache=False).logits, score)
    return mean_rows(matrix, readings)[0, 0]


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_equals_the_matrix_of_the_library_s_own_run(name: str, shape: str, load: Callable[..., LoadedModel]) -> None:
    """Alone, in batches of unlike pictures, and sharing a prefix; layers kept and streamed."""
    model = load(name, shape)
    groups, expected = [], []
    for seed, size in enumerate([(120, 80), (60, 100)]):
        on = shown(model, size, seed)
        groups.append([asked(model, on, *each) for each in QUESTIONS])
        for question, (_, answer) in zip(groups[-1], QUESTIONS, strict=True):
            readings = read_at(model, question.ids, question.labels, answer)
            row = by_matrix(model, question.ids, [on.inputs], readings)
            expected.append(row[torch.tensor(question.ids) == model.image_token_id])
            assert expected[-1].max() > 1e-3 * row.max()
    one_by_one = [[question] for group in groups for question in group]
    kept, streamed = SweepSettings(stream_layers=False), SweepSettings(stream_layers=True, block=5)
    ways = {
        "alone": [propagation.explain(model, [group], kept)[0] for group in one_by_one],
        "together": propagation.explain(model, one_by_one, kept),
        "shared": propagation.explain(model, groups, kept),
        "shared and streamed": propagation.explain(model, groups, streamed),
    }
    for way, rows in ways.items():
        for row, wanted in zip([row for group in rows for row in group], expected, strict=True):
            assert apart(row, wanted) <= within(name), way
    again = propagation.explain(model, one_by_one, SweepSettings(stream_layers=True))
    assert all(torch.equal(row, other) for (row,), (other,) in zip(again, ways["together"], strict=True))


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in WITH_TOKENS])
def test_a_dialogue_of_two_pictures(name: str, load: Callable[..., LoadedModel]) -> None:
    model = load(name)
    both = {"full": shown(model, (120, 80), 1, 2), "roi": shown(model, (40, 60), 2, 2)}
    turns = dialogue(model.profile, "where?", box_text="[0.1, 0.2]", answer="blue")
    encoded = model.encode(turns, lambda slot: both[slot].inputs)
    inputs = [both[slot].inputs for slot in encoded.slots]
    readings = read_at(model, encoded.ids, encoded.labels, "blue")
    expected = by_matrix(model, encoded.ids, inputs, readings)
    row = torch.tensor([encoded.ids])
    positions = torch.from_numpy(model.positions(np.array(encoded.ids), lambda: inputs))[..., None, :]
    replied = torch.arange(len(encoded.ids))[None] > readings.positions[0, 0]

    def run(cache: Any) -> torch.Tensor:
        features = [(both[slot].features, 0) for slot in encoded.slots]
        options = {"whole": row, "replied": replied, "past_key_values": cache, "use_cache": False}
        return model.forward(row, features, position_ids=positions, **options)

    for streamed in (False, True):
        with propagation.relevance_attention(model.decoder):
            settings = SweepSettings(stream_layers=streamed)
            found = propagation.sweep(Sequences(model.model, *row.shape, run), readings, settings)
        assert apart(found[0, 0], expected) <= within(name)


@pytest.mark.parametrize(
    "name", [pytest.param("qwen2_vl", marks=pytest.mark.slow), "qwen2_5_vl", pytest.param("qwen3_vl", marks=pytest.mark.slow)]
)
def test_the_decoder_alone_gives_other_relevance(name: str, load: Callable[..., LoadedModel]) -> None:
    """Position ids of three axes, and features that enter several layers, are the whole model's."""
    model = load(name)
    on = shown(model, (120, 80), 1)
    question = asked(model, on, *QUESTIONS[0])
    ids = torch.tensor([question.ids])
    readings = read_at(model, question.ids, question.labels, QUESTIONS[0][1])
    alone = decoder_only(model.model, ids, torch.cat(list(on.features.pooler_output)), model.image_token_id)
    with propagation.relevance_attention(model.decoder):
        found = propagation.sweep(alone, readings, SweepSettings())[0, 0]
    assert apart(found, by_matrix(model, question.ids, [on.inputs], readings)) > 0.01


def test_what_a_model_remembers_of_the_call_before_is_not_used(load: Callable[..., LoadedModel]) -> None:
    model = load("qwen2_5_vl")
    group = [asked(model, shown(model, (120, 80), 1), *each) for each in QUESTIONS]
    before = propagation.explain(model, [group], SweepSettings())
    model.model.base_model.rope_deltas = torch.tensor([[-17]])
    after = propagation.explain(model, [group], SweepSettings())
    assert all(torch.equal(one, other) for one, other in zip(before[0], after[0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "aya_vision"])
def test_windows_end_inside_the_shared_prefix(name: str, load: Callable[..., LoadedModel]) -> None:
    """Otherwise sharing it would say nothing of windows. The equality is test_equals_the_matrix_of_the_library_s_own_run."""
    model = load(name)
    on = shown(model, (120, 80), 0)
    cuts = [[questions._cut(asked(model, on, *each), model, SweepSettings()) for each in QUESTIONS]]
    (shared,) = questions._prefixes(model, cuts)
    assert model.decoder.config.sliding_window < shared
    assert shared > int(np.flatnonzero(cuts[0][0].image(model.image_token_id))[-1])


class TestPrefixes:
    def cut(self, ids: list[int], read: int, features: Any, positions: list[int] | None = None) -> Any:
        places = np.array(positions or range(len(ids)))
        return questions._Cut(np.array(ids), [read], [1], read, places, features)

    def prefixes(self, groups: list[list[Any]], **more: Any) -> dict[int, list[int]]:
        config = SimpleNamespace(rope_parameters=None)
        config.get_text_config = lambda: config
        model = SimpleNamespace(continues=True, image_token_id=9, model=SimpleNamespace(config=config), **more)
        return questions._prefixes(model, groups)  # type: ignore[arg-type]

    def test_end_in_front_of_a_picture_that_is_not_the_same(self) -> None:
        one, other = SimpleNamespace(), SimpleNamespace()
        groups = [
            [self.cut([1, 2, 9, 9, 9, 3, 4], 6, one), self.cut([1, 2, 9, 9, 5, 3, 4], 6, one)],
            [self.cut([1, 2, 9, 9, 9, 3, 4], 6, other), self.cut([1, 2, 9, 9, 9, 3, 4], 6, other)],
            [self.cut([1, 2, 9, 9, 9, 3, 4], 6, one), self.cut([1, 2, 9, 9, 9, 3, 4], 6, one, [0, 1, 2, 2, 3, 4, 5])],
        ]
        assert self.prefixes(groups) == {2: [0, 2], 6: [1]}

    def test_tensors_are_cut_anywhere(self) -> None:
        features = torch.zeros(3, 4)
        groups = [
            [self.cut([1, 2, 9, 9, 9, 3, 4], 6, features), self.cut([1, 2, 9, 9, 9, 3, 4], 6, features)],
            [self.cut([1, 2, 9, 9, 5, 3, 4], 6, features), self.cut([1, 2, 9, 9, 6, 3, 4], 6, features)],
        ]
        assert self.prefixes(groups) == {4: [0, 1]}

    def test_of_models_whose_prompts_are_not_continued(self) -> None:
        features = SimpleNamespace()
        group = [self.cut([1, 9, 3, 4], 3, features), self.cut([1, 9, 3, 4], 3, features)]
        model = SimpleNamespace(continues=False)
        assert questions._prefixes(model, [group]) == {0: [0]}  # type: ignore[arg-type]
        assert self.prefixes([group[:1]]) == {0: [0]}


class TestRefused:
    """By what is seen of a model and its attention, each with a reason."""

    def test_cross_attention(self, tiny_checkpoint: Callable[..., Path]) -> None:
        model = general.load(str(tiny_checkpoint("mllama")), device="cpu", dtype="float32")
        question = Question([1, model.image_token_id, 3, 4], [IGNORE, IGNORE, 3, 4], None)
        with pytest.raises(InputError, match="cross-attention"):
            propagation.explain(model, [[question]], SweepSettings())

    def test_query_transformers(self, tiny_checkpoint: Callable[..., Path]) -> None:
        import transformers

        network = transformers.AutoModelForImageTextToText.from_pretrained(tiny_checkpoint("blip_2"))
        with pytest.raises(InputError, match="query transformer"):
            propagation.check_model(SimpleNamespace(model=network, decoder=network.get_decoder(), name="x"))  # type: ignore[arg-type]

    def test_soft_caps(self, load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
        model = load("qwen2_5_vl")
        monkeypatch.setattr(model.decoder.config, "attn_logit_softcapping", 50.0, raising=False)
        with pytest.raises(InputError, match="caps its attention scores"):
            propagation.check_model(model)

    def test_linear_attention(self) -> None:
        from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 0, 1], "partial_rotary_factor": 0.25}
        sizes = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
        linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        config = Qwen3_5TextConfig(
            **sizes,
            **linear,
            num_attention_heads=2,
            num_key_value_heads=1,
            layer_types=["linear_attention", "full_attention"],
            rope_parameters=rope,
        )
        model = Qwen3_5ForCausalLM(config).eval().requires_grad_(False)
        ids = torch.arange(7)[None]
        one = Readings(torch.tensor([[6]]), torch.tensor([[3]]), torch.tensor([[True]]))
        run = Sequences(model, 1, 7, lambda _: model(input_ids=ids, use_cache=False).logits)
        with propagation.relevance_attention(run.decoder):
            with pytest.raises(InputError, match=r"layer 0 .*linear attention"):
                propagation.sweep(run, one, SweepSettings())
            # The layer above has what is needed, a gate on its output included.
            found = propagation.sweep(run, one, SweepSettings(last_layers=1))
        assert found.shape == (1, 1, 7)
