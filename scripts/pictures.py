"""Makes the pictures of the documents from what the bundled miniature answers: `python scripts/pictures.py docs/pictures`.

The scene, the box, the answer and the relevance map are outputs of `cos infer` and `cos annotate` on one drawn scene. No
training comes before them: the miniature that ships with `cos` learnt the two passes in its pre-training.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Rectangle
from PIL import Image

from cos_core.geometry import Box
from cos_core.miniature.scenes import write_dataset

SEED, SCENE = 7, 6
EXAMPLE = f"{SEED}-{SCENE:05d}#q1"
ENCODER_PX = 40
"""Side of the miniature's input, in pixels."""

ORANGE, INK = "#E69F00", "#1B1B1F"


def main(out: Path) -> None:
    """Writes two_passes.png, overlay.png and relevance.png into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        data = _scene(Path(work) / "scene")
        images = data.parent / "images"
        answers, regions = Path(work) / "answers.jsonl", Path(work) / "regions"
        source = ("--data", str(data), "--images", str(images))
        _cos("infer", "--model", "miniature", *source, "--box-decode", "grammar", "--out", str(answers))
        _cos("annotate", "--model", "miniature", *source, "--keep-heat", "--out", str(regions))
        drawn = ("visualize", "overlay", "--example", EXAMPLE, *source)
        _cos(*drawn, "--predictions", str(answers), "--out", str(out / "overlay.png"))
        _cos(*drawn, "--store", str(regions), "--out", str(out / "relevance.png"))
        (record,) = [record for record in map(json.loads, answers.read_text().splitlines()) if record["example_id"] == EXAMPLE]
        two_passes(Image.open(images / record["image"]).convert("RGB"), record, out / "two_passes.png")
    for manifest in out.glob("*.manifest.json"):
        manifest.unlink()


def _scene(folder: Path) -> Path:
    """The questions' file of one scene; drawing starts at the seed's first scene, so the later ones are cut off."""
    questions = write_dataset(folder, SCENE + 1, SEED, per_image=3)
    questions.write_text(questions.read_text(encoding="utf-8").splitlines()[SCENE] + "\n", encoding="utf-8")
    return questions


def _cos(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "cos_cli", *words, "--quiet"], check=True)


def two_passes(picture: Image.Image, record: dict[str, Any], path: Path) -> None:
    """Three panels: the whole picture as the encoder gets it, the first pass with its box, the second with the crop."""
    box = Box.from_json(record["box"])
    left, top, right, bottom = (round(edge * picture.width) for edge in box.corners)
    small = picture.resize((ENCODER_PX, ENCODER_PX), Image.Resampling.BICUBIC)
    crop = picture.crop((left, top, right, bottom)).resize((ENCODER_PX, ENCODER_PX), Image.Resampling.BICUBIC)
    panels = [
        (small, f"The encoder's input: {ENCODER_PX} x {ENCODER_PX} pixels", record["question"] + "\n"),
        (picture, "Pass 1: where to look?", f"the model writes\n{record['box_text']}"),
        (crop, f"Pass 2: the region, {ENCODER_PX} x {ENCODER_PX} pixels", f"the model answers\n“{record['answer']}”"),
    ]
    figure, axes = pyplot.subplots(1, 3, figsize=(9.6, 3.9), facecolor="white")
    for axis, (image, title, words) in zip(axes, panels, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=11, color=INK, pad=8)
        axis.set_xlabel(words, fontsize=11, color=INK, labelpad=8)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[1].add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=ORANGE, linewidth=3))
    for spine in axes[2].spines.values():
        spine.set(color=ORANGE, linewidth=3)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
