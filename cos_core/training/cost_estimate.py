"""The estimated cost of a run: samples, tokens, steps, memory, disk and hours (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cos_core.training.config import TrainConfig
from cos_core.training.dataset import TrainDataset, encode_text, expected_picture_tokens, limit, question_of
from cos_core.training.flops import ModelSize, peak_flops
from cos_core.training.sample_order import SampleOrder
from cos_core.training.samples import Sample

_ASSUMED = "A100"
_GIB = 2**30
_COUNTED = 2_000
"""Samples that are turned into tokens to be counted; more are extrapolated."""
_SOME_BOX = "[0.250, 0.250, 0.750, 0.750]"


@dataclass(frozen=True, slots=True)
class EpochLoad:
    """The size of one epoch: sums over all samples, and the share of positions that is padding."""

    samples: int
    tokens: int
    squares: int
    pictures: int
    padding: float
    longest: int


def epoch_load(data: TrainDataset, order: SampleOrder, batch: int) -> EpochLoad:
    """Counted on the first samples of the order without opening an image, batches cut as training cuts them."""
    samples = [data.samples[index] for index in islice(order.indices(0), _COUNTED)]
    lengths = [_tokens(data, sample) for sample in samples]
    grid = sum(max(part) * len(part) for part in _parts(lengths, batch))
    scale = len(data) / len(samples)
    pictures = sum(_pictures(data, sample) for sample in samples)
    return EpochLoad(
        samples=len(data),
        tokens=round(sum(lengths) * scale),
        squares=round(sum(n * n for n in lengths) * scale),
        pictures=round(pictures * scale),
        padding=1 - sum(lengths) / grid,
        longest=max(lengths),
    )


def _tokens(data: TrainDataset, sample: Sample) -> int:
    """The length of a sample in the first epoch, with a fixed box in place of its own."""
    recipe = data.recipe
    which = question_of(sample, 0, recipe)
    box = None if sample.boxes[which] is None else _SOME_BOX
    encoded = encode_text(sample, which, box, expected_picture_tokens(recipe), recipe)
    return min(len(encoded), limit(encoded, recipe))


def _parts(lengths: Sequence[int], batch: int) -> list[Sequence[int]]:
    return [lengths[i : i + batch] for i in range(0, len(lengths), batch)]


def _pictures(data: TrainDataset, sample: Sample) -> int:
    if sample.image is None:
        return 0
    if data.recipe.region_crops is not None:
        return data.recipe.region_crops.expected_regions
    return 2 if any(box is not None for box in sample.boxes) else 1


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware of the run. `device`: the driver's name of the GPU, None without one; `zero`: DeepSpeed's stage."""

    devices: int
    device: str | None
    zero: int
    offload: bool
    half: bool
    recompute: bool


def _learnt(size: ModelSize, config: TrainConfig) -> int:
    """How many weights are trained when there are no adapters."""
    return size.language + (size.projector if config.train_projector else 0)


def memory(size: ModelSize, machine: Machine, config: TrainConfig, longest: int) -> dict[str, float]:
    """GiB on one device: weights, gradients, optimiser, activations. Fragmentation comes on top.

    bfloat16 under DeepSpeed: 2 bytes a weight and a gradient, 12 in the optimiser (float32 weight and AdamW's two moments).
    Otherwise float32 weights (4), gradients (4) and moments (8). ZeRO-2 cuts gradients and optimiser by the number of devices,
    ZeRO-3 the weights, too. LoRA learns only its adapters; the weights below them are in bfloat16 (QLoRA: in 4 bits).
    """
    learnt = _learnt(size, config)
    if config.lora is not None:
        # Seven linear layers in each block; 3 of them reach the wider inner layer, taken as 8/3 of the hidden size.
        learnt = round(size.layers * config.lora * size.hidden * (4 * 2 + 3 * (1 + 8 / 3)))
    n = machine.devices
    mixed = machine.half and machine.zero > 0
    weights = (
        size.total
        * (0.55 if config.qlora else 2 if mixed or (machine.half and config.lora) else 4)
        / (n if machine.zero == 3 else 1)
    )
    gradients = learnt * (2 if mixed else 4) / (n if machine.zero >= 2 else 1)
    optimiser = learnt * (12 if mixed else 8) / (n if machine.zero >= 1 else 1)
    if machine.offload:
        weights, optimiser = weights * 0.05, 0.0
    positions = config.batch_size * longest
    number = 2 if machine.half else 4
    # One hidden state a layer is kept when the rest is recomputed (and one layer's insides while it is); about 34 without.
    states = size.layers + 34 if machine.recompute else 34 * size.layers
    activations = positions * size.hidden * number * states
    if not config.liger:
        # Logits and their gradient, in float32: the largest single part of a step.
        activations += positions * size.vocabulary * 4 * 2
    parts = {"weights": weights, "gradients": gradients, "optimiser": optimiser, "activations": activations}
    return {name: value / _GIB for name, value in parts.items()}


def disk(size: ModelSize, config: TrainConfig, half: bool) -> float:
    """GiB that checkpoints and the result take at the worst moment: two checkpoints and the finished model."""
    learnt = _learnt(size, config)
    # The moments and, of DeepSpeed, the float32 copy; DeepSpeed writes the model beside the Trainer's own.
    cut = config.deepspeed is not None
    one = size.total * (2 * (2 if half else 4) if cut else 4) + learnt * (12 if cut else 8)
    if config.lora is not None:
        one = size.total // 100
    return (2 * one + 2 * size.total) / _GIB


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """`hours` from `source`: a probe of real steps, or arithmetic at a stated share of a stated GPU's peak."""

    load: EpochLoad
    steps: int
    memory_gib: dict[str, float]
    disk_gib: float
    flops: float
    hours: float
    source: str
    rate: str

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.load.samples,
            "tokens": self.load.tokens,
            "pictures": self.load.pictures,
            "padding": round(self.load.padding, 4),
            "longest": self.load.longest,
            "steps": self.steps,
            "memory_gib_per_device": {name: round(value, 2) for name, value in self.memory_gib.items()},
            "disk_gib": round(self.disk_gib, 2),
            "flops": self.flops,
            "hours": self.hours,
            "hours_from": self.source,
        }

    def lines(self) -> list[str]:
        """The estimate as lines of text."""
        load, total = self.load, sum(self.memory_gib.values())
        parts = ", ".join(f"{name} {value:.1f}" for name, value in self.memory_gib.items())
        return [
            f"{load.samples} samples, about {load.tokens:.3g} tokens an epoch ({load.tokens / load.samples:.0f} a sample, "
            f"{load.longest} at most), {load.pictures} pictures, {100 * load.padding:.1f} % padding",
            f"{self.steps} optimiser steps, {self.rate}, {self.flops:.3g} FLOP",
            f"memory on each device: {total:.1f} GiB ({parts})",
            f"disk: {self.disk_gib:.1f} GiB",
            f"time: {self.hours:.2f} h ({self.source})",
        ]


def estimate(
    config: TrainConfig, size: ModelSize, load: EpochLoad, machine: Machine, seconds_a_step: float | None = None
) -> CostEstimate:
    """The cost estimate; `seconds_a_step`: from a probe of real steps, None where none could be made."""
    step = config.batch_size * machine.devices * config.accumulation(machine.devices)
    steps = config.max_steps or config.epochs * -(-load.samples // step)
    epochs = steps * step / load.samples if config.max_steps else config.epochs
    flops = epochs * size.step_flops(load.tokens, load.squares, load.pictures, config.lora is not None)
    if seconds_a_step is not None:
        hours = seconds_a_step * steps / 3600
        source = f"from a probe of real steps, {seconds_a_step:.2f} s each"
    else:
        name = machine.device if machine.device and peak_flops(machine.device) else _ASSUMED
        peak = peak_flops(name) or 312e12
        hours = flops / (peak * config.mfu * machine.devices) / 3600
        source = f"from arithmetic: {machine.devices} x {name} at {100 * config.mfu:.0f} % of {peak / 1e12:.0f} TFLOP/s"
    return CostEstimate(
        load,
        steps,
        memory(size, machine, config, load.longest),
        disk(size, config, machine.half),
        flops,
        hours,
        source,
        config.rate_said,
    )
