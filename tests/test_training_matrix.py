"""Every way to cut up a run, in two processes: equal losses, nothing moved, no time-out where one works and the others wait.

All combinations run one after another in one pair of processes (training_worker.py): starting a pair costs more than a run.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_llava import make_checkpoint
from training_worker import watched
from training_world import log_of, make_scenes

pytestmark = pytest.mark.slow
CUTS = (None, "zero2", "zero3")
WORKER = Path(__file__).with_name("training_worker.py")
COMBINATIONS = list(itertools.product(CUTS, (None, 4), (False, True), ("float32", "bfloat16")))
"""DeepSpeed stage, adapters' rank (beside which the projector is trained whole), recomputed activations, arithmetic."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Relative, against one process. Measured: 1e-7 and 7e-3; in bfloat16 one process computes under autocast, DeepSpeed on
bfloat16 weights, whose linear layers add the bias after rounding."""


def name_of(cut: str | None, lora: int | None, recompute: bool, dtype: str) -> str:
    return f"{cut or 'ddp'}-{'lora' if lora else 'full'}-{'recompute' if recompute else 'keep'}-{dtype}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_scenes(tmp_path_factory.mktemp("world"))
    make_checkpoint(made / "model")
    return made


def settings(world: Path, out: Path, **changes: Any) -> dict[str, Any]:
    same = {
        "data": world / "questions.jsonl",
        "images": world / "images",
        "model": world / "model",
        "out": out,
        "store": world / "store",
        "learning_rate": 1e-3,
        "warmup_ratio": 0.0,
        "global_batch": 2,
        "max_steps": 2,
        "device": "cpu",
        "check": "off",
    }
    return {**same, **changes}


def run(folder: Path, processes: int, runs: dict[str, Any], **told: Any) -> dict[str, list[dict[str, Any]]]:
    """What each process saw of each run; raises when a process fails."""
    folder.mkdir()
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps({"runs": runs, "slow": 0, "timeout": None, **told}, default=str))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), str(jobs), str(folder)],
        env=environment,
        text=True,
        capture_output=True,
        timeout=7200,
        check=False,
    )
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "Warning" not in line)[-6000:]
    return {name: [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(processes)] for name in runs}


@pytest.fixture(scope="module")
def alone(world: Path) -> dict[tuple[int | None, str], list[float]]:
    """The losses of one process, which recomputes nothing, by (adapters' rank, arithmetic)."""
    kinds = {name_of(None, lora, False, dtype): (lora, dtype) for lora, dtype in itertools.product((None, 4), TOLERANCE)}
    runs = {
        name: settings(world, world / "one" / name, batch_size=2, lora=lora, train_projector=lora is not None, dtype=dtype)
        for name, (lora, dtype) in kinds.items()
    }
    run(world / "one", 1, runs)
    return {kind: losses(world / "one" / name) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def pair(world: Path) -> dict[str, list[dict[str, Any]]]:
    """What the two processes of each run saw."""
    runs = {
        name_of(*kind): settings(
            world,
            world / "two" / name_of(*kind),
            batch_size=1,
            deepspeed=kind[0],
            lora=kind[1],
            train_projector=kind[1] is not None,
            gradient_checkpointing=kind[2],
            dtype=kind[3],
        )
        for kind in COMBINATIONS
    }
    return run(world / "two", 2, runs)


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in log_of(out)]


@pytest.mark.parametrize(("cut", "lora", "recompute", "dtype"), COMBINATIONS)
def test_two_processes_have_the_losses_of_one(
    world: Path,
    alone: dict[tuple[int | None, str], list[float]],
    pair: dict[str, list[dict[str, Any]]],
    cut: str | None,
    lora: int | None,
    recompute: bool,
    dtype: str,
) -> None:
    out = world / "two" / name_of(cut, lora, recompute, dtype)
    assert (out / "manifest.json").is_file()
    assert losses(out) == pytest.approx(alone[lora, dtype], rel=TOLERANCE[dtype])


def test_a_step_changes_the_next_loss(alone: dict[tuple[int | None, str], list[float]]) -> None:
    """Otherwise equal losses would say nothing of the optimiser: whole weights and adapters go on from the same first loss."""
    whole, adapters = alone[None, "float32"], alone[4, "float32"]
    assert whole[0] == pytest.approx(adapters[0], rel=1e-6)
    assert abs(whole[1] - adapters[1]) > 1e-2


def test_zero3_moves_no_module(pair: dict[str, list[dict[str, Any]]]) -> None:
    """From loading to the end: on a GPU a buffer that is moved to the CPU stays there, and the first forward pass dies."""
    for recompute, dtype in itertools.product((False, True), ("float32", "bfloat16")):
        for seen in pair[name_of("zero3", None, recompute, dtype)]:
            assert seen["moves"] == []
        # peft moves the layers that it makes, each holding adapters alone.
        for seen in pair[name_of("zero3", 4, recompute, dtype)]:
            assert seen["moves"]
            assert all(move.split(".")[0] in ("Linear", "Identity", "ModuleDict", "ParameterDict") for move in seen["moves"])
            assert all("tuners_utils.py" in move or "model.py" in move for move in seen["moves"])


def test_the_watch_sees_a_move() -> None:
    import torch

    moves: list[str] = []
    with watched(moves, []):
        torch.nn.Linear(1, 1).to("cpu").cpu()
    assert [move.split(" ")[0] for move in moves] == ["Linear.to", "Linear.cpu"]


@pytest.mark.parametrize(("cut", "lora", "recompute", "dtype"), COMBINATIONS)
def test_weights_are_read_once_in_the_numbers_they_are_held_in(
    pair: dict[str, list[dict[str, Any]]], cut: str | None, lora: int | None, recompute: bool, dtype: str
) -> None:
    """Trained whole, and not by DeepSpeed, they are float32; a frozen base and DeepSpeed's are the arithmetic's."""
    held = dtype if cut or lora else "float32"
    for rank, seen in enumerate(pair[name_of(cut, lora, recompute, dtype)]):
        # The main process reads the start checkpoint again to write the result.
        assert [list(count) for count in seen["loads"]] == [[f"torch.{held}"], ["torch.float32"]][: 2 - rank]


def test_no_time_out_where_one_works_and_the_other_waits(world: Path, tmp_path: Path) -> None:
    """The process group gives up after 6 s; examining, tidying, every file and the result each take longer.

    A fault that the first process finds ends the other with the same sentence.
    """
    good = settings(world, tmp_path / "out", batch_size=1, deepspeed="zero3", save_every=1, max_steps=1, check="full")
    bad = {**good, "out": tmp_path / "bad", "max_no_region": 0.0}
    seen = run(tmp_path / "jobs", 2, {"bad": bad, "good": good}, slow=7, timeout=6)
    first, second = (one["error"] for one in seen["bad"])
    assert first.startswith("InputError: the data has 1 fault")
    assert second == f"InputError: process 0 ended: {first.removeprefix('InputError: ')}"
    assert [one["error"] for one in seen["good"]] == [None, None]
    assert len(losses(tmp_path / "out")) == 1
