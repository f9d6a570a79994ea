"""What the arms that take the crop's content away cost, beside the two passes that they are compared with, in one run.

A run of both passes alone, and one of both passes with the arms black, noise, swap and absent beside them (they share its first
passes, its pictures and what was computed of them). The figure is the difference, over the run alone: four second passes, three
of them with a picture. Answers are compared: each arm's are those of a run of its own. The model is that of two_pass.py (random
weights in LLaVA-1.5's shape, or in another family's; box texts of 29 tokens, answers of 5). Runs alternate, each on new copies
of the pictures; the figure is the median over the rounds. Exit code 6: it is over its limit.

    python benchmarks/evidence_arms.py [--family NAME] [--questions 16] [--batch 16] [--hidden 2048] [--rounds 3]
    python benchmarks/evidence_arms.py --quick        tiny, no limit
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from PIL import Image
from random_models import FAMILIES
from two_pass import ANSWER_TOKENS, BOX_TOKENS, CHAIN, made

from cos_core.engines.hf import HfEngine
from cos_core.files import plug
from cos_core.infer.passes import Question, TwoPass
from cos_core.infer.steps import Setting
from cos_core.models.loaded import LoadedModel
from cos_core.types import CropContent, Example

CONTENTS: tuple[CropContent, ...] = ("black", "noise", "swap", "absent")
LIMIT = 1.6
"""Most that the four arms may add, relative to the two passes alone."""


def settings(model: LoadedModel) -> list[Setting]:
    """The two passes, and each arm."""
    alone = Setting(
        plug.load("policies", CHAIN),
        model.profile,
        model.fill,
        fingerprint="region",
        max_new_tokens=ANSWER_TOKENS,
        box_tokens=BOX_TOKENS,
        seen=getattr(model, "seen", None),
    )
    return [alone, *(replace(alone, crop=content, fingerprint=content) for content in CONTENTS)]


def questions(count: int, size: tuple[int, int]) -> list[Question]:
    """Questions on a picture of noise each; the next one's is the other picture."""
    dice = random.Random(1)
    width, height = size
    pictures = [Image.frombytes("RGB", size, dice.randbytes(3 * width * height)) for _ in range(count)]
    words = ("colour", "bus", "man", "left", "table", "dog", "red")
    examples = [Example(str(i), "bench", str(i), f"What {' '.join(dice.choices(words, k=4))}?") for i in range(count)]
    others = [(str(i), pictures[i]) for i in (*range(1, count), 0)]
    return [Question(*each) for each in zip(examples, pictures, others, strict=True)]


class Runs:
    """CPU seconds of each run (on a GPU wall seconds), and the answers of the last, by arm and question."""

    def __init__(self, model: LoadedModel, asked: Sequence[Question], batch: int) -> None:
        self._model, self._asked, self._batch = model, asked, batch
        self.answers: dict[tuple[str, str], Any] = {}

    def seconds(self, arms: Sequence[Setting]) -> float:
        """Raises RuntimeError where a question fails."""
        chain = TwoPass(HfEngine(self._model), list(arms))
        copies = [each._replace(image=each.image.copy()) for each in self._asked]  # type: ignore[union-attr]
        start = self._now()
        predictions = [
            each for at in range(0, len(copies), self._batch) for each in chain.predict(copies[at : at + self._batch])
        ]
        taken = self._now() - start
        for each in predictions:
            if each.error:
                raise RuntimeError(each.error)
            self.answers[each.fingerprint, each.example_id] = (each.box_text, each.answer, dict(each.tokens))
        return taken

    def _now(self) -> float:
        if self._model.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def check(runs: Runs, arms: Sequence[Setting]) -> int:
    """How many answers the arms gave. Raises RuntimeError where one differs from that of a run of its arm alone."""
    together = dict(runs.answers)
    for arm in arms:
        runs.seconds([arm])
    # Counts of steps are left out: which tokens a batch asks for together is its own matter.
    differing = [key for key, value in runs.answers.items() if value[:2] != together[key][:2]]
    if differing:
        raise RuntimeError(f"{len(differing)} answers differ, the first of {differing[0]}")
    return len(together)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(FAMILIES), default="llava")
    for name, default in (("questions", 16), ("batch", 16), ("layers", 2), ("hidden", 2048), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    gpu, full = chosen.device == "cuda", FAMILIES[chosen.family]
    shape = full if gpu else type(full).small(256 if chosen.quick else chosen.hidden, chosen.layers)
    shape = replace(shape, side=full.quick_side) if chosen.quick else shape
    model = made(shape, chosen.device, "bfloat16" if gpu else "float32")
    asked = questions(4 if chosen.quick else chosen.questions, shape.picture_size)
    arms, runs = settings(model), Runs(model, asked, chosen.batch)
    Runs(model, asked[:2], 2).seconds(arms)
    rounds = []
    for _ in range(1 if chosen.quick else chosen.rounds):
        before, beside, after = runs.seconds(arms[:1]), runs.seconds(arms), runs.seconds(arms[:1])
        rounds.append((before, beside, after))
    added = [2 * beside / (before + after) - 1 for before, beside, after in rounds]
    figure = statistics.median(added)
    compared = check(runs, arms)
    machine = torch.cuda.get_device_name() if gpu else f"one thread; {platform.machine()}, {os.cpu_count()} cores"
    print(
        f"{chosen.family}: {len(asked)} questions, batch {chosen.batch}, {len(rounds)} rounds; {shape.layers} layers of "
        f"{shape.width}, {shape.image_tokens} image tokens, {machine}; torch {torch.__version__}"
    )
    alone = statistics.median([each for before, _, after in rounds for each in (before, after)]) / len(asked)
    print(f"two passes alone: {alone:.3f} s an answer")
    print(f"{', '.join(CONTENTS)} beside them add {figure:.2f}x ({min(added):.2f} to {max(added):.2f}; at most {LIMIT})")
    print(f"{compared} answers are those of runs of each arm alone")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return 6 if figure > LIMIT and not (gpu or chosen.quick) else 0


if __name__ == "__main__":
    sys.exit(main())
