"""Relevance of a LLaVA's answers to a picture: batches and questions that share it, against the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from reference.relevance_reference import relevance_matrix
from relevance_models import make_decoder, mean_rows
from tiny_llava import make_checkpoint

from cos_core.dialogue.encoding import IGNORE, encode
from cos_core.dialogue.prompts import dialogue
from cos_core.errors import InputError
from cos_core.models import llava as llava_module
from cos_core.relevance import propagation
from cos_core.relevance.propagation import Question, Readings, SweepSettings
from cos_core.relevance.propagation.questions import _cut, may_share, shared_length


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
        ((found,),) = propagation.explain(tiny, [[question]], SweepSettings())
        ids = torch.tensor([question.ids])
        embeddings = tiny.embed(ids, question.features)
        start = len(question.ids) - len("a cat") - 1  # one byte a token, then the end mark
        assert question.ids[-1] == tiny.tokenizer.eos_token_id
        positions = torch.arange(start, start + 5)[None] - 1
        readings = Readings(positions, ids[:, start : start + 5], torch.ones(1, 5, dtype=torch.bool))

        def score(logits: torch.Tensor) -> torch.Tensor:
            return propagation.target_score(logits[:, positions[0]], readings, "log-odds")

        matrix = relevance_matrix(tiny.model.model.language_model, tiny.model.lm_head, embeddings, score)
        expected = mean_rows(matrix, readings)[0, 0][ids[0] == tiny.image_token_id]
        assert found.shape == (tiny.image_tokens,)
        assert (found - expected).abs().max() <= 1e-12

    def test_the_shipped_miniature_as_by_its_decoder_alone(self) -> None:
        """A LLaVA's decoder does all that the whole model does."""
        model = llava_module.load("miniature", device="cpu", dtype="float64")
        model.model.requires_grad_(False)
        (features,) = model.features([model.picture(Image.new("RGB", (90, 60), (200, 30, 40)))])
        encoded = model.encode(dialogue(model.profile, "what is it?", chain=False, answer="red"))
        ((found,),) = propagation.explain(model, [[Question(encoded.ids, encoded.labels, features)]], SweepSettings())
        learnt = [i for i, label in enumerate(encoded.labels) if label != IGNORE]
        while model.tokenizer.decode([encoded.ids[learnt[0]]]).strip() == "":
            learnt = learnt[1:]
        while model.tokenizer.decode([encoded.ids[i] for i in learnt]).strip() != "red":
            learnt = learnt[:-1]
        at = torch.tensor([learnt]) - 1
        ids = torch.tensor([encoded.ids])
        readings = Readings(at, ids.gather(1, at + 1), torch.ones_like(at, dtype=torch.bool))
        matrix = relevance_matrix(
            model.model.model.language_model,
            model.model.lm_head,
            model.embed(ids, features),
            lambda logits: propagation.target_score(logits[:, at[0]], readings, "log-odds"),
        )
        expected = mean_rows(matrix, readings)[0, 0][ids[0] == model.image_token_id]
        assert (found - expected).abs().max() <= 1e-12 * expected.max()

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
        (shared,) = propagation.explain(model, [asked], settings)
        for question, found in zip(asked, shared, strict=True):
            ((alone,),) = propagation.explain(model, [[question]], settings)
            ids = torch.tensor([question.ids[:-2]])  # without the answer's byte and the end mark
            answer = Readings(torch.tensor([[0]]), torch.tensor([[question.ids[-2]]]), torch.tensor([[True]]))
            matrix = relevance_matrix(
                model.model.model.language_model,
                model.model.lm_head,
                model.embed(ids, features),
                lambda logits, answer=answer: propagation.target_score(logits[:, -1:], answer, "log-odds"),
            )
            expected = matrix[0, -1, ids[0] == model.image_token_id]
            assert (alone - expected).abs().max() <= 1e-12
            assert (found - expected).abs().max() <= 1e-12
            assert found.max() > 1e-6

    def test_a_batch_equals_one_by_one(self, tiny: llava_module.Llava) -> None:
        batch = questions(tiny, [("what?", "yes"), ("where is the longest of them?", "a much longer answer"), ("", "n")])
        together = propagation.explain(tiny, [[question] for question in batch], SweepSettings())
        for question, (found,) in zip(batch, together, strict=True):
            ((alone,),) = propagation.explain(tiny, [[question]], SweepSettings())
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
        together = propagation.explain(tiny, groups, settings)
        for group, rows in zip(groups, together, strict=True):
            for question, found in zip(group, rows, strict=True):
                ((alone,),) = propagation.explain(tiny, [[question]], settings)
                assert found.shape == question.features.shape[:1]
                assert (found - alone).abs().max() <= 1e-12
        assert (together[0][0] - together[0][1]).abs().max() > 1e-6

    def test_the_same_question_twice(self, tiny: llava_module.Llava) -> None:
        (question,) = questions(tiny, [("what?", "yes")])
        ((first, second),) = propagation.explain(tiny, [[question, question]], SweepSettings())
        ((alone,),) = propagation.explain(tiny, [[question]], SweepSettings())
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
            propagation.explain(tiny, [[one], [one, other]], SweepSettings())

    def test_argmax_needs_no_answer(self, tiny: llava_module.Llava) -> None:
        (given,) = questions(tiny, [("what?", "yes")])
        prompt_length = next(i for i, label in enumerate(given.labels) if label != IGNORE)
        bare = Question(given.ids[:prompt_length], given.labels[:prompt_length], given.features)
        ((first,),) = propagation.explain(tiny, [[given]], SweepSettings("argmax"))
        ((second,),) = propagation.explain(tiny, [[bare]], SweepSettings("argmax"))
        assert torch.equal(first, second)

    def test_an_empty_answer_is_refused(self, tiny: llava_module.Llava) -> None:
        encoded = tiny.encode(dialogue(tiny.profile, "what?", chain=False))
        bare = Question(encoded.ids, encoded.labels, torch.zeros(tiny.image_tokens, 64, dtype=torch.float64))
        for nothing in (bare, *questions(tiny, [("what?", ""), ("what?", "  ")])):
            with pytest.raises(InputError, match="at least one token"):
                propagation.explain(tiny, [[nothing]], SweepSettings())

    def test_nothing_to_do(self, tiny: llava_module.Llava) -> None:
        assert propagation.explain(tiny, [], SweepSettings()) == []


def test_checkpoint_helper_is_deterministic(tmp_path: Path) -> None:
    one, two = (make_checkpoint(tmp_path / name, seed=5) for name in ("one", "two"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
