"""What annotating, training and answering take with LLaVA-1.5-7B and 13B, by arithmetic: the table of the README.

    python benchmarks/real_run.py

No weights are read and nothing is run: the model's shape gives operations and bytes, and hours are operations over 40 % of an
A100's peak. Memory and disk of training are `cos train --dry-run`'s, by the same functions. Samples and lengths are those of
LLaVA-665k by the paper's and this project's count; a sample's 1,300 positions are two pictures of 576 and their words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.models import shapes
from cos_core.models.flops import ModelSize
from cos_core.models.model_size import size_of
from cos_core.relevance.propagation import sweep_memory
from cos_core.training import cost_estimate
from cos_core.training.config import TrainConfig
from cos_core.training.flops import peak_flops, step_flops

SAMPLES, QUESTIONS, PICTURES = 665_000, 3_300_000, 625_000
IMAGE_TOKENS = 576
POSITIONS = 1_300
"""Positions of a training sample: two pictures and the dialogue."""
REGION_POSITIONS, WINDOWS = 100, 30
"""`annotate --backbone regions`: positions of a question, and windows of a picture that go through the vision tower."""
ANSWERED = 12_578
"""Questions of GQA's test-dev split, the largest of the usual benchmarks with one short answer each."""
STORE_BYTES = 148
_FLOPS = 0.4 * (peak_flops("A100") or 0.0)
"""What a second of a GPU is taken to do: 40 % of the peak."""
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One stage with one model: GiB on a GPU, GPU hours, what is written to the disk."""

    stage: str
    model: str
    memory: float
    hours: float
    disk: str


MODELS = {"7B": "llava-hf/llava-1.5-7b-hf", "13B": "llava-hf/llava-1.5-13b-hf"}


def rows(name: str) -> list[Row]:
    """The stages with one model."""
    folder = shapes.shipped(MODELS[name])
    assert folder is not None
    size = size_of(shapes.configuration(folder))
    dense, weights = size.position, 2 * size.total / GIB
    tower = size.picture.each * WINDOWS * PICTURES
    annotate = (2 * dense * REGION_POSITIONS * QUESTIONS + tower) / _FLOPS / 3600
    answer = dense * POSITIONS * ANSWERED / _FLOPS / 3600
    keys = 2 * size.layers * size.hidden * 2 * POSITIONS / GIB
    batch = 8 if name == "13B" else 16
    whole, adapters = _config(batch, deepspeed="zero3"), _config(batch, lora=128)
    return [
        Row("annotate", name, weights + sweep_memory.wanted_bytes() / GIB, annotate, _gib(STORE_BYTES * QUESTIONS / GIB)),
        _training("train --deepspeed zero3", name, size, whole, devices=8),
        _training("train --lora 128", name, size, adapters, devices=1),
        Row("infer", name, weights + 8 * keys, answer, _gib(600 * ANSWERED / GIB)),
    ]


def _training(stage: str, name: str, size: ModelSize, config: TrainConfig, devices: int) -> Row:
    """One epoch over LLaVA-665k. Memory is that of one of `devices` GPUs, hours are those of one alone."""
    machine = cost_estimate.Machine(devices, "A100", 3 if config.deepspeed else 0, offload=False, half=True, recompute=True)
    memory = sum(cost_estimate.memory(size, machine, config, POSITIONS).values())
    positions, pictures = SAMPLES * POSITIONS, 2 * PICTURES
    operations = step_flops(size, positions, positions * POSITIONS, pictures * IMAGE_TOKENS, pictures, config.lora is not None)
    return Row(stage, name, memory, operations / _FLOPS / 3600, _gib(cost_estimate.disk(size, config, half=True)))


def _config(batch: int, **options: Any) -> TrainConfig:
    here = Path()
    return TrainConfig(data=(here,), images=here, model="", out=here, batch_size=batch, **options)


def _gib(value: float) -> str:
    return f"{value:.0f} GiB" if value >= 1 else f"{max(value, 0.1):.1f} GiB"


def _hours(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def table() -> list[str]:
    """The lines of the README's table."""
    lines = ["| `cos` | model | memory of a GPU | hours, 1 A100 | hours, 8 A100 | disk |", "|---|---|---|---|---|---|"]
    by_stage = zip(*(rows(name) for name in MODELS), strict=True)
    for row in (row for pair in by_stage for row in pair):
        alone = "does not fit" if "zero3" in row.stage else _hours(row.hours)
        lines.append(f"| `{row.stage}` | {row.model} | {row.memory:.0f} GiB | {alone} | {_hours(row.hours / 8)} | {row.disk} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
