"""What a GPU makes of it: two-pass answers, annotation and training of LLaVA-1.5-7B's shape, random weights, in ten minutes.

    python benchmarks/gpu.py                             all parts on the first GPU, as tables
    python benchmarks/gpu.py --into docs/performance.md  the same, and the tables put where that page holds them
    python benchmarks/gpu.py --device cpu --small        the same path with a tiny shape: it measures nothing

Each part is a process of its own, so that its peak memory is its own, and may take what is left of --minutes. A part that fails
or does not finish is named in its row. Parts: `two-pass` (one round of the arms of benchmarks/two_pass.py), `annotate`
(questions a second and peak memory of the backbones `regions` and `patches`, the pictures read from disk), `train` (`cos train`
up to its last save: tokens a second, MFU and peak memory of full fine-tuning with as many layers as the memory holds, of LoRA
with all layers, and of ZeRO-3 with one process). Speed and memory do not depend on the weights; the answers' lengths are fixed.

Peak memory is what torch held at most (max_memory_allocated); MFU is model FLOPs over the card's bfloat16 peak for dense
products (cos_core/training/flops.py), recomputation not counted. Without a GPU nothing is measured and the exit code is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cos_core.errors import CosError

sys.path.insert(0, str(Path(__file__).resolve().parent))
import random_models
import two_pass

BEGIN, END = "<!-- gpu tables: begin -->", "<!-- gpu tables: end -->"
SMALL = random_models.Shape(128, 2, 344, 32000, 64, 2, 128)
TRAINING_BYTES = 16
"""Bytes that full training holds of one weight: float32 weight, gradient and two moments."""
FREE_SHARE = 0.8
"""Share of the card's memory that weights and optimiser may take in full training; the rest is for activations."""
ARMS = (two_pass.ONE, "two passes, no reuse", "two passes, reuse", "reuse, 8 questions a picture")
TRAINING = {
    "full": {},
    "LoRA": {"lora": 64},
    "ZeRO-3, one process": {"deepspeed": "zero3"},
}
WARM_STEPS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What every part is told. `folder`: where the checkpoints and the data lie."""

    folder: Path
    device: str
    small: bool

    @property
    def shape(self) -> random_models.Shape:
        return SMALL if self.small else random_models.SHAPE_7B

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"

    @property
    def peak(self) -> float | None:
        return two_pass.peak_flops(torch.cuda.get_device_name()) if self.device == "cuda" else None

    def memory_gib(self) -> float:
        """What was held at most: on the GPU by torch, else by this process."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class EnoughError(BaseException):
    """Raised by a Reporter to end a run that has been watched long enough; no error, so that no handler takes it for one."""


class Steps:
    """A Reporter that ends a training run after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    warn = note

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        if stage == "train" and done >= self.steps:
            raise EnoughError


# --- what the parts work on ---


def prepare(plan: Plan) -> dict[str, Any]:
    """The checkpoint, one with fewer layers where full training of all does not fit, and pictures with questions."""
    start = time.perf_counter()
    model = plan.folder / "model"
    model.mkdir()
    random_models.make_model(model, plan.shape, getattr(torch, plan.dtype), plan.device)
    layers = fitting_layers(plan)
    if layers < plan.shape.layers:
        shorter = plan.folder / "shorter"
        shorter.mkdir()
        random_models.make_model(shorter, replace(plan.shape, layers=layers), getattr(torch, plan.dtype), plan.device)
    questions(plan.folder, pictures=24 if plan.small else 64, asked=1 if plan.small else 3)
    return {"seconds": time.perf_counter() - start, "layers": layers}


def fitting_layers(plan: Plan) -> int:
    """How many decoder layers full training leaves room for on this card."""
    shape = plan.shape
    if plan.device != "cuda":
        return shape.layers
    layer = 4 * shape.width**2 + 3 * shape.width * shape.inner
    fixed = 2 * shape.width * shape.vocabulary * TRAINING_BYTES + 2 * 2**30  # embeddings, head; the frozen tower
    room = FREE_SHARE * torch.cuda.mem_get_info()[1] - fixed
    return max(1, min(shape.layers, int(room // (layer * TRAINING_BYTES))))


def questions(folder: Path, pictures: int, asked: int) -> None:
    """JPEGs of 640x480 with `asked` questions each, LLaVA's conversation records, answers of a few words."""
    random = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    records = []
    for i in range(pictures):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(images / f"{i}.jpg", quality=90)
        for k in range(asked):
            words = [
                {"from": "human", "value": f"<image>\nWhat is the man number {k} on the left doing?"},
                {"from": "gpt", "value": "He rides a red bus."},
            ]
            records.append({"id": f"{i}-{k}", "image": f"{i}.jpg", "conversations": words})
    (folder / "questions.json").write_text(json.dumps(records))


# --- the parts ---


def answers(plan: Plan) -> dict[str, Any]:
    """Answers a second and MFU of each arm."""
    from cos_core.models import llava

    model = llava.load(plan.folder / "model", device=plan.device, dtype=plan.dtype, profile="paper")
    count = 4 if plan.small else 64
    two_pass.Arms(model, 2, 2).engine("warm-up", "from_single_question")
    arms = two_pass.Arms(model, count, count // 2)
    arms.once()
    floors = two_pass.operations(model, two_pass.built(plan.shape, model))
    peak = plan.peak
    rows = {
        name: {"rate": 1 / arms.seconds(name), "mfu": floors[name] / arms.seconds(name) / peak if peak else None}
        for name in (*ARMS, two_pass.LOOP)
    }
    return {"rows": rows, "gib": plan.memory_gib()}


def annotate(plan: Plan, backbone: str) -> dict[str, Any]:
    """Questions a second of the worker that `cos annotate` runs, once its first window is done."""
    from cos_core.annotate import AnnotateConfig, stage
    from cos_core.annotate.work import AnnotateJob, WindowBatch, WindowRequest
    from cos_core.data.datasets import Snapshot

    config = AnnotateConfig(
        data=plan.folder / "questions.json",
        images=plan.folder / "images",
        model=str(plan.folder / "model"),
        out=plan.folder / f"store-{backbone}",
        backbone=backbone,
        device=plan.device,
        dtype=plan.dtype,
    )
    worker = AnnotateJob(config).start(plan.device)
    portions = [WindowBatch([WindowRequest(window)]) for window in stage.windows(config, Snapshot(config.data))]
    done, times = 0, []
    for regions in worker.work(iter(portions)):
        if regions.failures:
            raise CosError(f"{len(regions.failures)} questions failed, the first: {regions.failures[0]}")
        times.append(time.perf_counter())
        done += len(regions.annotations) if len(times) > 1 else 0
    return {"rate": done / (times[-1] - times[0]), "questions": done, "gib": plan.memory_gib()}


def train(plan: Plan, way: str, layers: int, batch: int) -> dict[str, Any]:
    """Tokens a second and MFU from the log of a `cos train` that is stopped before it saves; the first steps do not count."""
    from cos_core import training
    from cos_core.training.run_folder import LOG_FILE

    shorter = way != "LoRA" and layers < plan.shape.layers
    config = training.TrainConfig(
        data=plan.folder / "questions.json",
        images=plan.folder / "images",
        model=str(plan.folder / ("shorter" if shorter else "model")),
        out=plan.folder / f"trained-{way.split(',')[0]}-{batch}",
        policy="center_crop",
        batch_size=batch,
        global_batch=None,
        epochs=20,
        save_minutes=None,
        check="off",
        device=plan.device,
        **TRAINING[way],
    )
    steps = 3 if plan.small else 8
    with contextlib.suppress(EnoughError):
        training.run(config, Steps(WARM_STEPS + steps))
    log = [json.loads(line) for line in (config.out / LOG_FILE).read_text().splitlines()][WARM_STEPS:]
    rates = [record["tokens"] / record["seconds"] for record in log]
    shares = [record["mfu"] for record in log if record["mfu"] is not None]
    return {
        "rate": statistics.median(rates),
        "mfu": statistics.median(shares) if shares else None,
        "gib": plan.memory_gib(),
        "layers": layers if shorter else plan.shape.layers,
        "batch": batch,
    }


# --- one process a part, and the tables ---


def part_of(name: str, plan: Plan, layers: int, batch: int) -> dict[str, Any]:
    """Does one part in this process."""
    kind, _, which = name.partition(":")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "prepare": lambda: prepare(plan),
        "two-pass": lambda: answers(plan),
        "annotate": lambda: annotate(plan, which),
        "train": lambda: train(plan, which, layers, batch),
    }
    return parts[kind]()


def measured(name: str, chosen: argparse.Namespace, folder: Path, ends: float, **told: int) -> dict[str, Any]:
    """A part's figures, or {"failed": why}; its process is ended when the time is up."""
    left = ends - time.monotonic()
    if left < 5:
        return {"failed": f"not measured: the {chosen.minutes:g} minutes were over"}
    if chosen.device == "cpu":
        return forked(name, Plan(folder, chosen.device, chosen.small), left, **told)
    command = [sys.executable, __file__, "--part", name, "--folder", str(folder), "--device", chosen.device]
    command += ["--small"] if chosen.small else []
    command += [word for key, value in told.items() for word in (f"--{key}", str(value))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished within the {chosen.minutes:g} minutes"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    print(done.stderr[-2000:], file=sys.stderr)
    words = done.stderr.strip().splitlines()
    return {"failed": words[-1][:120] if words else f"ended with {done.returncode}"}


def forked(name: str, plan: Plan, left: float, layers: int = 0, batch: int = 0) -> dict[str, Any]:
    """`measured` without a GPU, which a forked process could not use: the libraries are imported once for all parts."""
    from cos_core import training  # noqa: F401
    from cos_core.models import llava  # noqa: F401

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        try:
            theirs.send(part_of(name, plan, layers, batch))
        except Exception as error:
            theirs.send({"failed": f"{type(error).__name__}: {error}"[:120]})

    child = context.Process(target=work)
    child.start()
    theirs.close()
    try:
        result: dict[str, Any] = ours.recv() if ours.poll(left) else {"failed": "not finished in time"}
    except EOFError:
        result = {"failed": "its process died"}
    child.kill()
    child.join()
    return result


def measured_training(way: str, chosen: argparse.Namespace, folder: Path, ends: float, layers: int) -> dict[str, Any]:
    """The largest batch of 16, 8, 4, ... that fits."""
    batch = 2 if chosen.small else 16
    while True:
        result = measured(f"train:{way}", chosen, folder, ends, layers=layers, batch=batch)
        if batch == 1 or "memory" not in result.get("failed", ""):
            return result
        batch //= 2


def tables(chosen: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Lines of Markdown, a table as soon as its parts are done."""
    ends = time.monotonic() + 60 * chosen.minutes
    made = measured("prepare", chosen, folder, ends)
    if "failed" in made:
        raise SystemExit(f"the checkpoint could not be made: {made['failed']}")
    if chosen.device == "cuda":
        where = f"one {torch.cuda.get_device_name()}; LLaVA-1.5-7B's shape in bfloat16, random weights"
    else:
        where = "a CPU: a tiny shape, and no measurement"
    yield f"`python benchmarks/gpu.py` on {where}; torch {torch.__version__}, transformers {two_pass.transformers.__version__}."
    yield ""
    answered = measured("two-pass", chosen, folder, ends)
    yield "| two passes | answers/s | MFU |"
    yield "|---|---|---|"
    for arm in (*ARMS, two_pass.LOOP):
        row = answered.get("rows", {}).get(arm)
        yield f"| {arm} | {answered['failed']} | |" if row is None else f"| {arm} | {row['rate']:.2f} | {share(row['mfu'])} |"
    yield ""
    yield "| annotation | questions/s | peak memory, GiB |"
    yield "|---|---|---|"
    for backbone in ("regions", "patches"):
        row = measured(f"annotate:{backbone}", chosen, folder, ends)
        cells = f"{row['failed']} | " if "failed" in row else f"{row['rate']:.1f} | {row['gib']:.1f}"
        yield f"| backbone `{backbone}` | {cells} |"
    yield ""
    yield "| training | layers | batch | tokens/s | MFU | peak memory, GiB |"
    yield "|---|---|---|---|---|---|"
    for way in TRAINING:
        row = measured_training(way, chosen, folder, ends, made["layers"])
        if "failed" in row:
            yield f"| {way} | | | {row['failed']} | | |"
        else:
            yield f"| {way} | {row['layers']} | {row['batch']} | {row['rate']:.0f} | {share(row['mfu'])} | {row['gib']:.1f} |"


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def put_into(page: Path, text: str) -> None:
    """Replaces what stands between the two marks of a page. Raises SystemExit when they are not there."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has no place for the tables: {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny shape, to see that everything runs")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--into", type=Path, help="a page whose tables are to be replaced")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written (14 GB); default: the temporary folder")
    for name in ("--part", "--layers", "--batch"):
        parser.add_argument(name, type=str if name == "--part" else int, default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("not measured: torch sees no CUDA GPU here")
        return
    if chosen.part:
        # Libraries speak on stdout; the last line of it is this process's result.
        plan = Plan(chosen.folder, chosen.device, chosen.small)
        try:
            result = part_of(chosen.part, plan, chosen.layers or plan.shape.layers, chosen.batch or 1)
        except CosError as error:
            sys.exit(str(error))
        print(json.dumps(result), flush=True)
        # What a stopped training run left behind (threads, a process group) has nothing more to say.
        os._exit(0)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        lines = []
        for line in tables(chosen, Path(folder)):
            print(line, flush=True)
            lines.append(line)
    if chosen.into:
        put_into(chosen.into, "\n".join(lines))


if __name__ == "__main__":
    main()
