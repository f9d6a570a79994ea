"""What a second pass costs: CPU time of an answer relative to an ordinary one-pass answer of the same engine, in one run.

The model has LLaVA-1.5's shape where it matters (576 image positions, 336-pixel pictures, heads of width 128, a Llama tokenizer
that splits digits), random weights, and is just wide enough that prompts are bound by arithmetic on one core and attention is
no larger a part of it than two layers of a small model make it. First-pass texts are 29 tokens, answers 5. Every figure is the
fastest of `--rounds` runs through all arms, one arm after the other. Exit code 6: a ratio is over its limit.

    python benchmarks/two_pass.py [--questions 16] [--batch 16] [--layers 2] [--hidden 1024] [--rounds 2]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from PIL import Image

from cos_core import llava, plug
from cos_core.engines.hf import HfEngine
from cos_core.infer.passes import BoxDecode, Setting, TwoPass
from cos_core.prompts import dialogue, load_profile
from cos_core.types import Example

ROOT = Path(__file__).resolve().parent.parent
BOX_TOKENS, ANSWER_TOKENS = 29, 5
TOKENIZER = ROOT / "tests" / "golden" / "original" / "tokenizers" / "legacy_true"
FLOOR_7B = {
    "one pass": 1.0,
    "two passes, no reuse": 3.07,
    "two passes, reuse": 2.07,
    "reuse, 8 questions a picture": 1.13,
    "batch-1 loop of generate": 3.12,
}
"""Floating-point operations of LLaVA-1.5-7B relative to one pass."""
LIMITS = {"two passes, reuse": 2.3, "reuse, 8 questions a picture": 1.5}
"""Most that an arm may cost, relative to one pass."""


def make_model(directory: Path, layers: int, hidden: int) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.pad_token = tokenizer.unk_token
    vision = transformers.CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=336, patch_size=14
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=int(hidden * 2.7),
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        max_position_embeddings=4096,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=len(tokenizer) - 1, image_seq_length=576, vision_feature_layer=-2
    )
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    side = {"height": 336, "width": 336}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=side).save_pretrained(directory)


def batch_one_loop(model: llava.Llava, asked: list[tuple[Example, Image.Image]]) -> None:
    """What a plain script does: `generate` twice a question, everything anew."""
    for example, image in asked:
        for turns, pictures, budget in (
            (dialogue(model.profile, example.question), [image], BOX_TOKENS),
            (
                dialogue(model.profile, example.question, box_text="[0.250, 0.250, 0.750, 0.750]"),
                [image, image.crop((84, 84, 252, 252))],
                ANSWER_TOKENS,
            ),
        ):
            ids = torch.tensor([model.encode(turns).ids])
            with torch.inference_mode():
                model.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    pixel_values=model.pixels(pictures),
                    do_sample=False,
                    max_new_tokens=budget,
                )


def floors(model: llava.Llava) -> dict[str, float]:
    """Floating-point operations of the arms on this very model, relative to one pass: the least that can be computed."""
    text, vision = model.model.config.text_config, model.model.config.vision_config
    width, layers = text.hidden_size, text.num_hidden_layers
    token = 2 * layers * (4 * width**2 + 3 * width * text.intermediate_size)
    patches = model.image_tokens + 1
    picture = 2 * patches * vision.num_hidden_layers * (12 * vision.hidden_size**2 + 2 * patches * vision.hidden_size)
    picture += 2 * model.image_tokens * width * (vision.hidden_size + width)

    def run(start: int, end: int) -> float:
        """Positions [start, end), each looking back at all before it."""
        return (end - start) * token + 4 * width * layers * (end * (end + 1) - start * (start + 1)) / 2

    words, end = 40, model.image_tokens + 40  # what stands around a picture, roughly
    first, box, answer = run(0, end), run(end, end + BOX_TOKENS), ANSWER_TOKENS
    tail = end + BOX_TOKENS + model.image_tokens + words
    second = run(end + BOX_TOKENS, tail)
    one = picture + first + run(end, end + answer)
    two = 2 * picture + first + box + second + run(tail, tail + answer)
    again = first + box
    return {
        "one pass": 1.0,
        "two passes, no reuse": (two + again) / one,
        "two passes, reuse": two / one,
        "reuse, 8 questions a picture": (two - 7 / 8 * (picture + run(0, model.image_tokens))) / one,
        "batch-1 loop of generate": (two + again + picture) / one,
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
        self.seconds: dict[str, float] = {}

    def time(self, name: str, asked: list[tuple[Example, Image.Image]], work: Callable[[], object]) -> None:
        start = time.process_time()
        work()
        spent = (time.process_time() - start) / len(asked)
        self.seconds[name] = min(spent, self.seconds.get(name, spent))

    def engine(self, name: str, policy: str, *, shared: bool = False, reuse: bool = True, decode: BoxDecode = "free") -> None:
        asked = self.shared if shared else self.own
        copies = {id(image): image.copy() for _, image in asked}
        engine = HfEngine(self.model, reuse=reuse)
        setting = Setting(
            plug.load("policies", policy),
            load_profile("paper"),
            max_new_tokens=ANSWER_TOKENS,
            box_tokens=BOX_TOKENS,
            box_decode=decode,
        )

        def run() -> None:
            chain = TwoPass(engine, setting)
            for start in range(0, len(asked), self.batch):
                part = [(example, copies[id(image)]) for example, image in asked[start : start + self.batch]]
                failed = [p.error for p in chain.predict(part) if p.error]
                if failed:
                    raise RuntimeError(failed[0])

        self.time(name, asked, run)
        self.peaks[name] = engine.kv_peak / 2**20

    def once(self) -> None:
        chain = "from_single_question"
        self.engine("one pass", "none")
        self.engine("two passes, no reuse", chain, reuse=False)
        self.engine("two passes, reuse", chain)
        self.engine("reuse, grammar", chain, decode="grammar")
        self.engine("reuse, 8 questions a picture", chain, shared=True)
        self.engine("the same, grammar", chain, shared=True, decode="grammar")
        loop = self.own[: max(2, len(self.own) // 4)]
        self.time("batch-1 loop of generate", loop, lambda: batch_one_loop(self.model, loop))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("questions", 16), ("batch", 16), ("layers", 2), ("hidden", 1024), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), chosen.layers, chosen.hidden)
        model = llava.load(folder, device="cpu", dtype="float32", profile="paper")
    before = _peak_mib()
    arms = Arms(model, chosen.questions, chosen.batch)
    for _ in range(chosen.rounds):
        arms.once()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(
        f"{chosen.questions} questions, batch {chosen.batch}, best of {chosen.rounds}; {chosen.layers} layers of "
        f"{chosen.hidden}, 576 image tokens, float32, one thread; {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores; {versions}"
    )
    report(arms, floors(model))
    print(f"peak memory {_peak_mib():.0f} MiB, {before:.0f} of them with the model loaded and nothing asked")
    ratios = {name: arms.seconds[name] / arms.seconds["one pass"] for name in LIMITS}
    half = arms.seconds["batch-1 loop of generate"] / 2
    sys.exit(6 if any(ratios[n] > LIMITS[n] for n in LIMITS) or arms.seconds["reuse, 8 questions a picture"] > half else 0)


def report(arms: Arms, here: dict[str, float]) -> None:
    one, loop = arms.seconds["one pass"], arms.seconds["batch-1 loop of generate"]
    heads = ("CPU s/answer", "x one pass", "floor here", "floor 7B", "loop / this", "keys+values MiB")
    print(" " * 29 + " ".join(f"{head:>12}" for head in heads))
    for name, seconds in arms.seconds.items():
        known = [f"{table[name]:.2f}" if name in table else "" for table in (here, FLOOR_7B)]
        peak = f"{arms.peaks[name]:.0f}" if name in arms.peaks else ""
        cells = (f"{seconds:.3f}", f"{seconds / one:.2f}", *known, f"{loop / seconds:.2f}", peak)
        print(f"{name:<29}" + " ".join(f"{cell:>12}" for cell in cells))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
