"""Checks of this machine for a task: findings, each with advice.

Nothing heavy is imported here. A check that may crash or hang (torch, a broken torchvision, LMDB on a network file system)
runs in a process of its own with a time limit (`probe`), and only for a task that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cos_core.doctor import machine, software
from cos_core.doctor.finding import TASKS, Level, MachineFinding
from cos_core.doctor.probe import Answers, ask
from cos_core.errors import InputError

__all__ = ["TASKS", "Level", "MachineFinding", "examine"]

MODEL_TASKS = ("annotate", "train", "infer")
"""Tasks that load a model."""


def examine(task: str | None, folder: Path) -> Iterator[MachineFinding]:
    """Findings about this machine for `task` (one of TASKS), or about what can be known at once when None.

    `folder` is where stores and checkpoints are to be written. Raises InputError for one that does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} to look at")
    with_model = task in MODEL_TASKS
    yield software.python()
    yield from software.allowed(task)
    gpus, gpu_findings = machine.gpus(wanted=with_model)
    yield from gpu_findings
    answers: Answers = {}
    if with_model:
        modules = ["torch", "torchvision", "transformers", "accelerate"]
        modules += ["deepspeed"] if task == "train" else ["detectron2"] if task == "annotate" else []
        answers = ask(modules)
    yield from software.torch(with_model, bool(gpus), machine.driver_cuda(), answers)
    yield from software.libraries(task, answers)
    yield from machine.store(folder, needed=task in ("annotate", "train"))
    yield from machine.disk(folder, task)
    yield machine.hub(with_model)
    yield machine.shared_memory()
    yield machine.threads()
