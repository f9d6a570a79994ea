"""What the tests of the annotate stage share: small jobs, and what their stores hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cos_core.annotate import AnnotateConfig
from cos_core.store.annotations import Store
from cos_core.types import Annotation


def write_data(root: Path, counts: Sequence[int], **extra: Any) -> None:
    """Conversations of `counts` questions, each on its own picture of smooth colours."""
    (root / "images").mkdir(exist_ok=True)
    samples = []
    for number, count in enumerate(counts):
        small = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        name = f"{number:03d}.png"
        Image.fromarray(small).resize((64 + 8 * (number % 3), 64), Image.Resampling.BICUBIC).save(root / "images" / name)
        turns = []
        for k in range(count):
            turns += [{"from": "human", "value": f"<image>\nwhat is {k}?"}, {"from": "gpt", "value": f"thing {number}{k}"}]
        samples.append({"id": f"s{number:03d}", "image": name, "conversations": turns, **extra})
    (root / "data.json").write_text(json.dumps(samples), encoding="utf-8")


def edit_data(config: AnnotateConfig, change: Any) -> None:
    samples = json.loads(config.data.read_text(encoding="utf-8"))
    change(samples)
    config.data.write_text(json.dumps(samples), encoding="utf-8")


def stored(config: AnnotateConfig) -> dict[str, Annotation]:
    with Store.read(config.out) as store:
        return {a.example_id: a for a in store.annotations()}


def failures(config: AnnotateConfig) -> dict[str, str]:
    with Store.read(config.out) as store:
        return dict(store.failures())


def exported(config: AnnotateConfig) -> bytes:
    path = config.out.with_suffix(".jsonl")
    with Store.read(config.out) as store:
        store.export_jsonl(path)
    return path.read_bytes()
