"""Relevance propagation: CPU time and peak memory of the fused sweep, streamed and not, beside the N x N reference in one run.

    python benchmarks/relevance.py                          all cases (the reference at 2048/32 takes 8.5 GB and a minute)
    python benchmarks/relevance.py --cases 640/12 1300/12   positions/layers
    python benchmarks/relevance.py --cases                  the questions on one picture alone
    python benchmarks/relevance.py --family qwen2_5_vl      a whole vision-language model, one picture and a question

The model is a random Llama of hidden size 256 and 8 heads, or a family's model around a decoder of that size; weights frozen,
float32, one thread. The reference keeps what the public notebooks keep: every map of "eager" attention and its gradient, and R
as an N x N matrix. Every case is run twice, each time in a process of its own: once for CPU seconds (so that other work on the
machine counts as little as it can), once for the most memory that it held beyond the loaded model and the picture's features,
attention and all other activations together, with an allocator that gives back at once what is freed. Exit code 6: a goal was
missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

CASES = ("640/12", "1300/12", "2048/12", "640/32", "1300/32", "2048/32")
GOALS = {"1300/12": (2.5, 15.0), "2048/32": (3.0, 40.0)}
"""For some cases the least speed-up and the least saving of memory that the streamed sweep must reach."""

LLAMA = "llama"
HIDDEN, HEADS, WIDE = 256, 8, 688
PREFIX, SUFFIX, ASKED, ASKED_GOAL = 620, 40, 6, 1.5
TIGHT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Memory that is freed goes back to the system: the peak does not count what lies idle in the allocator."""

Ways = Mapping[str, Callable[[], Any]]
WAYS = ("reference", "fused", "streamed")


class Subject(ABC):
    """A model whose relevance is measured."""

    @abstractmethod
    def ways(self, length: int) -> Ways:
        """For each of WAYS what computes relevance in a sequence of `length` positions, a row without the last position."""

    @abstractmethod
    def asked(self) -> tuple[Callable[[Any], Sequence[Any]], Callable[[Any], Sequence[Any]]]:
        """ASKED questions on one picture, one by one and sharing it: settings to a row each."""


class Llama(Subject):
    """A random Llama, asked about random embeddings."""

    def __init__(self, layers: int) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

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
        self.model = LlamaForCausalLM(config).eval().requires_grad_(False)

    def ways(self, length: int) -> Ways:
        embeddings, last = self._embeddings(1, length, 1), _readings(1, length - 1)

        def reference() -> Any:
            self.model.set_attn_implementation("eager")
            leaf = embeddings.requires_grad_(True)
            out = self.model(inputs_embeds=leaf, use_cache=False, output_attentions=True, logits_to_keep=1)
            return _row(out, last)[0, :-1]

        def swept(streamed: bool) -> Any:
            from cos_core.relevance.propagation import SweepSettings, relevance_attention, sweep

            with relevance_attention(self.model.model):
                return sweep(self._sequences(embeddings), last, SweepSettings(stream_layers=streamed))[0, 0, :-1]

        return {"reference": reference, "fused": lambda: swept(False), "streamed": lambda: swept(True)}

    def asked(self) -> tuple[Callable[[Any], Sequence[Any]], Callable[[Any], Sequence[Any]]]:
        import torch

        from cos_core.relevance.propagation import relevance_attention, sweep, sweep_continuations

        prefix, suffixes = self._embeddings(1, PREFIX, 2), self._embeddings(ASKED, SUFFIX, 3)

        def alone(settings: Any) -> Sequence[Any]:
            whole = [torch.cat([prefix, suffixes[i : i + 1]], 1) for i in range(ASKED)]
            with relevance_attention(self.model.model):
                return [sweep(self._sequences(each), _readings(1, PREFIX + SUFFIX - 1), settings)[0, 0] for each in whole]

        def shared(settings: Any) -> Sequence[Any]:
            front, back = self._sequences(prefix), self._sequences(suffixes)
            with relevance_attention(self.model.model):
                return list(sweep_continuations(front, back, _readings(ASKED, SUFFIX - 1), settings))

        return alone, shared

    def _embeddings(self, batch: int, length: int, seed: int) -> Any:
        import torch

        ids = torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(seed))
        return self.model.model.embed_tokens(ids).detach() * 10

    def _sequences(self, embeddings: Any) -> Any:
        from cos_core.relevance.propagation import Sequences

        def run(cache: Any) -> Any:
            return self.model(inputs_embeds=embeddings, past_key_values=cache, use_cache=False).logits

        return Sequences(self.model, *embeddings.shape[:2], run)


class VisionLanguage(Subject):
    """A family's model with random weights, asked about a square picture that takes nearly all positions."""

    def __init__(self, family: str, layers: int) -> None:
        from dataclasses import replace

        import torch
        from random_models import FAMILIES
        from two_pass import made

        from cos_core.models.families import PixelBudget

        shape = replace(type(FAMILIES[family]).small(HIDDEN, layers), head_width=HIDDEN // HEADS)
        self.loaded: Any = made(shape, "cpu", "float32", box_text=False)
        self.loaded.family.set_budget(self.loaded.processor.image_processor, PixelBudget(max_pixels=2**23))
        self.loaded.model.requires_grad_(False)
        with torch.no_grad():
            for weight in self.loaded.decoder.layers.parameters():
                weight.mul_(2.5 if weight.dim() > 1 else 1)  # as wide as the Llama's

    def ways(self, length: int) -> Ways:
        import torch

        from cos_core.relevance.propagation import SweepSettings, explain

        (question,) = self._questions(length, 1)
        first = _prompt(question)
        ids = torch.tensor([question.ids[:first]])

        def reference() -> Any:
            network = self.loaded.model
            self.loaded.decoder.set_attn_implementation("eager")
            network.get_input_embeddings().requires_grad_(True)
            out = network(
                input_ids=ids,
                position_ids=torch.from_numpy(question.positions[:, None, :first]),
                mm_encoder_outputs={"image": question.features},
                use_cache=False,
                output_attentions=True,
                logits_to_keep=1,
            )
            return _row(out, _readings(1, first - 1, question.ids[first]))[0][ids[0] == self.loaded.image_token_id]

        def swept(streamed: bool) -> Any:
            return explain(self.loaded, [[question]], SweepSettings(stream_layers=streamed))[0][0]

        return {"reference": reference, "fused": lambda: swept(False), "streamed": lambda: swept(True)}

    def asked(self) -> tuple[Callable[[Any], Sequence[Any]], Callable[[Any], Sequence[Any]]]:
        from cos_core.relevance.propagation import explain

        questions = self._questions(PREFIX + SUFFIX, ASKED)

        def alone(settings: Any) -> Sequence[Any]:
            return [explain(self.loaded, [[question]], settings)[0][0] for question in questions]

        def shared(settings: Any) -> Sequence[Any]:
            return explain(self.loaded, [questions], settings)[0]

        return alone, shared

    def _questions(self, length: int, count: int) -> list[Any]:
        """Questions on one picture that differ from their first word on, of `length` positions up to a one-token answer."""
        import numpy as np
        from PIL import Image

        from cos_core.dialogue.prompts import dialogue
        from cos_core.relevance.propagation import Question

        side = 28 * math.isqrt(length * 19 // 20 - 30)
        pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
        picture = self.loaded.picture(Image.fromarray(pixels))
        (features,) = self.loaded.features([picture])

        def encoded(number: int, words: int) -> Any:
            turns = dialogue(self.loaded.profile, f"{number}" + " a" * words, chain=False, answer="a")
            return self.loaded.encode(turns, lambda _: picture)

        def asked(number: int) -> Any:
            return encoded(number, 1 + length - _prompt(encoded(number, 1)))

        made = [asked(number) for number in range(count)]
        positions = [self.loaded.positions(np.array(each.ids), lambda: [picture]) for each in made]
        return [Question(each.ids, each.labels, features, places) for each, places in zip(made, positions, strict=True)]


def _prompt(encoded: Any) -> int:
    """How many positions stand in front of the answer."""
    return next(place for place, label in enumerate(encoded.labels) if label >= 0)


def _readings(batch: int, position: int, token: int = 5) -> Any:
    import torch

    from cos_core.relevance.propagation import Readings

    ones = torch.ones(batch, 1, dtype=torch.long)
    return Readings(ones * position, ones * token, ones.bool())


def _row(out: Any, last: Any) -> Any:
    """R from a model's own maps, of which the row where y is read: (1, N). `out`: with the logits there."""
    import torch

    from cos_core.relevance.propagation import mean_positive, target_score

    gradients = torch.autograd.grad(target_score(out.logits, last, "log-odds"), out.attentions)
    position = int(last.positions[0, 0])
    matrix = torch.eye(position + 1)[None]
    with torch.no_grad():
        for one, gradient in zip(out.attentions, gradients, strict=True):
            matrix = matrix + mean_positive(one, gradient) @ matrix
    return matrix[:, position]


def made_subject(family: str, layers: int) -> Subject:
    import torch

    torch.set_num_threads(1)
    return Llama(layers) if family == LLAMA else VisionLanguage(family, layers)


def measure(family: str, way: str, length: int, layers: int) -> dict[str, float]:
    """One case, in this process: CPU seconds, MiB beyond the loaded model, and a sum to compare results by."""
    made_subject(family, 2).ways(64)[way]()
    subject = made_subject(family, layers)
    if family != LLAMA:
        subject.ways(64)["fused"]()  # weights are read from their file where they are first used
    work = subject.ways(length)[way]
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.process_time()
    row = work()
    seconds = time.process_time() - start
    return {"seconds": seconds, "mib": memory("VmHWM") - before, "sum": float(row.double().sum())}


def memory(name: str) -> float:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measure_questions(family: str, layers: int) -> dict[str, float]:
    """CPU seconds of six questions on one picture, alone and sharing its positions, and how far the results differ."""
    from cos_core.relevance.propagation import SweepSettings

    alone, shared = made_subject(family, layers).asked()
    found: dict[str, float] = {}
    shared(SweepSettings())  # warm
    for name, streamed in 3 * (("fused", False), ("streamed", True)):  # of three times the least
        settings = SweepSettings(stream_layers=streamed)
        start = time.process_time()
        rows = alone(settings)
        middle = time.process_time()
        others = shared(settings)
        end = time.process_time()
        for what, seconds in (("alone", middle - start), ("shared", end - middle)):
            found[f"{name} {what}"] = min(seconds, found.get(f"{name} {what}", seconds))
        found[f"{name} apart"] = max(float((row - other).abs().max()) for row, other in zip(rows, others, strict=True))
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


def grid(family: str, cases: Sequence[str], repeats: int) -> list[str]:
    """Prints the table; what was missed."""
    missed = []
    print("| N/layers | way | CPU s | speed | peak MiB | less memory |\n|---|---|---|---|---|---|")
    for case in cases:
        length, layers = map(int, case.split("/"))
        base: dict[str, float] = {}
        for way in WAYS:
            found = best(repeats, family, way, length, layers)
            base = base or found
            speed, saving = base["seconds"] / found["seconds"], base["mib"] / found["mib"]
            figures = f"{found['seconds']:.2f} | {speed:.2f}x | {found['mib']:.0f} | {saving:.1f}x"
            print(f"| {case} | {way} | {figures} |", flush=True)
            if abs(found["sum"] / base["sum"] - 1) > 1e-4:
                missed.append(f"{case} {way}: the relevance differs from the reference's")
            if way == "streamed" and case in GOALS and (speed < GOALS[case][0] or saving < GOALS[case][1]):
                missed.append(f"{case}: {speed:.2f}x and {saving:.1f}x, the goals are {GOALS[case]}")
    return missed


def questions(family: str, layers: int) -> list[str]:
    found = child(family, "questions", layers)
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
        family, way, *numbers = sys.argv[2:]
        asked_many = way == "questions"
        found = measure_questions(family, int(numbers[0])) if asked_many else measure(family, way, *map(int, numbers))
        print(json.dumps(found))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=(LLAMA, "qwen2_5_vl"), default=LLAMA)
    parser.add_argument("--cases", nargs="*", default=list(CASES), help="positions/layers")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each case, of which the fastest counts")
    parser.add_argument("--layers", type=int, default=12, help="of the model that is asked several questions")
    asked = parser.parse_args()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{platform.machine()}, {libraries}, Python {platform.python_version()}\n")
    missed = (grid(asked.family, asked.cases, asked.repeats) if asked.cases else []) + questions(asked.family, asked.layers)
    for line in missed:
        print(line, file=sys.stderr)
    return 6 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
