"""The annotation store at the size of LLaVA's mixture: rates, bytes, statistics, and the reading of its questions.

    python benchmarks/store.py [ANNOTATIONS] [SAMPLES] [FOLDER]     (3.3 million, 665 thousand, a temporary folder)

Rates are given by the clock and by CPU time, which other work on the machine does not change much; memory is the most that a
process of its own held, the pages of the store's mapped file included. A store or a questions' file that is in FOLDER already
is used again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from cos_core.data.datasets import read_examples
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import BATCH, Store
from cos_core.store.statistics import statistics
from cos_core.types import Annotation

MARK = "b" * 16
SETS = ("coco/train2017", "gqa/images", "textvqa/train_images", "vg/VG_100K")
READERS = 4
GETS = 100_000
WRITES = 400_000
Measured = tuple[Any, float, float, float]


def annotations(start: int, end: int) -> Iterator[Annotation]:
    """Seeded random boxes with all their digits, five questions on a picture, ids as `cos annotate` makes them."""
    dice = np.random.default_rng(start)
    for at in range(start, end, BATCH):
        count = min(BATCH, end - at)
        low = dice.uniform(0, 0.7, (count, 2))
        rows = np.concatenate([low, np.minimum(1.0, low + dice.uniform(0.05, 0.6, (count, 2)))], axis=1).tolist()
        for number, box in enumerate(rows, at):
            image = f"{SETS[number // 5 % 4]}/{number // 5:012d}.jpg"
            yield Annotation(name(number), Box(*box), number / 7, "from_single_question", MARK, (3, 17), image=image)


def name(number: int) -> str:
    return f"{number // 5:012d}#q{number % 5}"


def peak() -> float:
    """The most that this process held, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def alone(work: Callable[..., Any], *arguments: Any) -> Measured:
    """(what `work` returns, seconds, CPU seconds, peak megabytes) of a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=_measured, args=(answer, work, arguments))
    process.start()
    found = answer.get()
    process.join()
    return found


def _measured(answer: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work(*arguments)
    answer.put((found, time.perf_counter() - wall, time.process_time() - cpu, peak()))


def write(path: Path, count: int) -> Measured:
    """Only the encoding and the commits are timed, not the making of the records."""
    wall = cpu = 0.0
    source = annotations(0, count)
    with Store.create_or_resume(path, MARK, {}) as store:
        while batch := list(islice(source, 16 * BATCH)):
            began, used = time.perf_counter(), time.process_time()
            store.put_many(batch)
            wall, cpu = wall + time.perf_counter() - began, cpu + time.process_time() - used
    return None, wall, cpu, 0.0


def plain_lmdb(path: Path, count: int) -> float:
    """CPU seconds of LMDB itself for as many records of the same keys and lengths: the floor of any codec."""
    path.mkdir()
    rows = [(name(i).encode(), bytes(151)) for i in range(count)]
    used = time.process_time()
    with lmdb.open(str(path), map_size=2**30) as env:
        for at in range(0, count, BATCH):
            with env.begin(write=True) as txn, txn.cursor() as cursor:
                cursor.putmulti(rows[at : at + BATCH])
    return time.process_time() - used


def reader(path: Path, seed: int, count: int, barrier: Any, answer: Any) -> None:
    """Random decoded gets of a process; the clock starts when all readers are ready."""
    ids = [name(i) for i in random.Random(seed).choices(range(count), k=GETS)]
    with Store.read(path) as store:
        store.get(ids[0])
        barrier.wait()
        began, used = time.perf_counter(), time.process_time()
        for example_id in ids:
            if store.get(example_id) is None:
                raise SystemExit(f"{example_id} is missing")
        answer.put((began, time.perf_counter(), time.process_time() - used))


def gets(path: Path, count: int) -> tuple[float, float]:
    """(gets a second by the clock, of all readers together; gets a second of CPU time)."""
    context = multiprocessing.get_context("spawn")
    barrier, answer = context.Barrier(READERS), context.SimpleQueue()
    processes = [context.Process(target=reader, args=(path, seed, count, barrier, answer)) for seed in range(READERS)]
    for process in processes:
        process.start()
    found = [answer.get() for _ in processes]
    for process in processes:
        process.join()
    # CLOCK_MONOTONIC is one clock for all processes.
    seconds = max(end for _, end, _ in found) - min(began for began, _, _ in found)
    return READERS * GETS / seconds, READERS * GETS / sum(cpu for _, _, cpu in found)


def stats(path: Path) -> int:
    return statistics(path, SilentReporter())["boxes"]


def conversations(path: Path, samples: int) -> None:
    """A file like llava_v1_5_mix665k.json: 6 % text only, one to nine questions a picture (mean 5), answers of a few words
    or a paragraph, about 1.5 KB a sample."""
    dice = random.Random(0)
    words = [
        "the",
        "picture",
        "shows",
        "a",
        "small",
        "red",
        "car",
        "near",
        "left",
        "of",
        "two",
        "people",
        "standing",
        "what",
        "is",
    ]
    with path.open("w") as file:
        file.write("[")
        for number in range(samples):
            turns, pictured = [], number % 17 > 0
            for k in range(dice.randint(1, 8) + (dice.random() < 0.5)):
                question = " ".join(dice.choices(words, k=dice.randint(6, 18)))
                length = dice.randint(50, 120) if dice.random() < 0.3 else dice.randint(1, 12)
                turns.append({"from": "human", "value": ("<image>\n" if k == 0 and pictured else "") + question})
                turns.append({"from": "gpt", "value": " ".join(dice.choices(words, k=length))})
            sample: dict[str, Any] = {"id": f"{number:012d}", "conversations": turns}
            if pictured:
                sample["image"] = f"{SETS[number % 4]}/{number:012d}.jpg"
            file.write((", " if number else "") + json.dumps(sample))
        file.write("]")


def iterate(path: Path) -> int:
    return sum(1 for _ in read_examples(path, text_only="keep"))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3_300_000
    samples = int(sys.argv[2]) if len(sys.argv) > 2 else 665_000
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    print(f"{machine}, Python {platform.python_version()}, lmdb {lmdb.__version__}, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[3] if len(sys.argv) > 3 else scratch)
        some = min(count, WRITES)
        _, wall, cpu, _ = write(Path(scratch) / "written", some)
        floor = plain_lmdb(Path(scratch) / "plain", some)
        print(
            f"written: {some / wall:,.0f}/s, {some / cpu:,.0f}/s of CPU, {cpu / floor:.1f} x the CPU time of LMDB alone",
            flush=True,
        )
        path = folder / "store"
        if not path.is_dir():
            write(path, count)
        with Store.read(path) as store:
            info = store.info()
        size = info["bytes"] / info["annotations"]
        print(f"{info['annotations']:,} annotations: {info['bytes'] / 1e9:.3f} GB, {size:.0f} bytes each", flush=True)
        clock, own = gets(path, count)
        print(f"random gets, decoded, {READERS} readers: {clock:,.0f}/s, {own:,.0f}/s of CPU", flush=True)
        boxes, wall, cpu, most = alone(stats, path)
        print(f"statistics of {boxes:,} boxes: {wall:.1f} s, {cpu:.1f} s of CPU, {most:.0f} MB", flush=True)
        questions = folder / "questions.json"
        if not questions.is_file():
            conversations(questions, samples)
        found, wall, cpu, most = alone(iterate, questions)
        megabytes = questions.stat().st_size / 1e6
        print(f"{samples:,} samples, {megabytes:,.0f} MB: {found:,} examples, {wall:.1f} s, {cpu:.1f} s of CPU, {most:.0f} MB")


if __name__ == "__main__":
    main()
