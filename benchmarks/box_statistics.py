"""Statistics of millions of stored boxes: seconds, memory, and whether the figures equal plain numpy's.

    python benchmarks/box_statistics.py [BOXES] [FOLDER]     (3.3 million, a temporary folder)

A store that is in FOLDER already is read again. Memory is the most that the process held, the pages of the store's file that
the system lends it included.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import Store
from cos_core.types import Annotation
from cos_core.visualize.boxes import BoxStatsConfig, run

MARK = "b" * 16
SETS = ("coco", "gqa", "textvqa", "vg")


def corners(boxes: int) -> np.ndarray:
    """(boxes, 4): x0, y0, x1, y1 of seeded random boxes, to three decimals."""
    generator = np.random.default_rng(0)
    low = generator.uniform(0, 0.7, (boxes, 2)).round(3)
    return np.concatenate([low, np.minimum(1.0, (low + generator.uniform(0.05, 0.6, (boxes, 2))).round(3))], axis=1)


def annotations(values: np.ndarray) -> Iterator[Annotation]:
    for number, (x0, y0, x1, y1) in enumerate(values):
        image = f"{SETS[number % 4]}/{number // 5:09d}.jpg"
        box = Box(float(x0), float(y0), float(x1), float(y1))
        yield Annotation(f"{number:09d}#q0", box, 1.5, "from_single_question", MARK, (3,), image=image)


def memory(name: str) -> float:
    """A line of this process's status, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measured(store: Path, out: Path, answer: multiprocessing.SimpleQueue) -> None:
    """In a process of its own, so that memory is the statistics' alone."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = run(BoxStatsConfig(store, out), SilentReporter()).results
    answer.put((found, time.perf_counter() - wall, time.process_time() - cpu, memory("VmHWM")))


def main() -> None:
    boxes = int(sys.argv[1]) if len(sys.argv) > 1 else 3_300_000
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else scratch)
        values = corners(boxes)
        if not (folder / "store").is_dir():
            with Store.create_or_resume(folder / "store", MARK, {}) as store:
                store.put_many(annotations(values))
        context = multiprocessing.get_context("spawn")
        answer = context.SimpleQueue()
        process = context.Process(target=measured, args=(folder / "store", folder / "out", answer))
        process.start()
        found, wall, cpu, most = answer.get()
        process.join()
    side = values[:, 2:] - values[:, :2]
    offset = np.hypot(*((values[:, :2] + values[:, 2:]) / 2 - 0.5).T)
    plain = {
        "area": side.prod(axis=1).mean(),
        "centre_offset": offset.mean(),
        "aspect": np.exp(np.log(side[:, 0] / side[:, 1]).mean()),
    }
    apart = max(abs(found[name]["mean"] / value - 1) for name, value in plain.items())
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}, numpy {np.__version__}")
    print("| boxes | seconds | CPU seconds | peak memory, MB | furthest mean from numpy's |")
    print("|---|---|---|---|---|")
    print(f"| {found['boxes']:,} | {wall:.1f} | {cpu:.1f} | {most:.0f} | {apart:.1e} |")


if __name__ == "__main__":
    main()
