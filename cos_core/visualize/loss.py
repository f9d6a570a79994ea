"""The loss curve of a training run, from its `train_log.jsonl`."""

from __future__ import annotations

from pathlib import Path

from cos_core.files.durable import atomic_file
from cos_core.files.jsonl import read_lines

_SMOOTH = 20
"""Steps that the smoothed line averages over."""


def draw(log: Path, out: Path) -> Path:
    """Loss over optimiser steps, as it was and smoothed, with the learning rate beside it; writes a PNG and returns its path.

    Raises InputError when the log cannot be read, or the picture not written.
    """
    from matplotlib.figure import Figure

    records = [record for _, record in read_lines(log, lambda _: None)]
    steps = [record["step"] for record in records]
    losses = [record["loss"] for record in records]
    window = max(1, min(_SMOOTH, len(losses) // 5))
    smooth = [sum(part) / len(part) for part in (losses[max(0, i + 1 - window) : i + 1] for i in range(len(losses)))]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#9db4d0", linewidth=0.8, label="loss of the step")
    axes.plot(steps, smooth, color="#1f4e79", linewidth=1.6, label=f"mean of {window} steps")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("cross-entropy a supervised token (nats)")
    rate = axes.twinx()
    rate.plot(steps, [record.get("learning_rate") or 0.0 for record in records], color="#b0603a", linewidth=0.8, linestyle=":")
    rate.set_ylabel("learning rate (dotted)", color="#b0603a")
    axes.legend(frameon=False)
    with atomic_file(out) as file:
        figure.savefig(file, dpi=120, format="png")
    return out
