"""Training in two processes by DeepSpeed's own launcher: the losses of one process, and what a killed process leaves behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from tiny_llava import make_checkpoint

from cos_core import manifest, training
from cos_core.datasets import read_examples
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.jsonl import read_lines
from cos_core.store import Store
from cos_core.training import TrainConfig
from cos_core.types import Annotation

pytestmark = pytest.mark.slow
STEPS = 6
RATE = 1e-3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven samples with pictures of odd sizes and two of text only, so that batches are uneven and mixed."""
    root = tmp_path_factory.mktemp("world")
    (root / "images").mkdir()
    records: list[dict[str, Any]] = []
    for i in range(7):
        Image.linear_gradient("L").resize((40 + 9 * i, 50)).convert("RGB").save(root / "images" / f"{i}.png")
        turns = [{"from": "human", "value": f"What is {i}?"}, {"from": "gpt", "value": f"cup {i}"}]
        records.append({"id": f"s{i}", "image": f"{i}.png", "conversations": turns})
    for i in range(2):
        turns = [{"from": "human", "value": "Hello" * (i + 1)}, {"from": "gpt", "value": f"Hi {i}"}]
        records.append({"id": f"t{i}", "conversations": turns})
    (root / "data.json").write_text(json.dumps(records))
    with Store.create_or_resume(root / "store", "f", {}) as store:
        for example in read_examples(root / "data.json"):
            store.put_many([Annotation(example.id, Box(0.25, 0.125, 0.5, 0.75), 1.0, "p", "f")])
    make_checkpoint(root / "model")
    return root


@pytest.fixture(scope="module")
def alone(world: Path) -> list[float]:
    """The losses of one process."""
    made = TrainConfig(
        data=world / "data.json",
        images=world / "images",
        model=str(world / "model"),
        out=world / "alone",
        store=world / "store",
        learning_rate=RATE,
        batch_size=2,
        global_batch=4,
        max_steps=STEPS,
        device="cpu",
    )
    training.run(made, SilentReporter())
    return losses(world / "alone")


def losses(out: Path) -> list[float]:
    return [record["loss"] for _, record in read_lines(out / "train_log.jsonl")]


def command(world: Path, out: Path, stage: str) -> list[str]:
    options = {
        "data": world / "data.json",
        "images": world / "images",
        "model": world / "model",
        "out": out,
        "store": world / "store",
        "learning-rate": RATE,
        "batch-size": 1,
        "global-batch": 4,
        "max-steps": STEPS,
        "save-every": 1,
        "device": "cpu",
        "deepspeed": stage,
        "processes": 2,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "cos_cli", "train", *words]


def start(world: Path, out: Path, stage: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command(world, out, stage), env=environment, text=True, stdout=pipe, stderr=pipe)


def finished(process: subprocess.Popen[str]) -> str:
    said, heard = process.communicate(timeout=900)
    assert process.returncode == 0, heard[-3000:]
    assert said == "", "stdout is for data"
    return heard


def process_of_rank(parent: int, rank: int) -> psutil.Process | None:
    for child in psutil.Process(parent).children(recursive=True):
        try:
            words, environment = child.cmdline(), child.environ()
        except psutil.Error:
            continue
        if "cos_cli" in words and "deepspeed.launcher" not in " ".join(words) and environment.get("RANK") == str(rank):
            return child
    return None


def test_zero3_killed_and_resumed_has_the_losses_of_one_process(world: Path, alone: list[float], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(world, out, "zero3")
    # The step at which one process is killed; the run is seen to reach it by its log.
    step = random.Random().randint(1, STEPS - 2)
    until = time.monotonic() + 600
    while not (out / "train_log.jsonl").is_file() or len(losses(out)) < step:
        assert process.poll() is None, process.stderr.read()[-3000:] if process.stderr else ""
        assert time.monotonic() < until
        time.sleep(0.05)
    victim = process_of_rank(process.pid, 1)
    assert victim is not None
    killed = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    assert process.wait(timeout=300) != 0
    assert time.monotonic() - killed < 30, "the launcher ends soon after"
    process.communicate()
    assert not (out / manifest.FILE).exists()

    heard = finished(start(world, out, "zero3"))
    assert "going on from step" in heard
    assert losses(out) == pytest.approx(alone, rel=1e-4)
    assert manifest.read(out).results["processes"] == 2
    frozen_and_trained(world, out)


def test_zero2_has_the_losses_of_one_process(world: Path, alone: list[float], tmp_path: Path) -> None:
    finished(start(world, tmp_path / "out", "zero2"))
    assert losses(tmp_path / "out") == pytest.approx(alone, rel=1e-4)
    frozen_and_trained(world, tmp_path / "out")


def frozen_and_trained(world: Path, out: Path) -> None:
    """Frozen weights bit for bit, the others as one process left them."""
    from safetensors.torch import load_file

    before, after, single = (load_file(folder / "model.safetensors") for folder in (world / "model", out, world / "alone"))
    for name, tensor in before.items():
        if "vision_tower" in name or "multi_modal_projector" in name:
            assert tensor.equal(after[name]), name
        else:
            assert not tensor.equal(after[name]), name
            assert after[name].allclose(single[name], atol=1e-4), name
