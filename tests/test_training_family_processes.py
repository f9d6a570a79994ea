"""Two families in two processes: the losses of one process, also after a kill.

Three pairs of processes show all of it, for starting one costs more than its runs. The data is mixed, so that one process has
a text where the other has pictures, and pictures differ in their numbers of tokens.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_families
import torch
from test_training_matrix import WORKER, losses
from test_training_matrix import settings as usual
from training_world import make_scenes

from cos_core import training
from cos_core.files import manifest
from cos_core.interfaces import SilentReporter
from cos_core.training import TrainConfig, resume_points

pytestmark = pytest.mark.slow
FAMILIES = ("qwen2_5_vl", "gemma3")
STEPS, KILLED_AT = 10, 5
KINDS: Mapping[str, dict[str, Any]] = {"zero3": {"deepspeed": "zero3"}, "lora": {"lora": 4}}
KILLED = ("qwen2_5_vl-zero3", "gemma3-lora")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_scenes(tmp_path_factory.mktemp("world"))
    for family in FAMILIES:
        tiny_families.build(family, made / family)
    return made


def settings(world: Path, family: str, out: Path, **changes: Any) -> dict[str, Any]:
    return usual(world, out, **{"model": world / family, "max_steps": STEPS, "global_batch": 4, **changes})


@pytest.fixture(scope="module")
def alone(world: Path) -> dict[str, list[float]]:
    """The losses of one process, never interrupted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for family in FAMILIES:
        for kind in KINDS:
            lora = KINDS[kind].get("lora")
            made = settings(world, family, world / "one" / f"{family}-{kind}", batch_size=2, lora=lora)
            training.run(TrainConfig(**{**made, "model": str(made["model"])}), SilentReporter())
    torch.set_num_threads(threads)
    return {name.name: losses(name) for name in (world / "one").iterdir()}


def start(world: Path, folder: Path, *names: str) -> subprocess.Popen[bytes]:
    """Two processes that make runs one after the other."""
    folder.mkdir()
    runs = {}
    for name in names:
        family, _, kind = name.partition("-")
        cut = {"deepspeed": kind} if kind == "zero2" else KINDS[kind]
        runs[name] = settings(world, family, world / "two" / name, batch_size=1, save_every=2, **cut)
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps({"runs": runs, "slow": 0, "timeout": None}, default=str))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", str(WORKER), str(jobs), str(folder)]
    # A file: a pipe that nobody reads fills up with warnings, and both would wait.
    with (folder / "stderr").open("w") as said:
        return subprocess.Popen([sys.executable, *launcher], env=environment, stdout=subprocess.DEVNULL, stderr=said)


def words(folder: Path) -> str:
    """The end of what two processes said, without warnings."""
    return "\n".join(line for line in (folder / "stderr").read_text().splitlines() if "Warning" not in line)[-6000:]


def killed(process: subprocess.Popen[bytes], folder: Path, out: Path) -> None:
    """Kills one of the two when the run has made some steps, and checks that it left a checkpoint and no result."""
    log, until = out / "train_log.jsonl", time.monotonic() + 7200
    while not log.is_file() or len(losses(out)) < KILLED_AT:
        assert process.poll() is None, words(folder)
        assert time.monotonic() < until
        time.sleep(0.02)
    workers = [child for child in psutil.Process(process.pid).children() if str(WORKER) in child.cmdline()]
    next(child for child in workers if child.environ()["RANK"] == "1").send_signal(signal.SIGKILL)
    assert process.wait(7200) != 0
    assert not (out / manifest.FILE).exists()
    last = resume_points.last_whole(out / "checkpoints")
    assert last is not None
    assert 0 < resume_points.step_of(last) < STEPS


def ended(process: subprocess.Popen[bytes], folder: Path) -> None:
    assert process.wait(7200) == 0, words(folder)


@pytest.fixture(scope="module")
def pairs(world: Path) -> Path:
    """The folder of what two processes wrote. Two of the runs were killed, and went on in the next pair."""
    first, second = KILLED
    two, places = world / "two", [world / name for name in "abc"]
    killed(start(world, places[0], "gemma3-zero3", "qwen2_5_vl-lora", "qwen2_5_vl-zero2", first), places[0], two / first)
    # A run without DeepSpeed comes first in its processes: the library remembers that DeepSpeed was there.
    killed(start(world, places[1], second), places[1], two / second)
    ended(start(world, places[2], second, first), places[2])
    return two


@pytest.mark.parametrize("name", [f"{family}-{kind}" for family in FAMILIES for kind in KINDS])
def test_two_processes_have_the_losses_of_one(alone: dict[str, list[float]], pairs: Path, name: str) -> None:
    assert len(alone[name]) == STEPS
    assert losses(pairs / name) == pytest.approx(alone[name], rel=1e-4)
    assert manifest.read(pairs / name).results["processes"] == 2
    assert abs(alone[name][0] - alone[name][1]) > 1e-3


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_ends_as_if_it_had_not_been(alone: dict[str, list[float]], pairs: Path, name: str) -> None:
    assert losses(pairs / name)[-1] == pytest.approx(alone[name][-1], rel=1e-5)


def test_zero2(alone: dict[str, list[float]], pairs: Path) -> None:
    assert losses(pairs / "qwen2_5_vl-zero2") == pytest.approx(alone["qwen2_5_vl-zero3"], rel=1e-4)


def test_a_result_of_two_processes_is_whole(world: Path, pairs: Path) -> None:
    """Frozen weights bit for bit, all others moved to where one process left them."""
    from safetensors.torch import load_file

    for family, frozen in zip(FAMILIES, ("visual.", ("vision_tower.", "multi_modal_projector.")), strict=True):
        before, single = (load_file(world / place / "model.safetensors") for place in (family, f"one/{family}-zero3"))
        after: Callable[[str], torch.Tensor] = load_file(pairs / f"{family}-zero3" / "model.safetensors").__getitem__
        assert all(after(name).equal(tensor) for name, tensor in before.items() if name.startswith(frozen))
        moved = [name for name in before if not name.startswith(frozen)]
        assert moved
        assert all(after(name).allclose(single[name], atol=1e-3) and not after(name).equal(before[name]) for name in moved)
