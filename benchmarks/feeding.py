"""Does `cos annotate` keep its model busy? Pictures a second with a stand-in that takes a GPU's time and none of the CPU's.

    python benchmarks/feeding.py [--pictures 64] [--seconds 0.2] [--threads 1 2]

Real photographs' size (640x480 JPEG), the backbone `regions` with its grid of windows, each cut, padded and resized to 336
pixels in bfloat16, through the worker of the stage. The stand-in sleeps where the vision tower and the sweep would compute:
`--seconds` a picture, by default what 7B takes on an A100 by arithmetic (docs/scale.md). "serial" does as one thread would:
reads and cuts a window's pictures, then asks the model. The others read and cut ahead, in that many threads. Every way must
give the same regions. Exit code 6: they differ, or reading ahead gives less than 1.25 times as many pictures as serial.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from cos_core.annotate import AnnotateConfig
from cos_core.annotate.annotator import Annotator, RegionResult
from cos_core.annotate.work import AnnotateWorker, WindowBatch, WindowRequest
from cos_core.backbones._pictures import Shown
from cos_core.backbones.regions import ROI, RegionsBackbone
from cos_core.detectors.grid import Grid
from cos_core.dialogue.prompts import load_profile
from cos_core.files import plug
from cos_core.files.images import ImageSource, reuse_memory
from cos_core.models.llava import Llava, LlavaEncoder
from cos_core.relevance import roi
from cos_core.system import memory, worker_process
from cos_core.types import Example

SIDE, QUESTIONS, WINDOW = 336, 5, 8
TOWER = 0.47
"""Of a picture's time, the vision tower's share: thirty windows against five questions, 12 of 25.5 TFLOP."""
GOAL = 1.25


class SleepingLlava(Llava):
    """A LLaVA without weights whose vision tower sleeps, and gives some of a picture's pixels as its features."""

    work: Callable[[float], None]

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.work(TOWER * len(pixel_values) / 29)
        return pixel_values[:, 0, ::14, ::14].reshape(len(pixel_values), -1, 1)


@dataclass
class StandIn:
    """An Asker that sleeps; its relevance is made of the pixels, so that other crops would give other regions."""

    seconds: float
    pictures_allowed: memory.Allowance = field(default_factory=memory.Allowance)
    worked: float = 0.0

    def __post_init__(self) -> None:
        from transformers import CLIPImageProcessorPil

        size = {"height": SIDE, "width": SIDE}
        config = SimpleNamespace(vision_config=SimpleNamespace(image_size=SIDE, patch_size=14))
        images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
        encoder = LlavaEncoder(config, None, images, load_profile("paper"), 0, 576, fill=(122, 116, 104))
        self.model = SleepingLlava(SimpleNamespace(config=config, dtype=torch.bfloat16), encoder, "stand-in", "")
        self.model.work = self.work

    def work(self, share: float) -> None:
        """Sleeps for a share of a picture's time."""
        time.sleep(self.seconds * share)
        self.worked += self.seconds * share

    def question(self, _example: Example, shown: Shown) -> torch.Tensor:
        features: torch.Tensor = shown.features
        return features

    def explain(self, _examples: Sequence[Example], questions: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.work((1 - TOWER) * len(questions) / QUESTIONS)
        return [features[:, 0].float().abs() for features in questions]


def write_pictures(folder: Path, count: int) -> list[list[Example]]:
    groups = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        name = f"{number:04d}.jpg"
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(folder / name, quality=90)
        groups.append([Example(f"{number}#{k}", "d", name, f"what is {k}?", answers=("x",)) for k in range(QUESTIONS)])
    return groups


def made(folder: Path, seconds: float) -> tuple[Annotator, StandIn, RegionsBackbone]:
    asker = StandIn(seconds)
    backbone = RegionsBackbone(asker, Grid(), {"name": "regions"})  # type: ignore[arg-type]
    policy = plug.load("policies", "from_single_question")
    return Annotator(policy, roi.RoiRule(ROI.region, ROI.threshold), folder, 0, True, {}, "f", backbone), asker, backbone


def serial(
    folder: Path, windows: Sequence[Sequence[list[Example]]], seconds: float
) -> tuple[float, StandIn, list[RegionResult]]:
    annotator, asker, backbone = made(folder, seconds)
    outcomes: list[RegionResult] = []
    start = time.monotonic()
    for window in windows:
        source = _Kept(folder)
        for group in window:
            backbone.prepare(source.open(group[0].image or ""), group[0].image or "")
        outcomes += annotator.outcomes(window, source)
    return time.monotonic() - start, asker, outcomes


class _Kept(ImageSource):
    """Opens a picture once."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._open: dict[str, Image.Image] = {}

    def open(self, name: str) -> Image.Image:
        if name not in self._open:
            self._open[name] = super().open(name)
        return self._open[name]


def ahead(
    folder: Path, windows: Sequence[Sequence[list[Example]]], seconds: float, threads: int
) -> tuple[float, StandIn, list[RegionResult], float]:
    worker_process._feeders = threads
    annotator, asker, backbone = made(folder, seconds)
    worker = AnnotateWorker(annotator, AnnotateConfig(folder / "d", folder, "none", folder / "o"))
    outcomes: list[RegionResult] = []
    held = 0
    start = time.monotonic()
    for found in worker.outcomes(WindowBatch([WindowRequest(window)]) for window in windows):
        held = max(held, backbone.ahead.held)
        outcomes += found
    return time.monotonic() - start, asker, outcomes, held / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.2, help="of the model, a picture")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    reuse_memory()
    with tempfile.TemporaryDirectory(prefix="cos-feeding-") as name:
        folder = Path(name)
        groups = write_pictures(folder, asked.pictures)
        windows = [groups[i : i + WINDOW] for i in range(0, len(groups), WINDOW)]
        cpu = time.process_time()
        before, asker, expected = serial(folder, windows, asked.seconds)
        each = (time.process_time() - cpu) / len(groups)
        print(f"{len(groups)} pictures, {QUESTIONS} questions each, model {asked.seconds} s and CPU {each:.3f} s a picture\n")
        print("| way | pictures/s | the model works | MiB ready ahead |\n|---|---|---|---|")
        print(f"| serial | {len(groups) / before:.2f} | {asker.worked / before:.0%} | 0 |", flush=True)
        missed, best = [], before
        for threads in asked.threads:
            wall, asker, outcomes, held = ahead(folder, windows, asked.seconds, threads)
            print(
                f"| ahead, {threads} threads | {len(groups) / wall:.2f} | {asker.worked / wall:.0%} | {held:.0f} |", flush=True
            )
            if outcomes != expected:
                missed.append(f"{threads} threads: the regions differ from those of one thread")
            best = min(best, wall)
    if before / best < GOAL:
        missed.append(f"{before / best:.2f} times as many pictures as serial, and the goal is {GOAL}")
    for line in missed:
        print(line, file=sys.stderr)
    return 6 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
