"""Training runs one after another in the same processes, with an eye on what moves a model: a launcher's target for tests.

python training_worker.py JOBS FOLDER: JOBS holds {"runs": {name: settings of a TrainConfig}, "slow": seconds by which waiting
takes longer, "timeout": seconds that the process group's collectives wait, or null}. Each process writes
FOLDER/<name>.<rank>.json: calls of `to`, `cuda` and `cpu` on modules from loading to the end of the run, the number types that
checkpoints were read as, CPU seconds, and the CosError that ended the run.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers

from cos_core import training
from cos_core.errors import CosError
from cos_core.interfaces import SilentReporter
from cos_core.training import TrainConfig, resume_points


@contextmanager
def watched(moves: list[str], loads: list[dict[str, int]]) -> Iterator[None]:
    """Notes each call of `to`, `cuda` and `cpu` on a module, and how many numbers of which type `from_pretrained` made."""
    before = {name: getattr(torch.nn.Module, name) for name in ("to", "cuda", "cpu")}
    kind = transformers.LlavaForConditionalGeneration
    reading = kind.from_pretrained

    def spy(name: str) -> Any:
        def called(module: torch.nn.Module, *args: Any, **options: Any) -> Any:
            caller = traceback.extract_stack()[-2]
            moves.append(f"{type(module).__name__}.{name} at {Path(caller.filename).name}:{caller.lineno}")
            return before[name](module, *args, **options)

        return called

    def from_pretrained(*args: Any, **options: Any) -> Any:
        result = reading(*args, **options)
        model = result[0] if isinstance(result, tuple) else result
        count: Counter[str] = Counter()
        for weight in model.parameters():
            count[str(weight.dtype)] += int(getattr(weight, "ds_numel", weight.numel()))
        loads.append(dict(count))
        return result

    for name in before:
        setattr(torch.nn.Module, name, spy(name))
    kind.from_pretrained = from_pretrained
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(torch.nn.Module, name, method)
        kind.from_pretrained = reading


@contextmanager
def slowed(seconds: float) -> Iterator[None]:
    """Every piece of work that one process does while the others wait takes so much longer: `seconds` 0 changes nothing."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    from cos_core.training import inputs, run_folder, save
    from cos_core.training.trainer import ChainTrainer

    rank = os.environ.get("RANK", "0")
    works: list[tuple[Any, str, str]] = [
        (inputs, "check", "0"),
        (run_folder, "tidy", "0"),
        (ChainTrainer, "_save", "0"),  # the model of a checkpoint
        (TorchCheckpointEngine, "save", "1"),  # DeepSpeed's part of the second process, two files
        (resume_points, "mark_whole", "0"),
        (save, "save_checkpoint", "0"),
    ]
    before = [getattr(place, name) for place, name, _ in works]

    def slow(work: Any) -> Any:
        def later(*args: Any, **options: Any) -> Any:
            time.sleep(seconds)
            return work(*args, **options)

        return later

    for (place, name, whose), work in zip(works, before, strict=True):
        if seconds and whose == rank:
            setattr(place, name, slow(work))
    try:
        yield
    finally:
        for (place, name, _), work in zip(works, before, strict=True):
            setattr(place, name, work)


def main(jobs: Path, folder: Path) -> None:
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    told = json.loads(jobs.read_text())
    if told["timeout"] is not None:
        # The Trainer would give gloo half an hour whatever it is told.
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=told["timeout"]))
    paths = {"data", "images", "out", "store"}
    for name, settings in told["runs"].items():
        moves: list[str] = []
        loads: list[dict[str, int]] = []
        began, error = time.process_time(), None
        config = TrainConfig(**{key: Path(value) if key in paths else value for key, value in settings.items()})
        with watched(moves, loads), slowed(told["slow"]):
            try:
                training.run(config, SilentReporter())
            except CosError as raised:
                error = f"{type(raised).__name__}: {raised}"
        # What DeepSpeed and the Trainer leave behind would hold for the next run, too.
        unset_hf_deepspeed_config()
        seen = {"moves": moves, "loads": loads, "seconds": time.process_time() - began, "error": error}
        (folder / f"{name}.{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
