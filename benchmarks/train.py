"""Training's data pipeline: samples a second and padding, beside two loaders made as LLaVA's are; on a GPU the model, too.

    python benchmarks/train.py            the pipeline, and the model when a GPU is there
    python benchmarks/train.py --gpu-only
    python benchmarks/train.py --memory   memory of the samples of 3.3 million questions instead (train_memory.py)

The pipeline is the real one (TrainData and Collator of cos_core.training) on 1-megapixel JPEGs and LLaVA-1.5's processor. The
others:

    twice     for each view: open, convert("RGB"), expand2square; the region is cut from the second square and squared in turn
    released  as Chain-of-Spot's train_CoS.py (LazySupervisedDataset.__getitem__): opened and padded once, the square copied

Both hand each view to CLIPImageProcessorPil, which works as the CLIPImageProcessor of their day: to an array, back to a picture
to resize, rescale, normalise; then they stack tensors as LLaVA's collator does. Nothing of cos_core touches their pixels.
Tokens and box texts are made by cos_core for all three (the released code has a slow tokenizer and copies its dialogues deeply,
which would only take longer). All three must come out with the same numbers, to the bit, before anything is timed.

Each loader is a process of its own, as a data loading worker is, with Pillow's memory as the process asks for it; under
PILLOW_BLOCKS_MAX=8 all three have what `cos train` asks for. They take turns, round by round. Times are CPU seconds of that
process, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from cos_core.dialogue.encoding import IGNORE, encode
from cos_core.dialogue.prompts import load_profile
from cos_core.files import assets, plug
from cos_core.files.images import reuse_memory
from cos_core.geometry import Box
from cos_core.models import pretrained
from cos_core.training.collate import Collator
from cos_core.training.dataset import Recipe, TrainDataset, as_written, make_turns
from cos_core.training.sample_order import BatchSizes, SampleOrder
from cos_core.training.samples import Sample
from cos_core.types import Example

Batch = dict[str, Any]
Colour = tuple[int, int, int]
SIZE = (1152, 896)
BATCH = 8
SAMPLES = 24
ROUNDS = 9
PAD = 0
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
        # Half the square's side, where the picture lies in it: rows from 128 to 1024 of 1152.
        x, y = float(random.uniform(0, 0.5)), float(random.uniform(0.112, 0.388))
        found.append(Sample(name, (example,), (Box(x, y, x + 0.5, y + 0.5, "square"),), (0,)))
    return found


def recipe(folder: Path) -> tuple[Recipe, Any]:
    from transformers import CLIPImageProcessorPil

    profile = load_profile("paper")
    tokenizer = pretrained.tokenizer(str(assets.miniature_checkpoint()))
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


def ours(data: TrainDataset, processor: Any) -> list[Batch]:
    """What `cos train` does in a data loading process."""
    collate = Collator(processor, PAD, data.recipe.image_token_id, data.recipe.fill)
    return [collate([data[index] for index in range(i, i + BATCH)]) for i in range(0, SAMPLES, BATCH)]


def twice(data: TrainDataset, processor: Any) -> list[Batch]:
    """A loader that reads, decodes and pads the picture once for each view."""

    def views(path: Path, box: Box, fill: Colour) -> list[Any]:
        whole = expand2square(Image.open(path).convert("RGB"), fill)
        found = [processor.preprocess(whole, return_tensors="pt")["pixel_values"][0]]
        canvas = expand2square(Image.open(path).convert("RGB"), fill)
        crop = expand2square(canvas.crop(box.pixels(*canvas.size)), fill)
        return [*found, processor.preprocess(crop, return_tensors="pt")["pixel_values"][0]]

    return plain_batches(data, views)


def released(data: TrainDataset, processor: Any) -> list[Batch]:
    """The released code's loader."""

    def views(path: Path, box: Box, fill: Colour) -> list[Any]:
        whole = expand2square(Image.open(path).convert("RGB"), fill)
        canvas = whole.copy()
        found = [processor.preprocess(whole, return_tensors="pt")["pixel_values"][0]]
        crop = expand2square(canvas.crop(box.pixels(*canvas.size)), fill)
        return [*found, processor.preprocess(crop, return_tensors="pt")["pixel_values"][0]]

    return plain_batches(data, views)


LOADERS = {
    "cos": (ours, "one decode for both views (cos)"),
    "twice": (twice, "decode and pad once for each view"),
    "released": (released, "the released code's loader"),
}


def expand2square(picture: Image.Image, fill: Colour) -> Image.Image:
    """The picture in the middle of a square canvas."""
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    canvas = Image.new(picture.mode, (side, side), fill)
    canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
    return canvas


def plain_batches(data: TrainDataset, views: Callable[[Path, Box, Colour], list[Any]]) -> list[Batch]:
    """Batches as LLaVA's collator makes them: tokens padded to the longest, both views of a sample as six channels."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    made = data.recipe
    batches = []
    for i in range(0, SAMPLES, BATCH):
        ids, labels, pixels = [], [], []
        for sample in data.samples[i : i + BATCH]:
            box = sample.boxes[0]
            assert isinstance(box, Box)
            text, written = as_written(box, SIZE, made.profile)
            pixels.append(torch.cat(views(made.images / str(sample.image), written, made.fill), dim=0))
            turns = make_turns(sample, 0, text, made)
            encoded = encode(made.profile, turns, made.tokenizer, made.image_token_id, IMAGE_TOKENS)
            ids.append(torch.tensor(encoded.ids))
            labels.append(torch.tensor(encoded.labels))
        padded = pad_sequence(ids, batch_first=True, padding_value=PAD)
        batch = {"input_ids": padded, "attention_mask": padded.ne(PAD), "pixel_values": torch.stack(pixels)}
        batches.append({**batch, "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE)})
    return batches


def digest(batches: Sequence[Batch]) -> str:
    """Of tokens, labels and pixels, whatever shape the pixels are handed over in."""
    found = hashlib.sha256()
    for batch in batches:
        for name in ("input_ids", "labels", "pixel_values"):
            found.update(batch[name].numpy().tobytes())
    return found.hexdigest()


def worker(name: str, folder: Path, pipe: Connection) -> None:
    """One loader in its process: what it makes, then the CPU seconds of a pass for every word that comes."""
    import torch

    torch.set_num_threads(1)
    made, processor = recipe(folder)
    data = TrainDataset(samples([f"{i}.jpg" for i in range(SAMPLES)]), made)
    load = LOADERS[name][0]
    if load is ours:
        reuse_memory()
    pipe.send(digest(load(data, processor)))
    while pipe.recv():
        start = time.process_time()
        load(data, processor)
        pipe.send(time.process_time() - start)


def in_turns(folder: Path) -> dict[str, list[float]]:
    """CPU seconds of every round of every loader. Ends the program when their batches differ."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in LOADERS:
        pipes[name], theirs = context.Pipe()
        context.Process(target=worker, args=(name, folder, theirs), daemon=True).start()
    if len({pipe.recv() for pipe in pipes.values()}) > 1:
        sys.exit("the loaders do not make the same batches")
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(ROUNDS):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    return seconds


def pipeline() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = sum((folder / file).stat().st_size for file in pictures(folder)) / SAMPLES / 1024
        print(f"JPEGs of {SIZE[0]}x{SIZE[1]} and {size:.0f} KiB; {ROUNDS} rounds in turns, median (least to most)")
        seconds = in_turns(folder)
        for loader, (_, label) in LOADERS.items():
            print(f"{label:44}{spread([SAMPLES / s for s in seconds[loader]], 1)} samples/s a worker")
        for loader in ("twice", "released"):
            ratios = [other / own for own, other in zip(seconds["cos"], seconds[loader], strict=True)]
            print(f"{'cos / ' + LOADERS[loader][1]:44}{spread(ratios, 2)}")
        padding(recipe(folder)[0])


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):8.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def padding(made: Recipe) -> None:
    """The share of positions that pad, under each order."""
    many = TrainDataset(samples([f"{i}.jpg" for i in range(4096)]), made)
    for label, length, grouped in (
        ("order as drawn", None, False),
        ("by length inside a global batch (default)", many.length, False),
        ("--group-by-length", many.length, True),
    ):
        order = SampleOrder(4096, 0, BatchSizes(16, 128, 1024), length, grouped).indices(0)
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

    from cos_core.models.model_size import size_of
    from cos_core.training.flops import peak_flops, step_flops

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
    flops = step_flops(size_of(config), batch * length, batch * length**2, 2 * batch * IMAGE_TOKENS, 2 * batch)
    name = torch.cuda.get_device_name(0)
    peak = peak_flops(name)
    mfu = f"{100 * flops / step / peak:.1f} % MFU" if peak else "MFU unknown"
    print(f"{name}: {layers} of 32 layers, {batch * length / step:.0f} tokens/s, {mfu}, ", end="")
    print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-only", action="store_true")
    parser.add_argument("--memory", nargs="...", metavar="OPTION", help="what follows goes to train_memory.py")
    arguments = parser.parse_args()
    if arguments.memory is not None:
        # A program of its own, because its processes begin with it.
        program = str(Path(__file__).with_name("train_memory.py"))
        sys.exit(subprocess.call([sys.executable, program, *arguments.memory]))
    packages = {name: version(name) for name in ("torch", "transformers", "pillow", "numpy")}
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores; {json.dumps(packages)}")
    if not arguments.gpu_only:
        pipeline()
    model()


if __name__ == "__main__":
    main()
