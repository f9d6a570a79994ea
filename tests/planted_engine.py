"""Models that are known to use their crops, or not to: an engine plug-in, `--engine tests/planted_engine.py`.

They answer what digit stands on an object of a drawn scene, from the pixels they are shown and nothing else. The name of the
model says which it is: "reads.json" reads the digit off the crop and guesses without one; "ignores.json" answers from the whole
picture, right in two of three questions, and never looks at the crop; "hurt.json" does so, too, but a digit in the crop
misleads it in half of the questions; "stumbles.json" ignores it, but fails on a third of the crops without any plain area.
Every fourth box of each is at the wrong place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cos_core.engines.scripted import last_user_text
from cos_core.interfaces import Engine, Reply, Request
from cos_core.miniature.scenes import COLOURS, DIGITS, SIDE, _glyph
from cos_core.types import ImageSlot

_CENTRE = 0.18
"""The share of a crop at each side that is not looked at: digits of neighbours may stand there."""


class Planted(Engine):
    def __init__(self, kind: str) -> None:
        self.name = f"planted-{kind}"
        self._kind = kind

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request; a picture counts as 100 tokens, a word as one."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        words = " ".join(part for turn in request.turns for part in turn.parts if not isinstance(part, ImageSlot))
        asked = last_user_text(request)
        whole, crop = request.images["full"], request.images.get("roi")
        colour = re.findall(r"on the (\w+) ", asked)[-1]
        if "where is the region of interest" in asked:
            left, top, right, bottom = _seen_box(whole, colour)
            if _chance(whole, colour) // 7 % 4 == 0:
                left, right = 1 - right, 1 - left  # every fourth box is on the wrong side
            answer = f"[{left:.3f}, {top:.3f}, {right:.3f}, {bottom:.3f}]"
        else:
            if self._kind == "stumbles" and crop is not None and _noisy(crop) and _chance(whole, colour) // 5 % 3 == 0:
                return Reply("", error="this crop is too much")
            answer = self._answer(whole, crop, colour)
        return Reply(answer, tokens_in=len(words.split()) + 100 * len(request.images), tokens_out=len(answer.split()))

    def _answer(self, whole: Image.Image, crop: Image.Image | None, colour: str) -> str:
        chance = _chance(whole, colour)
        in_crop = None if crop is None else _digit(_inner(np.asarray(crop.convert("RGB"))))
        if self._kind == "reads":
            return in_crop or DIGITS[chance % 10]
        left, top, right, bottom = (round(corner * SIDE) for corner in _seen_box(whole, colour))
        there = _digit(_inner(np.asarray(whole.convert("RGB"))[top:bottom, left:right])) or "0"
        wrong = DIGITS[(int(there) + 1) % 10]
        if self._kind == "hurt" and in_crop is not None and chance // 3 % 2:
            return wrong
        return there if chance % 3 else wrong


def _chance(whole: Image.Image, colour: str) -> int:
    return int(hashlib.sha256(whole.tobytes() + colour.encode()).hexdigest(), 16)


def _seen_box(whole: Image.Image, colour: str) -> tuple[float, float, float, float]:
    """The corners of the thing of a colour, as fractions of the picture, with a little room around it."""
    rows, columns = np.nonzero((np.asarray(whole.convert("RGB")) == COLOURS[colour]).all(axis=2))
    if not len(rows):
        return 0.0, 0.0, 1.0, 1.0
    ends = columns.min() / SIDE, rows.min() / SIDE, (columns.max() + 1) / SIDE, (rows.max() + 1) / SIDE
    return tuple(float(np.clip(end + room, 0, 1)) for end, room in zip(ends, (-0.02, -0.02, 0.02, 0.02), strict=True))  # type: ignore[return-value]


def _noisy(crop: Image.Image) -> bool:
    """Whether hardly a pixel is as its neighbour is."""
    pixels = np.asarray(crop.convert("L"))
    return bool((pixels[:, 1:] == pixels[:, :-1]).mean() < 0.2)


def _inner(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    return pixels[
        round(_CENTRE * height) : round((1 - _CENTRE) * height), round(_CENTRE * width) : round((1 - _CENTRE) * width)
    ]


def _digit(pixels: np.ndarray) -> str | None:
    """The digit whose shape the white pixels have; None without enough of them."""
    white = (pixels >= 250).all(axis=2)
    if white.sum() < 60 or white.mean() > 0.6:
        return None
    seen = _framed(white)
    return min(DIGITS, key=lambda digit: float(np.abs(seen - _shape(digit)).mean()))


@cache
def _shape(digit: str) -> np.ndarray:
    return _framed(np.asarray(_glyph(digit)) > 128)


def _framed(mask: np.ndarray) -> np.ndarray:
    """The mask's inhabited part on a field of fixed size, its aspect kept: (28, 20) floats."""
    rows, columns = np.nonzero(mask)
    part = Image.fromarray(mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    width = min(20, max(1, round(28 * part.width / part.height)))
    field = Image.new("L", (20, 28))
    field.paste(part.convert("L").resize((width, 28)), ((20 - width) // 2, 0))
    return np.asarray(field, dtype=np.float64) / 255


def write_readings(folder: Path, count: int, per_picture: int = 1, seed: int = 5) -> Path:
    """A data folder for the benchmark "scenes": `count` pictures, with questions about digits only; returns the folder."""
    import json
    import random

    from cos_core.miniature import scenes
    from cos_core.types import Example

    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(count):
        scene = scenes.make_scene(rng)
        scenes.draw(scene).save(folder / "images" / f"{number}.png", compress_level=1)
        for place, asked in enumerate(rng.sample(scenes.questions(scene, "reading"), per_picture)):
            meta = {"kind": "reading", "gold": [round(end, 6) for end in scenes.gold_box(scene, asked).corners]}
            example = Example(f"{number}-{place}", "scenes", f"{number}.png", asked.text, (asked.answer,), meta=meta)
            lines.append(json.dumps(example.to_json()))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def build(model: str | Path | None = None, **_unused: Any) -> Planted:
    return Planted(Path(str(model)).stem)
