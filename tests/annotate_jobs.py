"""What the tests of the annotate stage share: small jobs, and what their stores hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from children import children, wait_for_end
from PIL import Image

from cos_core.annotate import AnnotateConfig
from cos_core.store.annotations import Store
from cos_core.types import Annotation

ROOT = Path(__file__).resolve().parent.parent


def write_data(root: Path, counts: Sequence[int], **extra: Any) -> None:
    """Conversations of `counts` questions, each on its own picture of smooth colours."""
    (root / "images").mkdir(exist_ok=True)
    samples = []
    for number, count in enumerate(counts):
        small = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        name = f"{number:03d}.png"
        Image.fromarray(small).resize((64 + 8 * (number % 3), 64), Image.Resampling.BICUBIC).save(root / "images" / name)
        turns = []
        for k in range(count):
            turns += [{"from": "human", "value": f"<image>\nwhat is {k}?"}, {"from": "gpt", "value": f"thing {number}{k}"}]
        samples.append({"id": f"s{number:03d}", "image": name, "conversations": turns, **extra})
    (root / "data.json").write_text(json.dumps(samples), encoding="utf-8")


def edit_data(config: AnnotateConfig, change: Any) -> None:
    samples = json.loads(config.data.read_text(encoding="utf-8"))
    change(samples)
    config.data.write_text(json.dumps(samples), encoding="utf-8")


def stored(config: AnnotateConfig) -> dict[str, Annotation]:
    with Store.read(config.out) as store:
        return {a.example_id: a for a in store.annotations()}


def failures(config: AnnotateConfig) -> dict[str, str]:
    with Store.read(config.out) as store:
        return dict(store.failures())


def exported(config: AnnotateConfig) -> bytes:
    path = config.out.with_suffix(".jsonl")
    with Store.read(config.out) as store:
        store.export_jsonl(path)
    return path.read_bytes()


SCRIPT = """
import sys
from pathlib import Path
from cos_core.annotate import AnnotateConfig, run
from cos_core.interfaces import SilentReporter

class Lines(SilentReporter):
    def progress(self, stage, done, total, detail=""):
        print(done, flush=True)

if __name__ == "__main__":
    run(eval(sys.argv[1]), Lines())
"""


def kill(config: AnnotateConfig, moment: int, a_worker: bool) -> bool:
    """Runs the job in a process of its own; SIGKILL to it, or to one of its workers, once `moment` questions are done."""
    script = config.out.with_name("job.py")
    script.write_text("from pathlib import PosixPath\nfrom cos_core.runners import RunnerConfig\n" + SCRIPT, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script), repr(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= moment:
            break
    team = children(process.pid)
    os.kill(team[0] if a_worker and team else process.pid, signal.SIGKILL)
    process.communicate(timeout=7200)
    for worker in team:
        wait_for_end(worker)
    if a_worker and team:
        return process.returncode == 0
    return process.returncode == -signal.SIGKILL
