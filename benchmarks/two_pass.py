"""What a second pass costs: CPU time of an answer relative to an ordinary one-pass answer of the same engine, in one run.

The model has LLaVA-1.5's shape where it matters: 576 image positions, 336-pixel pictures, heads of width 128, an MLP of 2.69
times the width, a Llama tokenizer that splits digits. Two layers of 2048 are wide enough that layers, attention and vocabulary
have nearly 7B's shares (the floors show it), and small enough for a round of all arms in nine minutes; `--hidden 1024` is four
times as quick and farther off. First-pass texts are 29 tokens, answers 5. The weights are random, save that the model writes
"[0.251, 0.251, ..." whatever is asked: random tokens would come back from the tokenizer as other and more tokens than were
generated, which a box's text never does.

`--family` takes the shape of another family's 7B model instead, asked through its chat template and its own processor, by the
arms that its limits are about: Qwen2.5-VL with 576 image positions and a tower that has nearly its share, LLaVA-NeXT with 1,368
(the whole picture and two tiles). The crop is shown as large as the picture: boxes of this text fall back to the whole.

A round runs the other arms in turn, one pass before and after each. A run counts relative to the two beside it, as a machine's
speed drifts; an arm's figure is the median of its runs, beside which stand the least and the most. Floors are floating-point
operations, counted on the very prompts (random_models.py). The engine's first passes must be the box's text, else the script
stops; `--quick` compares the loop's answers with the engine's as well. Exit code 6: a ratio is over its limit.

On a GPU the time is wall time and the model has the 7B shape in bfloat16 (13 GB, first written to the temporary folder).
Answers a second and the share of the card's peak (MFU) stand beside the ratios; there is no limit.

    python benchmarks/two_pass.py [--questions 16] [--batch 16] [--layers 2] [--hidden 2048] [--rounds 2]
    python benchmarks/two_pass.py --family qwen2_5_vl|llava_next [--questions 16] [--batch 16] [--rounds 1]
    python benchmarks/two_pass.py --device cuda [--family NAME] [--questions 64] [--batch 32]
    python benchmarks/two_pass.py --quick [--family NAME]     tiny, no limits; a second model's answers differ and are compared
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from random_models import BOX_TEXT, FAMILIES, Shape, make_model

from cos_core.dialogue.messages import chat_messages
from cos_core.dialogue.prompts import dialogue
from cos_core.engines._prefix import common_length
from cos_core.engines.hf import HfEngine
from cos_core.files import plug
from cos_core.infer.passes import TwoPass
from cos_core.infer.steps import Setting
from cos_core.interfaces import Engine, Reply, Request
from cos_core.models import llava
from cos_core.models.loaded import LoadedModel
from cos_core.models.loading import load
from cos_core.training.flops import peak_flops
from cos_core.types import BoxDecode, Example

BOX_TOKENS, ANSWER_TOKENS = 29, 5
ONE, LOOP = "one pass", "batch-1 loop of generate"
ANEW, REUSE, SHARED = "two passes, no reuse", "two passes, reuse", "reuse, 8 questions a picture"
CHAIN = "from_single_question"
LIMITS = {REUSE: 2.3, SHARED: 1.5}
"""Most that an arm may cost, relative to one pass: LLaVA-1.5."""
FLOOR_LIMIT = 1.15
"""Most that they may cost relative to their counted floor: other families."""
LOOP_FACTORS = {"llava": {SHARED: 2.0}, "other": {REUSE: 1.5, SHARED: 2.5}}
"""How many times faster than the loop an arm must be."""
Asked = list[tuple[Example, Image.Image]]


class PlainLoop(Engine):
    """What a plain script does: one request after the other, everything anew, by its own processor and `generate`."""

    name = "plain loop"

    def __init__(self, model: LoadedModel) -> None:
        self.loaded = model

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        model = self.loaded
        inputs = self._llava(model, request) if isinstance(model, llava.Llava) else self._any(model, request)
        with torch.inference_mode():
            ids = model.model.generate(**inputs, do_sample=False, max_new_tokens=request.max_new_tokens)
        new = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return Reply(model.text(new[:-1] if new[-1] in model.stop_ids else new).strip(), ids=tuple(new))

    def _llava(self, model: llava.Llava, request: Request) -> dict[str, torch.Tensor]:
        encoded = model.encode(request.turns)
        ids = torch.tensor([encoded.ids], device=model.device)
        pixels = model.pixels([request.images[slot] for slot in encoded.slots])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    def _any(self, model: Any, request: Request) -> Any:
        messages = chat_messages(model.profile, request.turns, lambda slot: {"type": "image", "image": request.images[slot]})
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        return model.processor.apply_chat_template(messages, **options).to(model.device, model.model.dtype)


def operations(model: LoadedModel, shape: Shape) -> dict[str, float]:
    """Floating-point operations of an answer in each arm: the least that can be computed, on the arms' own prompts."""
    seen = model.picture(Image.new("RGB", shape.picture_size))

    def ids(question: str, **options: Any) -> tuple[int, ...]:
        return model.prompt(dialogue(model.profile, question, **options), lambda _: seen).ids

    where, other = (np.array(ids(question)) for question in ("What bus?", "Which man?"))
    plain, tail = len(ids("What bus?", chain=False)), len(ids("What bus?", box_text=BOX_TEXT))
    picture, boxed = shape.picture(), len(where) + BOX_TOKENS - 1
    one = picture + shape.run(0, plain) + shape.generate(plain, ANSWER_TOKENS)
    first = shape.run(0, len(where)) + shape.generate(len(where), BOX_TOKENS)
    answer = shape.generate(tail, ANSWER_TOKENS)
    reuse = 2 * picture + first + shape.run(boxed, tail) + answer
    anew = 2 * picture + first + shape.run(0, tail) + answer
    return {
        ONE: one,
        ANEW: anew,
        REUSE: reuse,
        SHARED: reuse - 7 / 8 * (picture + shape.run(0, common_length(where, other))),
        LOOP: anew + picture,
    }


def built(shape: Shape, model: LoadedModel) -> Shape:
    """The shape of a model that was made in it: its tokenizer has fewer words."""
    return replace(shape, vocabulary=model.rows)


class Arms:
    """What is measured, each on new copies of the pictures: nothing that another arm computed is known.

    `size`: (width, height) of the pictures; `few`: only the arms that a family's limits are about.
    """

    def __init__(
        self, model: LoadedModel, questions: int, batch: int, size: tuple[int, int] = (336, 336), *, few: bool = False
    ) -> None:
        dice = random.Random(1)
        width, height = size
        pictures = [Image.frombytes("RGB", size, dice.randbytes(3 * width * height)) for _ in range(questions)]
        words = ("colour", "bus", "man", "left", "table", "dog", "red")
        asked = [f"What {' '.join(dice.choices(words, k=4))}?" for _ in range(questions)]
        examples = [Example(id=str(i), dataset="bench", image=str(i), question=q) for i, q in enumerate(asked)]
        self.model, self.batch, self.few = model, batch, few
        self.own = list(zip(examples, pictures, strict=True))
        self.shared = [(example, pictures[i // 8]) for i, example in enumerate(examples)]
        self.peaks: dict[str, float] = {}
        self.runs: list[tuple[str, float]] = []
        """What ran, in order, and its seconds an answer."""

    def time(self, name: str, asked: Asked, work: Callable[[], object]) -> None:
        start = self._now()
        work()
        self.runs.append((name, (self._now() - start) / len(asked)))

    def _now(self) -> float:
        """CPU seconds of this process; on a GPU wall seconds, once it has done what it was given."""
        if self.model.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, name: str) -> float:
        return statistics.median(seconds for ran, seconds in self.runs if ran == name)

    def ratios(self, name: str) -> list[float]:
        """Each run's CPU time an answer relative to the runs of one pass beside it; of one pass, to their median."""
        if name == ONE:
            return [seconds / self.seconds(ONE) for ran, seconds in self.runs if ran == ONE]
        near = zip(self.runs, self.runs[1:], self.runs[2:], strict=False)
        return [2 * seconds / (before + after) for (_, before), (ran, seconds), (_, after) in near if ran == name]

    def ratio(self, name: str) -> float:
        return statistics.median(self.ratios(name))

    def answers(
        self, engine: Engine, policy: str, asked: Asked, batch: int, decode: BoxDecode = "free"
    ) -> list[tuple[str | None, str | None]]:
        """(box text, answer) of each question, asked in batches. Raises RuntimeError where one has none."""
        setting = Setting(
            plug.load("policies", policy),
            self.model.profile,
            self.model.fill,
            max_new_tokens=ANSWER_TOKENS,
            box_tokens=BOX_TOKENS,
            box_decode=decode,
            seen=getattr(self.model, "seen", None),
        )
        chain = TwoPass(engine, setting)
        predictions = [each for at in range(0, len(asked), batch) for each in chain.predict(asked[at : at + batch])]
        for each in predictions:
            if each.error:
                raise RuntimeError(each.error)
        return [(each.box_text, each.answer) for each in predictions]

    def engine(self, name: str, policy: str, *, shared: bool = False, reuse: bool = True, decode: BoxDecode = "free") -> None:
        asked = _copied(self.shared if shared else self.own)
        engine = HfEngine(self.model, reuse=reuse)

        def run() -> None:
            for box_text, _ in self.answers(engine, policy, asked, self.batch, decode):
                if decode == "free" and box_text not in (None, BOX_TEXT):
                    raise RuntimeError(f"the model wrote {box_text!r}")

        self.time(name, asked, run)
        self.peaks[name] = engine.kv_peak / 2**20

    def loop(self) -> None:
        asked = self.own[: max(2, len(self.own) // 4)]
        self.time(LOOP, asked, lambda: self.answers(PlainLoop(self.model), CHAIN, asked, 1))

    def compare(self) -> int:
        """How many answers there are that differ. Raises RuntimeError where the engine's are not the loop's."""
        for asked in (self.own, self.shared):
            expected = self.answers(PlainLoop(self.model), CHAIN, asked, 1)
            for reuse in (True, False):
                found = self.answers(HfEngine(self.model, reuse=reuse), CHAIN, _copied(asked), self.batch)
                if found != expected:
                    at = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
                    raise RuntimeError(f"question {at}: {found[at]!r} by the engine, {expected[at]!r} by the loop")
        return len(set(expected))

    def once(self) -> None:
        arms: dict[str, Callable[[], None]] = {
            ANEW: partial(self.engine, ANEW, CHAIN, reuse=False),
            REUSE: partial(self.engine, REUSE, CHAIN),
            "grammar": partial(self.engine, "reuse, grammar", CHAIN, decode="grammar"),
            SHARED: partial(self.engine, SHARED, CHAIN, shared=True),
            "shared grammar": partial(self.engine, "the same, grammar", CHAIN, shared=True, decode="grammar"),
            LOOP: self.loop,
        }
        for name, run in arms.items():
            if self.few and name not in (REUSE, SHARED, LOOP):
                continue
            if not self.runs:
                self.engine(ONE, "none")
            run()
            self.engine(ONE, "none")


def _copied(asked: Asked) -> Asked:
    """The questions on new copies of their pictures; those that share one still do."""
    copies = {id(image): image.copy() for _, image in asked}
    return [(example, copies[id(image)]) for example, image in asked]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(FAMILIES), default="llava")
    for name, default in (("questions", None), ("batch", None), ("layers", 2), ("hidden", 2048), ("rounds", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    gpu, few = chosen.device == "cuda", chosen.family != "llava"
    questions = chosen.questions or (8 if chosen.quick else 16)
    batch, rounds = chosen.batch or 16, chosen.rounds or (1 if few else 2)
    full = FAMILIES[chosen.family]
    shape = full if gpu else type(full).small(chosen.hidden, chosen.layers)
    if chosen.quick:
        shape = replace(type(full).small(256, 2), side=full.quick_side)
        full = replace(full, side=full.quick_side)
        print(f"{compared(shape)} different answers of 4 questions, the same by the engine and by the loop")
    dtype = "bfloat16" if gpu else "float32"
    model = made(shape, chosen.device, dtype)
    before = _peak_mib()
    size = shape.picture_size
    Arms(model, 2, 2, size).engine("warm-up", CHAIN)
    arms = Arms(model, questions, batch, size, few=few)
    for _ in range(rounds):
        arms.once()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    machine = torch.cuda.get_device_name() if gpu else f"one thread; {platform.machine()}, {os.cpu_count()} cores"
    print(
        f"{chosen.family}: {questions} questions, batch {batch}, median of {rounds} rounds; {shape.layers} layers of "
        f"{shape.width}, {shape.image_tokens} image tokens, {dtype}, {machine}; {versions}"
    )
    floors = operations(model, built(shape, model))
    report(arms, floors, operations(model, full))
    print(f"peak memory {_peak_mib():.0f} MiB, {before:.0f} of them with the model loaded and nothing asked")
    sys.exit(0 if gpu or chosen.quick else verdict(arms, floors, few=few))


def made(shape: Shape, device: str, dtype: str, *, box_text: bool = True) -> LoadedModel:
    """A model of random weights, written and loaded as any checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), shape, getattr(torch, dtype), device, box_text=box_text)
        return load(folder, device=device, dtype=dtype)


def compared(shape: Shape) -> int:
    """`Arms.compare` on a model that does not write BOX_TEXT, in float64."""
    model = made(shape, "cpu", "float32", box_text=False)
    model.model.double()
    return Arms(model, 4, 4, shape.picture_size).compare()


def verdict(arms: Arms, floors: dict[str, float], *, few: bool) -> int:
    """The exit code: 6 where a limit is not kept."""
    kept = []
    for name, limit in LIMITS.items():
        kept.append(arms.ratio(name) <= (FLOOR_LIMIT * floors[name] / floors[ONE] if few else limit))
    for name, factor in LOOP_FACTORS["other" if few else "llava"].items():
        kept.append(arms.ratio(LOOP) / arms.ratio(name) >= factor)
    return 0 if all(kept) else 6


def report(arms: Arms, here: dict[str, float], large: dict[str, float]) -> None:
    """A line an arm; `here` and `large`: its floating-point operations in this shape, and in the 7B model's."""
    peak = peak_flops(torch.cuda.get_device_name()) if arms.model.device.type == "cuda" else None
    heads = (
        "s/answer",
        "x one pass",
        "least-most",
        "floor here",
        "/ floor",
        "floor 7B",
        "loop / this",
        "floor here",
        "k+v MiB",
        "answers/s",
        "MFU",
    )
    print(" " * 29 + " ".join(f"{head:>11}" for head in heads))
    for name in dict(arms.runs):
        ratios, seconds, known = arms.ratios(name), arms.seconds(name), name in here
        cells = (
            f"{seconds:.3f}",
            f"{arms.ratio(name):.2f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{here[name] / here[ONE]:.2f}" if known else "",
            f"{arms.ratio(name) / (here[name] / here[ONE]):.3f}" if known else "",
            f"{large[name] / large[ONE]:.2f}" if known else "",
            f"{arms.ratio(LOOP) / arms.ratio(name):.2f}",
            f"{here[LOOP] / here[name]:.2f}" if known else "",
            f"{arms.peaks[name]:.0f}" if name in arms.peaks else "",
            f"{1 / seconds:.2f}",
            f"{here[name] / seconds / peak:.3f}" if known and peak else "",
        )
        print(f"{name:<29}" + " ".join(f"{cell:>11}" for cell in cells))


def _peak_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
