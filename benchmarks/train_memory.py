"""Memory of a run's samples on one machine: the table that all processes map, beside a list of Python objects in each.

    python benchmarks/train.py --memory [QUESTIONS] [--regions released]     (3.3 million questions, five a conversation)

A rank is a process with four data loading processes, which read every sample once, in training's order, and make its dialogue;
pictures and tokens are left out. Memory is the proportional set size (PSS) of rank and workers when all of them have finished
their share: a page that n processes map counts 1/n for each, so the sum is what the machine has to hold. What the same
processes take for as many readings of 256 samples is subtracted.

The list grows with every question in every process, so it is measured on a tenth of the data by default, and said so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import warnings
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cos_core.data.datasets import read_examples
from cos_core.dialogue.prompts import load_profile
from cos_core.files import plug
from cos_core.geometry import Box
from cos_core.interfaces import Policy
from cos_core.models.llava import LlavaEncoder
from cos_core.store.annotations import Store
from cos_core.training import inputs
from cos_core.training.config import TrainConfig
from cos_core.training.dataset import Recipe, TrainDataset, make_turns, question_of
from cos_core.training.sample_order import BatchSizes, SampleOrder
from cos_core.training.samples import Account, Rules, Sample, Samples, collect
from cos_core.types import Annotation

QUESTIONS = 3_300_000
EACH = 5
"""Questions a conversation."""
WORKERS = 4
FEW = 256
FORMER_SHARE = 0.1
SOME_BOX = "[0.250, 0.250, 0.750, 0.750]"


@dataclass(frozen=True)
class Place:
    """Where the data of a measurement lies; `store` is a store, or a file of regions as released."""

    data: Path
    store: Path
    samples: int


def write(folder: Path, questions: int, kind: str) -> Place:
    """A JSON list of conversations as LLaVA's mixture has them, mostly short and some long, and a region for each question."""
    folder.mkdir()
    dice = np.random.default_rng(questions)
    samples = -(-questions // EACH)
    place = Place(folder / "data.json", folder / ("regions.json" if kind == "released" else "regions"), samples)
    with place.data.open("w") as file:
        file.write("[")
        for i in range(samples):
            words = np.minimum(dice.lognormal(1.6, 1.0, 2 * EACH).astype(int) + 2, 200).tolist()
            turns = [{"from": ("human", "gpt")[t % 2], "value": f"{t} " + "word " * n} for t, n in enumerate(words)]
            record = {"id": f"{i:012d}", "image": f"coco/train2017/{i:012d}.jpg", "conversations": turns}
            file.write(("," if i else "") + json.dumps(record))
        file.write("]")
    if kind == "released":
        with place.store.open("w") as file:
            file.write("{")
            for i in range(samples):
                corners = dice.integers(0, 300, (EACH, 3)).tolist()
                entries = (
                    f'"{i:06d}_{i:012d}_q{q}": {{"params": [{t}, {x}, {s + 20}]}}' for q, (t, x, s) in enumerate(corners)
                )
                file.write((", " if i else "") + ", ".join(entries))
            file.write("}")
    else:
        with Store.create_or_resume(place.store, "f", {}) as store:
            store.put_many(_annotations(samples, dice))
    return place


def _annotations(samples: int, dice: np.random.Generator) -> Iterator[Annotation]:
    for i in range(samples):
        for q, (x, y) in enumerate(dice.uniform(0, 0.6, (EACH, 2)).tolist()):
            box = Box(x, y, x + 0.4, y + 0.4)
            yield Annotation(f"{i:012d}#q{q}", box, 1.0, "from_single_question", "f", image=f"coco/train2017/{i:012d}.jpg")


class Dialogues:
    """A data set for torch: the dialogue of each sample, as many characters as it has."""

    def __init__(self, data: TrainDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> int:
        sample = self.data.samples[index]
        turns = make_turns(sample, question_of(sample, 0, self.data.recipe), SOME_BOX, self.data.recipe)
        return sum(len(part) for turn in turns for part in turn.parts if isinstance(part, str))


def pss(pid: int) -> int:
    """Proportional set size of a process, bytes."""
    return _kibibytes(f"/proc/{pid}/smaps_rollup", "Pss:")


def _kibibytes(path: str, name: str) -> int:
    """The number that a file of the kernel gives in kB, as bytes."""
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def rank(way: str, place: Place, readings: int, pipe: Connection) -> None:
    """One rank: opens the samples, lets its workers read as many, and says what each process holds when it is asked."""
    import torch

    torch.set_num_threads(1)
    # More workers than cores are what is measured here.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    policy = plug.load("policies", "from_single_question")
    config = TrainConfig(place.data, place.data.parent, "no model", place.data.parent / "out", store=place.store)
    vision = SimpleNamespace(image_size=336, patch_size=14)
    encoder = LlavaEncoder(SimpleNamespace(vision_config=vision), None, None, load_profile("paper"), 0, 576)
    recipe = Recipe(policy, encoder, place.data.parent)
    start, before = time.perf_counter(), peak()
    with ExitStack() as stack:
        if way == "list":
            samples: Samples = former(config, policy)
        else:
            samples = stack.enter_context(inputs.read(config, policy)).samples
        opened = {"seconds": time.perf_counter() - start, "peak": peak() - before}
        trained = TrainDataset(samples, recipe)
        order = SampleOrder(len(trained), 0, BatchSizes(16, 16, 128), trained.length)
        keys: Any = array("l", islice(cycle(order), readings))
        loader: Any = torch.utils.data.DataLoader(
            Dialogues(trained),
            16,
            sampler=keys,
            num_workers=WORKERS,
            persistent_workers=True,
        )
        start = time.perf_counter()
        letters = sum(int(batch.sum()) for batch in loader)
        opened["read"] = time.perf_counter() - start
        pipe.send({**opened, "letters": letters})
        # When all ranks are done, none of them grows any more.
        pipe.recv()
        workers = [worker.pid for worker in multiprocessing.active_children()]
        pipe.send([pss(pid) for pid in (multiprocessing.current_process().pid, *workers)])
        pipe.recv()


def former(config: TrainConfig, policy: Policy) -> list[Sample]:
    """All samples as Python objects, as every rank kept them before there was a table."""
    examples = read_examples(config.data, text_only="keep")
    with inputs.regions_of(config, policy) as regions:
        return [sample for _, sample in collect(examples, Rules(policy, 0), regions, Account([], [], []))]


def peak() -> int:
    """The most that this process held so far, bytes; pages of mapped files included."""
    return _kibibytes("/proc/self/status", "VmHWM:")


def measured(way: str, place: Place, readings: int, ranks: int = 1) -> dict[str, Any]:
    """PSS of all processes together, and what the slowest rank took."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(ranks):
        ours, theirs = context.Pipe()
        context.Process(target=rank, args=(way, place, readings, theirs)).start()
        pipes.append(ours)
        theirs.close()
    told = [pipe.recv() for pipe in pipes]
    for pipe in pipes:
        pipe.send("measure")
    held = [pipe.recv() for pipe in pipes]
    for pipe in pipes:
        pipe.send("end")
    if any(len(each) != 1 + WORKERS for each in held):
        sys.exit(f"expected a rank and {WORKERS} workers, measured {held}")
    if len({each["letters"] for each in told}) > 1:
        sys.exit("the ranks read different samples")
    return {"pss": sum(map(sum, held)), **{name: max(each[name] for each in told) for name in told[0]}}


def memory(questions: int, kind: str, former_share: float) -> None:
    """Measures and prints it all."""
    with tempfile.TemporaryDirectory(prefix="cos-memory-") as name:
        folder = Path(name)
        few = write(folder / "few", FEW * EACH, kind)
        many = write(folder / "many", questions, kind)
        part = write(folder / "part", max(FEW * EACH, round(questions * former_share)), kind)
        megabytes = many.data.stat().st_size / 1e6
        print(f"{many.samples * EACH} questions in {many.samples} conversations ({megabytes:.0f} MB), {WORKERS} workers a rank")
        for ranks in (1, 2):
            without = measured("table", few, many.samples, ranks)
            show(f"table, {ranks} rank{'s' * (ranks > 1)}", measured("table", many, many.samples, ranks), without, many)
        without, table, listed = (
            measured(way, place, part.samples) for way, place in (("table", few), ("table", part), ("list", part))
        )
        if table["letters"] != listed["letters"]:
            sys.exit("the table and the list hold different samples")
        show(f"list, 1 rank, {part.samples * EACH} questions", listed, without, part)
        scaled = (listed["pss"] - without["pss"]) / part.samples * many.samples
        print(f"{'the same for all questions, by the rule of three':48}{scaled / 1e6:9.0f} MB")


def show(label: str, found: dict[str, Any], without: dict[str, Any], place: Place) -> None:
    held = found["pss"] - without["pss"]
    each = held / (place.samples * EACH)
    print(f"{label:48}{held / 1e6:9.0f} MB for samples, {each:.0f} bytes a question")
    seconds = f"opened in {found['seconds']:.0f} s, all samples read in {found['read']:.0f} s"
    print(f"{'':48}{seconds}; the rank's own peak while it opened them: {found['peak'] / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=int, nargs="?", default=QUESTIONS)
    parser.add_argument("--regions", choices=("store", "released"), default="store", help="how the regions are kept")
    parser.add_argument("--former-share", type=float, default=FORMER_SHARE, help="share of the data for the list")
    arguments = parser.parse_args()
    memory(arguments.questions, arguments.regions, arguments.former_share)


if __name__ == "__main__":
    main()
