"""Models of several families behind `transformers serve`: every box text, answer and prompt length is the local engine's.

Weights are random. So that texts can be compared, the answers are made of digits: a byte that is no character, or a picture's
mark, is read by servers and by `cos` in different ways. Most first passes then hold boxes.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import served_world as world
import tiny_families
from PIL import Image, ImageDraw

from cos_cli import main
from cos_core.models import processor, vision_input

pytest.importorskip("fastapi", reason="the server's own packages are not installed")

SIZES = ((64, 48), (320, 240), (31, 90), (7, 9), (250, 45), (33, 200), (112, 112), (100, 101))
LIMITS = {"max_new_tokens": 8, "box_tokens": 16, "device": "cpu", "dtype": "float32"}
WRITTEN = "0123456789, "


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all of them: it loads what it is asked for."""
    serve = [str(Path(sys.executable).parent / "transformers"), "serve"]
    if find_spec("torchvision") is None:
        serve = [sys.executable, str(Path(__file__).with_name("serve_pillow.py"))]
    command = [*serve, "--device", "cpu", "--port", "{port}"]
    with world.serving(command, "/health", tmp_path_factory.mktemp("server") / "log") as address:
        yield address + "/v1"


def write_mixed(root: Path, count: int, seed: int) -> Path:
    """Two questions each about drawn pictures of mixed sizes; returns the file, pictures are in root/images."""
    rng, lines = random.Random(f"families/{seed}"), []
    (root / "images").mkdir(parents=True)
    for number in range(count // 2):
        width, height = SIZES[number % len(SIZES)]
        image = Image.new("RGB", (width, height), tuple(rng.randrange(256) for _ in range(3)))
        for _ in range(6):
            left, top = rng.randrange(width), rng.randrange(height)
            corner = (left + rng.randrange(1, width), top + rng.randrange(1, height))
            ImageDraw.Draw(image).rectangle((left, top, *corner), fill=tuple(rng.randrange(256) for _ in range(3)))
        image.save(root / "images" / f"{number}.png")
        for text in ("What colour is it?", "How many are there?"):
            lines.append({"question_id": f"{number} {text[:3]}", "image": f"{number}.png", "text": text})
    (root / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root / "questions.jsonl"


def build(name: str, folder: Path) -> Path:
    """A tiny checkpoint that writes WRITTEN alone, and its end mark."""
    import torch
    from transformers import AutoModelForImageTextToText

    tiny_families.build(name, folder)
    net = AutoModelForImageTextToText.from_pretrained(folder)
    tokens, ends = processor.processor(folder).tokenizer, net.generation_config.eos_token_id
    written = {ends} if isinstance(ends, int) else set(ends)
    texts = {number: tokens.decode([number]) for number in tokens.get_vocab().values()}
    written |= {number for number, text in texts.items() if len(text) == 1 and text in WRITTEN}
    head = net.get_output_embeddings()
    others = torch.tensor([number not in written for number in range(head.weight.shape[0])])
    # The head may be the embedding, which stays as it is.
    head.weight = torch.nn.Parameter(head.weight.detach().masked_fill(others[:, None], 0))
    for config in (net.config, net.config.get_text_config()):
        config.tie_word_embeddings = False
    net.save_pretrained(folder)
    if find_spec("torchvision") is not None:
        kinds = {"qwen2_5_vl": "Qwen2VLVideoProcessor", "internvl": "InternVLVideoProcessor"}
        if name in kinds:
            (folder / "video_preprocessor_config.json").write_text(json.dumps({"video_processor_type": kinds[name]}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_a_family_answers_as_locally(address: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(name, tmp_path / name)
    found = vision_input.of_folder(model)
    assert found is not None
    if not found.resizes and find_spec("torchvision") is not None:
        pytest.skip("torchvision's tiles are a level off Pillow's")
    data = write_mixed(tmp_path / "questions", 100, seed=3)
    for roi in ("model", "center"):
        local = world.predictions(data, tmp_path / f"{roi}.jsonl", model=str(model), roi=roi, **LIMITS)
        options = {"engine": "openai", "server": address, **LIMITS}
        served = world.predictions(data, tmp_path / f"{roi}.served.jsonl", model=str(model), roi=roi, **options)
        assert world.differences(served, local) == []
        assert (len(local), {record["error"] for record in local}) == (100, {None})
        # The comparison could have failed: answers are many.
        assert len({record["answer"] for record in local}) > 10
    capsys.readouterr()
    assert main.run(["doctor", "--server", address, "--model", str(model), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["level"] for finding in findings if finding["check"] == "prompt"] == ["ok"]
