"""What the miniature is pre-trained on: views of scenes, what stands under each patch, and conversations.

A view is a whole scene ("wide") or a square part of it cut at full resolution ("close"). Wide conversations never ask for
digits: they cannot be read there. An album is many parts of one scene, one token each, as `cos annotate --backbone regions`
shows a scene; it is learnt from answers alone. Gold boxes appear here, in captions and "Where is" answers, as grounding data
does in LLaVA-1.5's own training mix; from the checkpoint onwards no gold box is used.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from cos_core.detectors.grid import Grid
from cos_core.dialogue.box_text import write_box
from cos_core.dialogue.encoding import Encoded, encode
from cos_core.dialogue.prompts import FULL, Profile
from cos_core.geometry import Box, SquarePad
from cos_core.miniature.scenes import COLOURS, DIGITS, SHAPES, SIDE, Scene, Thing, draw, make_scene, questions, thing_box
from cos_core.types import Turn

CLOSE_SIDES = (0.25, 0.3, 0.3, 0.35, 0.4, 0.5)


@dataclass(frozen=True, slots=True)
class LessonView:
    """A picture at the encoder's size, (side, side, 3) uint8, and the things in it, in the view's own fractions."""

    pixels: np.ndarray
    things: tuple[Thing, ...]
    close: bool


def wide_view(scene: Scene, side: int) -> LessonView:
    """The whole scene as the encoder sees it."""
    return LessonView(_shrink(draw(scene), side), scene.things, False)


def close_view(scene: Scene, picture: Image.Image, target: Thing, rng: random.Random, side: int) -> LessonView:
    """A random square part of the scene that holds `target`."""
    span = rng.choice(CLOSE_SIDES)
    slack = max(0.0, span / 2 - target.r - 0.02)
    x0 = min(1 - span, max(0.0, target.x - span / 2 + rng.uniform(-slack, slack)))
    y0 = min(1 - span, max(0.0, target.y - span / 2 + rng.uniform(-slack, slack)))
    return _cut(scene, picture, Box(x0, y0, min(1.0, x0 + span), min(1.0, y0 + span)), side, keep=target)


def _cut(scene: Scene, picture: Image.Image, box: Box, side: int, keep: Thing | None = None) -> LessonView:
    span = box.x1 - box.x0
    inside = tuple(
        replace(t, x=(t.x - box.x0) / span, y=(t.y - box.y0) / span, r=t.r / span)
        for t in scene.things
        if t is keep or (box.contains(t.x - 0.7 * t.r, t.y - 0.7 * t.r) and box.contains(t.x + 0.7 * t.r, t.y + 0.7 * t.r))
    )
    return LessonView(_shrink(picture.crop(box.pixels(SIDE, SIDE)), side), inside, True)


def _shrink(picture: Image.Image, side: int) -> np.ndarray:
    """As the checkpoint's image processor resizes a square picture."""
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))


# --- what stands under each patch (tower and alignment) ---


def patch_labels(things: Sequence[Thing], grid: int, lines: int) -> np.ndarray:
    """(5, grid, grid) class indices under each patch: colour, shape, digit, left line, bottom line of the thing's box.

    The last class of each row of labels means "nothing here"; `lines` is the number of raster steps across the square.
    """
    middle = (np.arange(grid) + 0.5) / grid
    labels = np.empty((5, grid, grid), np.int64)
    labels[:] = np.array([len(COLOURS), len(SHAPES), len(DIGITS), lines + 1, lines + 1])[:, None, None]
    for thing in things:
        near = (middle[None, :] - thing.x) ** 2 + (middle[:, None] - thing.y) ** 2 < max(0.9 * thing.r, 0.6 / grid) ** 2
        reach = thing.r + 0.025
        left, bottom = (min(1.0, max(0.0, v)) for v in (thing.x - reach, thing.y + reach))
        values = (
            list(COLOURS).index(thing.colour),
            SHAPES.index(thing.shape),
            DIGITS.index(thing.digit),
            round(left * lines),
            round(bottom * lines),
        )
        for row, value in zip(labels, values, strict=True):
            row[near] = value
    return labels


def views(rng: random.Random, scenes: int, side: int) -> list[LessonView]:
    """For each of `scenes` new scenes the wide view and a close view of up to four of its things."""
    result = []
    for _ in range(scenes):
        scene = make_scene(rng)
        picture = draw(scene)
        result.append(LessonView(_shrink(picture, side), scene.things, False))
        result += [close_view(scene, picture, thing, rng, side) for thing in scene.things[:4]]
    return result


# --- conversations (talk) ---


@dataclass(frozen=True, slots=True)
class Lesson:
    """One conversation over one view: its tokens, and the kind of each answer with its length in tokens (end mark included)."""

    view: LessonView
    encoded: Encoded
    kinds: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class LessonPictures:
    """Parts of one scene, (n, side, side, 3) uint8, and conversations in which each part takes one image position."""

    parts: np.ndarray
    conversations: tuple[Encoded, ...]


Pair = tuple[str, str, str]
"""(question, answer, kind)"""


class Teacher:
    """Makes lessons; holds what encoding needs."""

    def __init__(self, profile: Profile, tokenizer: Any, image_token_id: int, image_tokens: int, side: int) -> None:
        self.profile, self.tokenizer, self.side = profile, tokenizer, side
        self.image_token_id, self.image_tokens = image_token_id, image_tokens

    def box(self, box: Box) -> str:
        return write_box(SquarePad(SIDE, SIDE).to_square(box), self.profile)

    def place(self, rng: random.Random) -> Lesson:
        """A lesson on where things are in a whole scene: a grounded caption, or questions."""
        scene = make_scene(rng, distinct_shapes=rng.random() < 0.5)
        maker = self._captions if rng.random() < 0.45 else self._places
        return self._lesson(wide_view(scene, self.side), maker(scene, rng))

    def fact(self, rng: random.Random) -> Lesson:
        """A lesson on a whole scene whose answers are single words: how things stand, what they are, how many."""
        scene = make_scene(rng, distinct_shapes=rng.random() < 0.4)
        maker = self._relations if rng.random() < 0.3 else self._attributes
        return self._lesson(wide_view(scene, self.side), maker(scene, rng))

    def close(self, rng: random.Random) -> Lesson:
        """A lesson on a part of a scene, where digits can be read."""
        scene = make_scene(rng)
        view = close_view(scene, draw(scene), rng.choice(scene.things), rng, self.side)
        things = list(view.things)
        rng.shuffle(things)
        if rng.random() < 0.3:
            pairs = [("Describe the image.", " ".join(f"{t.name} {t.digit}" for t in things), "read-all")]
        elif rng.random() < 0.75:
            pairs = [(f"What digit is on the {t.name}?", t.digit, "digit") for t in things[:3]]
        else:
            pairs = [self._attribute(t, view.things, rng) for t in things[:3]]
        return self._lesson(view, pairs)

    def album(self, rng: random.Random) -> LessonPictures:
        """Between eight parts and all of a grid's windows, each thing whole in one at least, in random order."""
        scene = make_scene(rng, distinct_shapes=rng.random() < 0.3)
        picture = draw(scene)
        parts = [close_view(scene, picture, thing, rng, self.side) for thing in scene.things]
        windows = Grid().detect(picture).boxes
        for box in rng.sample(windows, rng.randint(max(0, 8 - len(parts)), len(windows) - len(parts))):
            parts.append(_cut(scene, picture, box, self.side))
        rng.shuffle(parts)
        things = rng.sample(scene.things, len(scene.things))
        readings = [(f"What digit is on the {t.name}?", t.digit, "digit") for t in things[:3]]
        # Questions about an attribute stand alone: the names in another question would give their answers away.
        alone = [[self._attribute(t, scene.things, rng)] for t in things[:2]]
        conversations = tuple(self._encode(pairs, len(parts)) for pairs in (readings, *alone))
        return LessonPictures(np.stack([p.pixels for p in parts]), conversations)

    def _captions(self, scene: Scene, rng: random.Random) -> list[Pair]:
        things = list(scene.things)
        rng.shuffle(things)
        shapes = [t.shape for t in things]
        words = []
        for thing in things:
            # A lone shape sometimes comes first, so that place is learnt from shape as well as from colour.
            lone = shapes.count(thing.shape) == 1 and rng.random() < 0.5
            first, last = (thing.shape, thing.colour) if lone else (thing.colour, thing.shape)
            words.append(f"{first} {self.box(thing_box(thing))} {last}")
        return [("Describe the image.", " ".join(words), "caption")]

    def _places(self, scene: Scene, rng: random.Random) -> list[Pair]:
        pairs: list[Pair] = []
        shapes = [t.shape for t in scene.things]
        for thing in rng.sample(scene.things, len(scene.things)):
            names = [thing.name, f"{thing.colour} object"]
            names += 2 * [thing.shape] if shapes.count(thing.shape) == 1 else []
            name = rng.choice(names)
            kind = "where-shape" if name == thing.shape else "where"
            pairs.append((f"Where is the {name}?", self.box(thing_box(thing)), kind))
        return pairs

    def _relations(self, scene: Scene, rng: random.Random) -> list[Pair]:
        pool = questions(scene, "relation")
        return [(q.text, q.answer, q.kind) for q in rng.sample(pool, min(6, len(pool)))]

    def _attributes(self, scene: Scene, rng: random.Random) -> list[Pair]:
        """Each thing in one question at most: an earlier turn must not give a later answer away."""
        pairs = [self._attribute(t, scene.things, rng) for t in rng.sample(scene.things, len(scene.things))]
        if rng.random() < 0.8:
            pairs.append(("How many objects are there?", str(len(scene.things)), "count"))
        rng.shuffle(pairs)
        return pairs

    def _attribute(self, thing: Thing, things: Sequence[Thing], rng: random.Random) -> Pair:
        if sum(t.shape == thing.shape for t in things) == 1 and rng.random() < 0.6:
            return f"What colour is the {thing.shape}?", thing.colour, "colour"
        return f"What shape is the {thing.colour} object?", thing.shape, "shape"

    def _lesson(self, view: LessonView, pairs: Sequence[Pair]) -> Lesson:
        lengths = [len(self.tokenizer(" " + a + "</s>", add_special_tokens=False)["input_ids"]) for _, a, _ in pairs]
        kinds = tuple((kind, n) for (_, _, kind), n in zip(pairs, lengths, strict=True))
        return Lesson(view, self._encode(pairs, self.image_tokens), kinds)

    def _encode(self, pairs: Sequence[Pair], image_tokens: int) -> Encoded:
        turns: list[Turn] = []
        for number, (question, answer, _) in enumerate(pairs):
            parts = (FULL, "\n" + question) if number == 0 else (question,)
            turns += [Turn("user", parts), Turn("assistant", (answer,), learn=True)]
        return encode(self.profile, turns, self.tokenizer, self.image_token_id, image_tokens)
