"""Relevance propagation: CPU time and peak memory of the fused sweep, streamed and not, beside the N x N reference in one run.

    python benchmarks/relevance.py                          all cases (the reference at 2048/32 takes 8.5 GB and a minute)
    python benchmarks/relevance.py --cases 640/12 1300/12   positions/layers
    python benchmarks/relevance.py --cases                  the questions on one picture alone

The model is a random Llama of hidden size 256 and 8 heads, weights frozen, float32, one thread. The reference keeps what the
public notebooks keep: every map of "eager" attention and its gradient, and R as an N x N matrix. Every case is run twice, each
time in a process of its own: once for CPU seconds (so that other work on the machine counts as little as it can), once for the
most memory that it held beyond the loaded model, attention and all other activations together, with an allocator that gives
back at once what is freed. Exit code 6: a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

CASES = ("640/12", "1300/12", "2048/12", "640/32", "1300/32", "2048/32")
GOALS = {"1300/12": (2.5, 15.0), "2048/32": (3.0, 40.0)}
"""For some cases the least speed-up and the least saving of memory that the streamed sweep must reach."""

HIDDEN, HEADS, WIDE = 256, 8, 688
PREFIX, SUFFIX, ASKED, ASKED_GOAL = 620, 40, 6, 1.5
TIGHT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Memory that is freed goes back to the system: the peak does not count what lies idle in the allocator."""


def make_model(layers: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=HIDDEN,
        intermediate_size=WIDE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=8192,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def make_input(model: Any, batch: int, length: int, seed: int) -> Any:
    import torch

    ids = torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(seed))
    return model.model.embed_tokens(ids).detach() * 10


def make_readings(batch: int, position: int) -> Any:
    import torch

    from cos_core.relevance.propagation import Readings

    ones = torch.ones(batch, 1, dtype=torch.long)
    return Readings(ones * position, ones * 5, ones.bool())


def reference(model: Any, embeddings: Any, readings: Any) -> Any:
    """R, of which the row where y is read: (batch, N)."""
    import torch

    from cos_core.relevance.propagation import mean_positive, target_score

    model.set_attn_implementation("eager")
    leaf = embeddings.requires_grad_(True)
    out = model.model(inputs_embeds=leaf, use_cache=False, output_attentions=True)
    logits = model.lm_head(out.last_hidden_state[:, readings.positions[0]])
    maps = out.attentions
    gradients = torch.autograd.grad(target_score(logits, readings, "log-odds"), maps)
    matrix = torch.eye(embeddings.shape[1])[None]
    with torch.no_grad():
        for one, gradient in zip(maps, gradients, strict=True):
            matrix = matrix + mean_positive(one, gradient) @ matrix
    return matrix[:, int(readings.positions[0, 0])]


def swept(streamed: bool) -> Callable[[Any, Any, Any], Any]:
    def run(model: Any, embeddings: Any, readings: Any) -> Any:
        from cos_core.relevance.propagation import SweepSettings, relevance_attention, sweep

        with relevance_attention(model.model):
            settings = SweepSettings(stream_layers=streamed)
            return sweep(model.model, model.lm_head, embeddings, readings, settings)[:, 0]

    return run


WAYS: dict[str, Callable[[Any, Any, Any], Any]] = {"reference": reference, "fused": swept(False), "streamed": swept(True)}


def measure(way: str, length: int, layers: int) -> dict[str, float]:
    """One case, in this process: CPU seconds, MiB beyond the loaded model, and a sum to compare results by."""
    warm = make_model(2)
    WAYS[way](warm, make_input(warm, 1, 64, 1), make_readings(1, 63))
    model = make_model(layers)
    embeddings, readings = make_input(model, 1, length, 1), make_readings(1, length - 1)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.process_time()
    row = WAYS[way](model, embeddings, readings)
    seconds = time.process_time() - start
    return {"seconds": seconds, "mib": memory("VmHWM") - before, "sum": float(row.double().sum() - row[0, -1])}


def memory(name: str) -> float:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measure_questions(layers: int) -> dict[str, float]:
    """CPU seconds of six questions on one picture, alone and sharing its positions, and how far the results differ."""
    import torch

    from cos_core.relevance.propagation import SweepSettings, relevance_attention, sweep, sweep_continuations

    model = make_model(layers)
    prefix, suffixes = make_input(model, 1, PREFIX, 2), make_input(model, ASKED, SUFFIX, 3)
    found: dict[str, float] = {}
    with relevance_attention(model.model):
        sweep(model.model, model.lm_head, prefix, make_readings(1, PREFIX - 1), SweepSettings())  # warm
        for name, streamed in 3 * (("fused", False), ("streamed", True)):  # of three times the least
            settings = SweepSettings(stream_layers=streamed)
            start = time.process_time()
            alone = [
                sweep(
                    model.model,
                    model.lm_head,
                    torch.cat([prefix, suffixes[i : i + 1]], 1),
                    make_readings(1, PREFIX + SUFFIX - 1),
                    settings,
                )[0, 0]
                for i in range(ASKED)
            ]
            middle = time.process_time()
            last = make_readings(ASKED, SUFFIX - 1)
            shared = sweep_continuations(model.model, model.lm_head, prefix, suffixes, last, settings)
            end = time.process_time()
            for what, seconds in (("alone", middle - start), ("shared", end - middle)):
                found[f"{name} {what}"] = min(seconds, found.get(f"{name} {what}", seconds))
            found[f"{name} apart"] = float((torch.stack(alone) - shared).abs().max())
    return found


def child(*arguments: object, tight: bool = False) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(TIGHT if tight else {})}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def best(repeats: int, *arguments: object) -> dict[str, float]:
    """The least time of some runs, and the memory of one more."""
    runs = [child(*arguments) for _ in range(repeats)]
    return {**runs[0], "seconds": min(r["seconds"] for r in runs), "mib": child(*arguments, tight=True)["mib"]}


def grid(cases: Sequence[str], repeats: int) -> list[str]:
    """Prints the table; what was missed."""
    missed = []
    print("| N/layers | way | CPU s | speed | peak MiB | less memory |\n|---|---|---|---|---|---|")
    for case in cases:
        length, layers = map(int, case.split("/"))
        base: dict[str, float] = {}
        for way in WAYS:
            found = best(repeats, way, length, layers)
            base = base or found
            speed, saving = base["seconds"] / found["seconds"], base["mib"] / found["mib"]
            figures = f"{found['seconds']:.2f} | {speed:.2f}x | {found['mib']:.0f} | {saving:.1f}x"
            print(f"| {case} | {way} | {figures} |", flush=True)
            if abs(found["sum"] / base["sum"] - 1) > 1e-4:
                missed.append(f"{case} {way}: the relevance differs from the reference's")
            if way == "streamed" and case in GOALS and (speed < GOALS[case][0] or saving < GOALS[case][1]):
                missed.append(f"{case}: {speed:.2f}x and {saving:.1f}x, the goals are {GOALS[case]}")
    return missed


def questions(layers: int) -> list[str]:
    found = child("questions", layers)
    missed = []
    print(f"\n{ASKED} questions of {SUFFIX} positions on a picture of {PREFIX}, {layers} layers:\n")
    print("| way | one by one, CPU s | shared prefix, CPU s | speed | furthest apart |\n|---|---|---|---|---|")
    for name in ("fused", "streamed"):
        alone, shared = found[f"{name} alone"], found[f"{name} shared"]
        print(f"| {name} | {alone:.2f} | {shared:.2f} | {alone / shared:.2f}x | {found[f'{name} apart']:.1e} |", flush=True)
        if alone / shared < ASKED_GOAL:
            missed.append(f"questions, {name}: {alone / shared:.2f}x, the goal is {ASKED_GOAL}x")
    return missed


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        way, *numbers = sys.argv[2:]
        found = measure_questions(int(numbers[0])) if way == "questions" else measure(way, *map(int, numbers))
        print(json.dumps(found))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), help="positions/layers")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each case, of which the fastest counts")
    parser.add_argument("--layers", type=int, default=12, help="of the model that is asked several questions")
    asked = parser.parse_args()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{platform.machine()}, {libraries}, Python {platform.python_version()}\n")
    missed = (grid(asked.cases, asked.repeats) if asked.cases else []) + questions(asked.layers)
    for line in missed:
        print(line, file=sys.stderr)
    return 6 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
