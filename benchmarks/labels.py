"""How good the labels of each annotator are, and what a model trained on them is worth, on the miniature's scenes.

    python benchmarks/labels.py --choose     rules from relevance to region, on scenes of their own
    python benchmarks/labels.py              the table of docs/annotate.md

Scenes: defaults are chosen on seed 500; labels, training and the annotator's own fine-tuning use seed 1; answers are scored on
seed 7002, which nothing else uses. Every step resumes. Chance: each label moved to a random place in its picture.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cos_core import evaluate
from cos_core.annotate import AnnotateConfig
from cos_core.annotate import annotator as finding
from cos_core.annotate import run as annotate
from cos_core.data.datasets import by_image, read_examples
from cos_core.files.images import open_image
from cos_core.geometry import Box, SquarePad
from cos_core.infer import InferConfig
from cos_core.infer import run as infer
from cos_core.interfaces import Relevance, SilentReporter
from cos_core.miniature.scenes import KINDS, write_dataset
from cos_core.relevance import roi
from cos_core.scoring import metrics
from cos_core.store.annotations import Store
from cos_core.system import worker_process
from cos_core.training import TrainConfig
from cos_core.training import run as train
from cos_core.types import Example

POINTED = tuple(kind for kind in KINDS if kind != "scene")
SEEDS = {"choose": (500, 200), "train": (1, 3200), "test": (7002, 400)}
STEPS, BATCH, RATE = 300, 16, 1e-3


@dataclass(frozen=True)
class Row:
    """One annotator: its backbone, detector and settings; `tuned`: after an answer-only fine-tune of its own."""

    name: str
    backbone: str = "regions"
    detector: str | None = None
    tuned: bool = False
    last_layers: int | None = None
    policy: str = "from_single_question"

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "-").replace(",", "")


ROWS = (
    Row("regions, grid", detector="grid"),
    Row("regions, grid, tuned", detector="grid", tuned=True),
    Row("regions, components", detector="components"),
    Row("regions, components, tuned", detector="components", tuned=True),
    Row("patches", "patches"),
    Row("patches, last layer", "patches", last_layers=1),
    Row("patches, last 2 layers", "patches", last_layers=2),
    Row("mixed, grid", "patches", detector="grid"),
    Row("mixed, components", "patches", detector="components"),
    Row("random window", detector="grid", policy="random"),
    Row("gold", policy="gold"),
)


def scenes(out: Path, split: str) -> Path:
    seed, count = SEEDS[split]
    folder = out / "scenes" / split
    if not (folder / "done").exists():
        write_dataset(folder, count, seed, 3)
        (folder / "done").touch()
    return folder


def job(out: Path, row: Row, split: str) -> AnnotateConfig:
    """How the row annotates a split of scenes."""
    folder = scenes(out, split)
    return AnnotateConfig(
        data=folder / "questions.jsonl",
        images=folder / "images",
        model=str(tuned(out, row)) if row.tuned else "miniature",
        out=out / "labels" / row.folder,
        backbone=row.backbone,
        detector=row.detector,
        policy=row.policy,
        last_layers=row.last_layers,
        batch_images=16,
    )


def tuned(out: Path, row: Row) -> Path:
    """The miniature after the annotator's own fine-tune on answers, with this row's detector."""
    folder = scenes(out, "train")
    path = out / "annotators" / str(row.detector)
    train(
        TrainConfig(
            data=folder / "questions.jsonl",
            images=folder / "images",
            model="miniature",
            out=path,
            annotator="regions",
            detector=row.detector,
            learning_rate=RATE,
            batch_size=BATCH,
            global_batch=BATCH,
            max_steps=100,
        ),
        SilentReporter(),
    )
    return path


# --- labels and what they are worth ---


def measure(out: Path, row: Row) -> dict[str, Any]:
    """Labels of the training scenes against gold, and the held-out accuracy of a model trained on them."""
    config = job(out, row, "train")
    began = time.process_time()
    annotate(config, SilentReporter())
    seconds = time.process_time() - began
    with Store.read(config.out) as store:
        boxes = {a.example_id: a.box for a in store.annotations()}
    examples = list(read_examples(config.data))
    model, answers = out / "models" / row.folder, out / "answers" / f"{row.folder}.jsonl"
    train(
        TrainConfig(
            data=config.data,
            images=config.images,
            model="miniature",
            out=model,
            store=config.out,
            learning_rate=RATE,
            warmup_ratio=0.05,
            batch_size=BATCH,
            global_batch=BATCH,
            max_steps=STEPS,
            max_no_region=1.0,
        ),
        SilentReporter(),
    )
    test = scenes(out, "test")
    answers.parent.mkdir(parents=True, exist_ok=True)
    infer(
        InferConfig(
            model=str(model),
            out=answers,
            data=test / "questions.jsonl",
            images=test / "images",
            batch_size=64,
            max_new_tokens=12,
        ),
        SilentReporter(),
    )
    scores = evaluate.run(
        evaluate.EvalConfig(benchmark="scenes", data=test, predictions=answers, out=out / "scores" / row.folder),
        SilentReporter(),
    )
    return {
        "name": row.name,
        "labels": label_table(examples, boxes),
        "accuracy": scores.results["metrics"]["accuracy"],
        "interval": scores.results["intervals"]["accuracy"],
        "seconds": seconds,
    }


def label_table(examples: Sequence[Example], boxes: Mapping[str, Box | None]) -> dict[str, dict[str, float]]:
    """Hit, IoU and area of the labels by kind of question, and the hit and IoU of the same boxes in random places."""
    rng = random.Random(0)
    found: dict[str, dict[str, float]] = {}
    asked = [e for e in examples if e.meta["kind"] in POINTED]
    moved = {e.id: box and _moved(box, rng) for e in asked for box in [boxes.get(e.id)]}
    for kind in ("all", *POINTED):
        chosen = [e for e in asked if kind in ("all", e.meta["kind"])]
        ours = metrics.region_metrics([f for e in chosen if (f := metrics.region_score(e, boxes.get(e.id)))])
        chance = metrics.region_metrics([f for e in chosen if (f := metrics.region_score(e, moved[e.id]))])
        found[kind] = {**ours, "chance_hit": chance["hit"], "chance_iou": chance["iou"]}
    return found


def _moved(box: Box, rng: random.Random) -> Box:
    width, height = box.x1 - box.x0, box.y1 - box.y0
    left, top = rng.random() * (1 - width), rng.random() * (1 - height)
    return Box(left, top, min(1.0, left + width), min(1.0, top + height))


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| labels | all: hit (chance) | IoU (chance) | area | " + " | ".join(POINTED) + " | trained on them |"
    yield "|---|" + "---|" * (4 + len(POINTED))
    for row in rows:
        every = row["labels"]["all"]
        cells = [
            f"{every['hit']:.3f} ({every['chance_hit']:.3f})",
            f"{every['iou']:.3f} ({every['chance_iou']:.3f})",
            f"{every.get('area', 0.0):.2f}",
        ]
        kinds = [row["labels"][kind] for kind in POINTED]
        cells += [f"{k['hit']:.2f} ({k['chance_hit']:.2f}), {k['iou']:.2f} ({k['chance_iou']:.2f})" for k in kinds]
        low, high = row["interval"]
        cells.append(f"{100 * row['accuracy']:.1f} % ({100 * low:.1f}-{100 * high:.1f})")
        yield f"| {row['name']} | " + " | ".join(cells) + " |"


# --- which rule ---


def choose(out: Path, row: Row) -> list[tuple[float, str]]:
    """(mean IoU over the kinds of question, line) for every rule from this row's relevance to a region, best first."""
    config = job(out, row, "choose")
    annotator = finding.build(config)
    found: list[tuple[Example, Relevance, SquarePad]] = []
    for group in by_image(read_examples(config.data)):
        image = open_image(config.images, group[0].image or "")
        assert annotator.backbone is not None
        for example, relevance in zip(group, annotator.backbone.relevance([(image, group)])[0], strict=True):
            found.append((example, relevance, SquarePad(*image.size)))
    lines = []
    for rule in rules():
        boxes = {e.id: _box(relevance, pad, rule) for e, relevance, pad in found}
        labels = label_table([e for e, _, _ in found], boxes)
        mean = sum(labels[kind]["iou"] for kind in POINTED) / len(POINTED)
        every = labels["all"]
        fit = f"IoU {every['iou']:.3f}, by kind {mean:.3f}, hit {every['hit']:.3f}, area {every['area']:.2f}"
        lines.append((mean, f"{row.name:28} {rule} {fit}"))
    return sorted(lines, key=lambda line: -line[0])


def rules() -> Iterator[roi.RoiRule]:
    for extend in (0.0, 0.1):
        yield roi.RoiRule("top1", extend=extend)
        for region in ("component", "union"):
            for threshold in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
                yield roi.RoiRule(region, threshold=threshold, extend=extend)  # type: ignore[arg-type]


def _box(relevance: Relevance, pad: SquarePad, rule: roi.RoiRule) -> Box | None:
    if relevance.regions is not None:
        return roi.from_regions(relevance.regions, rule).box
    return roi.from_heat(relevance.heat or (), pad, rule).box


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/labels"))
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--rows", nargs="*", default=[row.name for row in ROWS])
    parser.add_argument("--jobs", type=int, default=worker_process.cores())
    parser.add_argument("--top", type=int, default=5, help="with --choose: rules shown for each annotator")
    given = parser.parse_args()
    chosen = [row for row in ROWS if row.name in given.rows]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for split in ("choose",) if given.choose else ("train", "test"):
        scenes(given.out, split)
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        if given.choose:
            relevant = [row for row in chosen if row.policy == "from_single_question"]
            for lines in pool.map(choose, [given.out] * len(relevant), relevant):
                print(*(line for _, line in lines[: given.top]), sep="\n", flush=True)
            return
        # An annotator's fine-tune is shared by nobody: each row makes its own first.
        rows = list(pool.map(measure, [given.out] * len(chosen), chosen))
    (given.out / "labels.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
