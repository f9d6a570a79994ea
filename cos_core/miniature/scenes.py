"""Procedural scenes: a few large shapes, each with a small digit that cannot be read once the whole picture is shrunk.

A scene is 384 px wide; each object is about a fifth of that and carries a white digit a twelfth of the scene high: 32 px in the
picture, 3 px at the miniature's 40 px input, 11-13 px in a crop of the object. So questions about digits need the region of
interest *by construction*; questions about colour, shape, order and number do not.

Scenes are unbiased: objects stand in a jittered 3x3 layout and any of them is asked about. `centre_bias` p asks about the most
central object with probability p, as photographers' pictures do (CoS Appendix B).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cos_core.errors import InputError
from cos_core.geometry import Box, bounding, clipped, full_box

SIDE = 384
"""Width and height of a scene, in pixels."""

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (225, 190, 30),
    "purple": (140, 50, 170),
    "orange": (240, 120, 30),
    "cyan": (40, 180, 200),
    "brown": (120, 75, 40),
}
SHAPES = ("circle", "square", "triangle", "diamond")
DIGITS = tuple("0123456789")
RELATIONS = ("left of", "right of", "above", "below")
KINDS = ("reading", "colour", "shape", "relation", "scene")
"""What a question asks for: a digit, an attribute (colour or shape), how two objects stand, how many objects there are."""

SHARES = {"reading": 0.70, "colour": 0.08, "shape": 0.08, "relation": 0.07, "scene": 0.07}
"""How often each kind is asked, where the scene allows it."""

GLYPH_HEIGHT = 1 / 12
MARGIN = 0.025
"""Gold regions reach this far (fraction of the scene) beyond the object's nominal radius."""

# A 5x7 dot font: one row of the glyph a string.
_FONT = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11111 00010 00100 00010 00001 10001 01110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: centre (x, y) and nominal radius r as fractions of the scene's side."""

    colour: str
    shape: str
    digit: str
    x: float
    y: float
    r: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Three to five things of different colours on a plain grey ground."""

    things: tuple[Thing, ...]
    ground: int


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """`about`: indices of the things that the question is about, the one that holds the answer first; empty for the whole."""

    text: str
    answer: str
    kind: str
    about: tuple[int, ...]


def make_scene(rng: random.Random, distinct_shapes: bool = False) -> Scene:
    """A random scene; colours never repeat, digits may, and so may shapes unless they are asked to be distinct."""
    cells = rng.sample(range(9), rng.randint(3, 4 if distinct_shapes else 5))
    shapes = rng.sample(SHAPES, len(cells)) if distinct_shapes else [rng.choice(SHAPES) for _ in cells]
    things = []
    for cell, colour, shape in zip(cells, rng.sample(list(COLOURS), len(cells)), shapes, strict=True):
        x = (cell % 3 + 0.5) / 3 + rng.uniform(-0.05, 0.05)
        y = (cell // 3 + 0.5) / 3 + rng.uniform(-0.05, 0.05)
        things.append(Thing(colour, shape, rng.choice(DIGITS), x, y, rng.uniform(0.085, 0.105)))
    return Scene(tuple(things), rng.randint(205, 245))


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of SIDE x SIDE pixels."""
    picture = Image.new("RGB", (SIDE, SIDE), (scene.ground,) * 3)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        x, y, r = thing.x * SIDE, thing.y * SIDE, thing.r * SIDE
        fill = COLOURS[thing.colour]
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif thing.shape == "square":
            pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)
        elif thing.shape == "triangle":
            pen.polygon([(x, y - 1.1 * r), (x - r, y + 0.85 * r), (x + r, y + 0.85 * r)], fill=fill)
        else:
            pen.polygon([(x, y - 1.15 * r), (x - 1.15 * r, y), (x, y + 1.15 * r), (x + 1.15 * r, y)], fill=fill)
        glyph = _glyph(thing.digit)
        # A triangle's middle lies below its centre.
        middle = y + 0.2 * r if thing.shape == "triangle" else y
        picture.paste((255, 255, 255), (int(x - glyph.width / 2), int(middle - glyph.height / 2)), glyph)
    return picture


def _glyph(digit: str) -> Image.Image:
    rows = [[255 * int(dot) for dot in row] for row in _FONT[digit].split()]
    height = int(SIDE * GLYPH_HEIGHT)
    return Image.fromarray(np.array(rows, np.uint8)).resize((height * 5 // 7, height), Image.Resampling.NEAREST)


def thing_box(thing: Thing) -> Box:
    """The thing with its margin, clipped to the scene, in frame "image"."""
    reach = thing.r + MARGIN
    return clipped(thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach, "image")


def gold_box(scene: Scene, question: SceneQuestion) -> Box:
    """The exact region of interest: around all things that the question is about; the whole scene when it is about all."""
    if not question.about:
        return full_box()
    return bounding([thing_box(scene.things[i]) for i in question.about])


def questions(scene: Scene, kind: str) -> list[SceneQuestion]:
    """All questions of one kind that have one answer in this scene. Raises InputError for an unknown kind."""
    things = list(enumerate(scene.things))
    if kind == "reading":
        return [SceneQuestion(f"What digit is on the {t.name}?", t.digit, kind, (i,)) for i, t in things]
    if kind == "colour":
        shapes = [t.shape for t in scene.things]
        lone = [(i, t) for i, t in things if shapes.count(t.shape) == 1]
        return [SceneQuestion(f"What colour is the {t.shape}?", t.colour, kind, (i,)) for i, t in lone]
    if kind == "shape":
        return [SceneQuestion(f"What shape is the {t.colour} object?", t.shape, kind, (i,)) for i, t in things]
    if kind == "relation":
        return [
            SceneQuestion(f"Is the {a.name} {relation} the {b.name}?", "yes" if holds else "no", kind, (i, j))
            for i, a in things
            for j, b in things
            if i != j
            for relation, holds in _relations(a, b)
        ]
    if kind == "scene":
        return [SceneQuestion("How many objects are there?", str(len(things)), kind, ())]
    raise InputError(f"unknown kind of question {kind!r}; one of {', '.join(KINDS)}")


def _relations(a: Thing, b: Thing) -> Iterator[tuple[str, bool]]:
    """The relations that can be told apart clearly: things at least a fifth of the scene apart along the axis."""
    if abs(a.x - b.x) > 0.2:
        yield "left of", a.x < b.x
        yield "right of", a.x > b.x
    if abs(a.y - b.y) > 0.2:
        yield "above", a.y < b.y
        yield "below", a.y > b.y


def ask(scene: Scene, rng: random.Random, count: int, centre_bias: float = 0.0) -> list[SceneQuestion]:
    """`count` different questions on one scene, kinds drawn by SHARES (fewer when the scene has fewer)."""
    central = min(range(len(scene.things)), key=lambda i: (scene.things[i].x - 0.5) ** 2 + (scene.things[i].y - 0.5) ** 2)
    chosen_questions: list[SceneQuestion] = []
    for _ in range(20 * count):
        kind = rng.choices(KINDS, [SHARES[k] for k in KINDS])[0]
        pool = [q for q in questions(scene, kind) if q not in chosen_questions]
        if centre_bias and rng.random() < centre_bias:
            pool = [q for q in pool if not q.about or q.about[0] == central]
        if pool:
            chosen_questions.append(rng.choice(pool))
        if len(chosen_questions) == count:
            break
    return chosen_questions


def write_dataset(out: Path, count: int, seed: int, per_image: int = 1, centre_bias: float = 0.0) -> Path:
    """Writes `count` scenes as PNG files and one LLaVA-layout JSON Lines file, `out/questions.jsonl`; returns that file.

    Every sample is a conversation of up to `per_image` questions; `meta` holds, for each turn, the question's kind, the gold
    region [x0, y0, x1, y1] in frame "image" and the centres of the things asked about. The same arguments write the same bytes.
    """
    rng = random.Random(f"scenes/{seed}")
    (out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        scene = make_scene(rng)
        chosen_questions = ask(scene, rng, per_image, centre_bias)
        name = f"{seed}-{number:05d}"
        draw(scene).save(out / "images" / f"{name}.png", compress_level=1)
        lines.append(json.dumps(_sample(name, scene, chosen_questions)))
    path = out / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _sample(name: str, scene: Scene, chosen_questions: Sequence[SceneQuestion]) -> dict[str, Any]:
    turns, meta = [], []
    for number, question in enumerate(chosen_questions):
        mark = "<image>\n" if number == 0 else ""
        turns += [{"from": "human", "value": mark + question.text}, {"from": "gpt", "value": question.answer}]
        meta.append(
            {
                "kind": question.kind,
                "gold": [round(v, 6) for v in gold_box(scene, question).corners],
                "targets": [[round(scene.things[i].x, 6), round(scene.things[i].y, 6)] for i in question.about],
            }
        )
    return {"id": name, "image": f"{name}.png", "conversations": turns, "meta": meta}
