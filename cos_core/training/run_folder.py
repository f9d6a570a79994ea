"""The output folder of a run: which run it belongs to, what it holds, and resuming from it.

`run.json` (fingerprint and settings, written first), `train_log.jsonl` (one line a step), `skipped.jsonl` (what was not trained
on and why), `checkpoints/` (only while the run is not finished), the checkpoint, `manifest.json` (last).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.files import durable, manifest
from cos_core.files.jsonl import decode, encode_line, read_lines
from cos_core.training import resume_points
from cos_core.training.config import TrainConfig
from cos_core.training.sample_table import SampleSet
from cos_core.training.skipped import Skipped

RUN_FILE, LOG_FILE, SKIPPED_FILE = "run.json", "train_log.jsonl", "skipped.jsonl"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
STOP_FILE = ".stop"
"""A file of this name makes a run write a checkpoint and stop; a launcher writes it."""


def claim(out: Path, fingerprint: str, settings: Mapping[str, Any]) -> None:
    """Writes run.json, by which the folder belongs to this run."""
    text = json.dumps({"fingerprint": fingerprint, "settings": settings}, indent=1, ensure_ascii=False)
    durable.atomic_write(out / RUN_FILE, text + "\n")


def is_finished(out: Path, fingerprint: str, settings: Mapping[str, Any]) -> bool:
    """Whether `out` holds the whole result of this run. Raises InputError when it belongs to another run."""
    path = out / RUN_FILE
    if not path.is_file():
        if (out / "config.json").exists():
            raise InputError(f"{out} holds a checkpoint that cos train did not write; choose another output directory")
        return False
    try:
        record = decode(path.read_bytes())
        other, before = record["fingerprint"], record["settings"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a run's settings; remove {out} or choose another output directory") from None
    if other != fingerprint:
        changed = [key for key in sorted({*before, *settings}) if before.get(key) != settings.get(key)]
        raise InputError(
            f"{out} belongs to a run with other settings ({', '.join(changed[:4]) or 'unknown'} differ); "
            f"choose another output directory or remove it"
        )
    return (out / manifest.FILE).is_file()


def last_checkpoint(config: TrainConfig, processes: int) -> Path | None:
    """The checkpoint to resume from, or None. Raises InputError for a DeepSpeed checkpoint of another number of processes."""
    last = resume_points.last_whole(config.out / CHECKPOINTS) if config.resume else None
    record = resume_points.record_of(last) if last else None
    if record is not None and config.deepspeed is not None and record["processes"] != processes:
        raise InputError(
            f"{last} was written by {record['processes']} processes, and DeepSpeed cannot go on from it with {processes}; "
            f"use as many, or begin anew without resume"
        )
    return last


def tidy(out: Path, last: Path | None) -> None:
    """Restores the folder to the state of `last`: removes later lines of the log, incomplete checkpoints and stop requests."""
    resume_points.prune(out / CHECKPOINTS, keep=last)
    _trim_log(out / LOG_FILE, resume_points.step_of(last) if last else 0)
    for path in (out / SKIPPED_FILE, out / STOP_FILE, *out.glob("skipped-*.jsonl")):
        path.unlink(missing_ok=True)


def _trim_log(path: Path, upto: int) -> None:
    """Drops lines of steps that will be done again, so that the log holds each step once."""
    if not path.is_file():
        return
    records = [record for _, record in read_lines(path, lambda _: None) if record.get("step", 0) <= upto]
    durable.atomic_write(path, b"".join(map(encode_line, records)))


def skipped_before(out: Path) -> dict[str, Skipped]:
    """The samples that an interrupted run skipped while training, in any process, by id."""
    paths = sorted(out.glob("skipped*.jsonl"))
    records = [record for path in paths for _, record in read_lines(path, lambda _: None) if record.get("training")]
    return {str(record["id"]): Skipped(str(record["id"]), str(record["reason"]), training=True) for record in records}


def write_skipped(out: Path, data: SampleSet, skipped: Mapping[str, Skipped]) -> None:
    """Writes one file of what all processes left out, in place of one file per process."""
    with durable.atomic_file(out / SKIPPED_FILE) as file:
        for one in left_out(data, skipped.values()):
            file.write(encode_line(one.to_json()))
    for path in out.glob("skipped-*.jsonl"):
        path.unlink()


def left_out(data: SampleSet, skipped: Iterable[Skipped]) -> Iterator[Skipped]:
    """Records that cannot be read, questions that were left out, then those of `skipped`, as `skipped.jsonl` has them."""
    for problem in data.named_problems():
        yield Skipped(problem.example_id or "", str(problem))
    yield from data.skipped
    yield from skipped
