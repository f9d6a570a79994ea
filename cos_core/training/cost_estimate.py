"""The estimated cost of a run: samples, tokens, steps, memory, disk, hours and money (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from cos_core.models.flops import ModelSize
from cos_core.training.config import TrainConfig
from cos_core.training.epoch_load import EpochLoad
from cos_core.training.flops import peak_flops, step_flops

_ASSUMED, _ASSUMED_GIB = "A100", 79.0
"""The GPU of a machine without one, and what its driver gives of its 80 GB."""
_GIB = 2**30
_FOUR_BITS = 0.516
"""Bytes of a weight in 4 bits, with its share of the quantized scales (NF4, QLoRA's double quantization)."""
_KEPT = 1.784
"""Numbers that are kept a position for the backward pass, for each input and output of a layer's linear parts: 34 hidden states
a layer in LLaVA."""


_RANK = 128
"""The rank of adapters in advice, that of LLaVA's own recipe."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware of the run. `device`: the driver's name of the GPU, None without one; `zero`: DeepSpeed's stage.

    `gib`: memory of one device in GiB.
    """

    devices: int
    device: str | None
    zero: int
    offload: bool
    half: bool
    recompute: bool
    gib: float = _ASSUMED_GIB

    @property
    def name(self) -> str:
        """The GPU that hours are for: this one where its peak is known, else an assumed one."""
        return self.device if self.device and peak_flops(self.device) else _ASSUMED


def learnt(size: ModelSize, config: TrainConfig) -> int:
    """How many weights are trained: the language model's, or those of adapters on its linear layers."""
    projector = size.projector if config.train_projector else 0
    return projector + (size.language if config.lora is None else config.lora * size.features)


def memory(size: ModelSize, machine: Machine, config: TrainConfig, longest: int) -> dict[str, float]:
    """GiB on one device: weights, gradients, optimiser, activations. Fragmentation comes on top.

    bfloat16 under DeepSpeed: 2 bytes a weight and a gradient, 12 in the optimiser (float32 weight and AdamW's two moments).
    Otherwise float32 weights (4), gradients (4) and moments (8). ZeRO-2 cuts gradients and optimiser by the number of devices,
    ZeRO-3 the weights, too. LoRA learns only its adapters; the weights below them are in bfloat16. QLoRA has those of the
    decoder's linear layers in 4 bits, and peft keeps the others in float32.
    """
    n, trained = machine.devices, learnt(size, config)
    mixed = machine.half and machine.zero > 0
    if config.qlora:
        weights = _FOUR_BITS * size.linear + 4.0 * (size.total - size.linear)
    else:
        weights = size.total * (2.0 if mixed or (machine.half and config.lora) else 4.0)
    if config.lora is not None:
        weights += trained * (2 if mixed else 4)
    weights /= n if machine.zero == 3 else 1
    gradients = trained * (2 if mixed else 4) / (n if machine.zero >= 2 else 1)
    optimiser = trained * (12 if mixed else 8) / (n if machine.zero >= 1 else 1)
    if machine.offload:
        weights, optimiser = weights * 0.05, 0.0
    positions = config.batch_size * longest
    number = 2 if machine.half else 4
    # One hidden state a layer is kept when the rest is recomputed (and one layer's insides while it is).
    inside = _KEPT * size.features / size.layers
    states = size.layers * size.hidden + inside if machine.recompute else size.layers * inside
    activations = positions * number * states
    if not config.liger:
        # Logits and their gradient, in float32: the largest single part of a step.
        activations += positions * size.vocabulary * 4 * 2
    parts = {"weights": weights, "gradients": gradients, "optimiser": optimiser, "activations": activations}
    return {name: value / _GIB for name, value in parts.items()}


def disk(size: ModelSize, config: TrainConfig, half: bool) -> float:
    """GiB that checkpoints and the result take at the worst moment: two checkpoints and the finished model."""
    trained = learnt(size, config)
    # The moments and, of DeepSpeed, the float32 copy; DeepSpeed writes the weights beside the Trainer's own.
    cut = config.deepspeed is not None
    kept = trained if config.lora is not None else size.total
    one = kept * (2 * (2 if half else 4) if cut else 4) + trained * (12 if cut else 8)
    adapter = 4 * trained if config.lora is not None else 0
    return (2 * one + 2 * size.total + adapter) / _GIB


def smaller(size: ModelSize, machine: Machine, config: TrainConfig, longest: int) -> dict[str, float]:
    """Options with which a run that does not fit would, and the GiB that it then takes on a device.

    Of each way to train, the first that fits: smaller batches, weights cut over the devices, adapters, adapters over 4 bits.
    """
    found = {}
    for way in _ways(machine, config):
        for words, other, where in way:
            total = sum(memory(size, where, other, longest).values())
            if total <= machine.gib:
                found[words] = total
                break
    return found


def _ways(machine: Machine, config: TrainConfig) -> Iterator[list[tuple[str, TrainConfig, Machine]]]:
    """Other ways to train, each with its variants: the words for it, its settings, its machine."""
    if config.batch_size > 1:
        yield [("--batch-size 1", replace(config, batch_size=1), machine)]
    stages = {"zero2": (2, False), "zero3": (3, False), "zero3_offload": (3, True)}
    cuts = {
        f"--deepspeed {name}": (name, replace(machine, zero=zero, offload=offload))
        for name, (zero, offload) in stages.items()
        if machine.devices > 1 or offload
    }
    if not config.qlora:
        yield [(words, replace(config, deepspeed=name), where) for words, (name, where) in cuts.items()]
    alone = replace(machine, zero=0, offload=False)
    if config.lora is None:
        adapters = replace(config, lora=_RANK, deepspeed=None)
        yield [
            (f"--lora {_RANK}", adapters, alone),
            *((f"--lora {_RANK} {words}", replace(adapters, deepspeed=name), where) for words, (name, where) in cuts.items()),
        ]
    if not config.qlora:
        rank = config.lora or _RANK
        yield [(f"--lora {rank} --qlora", replace(config, lora=rank, qlora=True, deepspeed=None), alone)]


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """`hours` from `source`: a probe of real steps, or arithmetic at a stated share of a stated GPU's peak.

    `less`: what `smaller` gives where the run does not fit into a device's memory; None where it fits. `price`: of a device's
    hour, None where it is not given.
    """

    size: ModelSize
    load: EpochLoad
    machine: Machine
    steps: int
    memory_gib: dict[str, float]
    less: dict[str, float] | None
    disk_gib: float
    flops: float
    hours: float
    source: str
    rate: str
    price: float | None
    remarks: tuple[str, ...]

    @property
    def money(self) -> float | None:
        """What all devices cost for the hours, in the price's unit."""
        return None if self.price is None else self.hours * self.machine.devices * self.price

    def to_json(self) -> dict[str, Any]:
        size, load = self.size, self.load
        found: dict[str, Any] = {
            "weights": {"language": size.language, "vision": size.vision, "projector": size.projector, "total": size.total},
            "samples": load.samples,
            "tokens": load.tokens,
            "image_tokens": load.image_tokens,
            "pictures": load.pictures,
            "padding": round(load.padding, 4),
            "longest": load.longest,
            "steps": self.steps,
            "memory_gib_per_device": {name: round(value, 2) for name, value in self.memory_gib.items()},
            "device_gib": round(self.machine.gib, 2),
            "fits": self.less is None,
            "disk_gib": round(self.disk_gib, 2),
            "flops": self.flops,
            "hours": self.hours,
            "hours_from": self.source,
        }
        if self.less is not None:
            found["fits_with"] = {words: round(value, 2) for words, value in self.less.items()}
        if self.money is not None:
            found |= {"devices": self.machine.devices, "price_hour": self.price, "price": round(self.money, 2)}
        if self.remarks:
            found["notes"] = list(self.remarks)
        return found

    def lines(self) -> list[str]:
        """The estimate as lines of text."""
        size, load, total = self.size, self.load, sum(self.memory_gib.values())
        parts = ", ".join(f"{name} {value:.1f}" for name, value in self.memory_gib.items())
        lines = [
            f"{_count(size.total)} weights: language model {_count(size.language)}, vision tower {_count(size.vision)}, "
            f"projector {_count(size.projector)}",
            f"{load.samples} samples, about {load.tokens:.3g} tokens an epoch ({load.tokens / load.samples:.0f} a sample, "
            f"{load.longest} at most), {_pictures(load)}, {100 * load.padding:.1f} % padding",
            f"{self.steps} optimiser steps, {self.rate}, {self.flops:.3g} FLOP",
            f"memory on each device: {total:.1f} GiB ({parts})",
        ]
        if self.less is not None:
            device = self.machine.device or f"an {_ASSUMED}"
            lines.append(f"this does not fit: {device} has {self.machine.gib:.0f} GiB; {self._advice()}")
        lines += [f"disk: {self.disk_gib:.1f} GiB", f"time: {self.hours:.2f} h ({self.source})"]
        if self.money is not None:
            lines.append(
                f"price: {self.money:,.2f} ({self.hours:.2f} h x {self.machine.devices} device(s) x {self.price:g} an hour)"
            )
        return [*lines, *(f"note: {remark}" for remark in self.remarks)]

    def _advice(self) -> str:
        if not self.less:
            return "nor does it with other options; use more devices, or a smaller model"
        ways = ", ".join(f"{words} ({value:.0f} GiB)" for words, value in self.less.items())
        return f"it fits with {ways}"


def _count(weights: int) -> str:
    return f"{weights / 1e9:.2f} billion" if weights >= 1e7 else f"{weights:,}"


def _pictures(load: EpochLoad) -> str:
    each = f" of {load.image_tokens / load.pictures:.0f} tokens" if load.pictures else ""
    return f"{load.pictures} pictures{each}"


def estimate(
    config: TrainConfig,
    size: ModelSize,
    load: EpochLoad,
    machine: Machine,
    seconds_a_step: float | None = None,
    remarks: tuple[str, ...] = (),
) -> CostEstimate:
    """The cost estimate. `seconds_a_step`: from a probe of real steps, None where none could be made; `remarks`: what is
    assumed of the model."""
    step = config.batch_size * machine.devices * config.accumulation(machine.devices)
    steps = config.max_steps or config.epochs * -(-load.samples // step)
    epochs = steps * step / load.samples if config.max_steps else config.epochs
    flops = epochs * step_flops(size, load.tokens, load.squares, load.image_tokens, load.pictures, config.lora is not None)
    if seconds_a_step is not None:
        hours = seconds_a_step * steps / 3600
        source = f"from a probe of real steps, {seconds_a_step:.2f} s each"
    else:
        peak = peak_flops(machine.name) or 0.0
        hours = flops / (peak * config.mfu * machine.devices) / 3600
        source = f"from arithmetic: {machine.devices} x {machine.name} at {100 * config.mfu:.0f} % of {peak / 1e12:.0f} TFLOP/s"
    parts = memory(size, machine, config, load.longest)
    fits = sum(parts.values()) <= machine.gib
    return CostEstimate(
        size=size,
        load=load,
        machine=machine,
        steps=steps,
        memory_gib=parts,
        less=None if fits else smaller(size, machine, config, load.longest),
        disk_gib=disk(size, config, machine.half),
        flops=flops,
        hours=hours,
        source=source,
        rate=config.rate_said,
        price=config.price_hour,
        remarks=(*remarks, *load.remarks),
    )
