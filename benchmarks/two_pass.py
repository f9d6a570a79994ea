"""What a second pass costs: CPU time of an answer relative to an ordinary one-pass answer of the same engine, in one run.

The model has LLaVA-1.5's shape where it matters: 576 image positions, 336-pixel pictures, heads of width 128, an MLP of 2.69
times the width, a Llama tokenizer that splits digits. Two layers of 2048 are wide enough that layers, attention and vocabulary
have nearly 7B's shares (the floors show it), and small enough for a round of all arms in nine minutes; `--hidden 1024` is four
times as quick and farther off. First-pass texts are 29 tokens, answers 5. The weights are random, save that the model writes
"[0.251, 0.251, ..." whatever is asked: random tokens would come back from the tokenizer as other and more tokens than were
generated, which a box's text never does.

A round runs the other arms in turn, one pass before and after each. A run counts relative to the two beside it, as a machine's
speed drifts; an arm's figure is the median of its runs, beside which stand the least and the most. Floors are floating-point
operations, counted on the very prompts. Exit code 6: a ratio is over its limit.

On a GPU the time is wall time and the model has LLaVA-1.5-7B's shape in bfloat16 (13 GB, first written to the temporary
folder). Answers a second and the share of the card's peak (MFU) stand beside the ratios; there is no limit.

    python benchmarks/two_pass.py [--questions 16] [--batch 16] [--layers 2] [--hidden 2048] [--rounds 2]
    python benchmarks/two_pass.py --device cuda [--questions 64] [--batch 32]
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from cos_core.dialogue.prompts import dialogue, load_profile
from cos_core.engines._prefix import common_length
from cos_core.engines.hf import HfEngine
from cos_core.files import plug
from cos_core.infer.passes import BoxDecode, Setting, TwoPass
from cos_core.models import llava
from cos_core.training.flops import peak_flops
from cos_core.types import Example

ROOT = Path(__file__).resolve().parent.parent
BOX_TOKENS, ANSWER_TOKENS = 29, 5
TOKENIZER = ROOT / "tests" / "golden" / "original" / "tokenizers" / "legacy_true"
BOX_TEXT = "[0.251, 0.251, 0.251, 0.251,"
LIMITS = {"two passes, reuse": 2.3, "reuse, 8 questions a picture": 1.5}
"""Most that an arm may cost, relative to one pass."""
ONE, LOOP = "one pass", "batch-1 loop of generate"
LOOP_FACTOR = 2.0
"""How many times faster than the loop shared pictures must be answered."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how many floating-point operations a model takes."""

    width: int
    layers: int
    inner: int
    vocabulary: int
    vision_width: int
    vision_layers: int
    vision_inner: int

    def run(self, start: int, end: int) -> float:
        """Positions [start, end), each looking back at all before it."""
        token = 2 * self.layers * (4 * self.width**2 + 3 * self.width * self.inner)
        return (end - start) * token + 4 * self.width * self.layers * (end * (end + 1) - start * (start + 1)) / 2

    def generate(self, end: int, tokens: int) -> float:
        """`tokens` new ones behind `end` positions; the last is not run again."""
        return self.run(end, end + tokens - 1) + tokens * 2 * self.width * self.vocabulary

    def picture(self, image_tokens: int) -> float:
        """Patches of 14 pixels through the tower and the projector."""
        wide, seen = self.vision_width, image_tokens + 1
        tower = 2 * seen * self.vision_layers * (4 * wide**2 + 2 * wide * self.vision_inner + 2 * seen * wide)
        return tower + 2 * image_tokens * (wide * 3 * 14**2 + self.width * (wide + self.width))


SHAPE_7B = Shape(4096, 32, 11008, 32000, 1024, 24, 4096)


def make_model(directory: Path, shape: Shape, dtype: torch.dtype, device: str = "cpu") -> None:
    """Writes a checkpoint; its random weights are drawn on `device`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.pad_token = tokenizer.unk_token
    vision = transformers.CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_inner,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_width // 32 if shape.vision_width < 1024 else 16,
        image_size=336,
        patch_size=14,
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 128,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=len(tokenizer) - 1, image_seq_length=576, vision_feature_layer=-2
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = transformers.LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    write_box_text(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    side = {"height": 336, "width": 336}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=side).save_pretrained(directory)


def write_box_text(model: Any, tokenizer: Any) -> None:
    """Lets the model write BOX_TEXT: each of its tokens is so loud an input that the next is the likeliest, layers or not."""
    ids = tokenizer(f"ASSISTANT: {BOX_TEXT}", add_special_tokens=False)["input_ids"]
    start = ids.index(tokenizer.convert_tokens_to_ids(":"))
    with torch.no_grad():
        for token, successor in dict(itertools.pairwise(ids[start:])).items():
            direction = torch.nn.functional.normalize(
                torch.randn(model.config.text_config.hidden_size, device=model.device), dim=0
            )
            model.get_input_embeddings().weight[token] = 4000 * direction
            model.get_output_embeddings().weight[successor] += direction


def batch_one_loop(model: llava.Llava, asked: list[tuple[Example, Image.Image]]) -> None:
    """What a plain script does: `generate` twice a question, everything anew."""
    for example, image in asked:
        for turns, pictures, budget in (
            (dialogue(model.profile, example.question), [image], BOX_TOKENS),
            (
                dialogue(model.profile, example.question, box_text=BOX_TEXT),
                [image, image.crop((84, 84, 252, 252))],
                ANSWER_TOKENS,
            ),
        ):
            ids = torch.tensor([model.encode(turns).ids], device=model.device)
            with torch.inference_mode():
                model.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    pixel_values=model.pixels(pictures),
                    do_sample=False,
                    max_new_tokens=budget,
                )


def shape_of(model: llava.Llava) -> Shape:
    text, vision = model.model.config.text_config, model.model.config.vision_config
    return Shape(
        text.hidden_size,
        text.num_hidden_layers,
        text.intermediate_size,
        text.vocab_size,
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.intermediate_size,
    )


def operations(model: llava.Llava, shape: Shape) -> dict[str, float]:
    """Floating-point operations of an answer in each arm: the least that can be computed, on the arms' own prompts."""
    asked = [dialogue(model.profile, question) for question in ("What bus?", "Which man?")]
    where, other = (np.array(model.encode(turns).ids) for turns in asked)
    plain = len(model.encode(dialogue(model.profile, "What bus?", chain=False)))
    tail = len(model.encode(dialogue(model.profile, "What bus?", box_text=BOX_TEXT)))
    picture, boxed = shape.picture(model.image_tokens), len(where) + BOX_TOKENS - 1
    one = picture + shape.run(0, plain) + shape.generate(plain, ANSWER_TOKENS)
    first = shape.run(0, len(where)) + shape.generate(len(where), BOX_TOKENS)
    answer = shape.generate(tail, ANSWER_TOKENS)
    reuse = 2 * picture + first + shape.run(boxed, tail) + answer
    anew = 2 * picture + first + shape.run(0, tail) + answer
    return {
        ONE: one,
        "two passes, no reuse": anew,
        "two passes, reuse": reuse,
        "reuse, 8 questions a picture": reuse - 7 / 8 * (picture + shape.run(0, common_length(where, other))),
        LOOP: anew + picture,
    }


class Arms:
    """What is measured, each on new copies of the pictures: nothing that another arm computed is known."""

    def __init__(self, model: llava.Llava, questions: int, batch: int) -> None:
        dice = random.Random(1)
        side = 336
        pictures = [Image.frombytes("RGB", (side, side), dice.randbytes(3 * side * side)) for _ in range(questions)]
        words = ("colour", "bus", "man", "left", "table", "dog", "red")
        asked = [f"What {' '.join(dice.choices(words, k=4))}?" for _ in range(questions)]
        examples = [Example(id=str(i), dataset="bench", image=str(i), question=q) for i, q in enumerate(asked)]
        self.model, self.batch = model, batch
        self.own = list(zip(examples, pictures, strict=True))
        self.shared = [(example, pictures[i // 8]) for i, example in enumerate(examples)]
        self.peaks: dict[str, float] = {}
        self.runs: list[tuple[str, float]] = []
        """What ran, in order, and its seconds an answer."""

    def time(self, name: str, asked: list[tuple[Example, Image.Image]], work: Callable[[], object]) -> None:
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

    def engine(self, name: str, policy: str, *, shared: bool = False, reuse: bool = True, decode: BoxDecode = "free") -> None:
        asked = self.shared if shared else self.own
        copies = {id(image): image.copy() for _, image in asked}
        engine = HfEngine(self.model, reuse=reuse)
        setting = Setting(
            plug.load("policies", policy),
            load_profile("paper"),
            self.model.fill,
            max_new_tokens=ANSWER_TOKENS,
            box_tokens=BOX_TOKENS,
            box_decode=decode,
        )

        def run() -> None:
            chain = TwoPass(engine, setting)
            for start in range(0, len(asked), self.batch):
                part = [(example, copies[id(image)]) for example, image in asked[start : start + self.batch]]
                for found in chain.predict(part):
                    if found.error or (decode == "free" and found.box_text not in (None, BOX_TEXT)):
                        raise RuntimeError(found.error or f"the model wrote {found.box_text!r}")

        self.time(name, asked, run)
        self.peaks[name] = engine.kv_peak / 2**20

    def once(self) -> None:
        chain, loop = "from_single_question", self.own[: max(2, len(self.own) // 4)]
        for run in (
            partial(self.engine, "two passes, no reuse", chain, reuse=False),
            partial(self.engine, "two passes, reuse", chain),
            partial(self.engine, "reuse, grammar", chain, decode="grammar"),
            partial(self.engine, "reuse, 8 questions a picture", chain, shared=True),
            partial(self.engine, "the same, grammar", chain, shared=True, decode="grammar"),
            partial(self.time, LOOP, loop, lambda: batch_one_loop(self.model, loop)),
        ):
            if not self.runs:
                self.engine(ONE, "none")
            run()
            self.engine(ONE, "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("questions", 16), ("batch", 16), ("layers", 2), ("hidden", 2048), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    gpu = chosen.device == "cuda"
    small = Shape(chosen.hidden, chosen.layers, chosen.hidden * 11008 // 4096, 32000, 128, 4, 512)
    shape, dtype = (SHAPE_7B, "bfloat16") if gpu else (small, "float32")
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), shape, getattr(torch, dtype), chosen.device)
        model = llava.load(folder, device=chosen.device, dtype=dtype, profile="paper")
    before = _peak_mib()
    Arms(model, 2, 2).engine("warm-up", "from_single_question")
    arms = Arms(model, chosen.questions, chosen.batch)
    for _ in range(chosen.rounds):
        arms.once()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    machine = torch.cuda.get_device_name() if gpu else f"one thread; {platform.machine()}, {os.cpu_count()} cores"
    print(
        f"{chosen.questions} questions, batch {chosen.batch}, median of {chosen.rounds} rounds; {shape.layers} layers of "
        f"{shape.width}, 576 image tokens, {dtype}, {machine}; {versions}"
    )
    report(arms, shape_of(model))
    print(f"peak memory {_peak_mib():.0f} MiB, {before:.0f} of them with the model loaded and nothing asked")
    slow = any(arms.ratio(name) > limit for name, limit in LIMITS.items())
    slow |= arms.ratio(LOOP) / arms.ratio("reuse, 8 questions a picture") < LOOP_FACTOR
    sys.exit(6 if slow and not gpu else 0)


def report(arms: Arms, shape: Shape) -> None:
    here, large = operations(arms.model, shape), operations(arms.model, SHAPE_7B)
    peak = peak_flops(torch.cuda.get_device_name()) if arms.model.device.type == "cuda" else None
    heads = (
        "s/answer",
        "x one pass",
        "least-most",
        "floor here",
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
