"""Pictures of one coloured disc among grey ones, and checkpoints of several families that name its colour, for a reason.

A checkpoint is made of a family's own classes; its weights are drawn at random, but for what makes it see and answer:

    tower           is blind to greys, and its attention writes nothing: what stands in a place stays in that place's tokens
    projector       its last matrix is fitted to plain pictures: a token says how much of each colour it holds
    language model  one head of the first layer carries the colours that it finds to every token of text; the head of the model
                    reads the colour's letter there, and behind a letter the end of the answer

Nothing of that knows where a token looks: neither grids nor places are used. Discs stand anywhere with equal chance, and the
grey ones are as large as the coloured one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny_families
import torch
from PIL import Image, ImageDraw
from tiny_parts import Shape

from cos_core.geometry import Box
from cos_core.models import general
from cos_core.models.loaded import LoadedModel

COLOURS = {
    "R": (220, 30, 30),
    "G": (30, 180, 40),
    "B": (40, 60, 230),
    "Y": (230, 220, 30),
    "C": (30, 210, 220),
    "M": (220, 40, 210),
}
QUESTION = "Which colour?"
SIZES = ((96, 96), (140, 80), (80, 140), (180, 70), (110, 130))
"""Pictures, width x height in pixels: square, wide and tall."""
_SHAPE = Shape(64, 4, 2, 2, tower=64, tower_heads=4, tower_layers=2, patch=7, grid=8, words_first=True)
SHAPES = {"qwen2_5_vl": _SHAPE, "llava_next": replace(_SHAPE, grid=6)}
"""Families with a shape each in which a disc is two to four tokens wide: M-RoPE and one grid of any size; tiles of the picture
without their padding, newlines, and the whole picture in front."""

_TEXT, _PICTURE, _SURE = 0, 1, 14
"""Places of a hidden state: it is a token of text; of a picture; from _SURE on, which token must follow."""
_SEEN, _FOUND = slice(2, 8), slice(8, 14)
"""The colours that a picture's token holds, and those that the head found."""
_FREE = 16
"""What stands beyond is drawn at random."""


@dataclass(frozen=True)
class Scene:
    """A picture with its answer and the box around the disc, in frame "image"."""

    image: Image.Image
    answer: str
    box: Box


def scene(size: tuple[int, int], seed: int) -> Scene:
    """Noise around some grey, one coloured disc and two grey ones; none touches another."""
    rng = np.random.default_rng(seed)
    width, height = size
    image = Image.fromarray(_noisy(rng, np.full((height, width, 3), rng.uniform(40, 215))))
    radius = 0.16 * (width * height) ** 0.5
    centres: list[np.ndarray] = []
    while len(centres) < 3:
        centres = [rng.uniform([radius, radius], [width - radius, height - radius]) for _ in range(3)]
        if min(np.hypot(*(centres[i] - centres[i - 1])) for i in range(3)) < 2.2 * radius:
            centres = []
    answer = str(rng.choice(list(COLOURS)))
    shades = [COLOURS[answer], *((int(shade),) * 3 for shade in rng.uniform(0, 255, 2))]
    paint = ImageDraw.Draw(image)
    for (x, y), shade in zip(centres, shades, strict=True):
        paint.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade)
    x, y = centres[0]
    return Scene(image, answer, Box((x - radius) / width, (y - radius) / height, (x + radius) / width, (y + radius) / height))


def scenes(count: int, seed: int) -> list[Scene]:
    """Scenes of every size in turn."""
    return [scene(SIZES[i % len(SIZES)], seed * 100_000 + i) for i in range(count)]


def write_data(root: Path, shown: Sequence[Scene]) -> None:
    """`images` and conversations of one question each, in order of their names."""
    (root / "images").mkdir()
    samples = []
    for number, each in enumerate(shown):
        name = f"{number:03d}.png"
        each.image.save(root / "images" / name)
        turns = [{"from": "human", "value": "<image>\n" + QUESTION}, {"from": "gpt", "value": each.answer}]
        samples.append({"id": f"s{number:03d}", "image": name, "conversations": turns})
    (root / "data.json").write_text(json.dumps(samples), encoding="utf-8")


def _noisy(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    return rng.normal(pixels, 12.0).clip(0, 255).astype(np.uint8)


def checkpoint(name: str, folder: Path) -> Path:
    """Writes a checkpoint of the family that answers QUESTION with the letter of the disc's colour. Takes a few seconds."""
    tiny_families.build(name, folder, shape=SHAPES[name])
    loaded = general.load(str(folder), device="cpu", dtype="float32")
    with torch.no_grad():
        set_tower(loaded.model)
        set_projector(loaded)
        set_language(loaded)
    loaded.model.save_pretrained(folder)
    return folder


def _beside_the_decoder(net: Any) -> Iterator[tuple[str, Any]]:
    decoder = {id(module) for module in net.get_decoder().modules()}
    for path, module in net.named_modules():
        if id(module) not in decoder and module is not net.get_output_embeddings():
            yield path, module


def set_tower(net: Any) -> None:
    """Blind to greys, silent attention; one embedding for all places, so large that no norm magnifies a pale colour."""
    for path, module in _beside_the_decoder(net):
        above, _, name = path.rpartition(".")
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            module.weight -= module.weight.mean(1, keepdim=True)
        elif isinstance(module, torch.nn.Embedding):
            module.weight.copy_(20 * module.weight[:1].expand_as(module.weight))
        elif "att" in above.rpartition(".")[2] and name in ("out_proj", "proj", "projection_layer"):
            for parameter in module.parameters():
                parameter.zero_()


def set_projector(loaded: LoadedModel) -> None:
    """Fits the projector's last matrix by least squares, so that it writes the share of each colour into _SEEN."""
    rows, targets = [], []
    with _linear_inputs(loaded.model) as called:
        for image, shares in plain_pictures(150):
            called.clear()
            loaded.features([loaded.picture(image, loaded.variant(1))])
            last, entered = called[-1]
            rows.append(torch.nn.functional.pad(entered.flatten(0, -2), (0, 1), value=1.0))
            targets.append(torch.tensor([shares], dtype=torch.float64).expand(len(rows[-1]), -1))
    x, y = torch.cat(rows).double(), torch.cat(targets)
    solution = torch.linalg.lstsq(x, y).solution.T
    last.weight.zero_()
    last.bias.zero_()
    last.weight[_SEEN], last.bias[_SEEN] = 2 * solution[:, :-1].float(), 2 * solution[:, -1].float()
    last.bias[_PICTURE] = 4.0


@contextmanager
def _linear_inputs(net: Any) -> Iterator[list[tuple[Any, torch.Tensor]]]:
    """The matrices that are called beside the decoder, each with what enters it, in order."""
    called: list[tuple[Any, torch.Tensor]] = []
    handles = [
        module.register_forward_hook(lambda module, args, _output: called.append((module, args[0])))
        for _, module in _beside_the_decoder(net)
        if isinstance(module, torch.nn.Linear)
    ]
    yield called
    for handle in handles:
        handle.remove()


def plain_pictures(count: int) -> Iterator[tuple[Image.Image, list[float]]]:
    """Pictures without places: each pixel is of one colour or of one grey. With the share of each colour."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        colour, share = int(rng.integers(len(COLOURS))), float(rng.choice([0.0, rng.uniform(), 1.0]))
        coloured = rng.random((96, 96, 1)) < share
        pixels = np.where(coloured, list(COLOURS.values())[colour], rng.uniform(0, 255))
        yield Image.fromarray(_noisy(rng, pixels)), [share * (k == colour) for k in range(len(COLOURS))]


def set_language(loaded: LoadedModel) -> None:
    """Sets one head and the places of hidden states that are named above; all else is drawn, a tenth as wide."""
    net = loaded.model
    decoder, embeddings, head = net.get_decoder(), net.get_input_embeddings().weight, net.get_output_embeddings().weight
    for parameter in (*decoder.parameters(), head):
        if parameter.dim() == 2 and parameter is not embeddings:
            parameter.mul_(0.1)
    embeddings[:, :_FREE] = 0.0
    embeddings[:, _TEXT] = 4.0
    first = decoder.layers[0].self_attn
    width = first.head_dim
    slow = width // 2 - 1  # the pair that rotary positions turn least
    # In the first head queries of text find keys of colour; its keys and values serve the second head, too, as drawn.
    first.q_proj.weight[:width] = 0.0
    first.q_proj.weight[slow, _TEXT] = 1.0
    first.k_proj.weight[:width] = 0.0
    first.k_proj.weight[slow, _SEEN] = 0.6
    first.v_proj.weight[:width] = 0.0
    first.v_proj.weight[range(6), range(_SEEN.start, _SEEN.stop)] = 1.0
    first.o_proj.weight[:, :width] = 0.0
    first.o_proj.weight[range(_FOUND.start, _FOUND.stop), range(6)] = 0.5
    letters = [_token(loaded, letter) for letter in COLOURS]
    head[:, :_FREE] = 0.0
    head[letters, range(_FOUND.start, _FOUND.stop)] = 5.0
    for place, (tokens, follows) in enumerate(_sure(loaded, letters), _SURE):
        embeddings[tokens, place] = 4.0
        head[follows, place] = 4.0


def _sure(loaded: LoadedModel, letters: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """(tokens, what follows them): behind a letter the end; between the assistant's role and the letter its gap, if any."""
    yield list(letters), int(loaded.tokenizer.eos_token_id)
    if loaded.gap:
        yield [_token(loaded, loaded.role[-1])], _token(loaded, loaded.gap)


def _token(loaded: LoadedModel, character: str) -> int:
    (number,) = loaded.tokenizer(character, add_special_tokens=False)["input_ids"]
    return int(number)
