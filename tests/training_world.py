"""What the tests of training share: a small world of pictures, questions, regions and a checkpoint, and looks at a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image
from tiny_llava import byte_tokenizer, make_checkpoint

from cos_core.data.datasets import read_examples
from cos_core.dialogue.prompts import load_profile
from cos_core.files import plug
from cos_core.files.jsonl import read_lines
from cos_core.geometry import Box
from cos_core.interfaces import Policy, SilentReporter
from cos_core.miniature.scenes import write_dataset
from cos_core.models.flops import ModelSize, PictureFlops
from cos_core.models.llava import LlavaEncoder
from cos_core.store.annotations import Store
from cos_core.training import TrainConfig
from cos_core.training.dataset import Recipe
from cos_core.training.samples import Account, Rules, Sample, collect
from cos_core.training.skipped import Skipped
from cos_core.types import Annotation, Example

IMAGE_TOKENS = 16
NO_SIZE = ModelSize(1, 0, 0, 1, 1, 1, 1, 1, 1.0, 1.0, PictureFlops(each=1.0), IMAGE_TOKENS)
SIZES = ((61, 47), (53, 53), (31, 71), (89, 43))
BOX = Box(0.25, 0.125, 0.5, 0.75)
QUESTIONS = (("What is it?", "a cup"), ("Which colour?", "red"), ("Is it full?", "no"))


def make_world(root: Path) -> Path:
    """A folder with pictures, a conversation file (three questions a picture, one text-only sample), a store, a checkpoint."""
    (root / "images").mkdir()
    records: list[dict[str, Any]] = []
    for i, size in enumerate(SIZES):
        image = Image.linear_gradient("L").resize(size).convert("RGB")
        image.putpixel((i, i), (255, 0, 0))
        image.save(root / "images" / f"{i}.png")
        turns = [
            {"from": who, "value": text}
            for q, (question, answer) in enumerate(QUESTIONS)
            for who, text in (("human", ("<image>\n" if q == 0 else "") + question), ("gpt", f"{answer} {i}"))
        ]
        meta = [{"gold": list(BOX.corners)} for _ in QUESTIONS]
        records.append({"id": f"s{i}", "image": f"{i}.png", "conversations": turns, "meta": meta})
    text = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    text += [{"from": "human", "value": "Bye"}, {"from": "gpt", "value": "See you"}]
    records.append({"id": "words", "conversations": text})
    (root / "data.json").write_text(json.dumps(records))
    with Store.create_or_resume(root / "store", "f", {}) as store:
        store.put_many(Annotation(e.id, BOX, 1.0, "from_single_question", "f") for e in examples(root) if e.image is not None)
    make_checkpoint(root / "model")
    return root


def make_scenes(root: Path) -> Path:
    """Eleven scenes, two of odd sizes, and two texts, so that batches are uneven and mixed; one region is missing."""
    write_dataset(root, 11, 7, 3)
    for name, size in (("7-00000", (384, 251)), ("7-00003", (200, 384))):
        path = root / "images" / f"{name}.png"
        with Image.open(path) as picture:
            picture.crop((0, 0, *size)).save(path)
    with (root / "questions.jsonl").open("a") as file:
        for i in range(2):
            turns = [{"from": "human", "value": "Hello" * (i + 1)}, {"from": "gpt", "value": f"red {i}"}]
            file.write(json.dumps({"id": f"t{i}", "conversations": turns}) + "\n")
    with Store.create_or_resume(root / "store", "f", {}) as store:
        for example in list(read_examples(root / "questions.jsonl"))[1:]:
            store.put_many([Annotation(example.id, example.gold, 1.0, "p", "f")])
    return root


def examples(world: Path) -> list[Example]:
    return list(read_examples(world / "data.json", text_only="keep"))


def recipe(world: Path, policy: str = "from_single_question", **changes: Any) -> Recipe:
    """`profile`, `image_token_id` and `image_tokens` are of its encoder."""
    tokenizer = byte_tokenizer()
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "profile": load_profile("paper"),
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "image_tokens": IMAGE_TOKENS,
    }
    own = {name: changes.pop(name, value) for name, value in settings.items()}
    made = Recipe(policy=plug.load("policies", policy), encoder=PictureKeeper.of(**own), images=world / "images")
    return replace(made, **changes)


class PictureKeeper(LlavaEncoder):
    """LLaVA-1.5's encoder, but a prepared picture is the picture itself."""

    @classmethod
    def of(cls, **settings: Any) -> PictureKeeper:
        side = math.isqrt(settings["image_tokens"])
        config = SimpleNamespace(vision_config=SimpleNamespace(image_size=side, patch_size=1))
        return cls(config=config, image_processor=None, fill=(122, 116, 104), **settings)

    def picture(self, image: Image.Image, variant: int = 0) -> Image.Image:  # type: ignore[override]
        return image


@dataclass(frozen=True)
class Collected:
    """Samples as a plain list, which the table over the data file must equal, and what was left out."""

    samples: list[Sample]
    skipped: list[Skipped]
    lacking: list[Skipped]
    shifted: list[Skipped]
    region_questions: int


def collected(found: Iterable[Example], policy: Policy, annotations: Any, on_no_region: Any = "full") -> Collected:
    skipped, lacking, shifted = [], [], []  # type: tuple[list[Skipped], list[Skipped], list[Skipped]]
    account = Account(skipped, lacking, shifted)
    listed = [sample for _, sample in collect(found, Rules(policy, 0, on_no_region), annotations, account)]
    return Collected(listed, skipped, lacking, shifted, account.region_questions)


def samples(world: Path, policy: str) -> list[Sample]:
    with Store.read(world / "store") as store:
        found = collected(examples(world), plug.load("policies", policy), store)
    assert found.skipped == found.lacking == []
    return found.samples


def config(world: Path, out: Path, **changes: Any) -> TrainConfig:
    made = TrainConfig(
        data=world / "data.json",
        images=world / "images",
        model=str(world / "model"),
        out=out,
        store=world / "store",
        learning_rate=1e-3,
        batch_size=2,
        global_batch=None,
        max_steps=4,
        device="cpu",
        max_faults=9,
    )
    return replace(made, **changes)


def log_of(out: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_lines(out / "train_log.jsonl")]


def weights(folder: Path) -> dict[str, Any]:
    """Under the names that `transformers` gives them in the checkpoints of a run, whichever of the two the file has."""
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")
    return {name.replace("vision_tower.vision_model.", "vision_tower."): tensor for name, tensor in found.items()}


class Ears(SilentReporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)
