"""What a worker of the two-pass stage does: questions in portions through one model. Runs wherever a runner puts it.

Questions go in portions, whole pictures at a time, so that the prefix cache keeps its use; what a portion's answers are does
not depend on who gave them, so neither do the bytes of a run on the number of its workers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cos_core.files import picture_files
from cos_core.files.images import ImageSource
from cos_core.files.picture_files import Shipped
from cos_core.infer.passes import TwoPass
from cos_core.infer.pictures import PictureReader
from cos_core.infer.relevance_regions import HeatFinder
from cos_core.infer.settings import InferConfig, build_engine, finder, model_fingerprint, setting, tell_served
from cos_core.infer.side_by_side import SharedPictures, side_by_side
from cos_core.interfaces import Engine, Reporter, Runner
from cos_core.models import llava
from cos_core.runners import build
from cos_core.runners.local import Local
from cos_core.types import Example, Prediction

PORTION = 4
"""Batches in a portion, roughly: whole pictures."""


@dataclass(frozen=True, slots=True)
class QuestionBatch:
    """Questions under the settings of their run; `siblings`: all questions of their pictures, for the policy that asks them.

    `files`: the pictures, where those are shipped; `witness`: one that is seen where the run was started.
    """

    config: InferConfig
    examples: Sequence[Example]
    siblings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Shipped | None = None
    witness: str | None = None


def portions(
    config: InferConfig, examples: Sequence[Example], siblings: Mapping[str, Sequence[str]], *, here: bool
) -> Iterator[QuestionBatch]:
    """The work of a run in order, as it is asked for; `here`: in this process, so neither siblings nor pictures travel."""
    seen = None if here else picture_files.witness(config.pictures, (e.image or "" for e in examples))
    # A worker that asks a server begins each portion with no request under way: portions are not to be small beside that.
    size = config.batch_size if config.engine == "hf" else max(config.batch_size, config.concurrency)
    for part in cut(examples, size):
        names = dict.fromkeys(e.image or "" for e in part)
        files = picture_files.shipped(config.pictures, names) if config.scale.ship_images and not here else None
        own = siblings if here else {name: siblings[name] for name in names if name in siblings}
        yield QuestionBatch(config, part, own, files, seen)


def cut(examples: Sequence[Example], batch_size: int) -> Iterator[list[Example]]:
    """Examples in runs of about PORTION batches; the questions of one picture, which stand side by side, stay together."""
    part: list[Example] = []
    for _, group in itertools.groupby(examples, key=lambda example: example.image):
        if len(part) >= PORTION * batch_size:
            yield part
            part = []
        part += group
    if part:
        yield part


def batches(portion: Sequence[Example], batch_size: int) -> list[Sequence[Example]]:
    """A portion in the fewest batches, all about as large."""
    count = math.ceil(len(portion) / batch_size)
    cuts = [math.ceil(len(portion) * i / count) for i in range(count + 1)]
    return [portion[a:b] for a, b in itertools.pairwise(cuts)]


@dataclass(frozen=True, slots=True)
class InferJob:
    """A Job; `config` says the model. Each portion says the rest, so that one team serves several runs."""

    config: InferConfig

    def start(self, device: str) -> InferWorker:
        return InferWorker(replace(self.config, device=device))

    def split(self, portion: QuestionBatch) -> list[QuestionBatch]:
        half = (len(portion.examples) + 1) // 2
        return [replace(portion, examples=part) for part in (portion.examples[:half], portion.examples[half:]) if part]

    def lost(self, portion: QuestionBatch, why: str) -> list[Prediction]:
        made = setting(portion.config)
        return [
            Prediction(
                example_id=e.id,
                answer=None,
                box=None,
                box_text=None,
                box_status="skipped",
                policy=made.policy.name,
                profile=made.profile.name,
                question=e.question,
                image=e.image,
                fingerprint=made.fingerprint,
                error=why,
            )
            for e in portion.examples
        ]


class InferWorker:
    """A Worker: one model over questions, a batch's answers at a time. The model is loaded by the first question."""

    def __init__(self, config: InferConfig, engine: Engine | None = None) -> None:
        self._config, self._given = config, engine
        self._found: dict[str, HeatFinder | None] = {}

    @property
    def about(self) -> Mapping[str, Any]:
        """`dtype`: what "auto" is here; `model`: the checkpoint's fingerprint. Raises InputError for no checkpoint."""
        hf = self._config.engine == "hf"
        return {
            "dtype": llava.dtype_name(self._config.device, self._config.dtype) if hf else None,
            "model": model_fingerprint(self._config),
        }

    @cached_property
    def _engine(self) -> Engine:
        return self._given or build_engine(self._config)

    def work(self, portions: Iterable[QuestionBatch]) -> Iterator[list[Prediction]]:
        """The portions of one call are of one run: their settings are those of the first."""
        source = iter(portions)
        first = next(source, None)
        if first is None:
            return
        config = replace(first.config, device=self._config.device)
        if first.files is None:
            picture_files.check_seen(config.pictures, first.witness)
        engine, pictures = self._engine, ImageSource(config.pictures)
        chain = TwoPass(engine, setting(config), first.siblings, finder=self._finder(config))
        if (at_once := getattr(engine, "concurrency", 1)) > 1:
            everything = itertools.chain([first], source)
            yield from ([prediction] for prediction in side_by_side(chain, _asked(everything), at_once))
            return
        with PictureReader(pictures, getattr(engine, "prepare", None)) as reader:
            now: Sequence[Example] = ()
            for batch in self._batches(itertools.chain([first], source), pictures):
                if now:
                    yield chain.predict(reader.beside(now, batch))
                now = batch
            yield chain.predict(reader.beside(now))

    @staticmethod
    def _batches(portions: Iterable[QuestionBatch], pictures: ImageSource) -> Iterator[Sequence[Example]]:
        for portion in portions:
            pictures.take(portion.files)
            yield from batches(portion.examples, portion.config.batch_size)

    def _finder(self, config: InferConfig) -> HeatFinder | None:
        if config.roi not in self._found:
            self._found[config.roi] = finder(config, self._engine)
        return self._found[config.roi]


def _asked(portions: Iterable[QuestionBatch]) -> Iterator[tuple[Example, SharedPictures]]:
    """The questions of all portions in order, each with where its picture comes from."""
    for portion in portions:
        source = ImageSource(portion.config.pictures)
        source.take(portion.files)
        pictures = SharedPictures(source)
        yield from ((example, pictures) for example in portion.examples)


def start(config: InferConfig, reporter: Reporter) -> Runner:
    """Workers for the runs of `config`'s model, not yet begun: use it as a context manager."""
    tell_served(config, reporter)
    return build(config.scale, InferJob(config), config.device, reporter, model=config.engine == "hf")


def around(engine: Engine, config: InferConfig) -> Runner:
    """A Runner around an engine that is there already."""
    return Local(lambda: InferWorker(config, engine))
