"""From a picture to a trained model, with families beside LLaVA-1.5: the map lies on what the answer is about.

The checkpoints of glyph_world.py name the colour of a disc that may stand anywhere. `cos annotate` must find it, in pictures of
five shapes; controls that do not look must not. What it found is then learnt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import glyph_world
import numpy as np
import pytest
import tiny_families
from glyph_world import SHAPES, Scene
from training_world import log_of, weights

from cos_core import training
from cos_core.annotate import AnnotateConfig
from cos_core.annotate import run as annotate
from cos_core.files.jsonl import read_lines
from cos_core.geometry import Box
from cos_core.infer import InferConfig
from cos_core.infer import run as infer
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import Store
from cos_core.training import TrainConfig
from cos_core.types import Prediction

PICTURES = 200
FROZEN = ("visual.", "vision_tower.", "multi_modal_projector.", "image_newline")

pytestmark = pytest.mark.usefixtures("one_thread")


class World:
    """Scenes as files of a data set, a checkpoint of the family that can answer, and what `cos annotate` made of them."""

    def __init__(self, root: Path, name: str, count: int = PICTURES) -> None:
        self.root = root
        self.scenes = glyph_world.scenes(count, seed=7)
        self.model = glyph_world.checkpoint(name, root / "model")
        self.unlearnt = tiny_families.build(name, root / "unlearnt", shape=SHAPES[name])
        glyph_world.write_data(root, self.scenes)
        self.store = self.annotated(self.model, "store")

    def annotated(self, model: Path, out: str) -> Path:
        options: dict[str, Any] = {"backbone": "patches", "device": "cpu", "dtype": "float32", "keep_heat": True}
        annotate(
            AnnotateConfig(self.root / "data.json", self.root / "images", str(model), self.root / out, **options),
            SilentReporter(),
        )
        return self.root / out

    def answered(self, model: Path, out: str, **options: Any) -> list[Prediction]:
        config = InferConfig(
            model, self.root / out, self.root / "data.json", self.root / "images", device="cpu", dtype="float32", **options
        )
        infer(config, SilentReporter())
        return [Prediction.from_json(record) for _, record in read_lines(self.root / out)]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    made: dict[str, World] = {}

    def of(name: str) -> World:
        if name not in made:
            made[name] = World(tmp_path_factory.mktemp(name), name)
        return made[name]

    return of


def peak(heat: np.ndarray, size: tuple[int, int]) -> tuple[float, float]:
    """(x, y) in fractions of the picture: the middle of the map's hottest cells, as far as they are part of the picture."""
    side, middle = max(size), []
    for axis, length in ((1, size[0]), (0, size[1])):
        edges = np.arange(heat.shape[axis] + 1) * side / heat.shape[axis] - (side - length) // 2
        edges = edges.clip(0, length) / length
        hottest = np.nonzero(heat == heat.max())[axis]
        middle.append(float((edges[hottest] + edges[hottest + 1]).mean() / 2))
    return middle[0], middle[1]


def holds(box: Box | None, point: tuple[float, float]) -> bool:
    return box is not None and box.x0 <= point[0] <= box.x1 and box.y0 <= point[1] <= box.y1


def centre(box: Box) -> tuple[float, float]:
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def peaks(store: Path, scenes: list[Scene]) -> list[tuple[float, float]]:
    with Store.read(store) as opened:
        return [peak(np.array(opened.heat(a.example_id)), s.image.size) for a, s in zip(_in_order(opened), scenes, strict=True)]


def regions(store: Path) -> list[Box | None]:
    with Store.read(store) as opened:
        return [a.box for a in _in_order(opened)]


def _in_order(store: Any) -> list[Any]:
    return sorted(store.annotations(), key=lambda annotation: annotation.image)


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
class TestADisc:
    def test_is_answered(self, name: str, worlds: Callable[[str], World]) -> None:
        world = worlds(name)
        answers = world.answered(world.model, "answers.jsonl", roi="none")
        assert share([a.answer == s.answer for a, s in zip(answers, world.scenes, strict=True)]) >= 0.95

    def test_is_where_the_map_peaks_and_in_the_region(self, name: str, worlds: Callable[[str], World]) -> None:
        """The region also is one: it is not the picture."""
        world = worlds(name)
        found = peaks(world.store, world.scenes)
        assert share([holds(s.box, at) for s, at in zip(world.scenes, found, strict=True)]) >= 0.95
        boxes = regions(world.store)
        assert share([holds(box, centre(s.box)) for s, box in zip(world.scenes, boxes, strict=True)]) >= 0.95
        assert np.mean([(box.x1 - box.x0) * (box.y1 - box.y0) for box in boxes if box]) < 0.2

    def test_is_missed_by_whoever_does_not_look(self, name: str, worlds: Callable[[str], World]) -> None:
        """The middle of the picture, the map of another picture of its size, a model that learnt nothing."""
        world = worlds(name)
        found, sizes = peaks(world.store, world.scenes), len(glyph_world.SIZES)
        unlearnt = peaks(world.annotated(world.unlearnt, "unlearnt-store"), world.scenes)
        assert share([holds(s.box, (0.5, 0.5)) for s in world.scenes]) < 0.3
        assert share([holds(s.box, at) for s, at in zip(world.scenes[sizes:], found, strict=False)]) < 0.3
        assert share([holds(s.box, at) for s, at in zip(world.scenes, unlearnt, strict=True)]) < 0.4

    def test_is_learnt_to_be_looked_at(self, name: str, worlds: Callable[[str], World]) -> None:
        world = worlds(name)
        training.run(
            TrainConfig(
                data=world.root / "data.json",
                images=world.root / "images",
                model=str(world.model),
                out=world.root / "trained",
                store=world.store,
                learning_rate=3e-3,
                batch_size=8,
                global_batch=None,
                max_steps=30,
                device="cpu",
            ),
            SilentReporter(),
        )
        losses = [record["loss"] for record in log_of(world.root / "trained")]
        assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
        before, after = weights(world.model), weights(world.root / "trained")
        changed = {key for key in before if not before[key].equal(after[key])}
        assert changed == {key for key in before if not key.startswith(FROZEN)}
        # It has not learnt a box's text by heart yet, but answers in one where the grammar holds it to that.
        predictions = world.answered(world.root / "trained", "chained.jsonl", box_decode="grammar", limit=10)
        assert [(p.box_status, p.error) for p in predictions] == [("ok", None)] * 10
        assert all(p.box is not None and p.answer for p in predictions)
