"""Every checkpoint that `cos` writes is complete for other programs: names, processor, template, tokenizer and card."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from miniature_model import CARD, ModelShape, image_processor
from PIL import Image
from safetensors.torch import load_file
from served_world import ORIGINAL
from tiny_llava import byte_tokenizer, make_checkpoint

from cos_core import training
from cos_core.dialogue import prompts
from cos_core.dialogue.encoding import encode, render
from cos_core.dialogue.prompts import Profile, dialogue, load_profile
from cos_core.engines._messages import ServedDialogue, of_folder
from cos_core.files import assets
from cos_core.files.images import square_pad
from cos_core.interfaces import SilentReporter
from cos_core.models import layout, llava, pixels
from cos_core.models.convert import ConvertConfig, convert
from cos_core.models.layout.template import chat_template
from cos_core.models.layout.tokens import whole_text
from cos_core.types import ImageSlot, Turn

PAPER = load_profile("paper")
PICTURES = {"full": Image.new("RGB", (7, 4), "red"), "roi": Image.new("RGB", (3, 5), "blue")}
DIALOGUES: dict[str, Any] = {
    "plain": {"chain": False},
    "first pass": {},
    "second pass": {"box_text": "[0.125, 0.250, 0.375, 0.500]"},
    "a box that is none": {"box_text": "no box,\n sorry", "suffix": "\nAnswer with a word."},
    "asked with all": {"asks": "all", "all_questions": ("One?", "Two?"), "box_text": "[0, 0, 1, 1]"},
    "asked about the picture": {"asks": "image", "box_text": "[0, 0, 1, 1]"},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each of the three writers."""
    root = tmp_path_factory.mktemp("written")
    (root / "images").mkdir()
    Image.new("RGB", (30, 20), "red").save(root / "images" / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "red"}]
    (root / "data.json").write_text(json.dumps([{"id": str(i), "image": "a.png", "conversations": turns} for i in range(4)]))
    convert(ConvertConfig(ORIGINAL / "llava-tiny", root / "converted", profile="repo-2024"))
    config = training.TrainConfig(
        data=root / "data.json",
        images=root / "images",
        model=str(make_checkpoint(root / "start")),
        out=root / "trained",
        policy="none",
        batch_size=2,
        global_batch=None,
        max_steps=1,
        device="cpu",
        check="off",
    )
    training.run(config, SilentReporter())
    return {"miniature": assets.miniature_checkpoint(), "trained": root / "trained", "converted": root / "converted"}


WRITERS = pytest.mark.parametrize("writer", ["miniature", "trained", "converted"])


@WRITERS
def test_a_server_finds_what_it_asks_for(written: dict[str, Path], writer: str) -> None:
    folder = written[writer]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    assert set(json.loads((folder / "generation_config.json").read_text())) == {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
    }
    names = {name for file in folder.glob("*.safetensors") for name in load_file(file)}
    # The hub's LLaVA-1.5 checkpoints have these four beginnings and no other.
    known = ("language_model.model.", "language_model.lm_head.", "vision_tower.vision_model.", "multi_modal_projector.")
    assert all(name.startswith(known) for name in names)
    assert {"vision_tower.vision_model.pre_layrnorm.weight", "language_model.model.embed_tokens.weight"} <= names
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "LlavaProcessor"
    assert processor.chat_template == (folder / "chat_template.jinja").read_text()
    assert {path.name for path in folder.iterdir()} >= {"README.md", "preprocessor_config.json", prompts.PROFILE_FILE}


@WRITERS
@pytest.mark.parametrize("form", DIALOGUES)
def test_messages_through_the_written_template_are_the_ids_of_encode(written: dict[str, Path], writer: str, form: str) -> None:
    """What `transformers serve` does with a request; vLLM renders and tokenises in two steps."""
    folder = written[writer]
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    sent = of_folder(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    for question in ("What colour is it?", "Où est l'étoile ★?\nNow 東京", " USER: what </ s>?"):
        turns = dialogue(sent.profile, question, **DIALOGUES[form])
        local = encode(sent.profile, turns, processor.tokenizer, config.image_token_id, llava.image_tokens_of(config))
        messages = sent.messages(turns, PICTURES)
        served = processor.apply_chat_template(
            [{**m, "content": [_as_served(part) for part in m["content"]]} for m in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        assert tuple(served["input_ids"][0]) == local.ids
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        short = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tuple(short) == encode(sent.profile, turns, processor.tokenizer, config.image_token_id, 1).ids


def _as_served(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "image", "url": part["image_url"]["url"]} if part["type"] == "image_url" else part


def drawn(template: str, messages: list[dict[str, Any]], prompt: bool = True) -> str:
    tokenizer = byte_tokenizer()
    text: str = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=prompt)
    return text


def text_of(profile: Profile, turns: tuple[Turn, ...]) -> str:
    return "".join("<image>" if isinstance(piece, ImageSlot) else piece[0] for piece in render(profile, turns))


@pytest.mark.parametrize("name", [*(n for n in prompts.profile_names() if load_profile(n).roles == "profile"), "odd"])
def test_the_template_writes_what_render_writes(name: str) -> None:
    odd = {
        "system": "",
        "user": 'Q "{{ END }}" \\n{% x %}: ',
        "assistant": "\nA:",
        "turn_end": "\U0001f600",
        "plain": "{image}{question}",
    }
    profile = replace(PAPER, **odd) if name == "odd" else load_profile(name)
    template = chat_template(profile, "<image>", start=True)
    sent = ServedDialogue(profile)
    for form in DIALOGUES.values():
        turns = dialogue(profile, "What  is\n{{ it }}?", **form)
        assert drawn(template, sent.messages(turns, PICTURES)) == "<s>" + text_of(profile, turns)
    turns = dialogue(profile, "q", chain=False, answer="a", extra_turns=[("more?", "no")])
    assert drawn(template, sent.messages(turns, PICTURES), prompt=False) == "<s>" + text_of(profile, turns)
    assert drawn(chat_template(profile, "<image>", start=False), sent.messages(turns, PICTURES), prompt=False) == text_of(
        profile, turns
    )


def test_the_template_takes_what_strangers_send() -> None:
    template = chat_template(PAPER, "<image>", start=True)
    default = PAPER.system
    image, words = {"type": "image"}, {"type": "text", "text": "What is it?"}
    rest = "USER: <image>\nWhat is it? ASSISTANT:"
    assert drawn(template, [{"role": "user", "content": [image, words]}]) == f"<s>{default}{rest}"
    assert drawn(template, [{"role": "user", "content": "<image>\nWhat is it?"}]) == f"<s>{default}{rest}"
    for given in ("Be short.", " Be short. \n", [{"type": "text", "text": "Be short. "}]):
        messages = [{"role": "system", "content": given}, {"role": "user", "content": [image, words]}]
        assert drawn(template, messages) == f"<s>Be short. {rest}"
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c "}, image, {"type": "text", "text": "d"}]},
    ]
    assert drawn(template, turns) == f"<s>{default}USER: a ASSISTANT: b</s>USER: c <image>\nd ASSISTANT:"


def test_the_template_of_a_wording_is_printed_for_servers_of_other_checkpoints() -> None:
    command = [sys.executable, "-m", "cos_cli", "model", "template", "--profile", "repo-2024"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == chat_template(load_profile("repo-2024"), "<image>", start=True)


def original_tokenizer(legacy: str) -> Any:
    folder = ORIGINAL.parent / "tokenizers" / f"legacy_{legacy}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    return tokenizer


@pytest.mark.parametrize("legacy", ["false", "true"])
@pytest.mark.parametrize("after_end", ["native", "spaced", "cut", "joined"])
def test_every_tokenisation_has_rules_for_whole_texts(legacy: str, after_end: Any, tmp_path: Path) -> None:
    tokenizer = original_tokenizer(legacy)
    mark = tokenizer.convert_tokens_to_ids("<image>")
    profile = replace(PAPER, after_end=after_end)
    whole = whole_text(tokenizer, profile, mark)
    assert whole is not None
    whole.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turns = dialogue(profile, "What is on the red car, 17 or 3?", box_text="[0.100, 0.200, 0.300, 0.400]", answer="17.")
    local = encode(profile, turns, tokenizer, mark, 1)
    assert tuple(again(text_of(profile, turns))["input_ids"]) == local.ids
    assert encode(profile, turns, again, mark, 1) == local
    # The golden vocabulary copies Llama's: "USER" is one piece, with a space mark in front it is two.
    at = local.ids.index(tokenizer.eos_token_id)
    role = {"spaced": ["▁US", "ER"], "cut": ["US", "ER"], "joined": ["USER", ":"]}
    expected = role.get(after_end, role["joined" if legacy == "false" else "spaced"])
    assert again.convert_ids_to_tokens(local.ids[at + 1 : at + 3]) == expected
    for token in ("▁US", "<image>", "</s>"):
        assert again.convert_tokens_to_ids(token) == tokenizer.convert_tokens_to_ids(token)


def test_tokenizers_of_another_kind_stay_and_what_no_rule_can_say_is_said(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    assert whole_text(tokenizer, PAPER, tokenizer.convert_tokens_to_ids("<image>")) is tokenizer
    # Without a role in front of the question, what follows the end mark has no beginning of its own to be told by.
    nameless = replace(PAPER, user="", inst2="{question} {image}", after_end="cut")
    tokenizer = original_tokenizer("false")
    mark = tokenizer.convert_tokens_to_ids("<image>")
    assert whole_text(tokenizer, nameless, mark) is None
    settings = transformers.AutoConfig.from_pretrained(assets.miniature_checkpoint())
    settings.image_token_id = mark
    settings.save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(assets.miniature_checkpoint(), backend="pil")
    card = layout.ModelCard("odd", "An odd one.")
    notes = layout.complete(
        tmp_path, settings=settings, tokenizer=tokenizer, image_processor=processor, profile=nameless, card=card
    )
    assert len(notes) == 1
    assert notes[0] in (tmp_path / layout.CARD_FILE).read_text()


@WRITERS
def test_the_processor_pads_as_cos_does(written: dict[str, Path], writer: str) -> None:
    """Bit for bit: a plain user who sends any picture has it padded, and what `cos` pads itself is left alone."""
    loaded = transformers.AutoImageProcessor.from_pretrained(written[writer], backend="pil")
    fill = pixels.padding_colour(loaded)
    rng = np.random.default_rng(0)
    for width, height in ((100, 60), (61, 100), (7, 50), (800, 37), (64, 64)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ours = pixels.processed(loaded, [picture], fill)
        theirs = loaded([picture], return_tensors="pt")["pixel_values"]
        padded = loaded([square_pad(picture, fill)], return_tensors="pt")["pixel_values"]
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, padded)


def test_the_shipped_miniature_is_what_its_writer_writes(tmp_path: Path) -> None:
    shipped = assets.miniature_checkpoint()
    settings = transformers.AutoConfig.from_pretrained(shipped)
    settings.save_pretrained(tmp_path)
    layout.complete(
        tmp_path,
        settings=settings,
        tokenizer=transformers.AutoTokenizer.from_pretrained(shipped),
        image_processor=image_processor(ModelShape()),
        profile=prompts.checkpoint_profile(shipped),
        card=CARD,
    )
    written = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "config.json"}
    assert written == {name: (shipped / name).read_text() for name in written}


def test_a_processor_that_does_more_is_left_as_it_is() -> None:
    clip = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    assert layout.padding_processor(made := transformers.CLIPImageProcessorPil(**clip)) is made


@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_bit_for_bit(tied: bool, tmp_path: Path) -> None:
    start = make_checkpoint(tmp_path / "start", tie_word_embeddings=tied)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(start)
    layout.save_model(model, tmp_path / "out")
    again, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    one, other = model.state_dict(), again.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_card_says_names_and_no_paths(written: dict[str, Path]) -> None:
    trained, converted = ((written[name] / "README.md").read_text() for name in ("trained", "converted"))
    assert str(written["trained"].parent) not in trained + converted
    assert "| data | data.json |" in trained
    assert "| base model | start |" in trained
    assert "| base model | llava-tiny |" in converted
    assert "--roi none" in trained
    assert "--roi none" not in converted
    for card in (trained, converted):
        assert "vllm serve" in card
        assert "base_model:" not in card, "the hub's key takes a hub id alone"
    from cos_core.models.layout.card import ModelCard, plain_name
    from cos_core.models.layout.card import written as text

    assert "\nbase_model: llava-hf/llava-1.5-7b-hf\n" in text(ModelCard("x", "y", "llava-hf/llava-1.5-7b-hf"), PAPER)
    cached = written["trained"].parent / "models--org--cos-7b" / "snapshots" / "0123"
    cached.mkdir(parents=True)
    assert (plain_name(cached), plain_name("org/cos"), plain_name(written["trained"])) == ("org/cos-7b", "org/cos", "trained")
