"""Settings of one call of `cos eval`: several benchmarks, several arms, one model."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cos_core import options
from cos_core.errors import InputError
from cos_core.evaluate.config import ScoringOptions
from cos_core.files.durable import utf8
from cos_core.infer.arms import Arm
from cos_core.infer.config import AnsweringOptions
from cos_core.options import CHECKS, INPUT, MODEL, OUTPUT, REGION, SPEED, option

_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


def seconds(text: str) -> float:
    """`90`, `90s`, `30m`, `2h` or `1h30m` in seconds. Raises InputError."""
    match = _TIME.fullmatch(text.strip())
    if not text.strip() or match is None:
        raise InputError(f"a time is written 90, 30m, 2h or 1h30m, not {text!r}")
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + rest


@dataclass(frozen=True, slots=True)
class Part:
    """A run in `of` parts that need not know of each other: answer only part `number` (from 1), or, without, score them all."""

    of: int
    number: int | None = None

    def __post_init__(self) -> None:
        if self.of < 1 or (self.number is not None and not 1 <= self.number <= self.of):
            raise InputError(f"a part is a number from 1 to the number of parts, got {self.number} of {self.of}")

    def file(self, number: int) -> str:
        return f"predictions.{number}-of-{self.of}.jsonl"

    def holds(self, image: str | None, example_id: str) -> bool:
        """Whether a question is this part's: all questions of a picture are one part's, whatever the order of the file."""
        return zlib.crc32(utf8(image or example_id)) % self.of + 1 == self.number


def max_runtime_option() -> Any:
    help = "Stop cleanly after this time (90, 30m, 2h) with code 130."
    return option(None, help, SPEED, parser=seconds, metavar="TIME", shown_default="none")


def shards_option() -> Any:
    help = "Parts of the work; without --shard: score all of them."
    return option(None, help, SPEED, low=1, high=options.BATCH, shown_default="one")


def shard_option() -> Any:
    return option(None, "Answer only this part, from 1.", SPEED, low=1, high=options.BATCH, shown_default="all")


@dataclass(frozen=True, slots=True)
class SuiteConfig:
    """One call; each field says what it is. Without `model` recorded answers are scored; without `out` nothing is written."""

    benchmarks: tuple[str, ...] = option(
        (),
        "Names of benchmarks (see --list), or files that define one: ./mine.py",
        INPUT,
        argument=True,
        parser=options.plugin_name,
        metavar="BENCHMARK...",
        completes="benchmarks",
    )
    data: Path | None = option(None, "Folder with a benchmark's official files, or with one such folder a benchmark.", INPUT)
    predictions: Path | None = option(
        None,
        "Recorded answers to score (no model, no torch): ours, LLaVA's answer files, VLMEvalKit's sheets, lmms-eval's "
        "samples; for several benchmarks, a folder with <benchmark>.jsonl or the harness's files.",
        INPUT,
    )
    model: str | None = option(None, "Checkpoint to run instead: a folder, a hub id, or 'miniature'.", MODEL, completes="model")
    out: Path | None = option(None, "Folder for scores (and predictions, with --model).", OUTPUT, shown_default="print only")
    roi: str = option(
        "model",
        "Where the region comes from: 'model' (two passes), 'none' (one pass), 'center', 'full', 'gold', ...; several with "
        "commas run one after the other.",
        REGION,
        metavar="NAME[,NAME...]",
        completes="roi",
    )
    submissions: bool = option(False, "Write the files that benchmark servers take, into --out.", OUTPUT)
    max_runtime: float | None = max_runtime_option()
    shards: int | None = shards_option()
    shard: int | None = shard_option()
    fail_under: tuple[str, ...] = option((), "End with code 6 when a metric is lower.", CHECKS, metavar="METRIC=VALUE")
    baseline: Path | None = option(
        None, "End with code 6 when a benchmark is significantly worse than in this run.", CHECKS, completes="run"
    )
    latest: Path | None = option(
        None, "Link to put on --out, in one step, once everything is scored.", OUTPUT, shown_default="none"
    )
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    answering: AnsweringOptions = field(default_factory=AnsweringOptions)

    def __post_init__(self) -> None:
        options.check(self)

    @property
    def arms(self) -> list[Arm]:
        """One for each value of --roi, with its name; recorded answers have one arm, whatever it was."""
        several = self.model is not None or "," in self.roi
        names = [options.roi_name(name.strip()) for name in self.roi.split(",")] if several else ["model"]
        return [Arm(name, {"roi": name}) for name in names]

    @property
    def part(self) -> Part | None:
        return Part(self.shards, self.shard) if self.shards else None
