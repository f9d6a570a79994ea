"""LXMERT with random weights, made in a test: real classes, a real tokenizer, no download."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cos_core.detectors import grid
from cos_core.interfaces import Detector

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.types import Regions

FEATURES = 19
ANSWERS = ("yes", "no", "red", "a cat", "far away", "two", "left")
LETTERS = "abcdefghijklmnopqrstuvwxyz?"


def make_model(seed: int = 0, **config: Any) -> Any:
    """Sizes are different primes where LXMERT lets them be: 3 heads of width 11, 3 language, 2 vision and 3 cross layers."""
    import torch
    from transformers import LxmertConfig, LxmertForQuestionAnswering

    sizes = {"hidden_size": 33, "num_attention_heads": 3, "intermediate_size": 41, "vocab_size": 61, "num_qa_labels": 17}
    layers = {"l_layers": 3, "r_layers": 2, "x_layers": 3}
    lxmert = LxmertConfig(
        **{**sizes, **layers, "visual_feat_dim": FEATURES, "max_position_embeddings": 73, "initializer_range": 0.3, **config}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LxmertForQuestionAnswering(lxmert).eval()


def make_checkpoint(directory: Path, *, seed: int = 0, labels: bool = True, **config: Any) -> Path:
    """Writes a model that knows ANSWERS (when `labels`) and a tokenizer of one piece a letter, in BERT's manner."""
    tokenizer = letter_tokenizer()
    if labels:
        config |= {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: i for i, name in enumerate(ANSWERS)}}
    model = make_model(seed, vocab_size=len(tokenizer), num_qa_labels=len(ANSWERS), **config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def letter_tokenizer() -> Any:
    from transformers import BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


@dataclass(frozen=True)
class FeatureGrid(Detector):
    """The windows of `grid` with features: the window's pixels, shrunk, as FEATURES numbers."""

    def detect(self, image: Image, path: str = "") -> Regions:
        found = grid.build(((0.4, 3),)).detect(image)
        crops = [image.crop(box.pixels(*image.size)).resize((3, 3)) for box in found.boxes]
        pixels = np.stack([np.asarray(crop, np.float32).reshape(-1)[:FEATURES] for crop in crops])
        return replace(found, features=pixels / 64 - 2)
