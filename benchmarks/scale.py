"""What the driver of a run over many workers can take, and what Ray costs over working in this process.

    python benchmarks/scale.py driver [--examples 3000000] [--runner processes|ray] [--workers 1]
    python benchmarks/scale.py overhead [--pictures 2000]

`driver`: `cos annotate` whole (reading the questions, dealing, ordering, the store), with workers that answer at once: made-up
regions instead of a model. Says annotations per second of wall time, the driver's CPU time and its peak memory; exits with 6
below 20,000 a second or above 2 GiB.
`overhead`: the miniature annotates the same questions here and on one Ray worker, in turn; CPU time of everything (Ray's own
processes too, and starting them) over the CPU time here. Exits with 6 above 1.10.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])

from cos_core import runners  # noqa: E402
from cos_core.annotate import AnnotateConfig, run, stage  # noqa: E402
from cos_core.annotate.work import AnnotateJob, WindowBatch, WindowResult  # noqa: E402
from cos_core.data.datasets import Snapshot  # noqa: E402
from cos_core.geometry import Box  # noqa: E402
from cos_core.interfaces import SilentReporter, Worker  # noqa: E402
from cos_core.miniature.scenes import write_dataset  # noqa: E402
from cos_core.runners import RunnerConfig  # noqa: E402
from cos_core.types import Annotation  # noqa: E402

QUESTIONS = 5
"""Questions on a picture: LLaVA-665k has 3.3 million on 665 thousand samples."""
GOAL, MEMORY, LIMIT = 20_000, 2**31, 1.10


class AtOnce(Worker):
    """A worker without a model: a region for every question, from its place."""

    about: Mapping[str, Any] = {"fingerprint": "synthetic", "settings": {"policy": "synthetic"}, "rule": {}, "notes": []}

    def work(self, portions: Iterable[WindowBatch]) -> Iterator[WindowResult]:
        for portion in portions:
            for ask in portion.asks:
                rows = [e for group in ask.groups for e in group]
                made = [
                    Annotation(
                        e.id,
                        Box(0.1, 0.2, 0.6, 0.7 + 0.001 * (n % 100)),
                        0.5,
                        "synthetic",
                        "synthetic",
                        (n % 64,),
                        None,
                        e.image,
                    )
                    for n, e in enumerate(rows)
                ]
                yield WindowResult(made)


@dataclass(frozen=True, slots=True)
class SyntheticJob(AnnotateJob):
    def start(self, device: str) -> Any:
        return AtOnce()


def driver(examples: int, runner: str, workers: int) -> int:
    stage.AnnotateJob = SyntheticJob  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="cos-scale-") as name:
        folder = Path(name)
        pictures = examples // QUESTIONS
        with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
            for number in range(pictures):
                turns = [
                    {"from": who, "value": text}
                    for k in range(QUESTIONS)
                    for who, text in (("human", f"What is thing number {k} in this picture?"), ("gpt", f"A thing, number {k}."))
                ]
                turns[0]["value"] = "<image>\n" + turns[0]["value"]
                image = f"coco/train2017/{number:012d}.jpg"
                file.write(json.dumps({"id": f"{number:012d}", "image": image, "conversations": turns}) + "\n")
        scale = RunnerConfig(runner, workers)
        config = AnnotateConfig(
            folder / "data.jsonl", folder, "none", folder / "rois", policy="random", device="cpu", scale=scale
        )
        begun, cpu = time.perf_counter(), time.process_time()
        made = run(config, SilentReporter())
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
        size = (folder / "rois" / "data.mdb").stat().st_blocks * 512
    count = made.counts["ok"]
    assert count == pictures * QUESTIONS, made.counts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = count / wall
    print(f"{runner}, {workers} synthetic worker(s), {count:,} annotations of {pictures:,} pictures, whole job:")
    print(f"  {rate:,.0f} annotations/s (goal {GOAL:,}); wall {wall:.1f} s, CPU of the driver {cpu:.1f} s")
    print(f"  peak memory of the driver {peak / 2**20:,.0f} MiB (goal under {MEMORY >> 20:,}); store {size / 2**20:,.0f} MiB")
    return 0 if rate >= GOAL and peak < MEMORY else 6


def _tree(pid: int) -> float:
    """CPU seconds of the processes below `pid` that live."""
    tick = os.sysconf("SC_CLK_TCK")
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
        # Its own time and that of children which it has waited for.
        used[int(path.parent.name)] = sum(int(x) for x in fields[11:15]) / tick
    below, new = set(), {pid}
    while new:
        below |= new
        new = {child for child, parent in parents.items() if parent in new} - below
    return sum(used[p] for p in below - {pid} if p in used)


def _once(folder: Path, scale: RunnerConfig) -> tuple[float, float]:
    """(CPU seconds before the first portion, CPU seconds of the work) of one job, of all its processes, Ray's included."""
    scenes = folder / "scenes"
    job = AnnotateConfig(scenes / "questions.jsonl", scenes / "images", "miniature", folder / "rois", device="cpu", scale=scale)
    portions = _portions(job)
    with runners.build(scale, AnnotateJob(job), "cpu", SilentReporter()) as runner:
        _ = runner.about
        begun = _spent()
        made = sum(len(found.annotations) for found in runner.map(portions))
        assert made, "nothing was annotated"
        return begun, _spent() - begun


def _spent() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + _tree(os.getpid())


def _portions(config: AnnotateConfig) -> list[WindowBatch]:
    from cos_core.annotate.work import WindowRequest

    windows = list(stage.windows(config, Snapshot(config.data)))
    return [
        WindowBatch([WindowRequest(w) for w in windows[i : i + stage.PORTION]]) for i in range(0, len(windows), stage.PORTION)
    ]


def overhead(pictures: int, rounds: int) -> int:
    with tempfile.TemporaryDirectory(prefix="cos-scale-") as name:
        folder = Path(name)
        write_dataset(folder / "scenes", pictures, 7, 3)
        found: dict[str, list[tuple[float, float]]] = {"local": [], "ray": []}
        for number in range(rounds):
            for runner in ("local", "ray") if number % 2 == 0 else ("ray", "local"):
                command = [sys.executable, __file__, "once", "--runner", runner, "--folder", str(folder)]
                told = subprocess.run(command, check=True, capture_output=True, text=True)
                begun, work = json.loads(told.stdout.splitlines()[-1])
                found[runner].append((begun, work))
                print(f"  {runner}: {begun:.1f} CPU s to begin, {work:.1f} CPU s of work", flush=True)
    middle = {runner: [statistics.median(pair[k] for pair in pairs) for k in (0, 1)] for runner, pairs in found.items()}
    work = middle["ray"][1] / middle["local"][1]
    whole = sum(middle["ray"]) / sum(middle["local"])
    print(f"{pictures} pictures, {3 * pictures} questions at most, {rounds} rounds, medians:")
    print(f"  to begin: {middle['local'][0]:.1f} CPU s here, {middle['ray'][0]:.1f} with Ray; the work: {work:.3f}x")
    print(f"  one worker on ray: {whole:.3f} x local in all (limit {LIMIT})")
    return 0 if whole <= LIMIT else 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["driver", "overhead", "once"])
    parser.add_argument("--examples", type=int, default=3_000_000)
    parser.add_argument("--runner", default="processes")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.what == "driver":
        return driver(given.examples, given.runner, given.workers)
    if given.what == "overhead":
        return overhead(given.pictures, given.rounds)
    print(json.dumps(_once(given.folder, RunnerConfig(given.runner, 1))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
