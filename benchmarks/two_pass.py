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
from cos_core.infer.passes import Setting, TwoPass
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


def measured(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("questions", 8), ("batch", 8), ("layers", 4), ("hidden", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dice = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), chosen.layers, chosen.hidden)
        model = llava.load(folder, device="cpu", dtype="float32", profile="paper")
    pictures = [Image.frombytes("RGB", (336, 336), dice.randbytes(3 * 336 * 336)) for _ in range(chosen.questions)]
    words = ("colour", "bus", "man", "left", "table", "dog", "red")
    questions = [f"What {' '.join(dice.choices(words, k=4))}?" for _ in range(chosen.questions)]
    examples = [Example(id=str(i), dataset="bench", image=str(i), question=q) for i, q in enumerate(questions)]
    own = list(zip(examples, pictures, strict=True))
    shared = [(example, pictures[i // 8]) for i, example in enumerate(examples)]
    peaks: dict[str, float] = {}

    def arm(name: str, policy: str, asked: list[tuple[Example, Image.Image]], reuse: bool, decode: str = "free") -> float:
        copies = {id(image): image.copy() for _, image in asked}  # nothing that another arm computed is known
        engine = HfEngine(model, reuse=reuse)
        setting = Setting(
            plug.load("policies", policy),
            load_profile("paper"),
            max_new_tokens=ANSWER_TOKENS,
            box_tokens=BOX_TOKENS,
            box_decode=decode,  # type: ignore[arg-type]
        )

        def run() -> None:
            chain = TwoPass(engine, setting)
            for start in range(0, len(asked), chosen.batch):
                part = [(example, copies[id(image)]) for example, image in asked[start : start + chosen.batch]]
                failed = [p.error for p in chain.predict(part) if p.error]
                if failed:
                    raise RuntimeError(failed[0])

        seconds = measured(run)
        peaks[name] = engine.kv_peak / 2**20
        return seconds / len(asked)

    arm("warm-up", "none", own[: chosen.batch], True)
    times = {
        "one pass": arm("one pass", "none", own, True),
        "two passes, no reuse": arm("two passes, no reuse", "from_single_question", own, False),
        "two passes, reuse": arm("two passes, reuse", "from_single_question", own, True),
        "reuse, grammar": arm("reuse, grammar", "from_single_question", own, True, "grammar"),
        "reuse, 8 questions a picture": arm("reuse, 8 questions a picture", "from_single_question", shared, True),
        "the same, grammar": arm("the same, grammar", "from_single_question", shared, True, "grammar"),
    }
    loop = own[: max(2, chosen.questions // 4)]
    times["batch-1 loop of generate"] = measured(lambda: batch_one_loop(model, loop)) / len(loop)
    one = times["one pass"]
    print(
        f"{chosen.questions} questions, batch {chosen.batch}; {chosen.layers} layers of {chosen.hidden}, 576 image tokens, "
        f"float32, one thread; {platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    )
    print(f"{'':<30} {'CPU s/answer':>12} {'x one pass':>10} {'FLOP floor':>10} {'keys+values MiB':>15}")
    for name, seconds in times.items():
        floor = f"{FLOOR[name]:.2f}" if name in FLOOR else ""
        peak = f"{peaks[name]:.0f}" if name in peaks else ""
        print(f"{name:<30} {seconds:>12.3f} {seconds / one:>10.2f} {floor:>10} {peak:>15}")
    gain, shared_gain = (times["batch-1 loop of generate"] / times[name] for name in ("reuse, grammar", "the same, grammar"))
    print(f"with grammar {gain:.2f} times as fast as the batch-1 loop, {shared_gain:.2f} times with 8 questions a picture")
    print(f"peak memory {_peak_mib():.0f} MiB")
    wrong = [
        times["reuse, grammar"] / one > 2.3,
        times["the same, grammar"] / one > 1.5,
        shared_gain < 2,
    ]
    sys.exit(6 if any(wrong) else 0)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
