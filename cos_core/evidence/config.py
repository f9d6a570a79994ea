"""Settings of one call of `cos evidence`: one model, several benchmarks, and what its arms share."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from cos_core import options
from cos_core.errors import InputError
from cos_core.evaluate.config import ScoringOptions
from cos_core.infer.config import AnsweringOptions
from cos_core.options import INPUT, MODEL, OUTPUT, REGION, REQUIRED, SCORING, SPEED, option
from cos_core.scoring import REPLICATES
from cos_core.suite.config import Part, SuiteConfig, max_runtime_option, shard_option, shards_option

SET_BY_ARMS = ("crop", "box_text", "global_scale", "gate", "samples")
"""Options of answering that the arms set, or that would make an arm's answer no single answer."""


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """One call; each field says what it is. Raises InputError for options that the arms set themselves."""

    model: str = option(
        REQUIRED,
        "Checkpoint to examine: a folder, a hub id, 'miniature', or with --engine openai the name that the server has for it.",
        MODEL,
        argument=True,
        metavar="MODEL",
        completes="model",
    )
    benchmarks: str = option(
        REQUIRED,
        "Benchmarks to ask (see cos eval --list), with commas, or files that define one: ./mine.py",
        INPUT,
        metavar="NAME[,NAME...]",
        completes="benchmarks",
    )
    data: Path = option(REQUIRED, "Folder with a benchmark's official files, or with one such folder a benchmark.", INPUT)
    out: Path = option(REQUIRED, "Folder for the page, its figures, and every arm's answers and scores.", OUTPUT)
    fast: bool = option(False, "Run only the arms that the verdict needs (none, model, black, noise, swap).", SPEED)
    blur: float = option(
        0.25,
        "In the two arms with a blurred whole picture: blur it as if it had so many times its sides.",
        REGION,
        low=0.01,
        high=0.9,
    )
    margin: float = option(
        5.0,
        "A use of the crop below so many points of 100 counts as none; without a clear difference the page says 'does not use "
        "it' only where a larger use is ruled out.",
        SCORING,
        low=0.01,
        high=100,
    )
    replicates: int = option(REPLICATES, "Bootstrap samples.", SCORING, low=100, high=options.REPLICATES)
    max_runtime: float | None = max_runtime_option()
    shards: int | None = shards_option()
    shard: int | None = shard_option()
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    answering: AnsweringOptions = field(default_factory=AnsweringOptions)

    def __post_init__(self) -> None:
        options.check(self)
        if not self.names:
            raise InputError("--benchmarks names at least one benchmark")
        usual = {each.name: each.default for each in fields(AnsweringOptions)}
        for name in SET_BY_ARMS:
            if getattr(self.answering, name) != usual[name]:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"cos evidence compares runs with and without {flag}, one answer a question; leave {flag} out")

    @property
    def names(self) -> tuple[str, ...]:
        """The benchmarks, each once, in the order given."""
        named = (options.plugin_name(name.strip()) for name in self.benchmarks.split(",") if name.strip())
        return tuple(dict.fromkeys(named))

    @property
    def part(self) -> Part | None:
        return Part(self.shards, self.shard) if self.shards else None

    def suite(self, names: tuple[str, ...], seconds_left: float | None) -> SuiteConfig:
        """The settings with which the arms of some of the benchmarks are answered and scored."""
        scored_only = self.part is not None and self.part.number is None
        return SuiteConfig(
            benchmarks=names,
            data=self.data,
            model=None if scored_only else self.model,
            out=self.out,
            max_runtime=seconds_left,
            shards=self.shards,
            shard=self.shard,
            scoring=self.scoring,
            answering=self.answering,
        )
