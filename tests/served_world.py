"""What the tests against real servers share: pictures that are not square, checkpoints of the three writers, and the comparison
of every box, answer and prompt length with the local engine's.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file

from cos_core import infer, training
from cos_core.data.datasets import read_examples
from cos_core.dialogue.prompts import dialogue, load_profile
from cos_core.engines._messages import data_url, of_folder
from cos_core.files.jsonl import read_lines
from cos_core.infer import InferConfig
from cos_core.interfaces import SilentReporter
from cos_core.miniature import scenes
from cos_core.models.convert import ConvertConfig, convert
from cos_core.store.annotations import Store
from cos_core.training import TrainConfig
from cos_core.types import Annotation

ORIGINAL = Path(__file__).parent / "golden" / "original" / "weights"
CANVASES = ((576, 384), (320, 560), (500, 330), (384, 640))
"""Wide and tall, all larger than a scene."""
COMPARED = ("box", "box_text", "box_status", "answer", "error")


def write_questions(root: Path, count: int, seed: int = 5, per_image: int = 3) -> Path:
    """`count` questions for places in scenes pasted somewhere on grey canvases; returns the file, pictures are in root/images.

    "Where is the red circle?" is what the miniature answers with a box; the answer wanted of the second pass is its digit.
    """
    rng = random.Random(f"served/{seed}")
    (root / "images").mkdir(parents=True)
    records = []
    for number in range(count // per_image):
        scene, (width, height) = scenes.make_scene(rng), CANVASES[number % len(CANVASES)]
        canvas = Image.new("RGB", (width, height), (rng.randrange(90, 190),) * 3)
        side = min(width, height) - 4
        left, top = rng.randrange(width - side), rng.randrange(height - side)
        canvas.paste(scenes.draw(scene).resize((side, side)), (left, top))
        canvas.save(root / "images" / f"{number}.png")
        turns, meta = [], []
        for turn, thing in enumerate(scene.things[:per_image]):
            box = scenes.thing_box(thing)
            turns.append({"from": "human", "value": "<image>\n" * (turn == 0) + f"Where is the {thing.name}?"})
            turns.append({"from": "gpt", "value": thing.digit})
            x0, x1 = ((left + side * x) / width for x in (box.x0, box.x1))
            y0, y1 = ((top + side * y) / height for y in (box.y0, box.y1))
            meta.append({"gold": [x0, y0, x1, y1]})
        records.append({"id": f"wide-{number}", "image": f"{number}.png", "conversations": turns, "meta": meta})
    (root / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return root / "questions.jsonl"


def write_profile(path: Path) -> Path:
    """The miniature's wording, but a first question that it answers with a box before it was ever trained to look."""
    wording = {**load_profile("miniature").to_json(), "name": "where", "inst1": "{image}\n{question}"}
    path.write_text(json.dumps(wording))
    return path


def predictions(data: Path, out: Path, **settings: Any) -> list[dict[str, Any]]:
    """The records that `cos infer` writes for these questions."""
    config = InferConfig(data=data, images=data.parent / "images", out=out, max_failures=None, **settings)
    infer.run(config, SilentReporter())
    return [dict(record) for _, record in read_lines(out)]


def post(url: str, body: object) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=7200) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def padded_and_bare(model: Path, url: str) -> tuple[list[object], list[object]]:
    """What a server says to the messages of `cos`, and to someone who sends pictures as they are and no system message."""
    sent = of_folder(model)
    answers: tuple[list[object], list[object]] = ([], [])
    for width, height in ((60, 20), (20, 50), (90, 70)):
        picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        padded = sent.messages(dialogue(sent.profile, "What is it?", chain=False), {"full": picture})
        image = {"type": "image_url", "image_url": {"url": data_url(picture)}}
        bare = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
        for messages, heard in zip((padded, bare), answers, strict=True):
            body = {"model": str(model), "messages": messages, "temperature": 0, "max_tokens": 8}
            answer = post(f"{url}/chat/completions", body)
            heard.append((answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]))
    return answers


def differences(served: list[dict[str, Any]], local: list[dict[str, Any]]) -> list[str]:
    """Every question whose box, answer or prompt lengths are not the local ones; empty when all are equal."""
    assert [one["example_id"] for one in served] == [one["example_id"] for one in local]
    found = []
    for one, other in zip(served, local, strict=True):
        lengths = [{k: v for k, v in record["tokens"].items() if k.endswith("_in")} for record in (one, other)]
        pairs = [(key, one[key], other[key]) for key in COMPARED if one[key] != other[key]]
        pairs += [("tokens", *lengths)] if lengths[0] != lengths[1] else []
        found += [f"{one['example_id']}: {key} {a!r}, locally {b!r}" for key, a, b in pairs]
    return found


def train_a_little(root: Path, profile: Path, steps: int = 8) -> Path:
    """The miniature after a few steps of `cos train` with a wording of its own; returns the checkpoint's folder."""
    data = write_questions(root / "lessons", 12 * steps, seed=6)
    with Store.create_or_resume(root / "regions", "f", {}) as store:
        store.put_many(
            Annotation(example.id, example.gold, 1.0, "from_single_question", "f") for example in read_examples(data)
        )
    config = TrainConfig(
        data=data,
        images=data.parent / "images",
        model="miniature",
        out=root / "trained",
        store=root / "regions",
        profile=str(profile),
        learning_rate=3e-4,
        batch_size=12,
        global_batch=None,
        max_steps=steps,
        device="cpu",
        check="off",
    )
    training.run(config, SilentReporter())
    return config.out


def convert_a_tiny_one(root: Path) -> Path:
    """An original LLaVA checkpoint with random weights, SentencePiece's vocabulary and `legacy` false, converted.

    Two changes to the golden one: heads of 32, the least that vLLM computes on a CPU; and no byte is ever the likeliest token:
    servers and `cos` read bytes that form no character differently, which is another matter than what is compared here.
    """
    source = root / "original"
    shutil.copytree(ORIGINAL / "llava-tiny", source)
    settings = json.loads((source / "config.json").read_text())
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    (source / "config.json").write_text(json.dumps(settings))
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"][3:259] = 0
    save_file(tensors, source / "model.safetensors")
    convert(ConvertConfig(source, root / "converted", vision_tower=ORIGINAL / "clip-tiny", profile="repo-2024"))
    return root / "converted"


@contextmanager
def serving(command: Sequence[str], health: str, log: Path, **environment: str) -> Iterator[str]:
    """Runs a server, `{port}` in its command filled in, until the block ends; gives its address without a path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    filled = [part.replace("{port}", port) for part in command]
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    with log.open("wb") as file:
        process = subprocess.Popen(filled, stdout=file, stderr=file, env={**os.environ, **alone})
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 7200
        while True:
            try:
                urllib.request.urlopen(address + health, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, f"the server ended: {log.read_text()[-3000:]}"
                assert time.monotonic() < deadline, f"the server did not start: {log.read_text()[-3000:]}"
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=7200)
