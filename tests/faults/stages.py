"""The stages that the fault injector steps through, each on a small sound world."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bad.world import GOLDEN, World, lines
from tiny_llava import make_checkpoint

from cos_core.files import manifest
from cos_core.store.annotations import Store
from faults.disk import LIBRARIES, Disk


@dataclass(frozen=True)
class Stage:
    """`arguments`: the command line that works in a folder; `prepare`: what lies there before it. `may_finish`: Ctrl-C asks it
    to end in its own time, and it has ended by then. `torch`: it needs torch.

    What a test takes of a stage whose runs are dear: every so many of its writes (`every`), or one of each kind (`kinds`: what,
    and to what; a full disk comes at the first, other faults at the last). `make faults` takes them all.
    """

    name: str
    arguments: Callable[[World, Path], Sequence[Any]]
    prepare: Callable[[World, Path], object] = lambda world, folder: None
    every: int = 1
    kinds: bool = False
    may_finish: bool = False
    torch: bool = False

    @property
    def dear(self) -> bool:
        return self.every > 1 or self.kinds

    def possible(self, calm: Disk, fault: str) -> list[tuple[int, str]]:
        """Which of an undisturbed run's writes can go wrong in this way, and what each is."""
        # Only a write can be cut short; a cut needs no room.
        able = {"full": set(calm.steps) - {"truncate"}, "short": {"write"}}.get(fault, set(calm.steps))
        return [(at, what) for at, what in enumerate(calm.steps, 1) if what in able]

    def sample(self, calm: Disk, fault: str) -> list[tuple[int, str]]:
        """Those of them that a test takes."""
        steps = self.possible(calm, fault)
        if self.kinds:
            order = steps[::-1] if fault == "full" else steps
            steps = sorted({(what, _kind(what, calm.names[at - 1])): (at, what) for at, what in order}.values())
        return steps[self.every - 1 :: self.every]


def _kind(what: str, name: str) -> str:
    """What is at stake in a file of training: the manifest, the log, its curve, a checkpoint, or else the finished model.

    A file that a library writes is a kind by itself: each has its own way to fail.
    """
    path = Path(name)
    if what in LIBRARIES:
        return path.name
    for whole in (manifest.FILE, "train_log.jsonl", "loss.png"):
        if whole in path.name:
            return whole
    return "checkpoint" if path.parent.name.startswith("checkpoint-") else "model"


def _many(world: World, folder: Path) -> None:
    lines(folder / "data.jsonl", *({"question_id": f"q{i}", "image": "ab"[i % 2] + ".png", "text": "q?"} for i in range(5)))


def _exported(world: World, folder: Path) -> None:
    with Store.read(world.store) as store:
        store.export_jsonl(folder / "in.jsonl", failures=True, heats=True)


def _original(world: World, folder: Path) -> None:
    shutil.copytree(GOLDEN / "original" / "weights", folder / "weights")


def _untrained(world: World, folder: Path) -> None:
    if not (world.root / "tiny").exists():
        make_checkpoint(world.root / "tiny", image_size=28, hidden=16, layers=1)


STAGES = [
    Stage(
        "annotate",
        lambda w, f: ["annotate", "--policy", "random", "--model", "m", "--data", w.page / "questions.jsonl", "--images", w.images, "--out", f / "store", "--batch-images", 1],
    ),
    Stage(
        "infer",
        lambda w, f: ["infer", "--engine", "scripted", "--model", "m", "--data", f / "data.jsonl", "--images", w.images, "--out", f / "out.jsonl", "--batch-size", 2],
        _many,
    ),
    Stage("eval", lambda w, f: ["eval", "scenes", "--data", w.page, "--predictions", w.answers, "--out", f / "run", "--latest", f / "latest"]),
    Stage("eval, model", lambda w, f: ["eval", "scenes", "--data", w.page, "--engine", "scripted", "--model", "m", "--roi", "full", "--out", f / "run"], every=3),
    Stage("store export", lambda w, f: ["store", "export", w.store, "--out", f / "out.jsonl", "--failures", "--heats"]),
    Stage("store import", lambda w, f: ["store", "import", f / "in.jsonl", "--out", f / "store"], _exported),
    Stage("store merge", lambda w, f: ["store", "merge", w.store, "--out", f / "store"]),
    Stage("visualize overlay", lambda w, f: ["visualize", "overlay", "--image", w.images / "a.png", "--box", 0.1, 0.1, 0.5, 0.5, "--out", f / "o.png"]),
    Stage("visualize stats", lambda w, f: ["visualize", "stats", w.store, "--out", f / "boxes"], every=41),
    Stage("visualize report", lambda w, f: ["visualize", "report", w.run, "--out", f / "r.html"], every=7),
    Stage(
        "train",
        lambda w, f: ["train", "--model", w.root / "tiny", "--data", w.data, "--images", w.images, "--store", w.store, "--out", f / "out", "--batch-size", 1, "--global-batch", 1, "--max-steps", 3, "--save-every", 2, "--device", "cpu"],
        _untrained,
        every=2,
        kinds=True,
        may_finish=True,
        torch=True,
    ),
    Stage("visualize compare", lambda w, f: ["visualize", "compare", w.run, "--out", f / "sheet.png"], every=5),
    Stage("model convert", lambda w, f: ["model", "convert", f / "weights" / "llava-tiny", "--out", f / "converted"], _original, every=7, torch=True),
    Stage("visualize export", lambda w, f: ["visualize", "export", w.run, "--format", "lmms-eval", "--out", f / "x.jsonl"]),
]  # fmt: skip
"""Every stage that writes."""
