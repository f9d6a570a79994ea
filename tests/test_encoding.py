"""Token ids and labels, with a small real tokenizer of Llama's kind trained on the spot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cos_core.dialogue.box_text import write_box
from cos_core.dialogue.encoding import IGNORE, Encoded, encode, render
from cos_core.dialogue.prompts import Profile, dialogue, load_profile, profile_names, text_dialogue
from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.types import ImageSlot, Turn

PAPER = load_profile("paper")
QUESTION, ANSWER = "What is written on the sign?\nAnswer with one word.", "Stop, naïve 東京"
BOX = write_box(Box(0.125, 0.25, 0.5, 0.999, "square"), PAPER)
IMAGE_TOKENS = 7


def llama_like(scheme: str) -> PreTrainedTokenizerFast:
    """Byte-fallback BPE over metaspaces, BOS in front, digits apart; `scheme` says where a space is put in front of a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([])
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([metaspace, pre_tokenizers.Digits(individual_digits=True)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
    )
    turns = dialogue(PAPER, QUESTION, box_text="[0.1, 0.2]", answer="Stop Go Yes No")
    tokenizer.train_from_iterator([p[0] for p in render(PAPER, turns) if not isinstance(p, ImageSlot)] * 3, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return fast


@pytest.fixture(scope="module", params=["first", "always"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return llama_like(request.param)


def encoded(tokenizer: Any, turns: tuple[Turn, ...], profile: Profile = PAPER) -> Encoded:
    return encode(profile, turns, tokenizer, tokenizer.convert_tokens_to_ids("<image>"), IMAGE_TOKENS)


def learnt_runs(result: Encoded) -> list[list[int]]:
    """The token ids under consecutive labels that the loss sees."""
    runs: list[list[int]] = [[]]
    for token, label in zip(result.ids, result.labels, strict=True):
        assert label in (IGNORE, token)
        if label != IGNORE:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def full_dialogue(**options: Any) -> tuple[Turn, ...]:
    return dialogue(PAPER, QUESTION, **{"box_text": BOX, "answer": ANSWER, **options})


def test_labels_cover_box_and_answer_with_their_end_marks_and_nothing_else(tokenizer: PreTrainedTokenizerFast) -> None:
    runs = learnt_runs(encoded(tokenizer, full_dialogue()))
    assert [tokenizer.decode(run).strip() for run in runs] == [f"{BOX}</s>", f"{ANSWER}</s>"]
    end = tokenizer.eos_token_id
    assert [run.count(end) for run in runs] == [1, 1]
    assert all(run[-1] == end for run in runs)


def test_what_is_not_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    given = encoded(tokenizer, full_dialogue(learn_box=False))
    assert [tokenizer.decode(run).strip() for run in learnt_runs(given)] == [f"{ANSWER}</s>"]
    assert given.ids == encoded(tokenizer, full_dialogue()).ids
    assert learnt_runs(encoded(tokenizer, dialogue(PAPER, QUESTION))) == []
    assert learnt_runs(encoded(tokenizer, dialogue(PAPER, QUESTION, box_text=BOX, learn_box=False))) == []


def test_further_turns_and_text_only_samples_are_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    more = encoded(tokenizer, full_dialogue(extra_turns=[("Where?", "Here"), ("Who?", "Nobody")]))
    expected = [f"{text}</s>" for text in (BOX, ANSWER, "Here", "Nobody")]
    assert [tokenizer.decode(run).strip() for run in learnt_runs(more)] == expected
    text = encoded(tokenizer, text_dialogue([("Hello", "Hi"), ("More", "No")]))
    assert [tokenizer.decode(run).strip() for run in learnt_runs(text)] == ["Hi</s>", "No</s>"]
    assert text.slots == ()


def test_pictures_take_their_places(tokenizer: PreTrainedTokenizerFast) -> None:
    result = encoded(tokenizer, full_dialogue())
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert result.slots == ("full", "roi")
    assert result.ids.count(image) == 2 * IMAGE_TOKENS
    first = result.ids.index(image)
    assert result.ids[first : first + IMAGE_TOKENS] == (image,) * IMAGE_TOKENS
    assert all(label == IGNORE for token, label in zip(result.ids, result.labels, strict=True) if token == image)
    assert result.ids[0] == tokenizer.bos_token_id
    assert result.ids.count(tokenizer.bos_token_id) == 1
    assert len(result) == len(result.ids) == len(result.labels)


@pytest.mark.parametrize("name", [name for name in profile_names() if load_profile(name).roles == "profile"])
def test_ids_are_those_of_llavas_own_tokenising(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """LLaVA's `tokenizer_image_token`: each text between image marks on its own, the repeated start mark dropped."""
    profile = replace(load_profile(name), after_end="native")
    for turns in (dialogue(profile, QUESTION), dialogue(profile, QUESTION, box_text=BOX, answer=ANSWER)):
        text = "".join("<image>" if isinstance(p, ImageSlot) else p[0] for p in render(profile, turns))
        image = tokenizer.convert_tokens_to_ids("<image>")
        expected = [tokenizer.bos_token_id]
        for place, chunk in enumerate(text.split("<image>")):
            expected += [image] * IMAGE_TOKENS if place else []
            expected += tokenizer(chunk)["input_ids"][1:]
        assert list(encoded(tokenizer, turns, profile).ids) == expected


def test_inference_ids_begin_the_training_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    train = encoded(tokenizer, full_dialogue()).ids
    for turns in (dialogue(PAPER, QUESTION), dialogue(PAPER, QUESTION, box_text=BOX)):
        ids = encoded(tokenizer, turns).ids
        assert train[: len(ids)] == ids


def test_a_mark_typed_by_hand_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="image mark"):
        encoded(tokenizer, dialogue(PAPER, "What is <image>?"))


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="no fast version"):
        encode(PAPER, dialogue(PAPER, "q"), Slow(), 3, IMAGE_TOKENS)


@pytest.mark.parametrize(
    ("text", "context"), [("red " * 100, 50), ("x" * 5_000_000, 50), ("x" * 5_000_000, None), ("half \ud800", None)]
)
@pytest.mark.parametrize("where", ["question", "answer"])
def test_a_text_that_cannot_be_asked_is_refused(
    tokenizer: PreTrainedTokenizerFast, text: str, context: int | None, where: str
) -> None:
    turns = dialogue(PAPER, text if where == "question" else "what?", chain=False, answer=text if where == "answer" else "red")
    with pytest.raises(InputError, match=r"too long|half a Unicode"):
        encode(PAPER, turns, tokenizer, tokenizer.convert_tokens_to_ids("<image>"), IMAGE_TOKENS, context)


def test_what_just_fits_is_encoded(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = dialogue(PAPER, "what?", chain=False, answer="red")
    mark = tokenizer.convert_tokens_to_ids("<image>")
    whole = encode(PAPER, turns, tokenizer, mark, IMAGE_TOKENS)
    assert encode(PAPER, turns, tokenizer, mark, IMAGE_TOKENS, len(whole)) == whole
    with pytest.raises(InputError, match="context"):
        encode(PAPER, turns, tokenizer, mark, IMAGE_TOKENS, len(whole) - 1)
