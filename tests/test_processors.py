"""A checkpoint's processor, read from its folder: the same ids and pixels as of one that is made by hand, for every family."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
import torch
from PIL import Image

from cos_core.errors import InputError
from cos_core.models import pretrained
from cos_core.models.processor import processor

Build = Callable[..., Path]
FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def two_pictures(of: Any) -> dict[str, Any]:
    """The tensors of a dialogue over a wide picture and a tall one; for a processor without a template, of one picture."""
    wide, tall = picture(120, 80, 1), picture(40, 60, 2)
    if of.chat_template is None:
        return dict(of(images=[wide], text=["what is it?"], return_tensors="pt"))
    messages = [
        {"role": "user", "content": [{"type": "image", "image": wide}, {"type": "text", "text": "where?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "[0.250, 0.500, 0.750, 1.000]"}]},
        {"role": "user", "content": [{"type": "image", "image": tall}, {"type": "text", "text": "what?"}]},
    ]
    return dict(
        of.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    )


def copy(folder: Path, to: Path) -> Path:
    """The checkpoint without its weights, to be damaged."""
    return shutil.copytree(folder, to / folder.name, ignore=shutil.ignore_patterns("*.safetensors"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(("shape", "layout"), [("usual", "saved"), ("other", "published")])
@pytest.mark.parametrize("name", [*tiny_families.WITH_DIALOGUE, *tiny_families.PEERS, *tiny_families.HELD_OUT])
def test_processor_is_the_one_made_by_hand(name: str, shape: str, layout: str, tiny_checkpoint: Build) -> None:
    read = processor(tiny_checkpoint(name, shape=shape, layout=layout))
    by_hand = tiny_families.by_hand(name, shape)
    assert type(read).__name__ == type(by_hand).__name__
    tensors, expected = two_pictures(read), two_pictures(by_hand)
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(tensors[key], value), key
    assert type(read.image_processor).__name__.endswith("Pil")
    assert "torchvision" not in sys.modules


@pytest.mark.parametrize(("name", "columns", "rows"), [("pixtral", 8, 6), ("mistral3", 8, 4)])
def test_pixtral_writes_rows_of_image_tokens(name: str, columns: int, rows: int, tiny_checkpoint: Build) -> None:
    """Pictures of 56 x 42 and 112 x 56 pixels; a token is 7 pixels, or two patches of 7."""
    made = processor(tiny_checkpoint(name))
    size = (56, 42) if name == "pixtral" else (112, 56)
    ids = made(images=[picture(*size, 3)], text=["a[IMG]b"])["input_ids"].tolist()
    row = ["[IMG]"] * columns + ["[IMG_BREAK]"]
    words = ["<s>", "a", *row * rows, "b"]
    words[-2] = "[IMG_END]"
    assert ids[0] == made.tokenizer.convert_tokens_to_ids(words)


def test_processor_saves_and_is_read_again(tiny_checkpoint: Build, tmp_path: Path) -> None:
    """As training does with a processor whose video part is missing."""
    first = processor(tiny_checkpoint("qwen2_5_vl"))
    first.save_pretrained(tmp_path)
    again, expected = two_pictures(processor(tmp_path)), two_pictures(first)
    assert all(torch.equal(again[key], value) for key, value in expected.items())


def test_class_is_found_by_the_model_type(tiny_checkpoint: Build, tmp_path: Path) -> None:
    folder = copy(tiny_checkpoint("qwen2_vl", layout="published"), tmp_path)
    for file in FILES:
        if (folder / file).exists():
            fields = json.loads((folder / file).read_text())
            fields.pop("processor_class", None)
            (folder / file).write_text(json.dumps(fields))
    assert type(processor(folder)).__name__ == "Qwen2VLProcessor"
    change(folder / "config.json", model_type="llama")
    with pytest.raises(InputError, match="llama"):
        processor(folder)


def test_package_for_videos_is_left_out_and_the_library_left_as_it_was(tiny_checkpoint: Build) -> None:
    from transformers.models.smolvlm import processing_smolvlm

    before = processing_smolvlm.num2words
    assert type(processor(tiny_checkpoint("smolvlm"))).__name__ == "SmolVLMProcessor"
    assert processing_smolvlm.num2words is before


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("processor_config.json", {"processor_class": "NoSuchProcessor"}),
        ("processor_config.json", {"processor_class": "AutoModel"}),
        ("processor_config.json", {"processor_class": "WhisperProcessor"}),
        ("processor_config.json", {"audio_tokenizer": {"audio_tokenizer_class": "DacModel"}}),
        ("processor_config.json", {"image_processor": {"image_processor_type": "Llama4ImageProcessorFast"}}),
        ("processor_config.json", {"image_processor": {"image_processor_type": "NoSuchImageProcessor"}}),
        ("processor_config.json", {"image_processor": 3}),
        ("processor_config.json", {"image_processor": {"image_processor_type": 3}}),
        ("processor_config.json", {"chat_template": 3}),
        ("tokenizer_config.json", {"tokenizer_class": "NoSuchTokenizer", "added_tokens_decoder": 3}),
    ],
)
def test_settings_that_cannot_be_used_are_an_input_error(
    file: str, fields: dict[str, Any], tiny_checkpoint: Build, tmp_path: Path
) -> None:
    folder = copy(tiny_checkpoint("qwen2_5_vl"), tmp_path)
    change(folder / file, **fields)
    with pytest.raises(InputError):
        processor(folder)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "a list", "a folder"])
@pytest.mark.parametrize("file", ["processor_config.json", "tokenizer.json", "chat_template.json", "qformer_tokenizer"])
def test_damaged_files_are_an_input_error(file: str, damage: str, tiny_checkpoint: Build, tmp_path: Path) -> None:
    """A template that is missing is no damage: some families have none."""
    name = {"qformer_tokenizer": "instructblip", "chat_template.json": "gemma3"}.get(file, "internvl")
    folder = copy(tiny_checkpoint(name, layout="published" if file.startswith("chat") else "saved"), tmp_path)
    path = folder / file if file != "qformer_tokenizer" else folder / file / "tokenizer.json"
    if damage == "missing" and file == "chat_template.json":
        path.unlink()
        assert processor(folder).chat_template is None
        return
    whole = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.touch()
    elif damage == "a list":
        path.write_text("[1, 2]")
    elif damage == "a folder":
        path.mkdir()
    with pytest.raises(InputError):
        processor(folder)


def test_no_code_of_a_checkpoint_is_run(tiny_checkpoint: Build, tmp_path: Path) -> None:
    folder, trace = copy(tiny_checkpoint("qwen2_vl", layout="published"), tmp_path), tmp_path / "ran"
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    code = {f"Auto{part}": f"own.{part}" for part in ("Processor", "ImageProcessor", "Tokenizer")}
    for file in FILES:
        if (folder / file).exists():
            change(folder / file, auto_map={**code, "AutoTokenizer": ["own.Tokenizer", None]})
    assert type(processor(folder)).__name__ == "Qwen2VLProcessor"
    assert not trace.exists()


def test_image_processor_of_torchvision_is_refused(
    tiny_checkpoint: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torchvision is installed, transformers gives its class when there is no other."""
    from transformers.image_processing_backends import TorchvisionBackend

    class OnlyTorchvision(TorchvisionBackend):
        def __init__(self) -> None:
            pass

    monkeypatch.setattr(pretrained, "image_processor", lambda where: OnlyTorchvision())
    with pytest.raises(InputError, match="torchvision"):
        processor(tiny_checkpoint("qwen2_vl"))


@pytest.mark.parametrize("name", tiny_families.REFUSED)
def test_processors_that_break_over_a_picture_are_refused(name: str, tiny_checkpoint: Build) -> None:
    with pytest.raises(InputError, match="Pillow"):
        processor(tiny_checkpoint(name))
