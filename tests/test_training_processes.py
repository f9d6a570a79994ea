"""The shipped miniature in one process and in two by DeepSpeed's own launcher: equal losses, and what a kill or a stop leaves.

Four launches show all of it, for each costs half a minute: ZeRO-3 killed, ZeRO-3 resumed to its end, ZeRO-2 stopped, and ZeRO-2
on two "nodes".
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from training_world import log_of, make_scenes, weights

from cos_core import training
from cos_core.files import assets, manifest
from cos_core.interfaces import SilentReporter
from cos_core.training import TrainConfig, resume_points

pytestmark = pytest.mark.slow
STEPS, TEN = 16, 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("world"))


def settings(world: Path, out: Path) -> dict[str, Any]:
    return {
        "data": world / "questions.jsonl",
        "images": world / "images",
        "model": "miniature",
        "out": out,
        "store": world / "store",
        "learning_rate": 1e-3,
        "global_batch": 4,
        "max_steps": STEPS,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def alone(world: Path) -> list[float]:
    """The losses of one process, never interrupted."""
    training.run(TrainConfig(**settings(world, world / "alone"), batch_size=2), SilentReporter())
    return losses(world / "alone")


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in log_of(out)]


def start(world: Path, out: Path, stage: str) -> subprocess.Popen[str]:
    """Two processes; the data, which is the same each time, is not examined again."""
    options = {**settings(world, out), "batch_size": 1, "save_every": 3, "deepspeed": stage, "processes": 2, "check": "off"}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(out.parent)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "cos_cli", "train", *words], env=environment, text=True, stdout=pipe, stderr=pipe
    )


def reached(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Waits until the log holds `step` steps."""
    until = time.monotonic() + 7200
    while not (out / "train_log.jsonl").is_file() or len(losses(out)) < step:
        assert process.poll() is None, process.stderr.read()[-3000:] if process.stderr else ""
        assert time.monotonic() < until
        time.sleep(0.02)


def test_two_nodes_of_one_process_each(world: Path, alone: list[float], tmp_path: Path) -> None:
    """As templates/jobs/train.slurm starts them: a torchrun a node, which meet at the first one's address."""
    out = tmp_path / "out"
    options = {**settings(world, out), "batch_size": 1, "deepspeed": "zero2", "check": "off"}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "night"]
    command = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting, "-m", "cos_cli", "train", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for node in nodes:
        _, errors = node.communicate(timeout=7200)
        assert node.returncode == 0, errors[-3000:]
    assert losses(out)[:TEN] == pytest.approx(alone[:TEN], rel=1e-4)
    assert manifest.read(out).results["processes"] == 2


def process_of_rank(parent: int, rank: int) -> psutil.Process | None:
    for child in psutil.Process(parent).children(recursive=True):
        try:
            words, environment = child.cmdline(), child.environ()
        except psutil.Error:
            continue
        if "cos_cli" in words and "deepspeed.launcher" not in " ".join(words) and environment.get("RANK") == str(rank):
            return child
    return None


def test_one_process_learns_and_accumulates_to_the_same_losses(world: Path, alone: list[float]) -> None:
    assert len(alone) == STEPS
    assert sum(alone[TEN // 2 : TEN]) < sum(alone[: TEN // 2]) / 2
    training.run(TrainConfig(**settings(world, world / "accumulated"), batch_size=1, check="off"), SilentReporter())
    assert losses(world / "accumulated") == pytest.approx(alone, rel=1e-4)
    assert manifest.read(world / "alone").results["processes"] == 1
    assert any(record["fallbacks"] for record in log_of(world / "alone")), "the question without a region was drawn"


def test_zero3_killed_and_resumed_ends_as_if_it_had_not_been(world: Path, alone: list[float], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(world, out, "zero3")
    # The step at which one process is killed; the run is seen to reach it by its log.
    reached(process, out, random.Random(17).randint(4, STEPS - 2))
    victim, other = process_of_rank(process.pid, 1), process_of_rank(process.pid, 0)
    assert victim is not None
    assert other is not None
    mapped = [{m.path for m in rank.memory_maps() if "/samples-" in m.path} for rank in (victim, other)]
    assert (
        mapped[0]
        == mapped[1]
        == {str(p) for n in ("ids", "questions", "records", "samples") for p in tmp_path.glob(f"cos-*/*/{n}")}
    )
    killed = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    assert process.wait(timeout=7200) != 0
    assert time.monotonic() - killed < 300, "the launcher ends soon after"
    process.communicate()
    assert not (out / manifest.FILE).exists()
    flushed_by_both(out)

    process = start(world, out, "zero3")
    said, heard = process.communicate(timeout=7200)
    assert process.returncode == 0, heard[-3000:]
    assert said == "", "stdout is for data"
    assert "going on from step" in heard
    assert list(tmp_path.glob("cos-*/*")) == [], "the table of the samples, and the one that the killed run left"
    assert losses(out) == pytest.approx(alone, rel=1e-4)
    assert losses(out)[-1] == pytest.approx(alone[-1], abs=1e-5), "the final loss of an uninterrupted run"
    assert manifest.read(out).results["processes"] == 2
    with Image.open(out / "loss.png") as curve:
        assert min(curve.size) > 200
    frozen_and_trained(world, weights(out))


def test_zero2_has_the_losses_of_one_process_and_stops_with_a_whole_checkpoint(
    world: Path, alone: list[float], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(world, out, "zero2")
    reached(process, out, TEN)
    process.send_signal(signal.SIGTERM)
    _, heard = process.communicate(timeout=7200)
    assert process.returncode == 130, heard[-3000:]
    last = resume_points.last_whole(out / "checkpoints")
    assert last is not None
    assert TEN <= resume_points.step_of(last) == len(losses(out)) < STEPS
    assert losses(out) == pytest.approx(alone[: len(losses(out))], rel=1e-4)
    assert not (out / manifest.FILE).exists()
    frozen_and_trained(world, weights(last), finished=False)
    flushed_by_both(out)


def flushed_by_both(out: Path) -> None:
    """What DeepSpeed and the Trainer write for the second process is its own to flush, by the names they use today."""
    last = resume_points.last_whole(out / "checkpoints")
    assert last is not None
    record = resume_points.record_of(last)
    assert record is not None
    seconds = {name for name in record["files"] if resume_points.owner(name, 2) == 1}
    assert any("optim_states" in name for name in seconds)
    assert any("rng_state" in name for name in seconds)
    assert record["files"].keys() == {str(path.relative_to(last)) for path in last.rglob("*") if path.is_file()} - {
        "whole.json"
    }
    assert not any("rank_1" in name or "state_1" in name for name in record["files"].keys() - seconds)


def frozen_and_trained(world: Path, after: dict[str, Any], finished: bool = True) -> None:
    """Frozen weights bit for bit; the others have moved, when finished to where one process left them."""
    before, single = weights(assets.miniature_checkpoint()), weights(world / "alone")
    # A DeepSpeed checkpoint holds the tied head a second time.
    assert after.keys() - before.keys() <= {"lm_head.weight"}
    for name, tensor in before.items():
        if "vision_tower" in name or "multi_modal_projector" in name:
            assert tensor.equal(after[name]), name
        else:
            assert not tensor.equal(after[name]), name
            assert not finished or after[name].allclose(single[name], atol=1e-4), name
