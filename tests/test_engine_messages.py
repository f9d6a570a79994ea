"""What a server is sent: the dialogue part by part, and pictures padded to squares under the checkpoint's own colour."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cos_core.dialogue import prompts
from cos_core.engines._messages import ServedDialogue, assumed, of_folder
from cos_core.engines.openai import build
from cos_core.errors import InputError
from cos_core.files import assets
from cos_core.files.images import square_pad
from cos_core.models import llava
from cos_core.types import Turn

PAPER = prompts.load_profile("paper")
SYSTEM = PAPER.system.strip()


def picture(part: dict[str, Any]) -> Image.Image:
    assert part["type"] == "image_url"
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def words(message: dict[str, Any]) -> list[str]:
    return [part.get("text", "<picture>") for part in message["content"]]


def test_two_passes_are_sent_part_by_part() -> None:
    image = Image.frombytes("RGB", (5, 3), bytes(range(45)))
    images = {"full": image, "roi": image.crop((0, 0, 2, 3))}
    turns = prompts.dialogue(PAPER, "What is it?", box_text="[0.000, 0.000, 1.000, 1.000]")
    sent = ServedDialogue(PAPER, (9, 8, 7)).messages(turns, images)
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "user"]
    assert words(sent[0]) == [SYSTEM]
    assert words(sent[1]) == [
        "<picture>",
        'To answer the question: "What is it?", where is the region of interest in the image?',
    ]
    assert words(sent[2]) == ["[0.000, 0.000, 1.000, 1.000]"]
    assert words(sent[3]) == [
        "The region of interest in the image is ",
        "<picture>",
        '. Answer the question: "What is it?"',
    ]
    # The same pixels as the local engine's, padded with the same colour.
    whole, region = picture(sent[1]["content"][0]), picture(sent[3]["content"][1])
    assert (whole.size, whole.getpixel((0, 0)), whole.getpixel((0, 1))) == ((5, 5), (9, 8, 7), (0, 1, 2))
    assert whole.tobytes() == square_pad(image, (9, 8, 7)).tobytes()
    assert (region.size, region.getpixel((2, 0))) == ((3, 3), (9, 8, 7))


def test_only_the_line_break_that_the_template_adds_is_left_out() -> None:
    image = {"full": Image.new("RGB", (2, 2))}
    sent = ServedDialogue(PAPER).messages(prompts.dialogue(PAPER, "\n\n odd\n", chain=False), image)
    assert words(sent[1]) == ["<picture>", "\n\n odd\n"]
    closer = replace(PAPER, plain="{image}{question}", system="")
    sent = ServedDialogue(closer).messages(prompts.dialogue(closer, "\nodd", chain=False), image)
    assert [words(message) for message in sent] == [["<picture>", "\nodd"]], "no system message, and no break is the template's"


def test_a_picture_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="'full'"):
        ServedDialogue(PAPER).messages((Turn("user", (prompts.FULL, "\nq")),), {})


def test_wording_colour_and_side_are_the_folders(tmp_path: Path) -> None:
    mini = of_folder(assets.miniature_checkpoint())
    assert (mini.profile.name, mini.fill, mini.side) == ("miniature", (140, 140, 140), 40)
    assert of_folder(assets.miniature_checkpoint(), "repo-2024").profile.name == "repo-2024"
    # A folder of another hand: no profile, an older kind of image processor.
    old = {"image_mean": [0.5, 0.25, 1.0], "size": 56, "crop_size": 56, "do_center_crop": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    assert of_folder(tmp_path) == ServedDialogue(PAPER, (127, 63, 255), 56)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor"}))
    assert of_folder(tmp_path) == ServedDialogue(PAPER, (127, 63, 255), 56)
    # What does more or other than bicubic resizing is left to the server.
    for other in ({"crop_size": 48}, {"resample": 2}, {"do_resize": False}, {"size": {"height": 56, "width": 40}}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**old, **other}))
        assert of_folder(tmp_path).side is None
    two, words_in_it = '{"image_processor": {"image_mean": [1, 2]}}', '{"image_processor": {"image_mean": ["a", 1, 2]}}'
    for broken in ("[]", "{", two, words_in_it):
        (tmp_path / "processor_config.json").write_text(broken)
        with pytest.raises(InputError, match=r"processor_config\.json"):
            of_folder(tmp_path)


def test_the_pixels_sent_are_those_that_the_local_model_sees() -> None:
    mini, sent = llava.load("miniature", device="cpu"), of_folder(assets.miniature_checkpoint())
    assert mini.fill == sent.fill
    rng = np.random.default_rng(0)
    for width, height in ((100, 60), (61, 100), (30, 7), (640, 384), (64, 64), (40, 40)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        part = sent.messages((Turn("user", (prompts.FULL, "\nq")),), {"full": image})[1]["content"][0]
        # What any image library makes of it: it has its size already.
        raster = np.asarray(picture(part), dtype=np.float32) / 255
        mean, std = (np.float32(v) for v in (mini.image_processor.image_mean, mini.image_processor.image_std))
        assert raster.shape == (40, 40, 3)
        assert np.allclose(mini.pixels([image])[0].numpy(), ((raster - mean) / std).transpose(2, 0, 1), atol=1e-6)


def test_a_served_name_is_a_folder_a_cached_hub_id_or_a_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--cos" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (snapshot / name).write_text("{}")
    profile = replace(prompts.load_profile("repo-2024"), name="theirs")
    (snapshot / prompts.PROFILE_FILE).write_text(json.dumps(profile.to_json()))
    url = "http://127.0.0.1:9/v1"
    assert build(snapshot, server=url).dialogue.profile.name == "theirs"
    assert build("org/cos", server=url).dialogue.profile.name == "theirs"
    assert build("miniature", server=url).dialogue == of_folder(assets.miniature_checkpoint())
    for name in ("org/other", "cos-13b", "a b", "/no/such/folder", ""):
        assert build(name, server=url).dialogue == assumed(kind="")
        assert build(name, server=url, family="llava").dialogue == assumed()
    assert build("llava-hf/llava-1.5-7b-hf", server=url).dialogue == assumed()
    assert build("cos-13b", server=url, profile="repo-2024").dialogue == assumed("repo-2024"), "only LLaVA writes roles so"
