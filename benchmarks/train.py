"""Training's data pipeline: samples a second and padding, beside a loader that decodes and pads twice; on a GPU the model, too.

    python benchmarks/train.py            the pipeline, and the model when a GPU is there
    python benchmarks/train.py --gpu-only

The pipeline is the real one (make_item and Collator of cos_core.training) on 1-megapixel JPEGs and LLaVA-1.5's processor. Times
are CPU seconds of one process, which is what a data loading worker has, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from cos_core import plug
from cos_core.encoding import encode
from cos_core.geometry import Box
from cos_core.images import crop_region, square_pad
from cos_core.prompts import load_profile
from cos_core.training.data import Recipe, TrainData, make_turns
from cos_core.training.samples import Sample
from cos_core.types import Example

SIZE = (1152, 896)
BATCH = 8
SAMPLES = 24
IMAGE_TOKENS = 576
CLIP = {
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def pictures(folder: Path) -> list[str]:
    """JPEGs of about a megapixel and 250 KiB: smooth shapes with some grain, as photographs have."""
    random = np.random.default_rng(0)
    names = []
    for i in range(SAMPLES):
        coarse = random.integers(0, 256, (14, 18, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
        grain = random.integers(-9, 10, smooth.shape, dtype=np.int16)
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=88)
        names.append(f"{i}.jpg")
    return names


def samples(names: Sequence[str]) -> list[Sample]:
    """One question a picture, its text as long as LLaVA's mix has them: mostly short, some long."""
    random = np.random.default_rng(1)
    found = []
    for name in names:
        words = int(random.lognormal(2.6, 0.9)) + 3
        example = Example(name, "bench", name, "what " * words + "?", ("word " * max(1, words // 4),), meta={"sample": name})
        x, y = random.uniform(0, 0.5, 2)
        found.append(Sample(name, (example,), (Box(float(x), float(y), float(x) + 0.5, float(y) + 0.5),), (0,)))
    return found


def recipe(folder: Path) -> tuple[Recipe, Any]:
    from transformers import CLIPImageProcessorPil

    from cos_core.miniature.vocabulary import make_tokenizer

    profile = load_profile("paper")
    tokenizer = make_tokenizer(load_profile("miniature"))
    made = Recipe(
        policy=plug.load("policies", "from_single_question"),
        profile=profile,
        tokenizer=tokenizer,
        image_token_id=int(tokenizer.convert_tokens_to_ids("<image>")),
        image_tokens=IMAGE_TOKENS,
        fill=(122, 116, 104),
        images=folder,
    )
    return made, CLIPImageProcessorPil(**CLIP)


def twice(data: TrainData, processor: Any) -> None:
    """The same pixels as a loader makes them that reads, decodes and pads the picture once for each view."""
    import torch

    fill = data.recipe.fill
    for sample in data.samples:
        path = data.recipe.images / str(sample.image)
        with Image.open(path) as file:
            whole = square_pad(file.convert("RGB"), fill)
        with Image.open(path) as file:
            canvas = square_pad(file.convert("RGB"), fill)
        box = sample.boxes[0]
        assert isinstance(box, Box)
        crop = square_pad(crop_region(canvas, Box(*box.corners)), fill)
        torch.cat([processor(view, return_tensors="pt")["pixel_values"] for view in (whole, crop)])
        turns = make_turns(sample, 0, "[0.250, 0.250, 0.750, 0.750]", data.recipe)
        encode(data.recipe.profile, turns, data.recipe.tokenizer, data.recipe.image_token_id, IMAGE_TOKENS)


def cpu_seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """The best of some runs, in CPU seconds of this process."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def pipeline() -> None:
    import torch

    from cos_core.training.collate import Collator
    from cos_core.training.order import Cut, Order

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made, processor = recipe(folder)
        data = TrainData(samples(pictures(folder)), made)
        collate = Collator(processor, 0, made.fill)
        batches = [range(i, i + BATCH) for i in range(0, SAMPLES, BATCH)]

        def ours() -> None:
            for batch in batches:
                collate([data[index] for index in batch])

        own = SAMPLES / cpu_seconds(ours)
        other = SAMPLES / cpu_seconds(lambda: twice(data, processor))
        print(f"{'one decode for both views (cos)':44}{own:8.1f} samples/s a worker")
        print(f"{'decode and pad once for each view':44}{other:8.1f} samples/s a worker")
        print(f"{'ratio':44}{own / other:8.2f}")
        many = TrainData(samples([f"{i}.jpg" for i in range(4096)]), replace(made, images=folder))
        for label, length, grouped in (
            ("order as drawn", None, False),
            ("by length inside a global batch (default)", many.length, False),
            ("--group-by-length", many.length, True),
        ):
            order = Order(4096, 0, Cut(16, 128, 1024), length, grouped).indices(0)
            lengths = [many.length(index, 0) for index in order]
            grid = sum(max(lengths[i : i + 16]) * 16 for i in range(0, 4096, 16))
            print(f"padding, {label:35}{100 * (1 - sum(lengths) / grid):8.1f} %")


def model() -> None:
    """7B shapes, random weights: tokens/s, MFU and peak memory of a real step; says so where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        print("model on a GPU: not measured (no GPU on this machine)")
        return
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from cos_core.training.flops import peak_flops, size_of

    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14
    )
    layers = 16
    text = LlamaConfig(vocab_size=32064, num_hidden_layers=layers)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=32000, image_seq_length=IMAGE_TOKENS)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        net = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    net.model.vision_tower.requires_grad_(False)
    net.model.multi_modal_projector.requires_grad_(False)
    net.gradient_checkpointing_enable({"use_reentrant": False})
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-5, fused=True)
    batch, length = 8, 1350
    ids = torch.randint(5, 30000, (batch, length), device="cuda")
    ids[:, 40 : 40 + 2 * IMAGE_TOKENS] = 32000
    pixels = torch.randn(2 * batch, 3, 336, 336, device="cuda", dtype=torch.bfloat16)
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize()
        start = time.perf_counter()
        net(input_ids=ids, pixel_values=pixels, labels=ids, attention_mask=torch.ones_like(ids)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    step = sorted(seconds[3:])[len(seconds[3:]) // 2]
    flops = size_of(config).step_flops(batch * length, batch * length**2, 2 * batch)
    name = torch.cuda.get_device_name(0)
    peak = peak_flops(name)
    mfu = f"{100 * flops / step / peak:.1f} % MFU" if peak else "MFU unknown"
    print(f"{name}: {layers} of 32 layers, {batch * length / step:.0f} tokens/s, {mfu}, ", end="")
    print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-only", action="store_true")
    arguments = parser.parse_args()
    packages = {name: version(name) for name in ("torch", "transformers", "pillow", "numpy")}
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores; {json.dumps(packages)}")
    if not arguments.gpu_only:
        pipeline()
    model()


if __name__ == "__main__":
    main()
