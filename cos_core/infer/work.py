"""What a worker of the two-pass stage does: questions in portions through one model. Runs wherever a runner puts it.

A portion holds whole pictures, so that the prefix cache keeps its use. Its answers do not depend on the worker that gave them,
so the bytes of a run do not depend on the number of its workers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cos_core.dialogue.crop_content import partner
from cos_core.files import picture_files
from cos_core.files.images import ImageSource
from cos_core.files.picture_files import Shipped
from cos_core.files.read_ahead import OpenPictures, PictureReader, one_ahead
from cos_core.infer import relevance_regions as heat
from cos_core.infer.config import InferConfig
from cos_core.infer.passes import Question, TwoPass
from cos_core.infer.relevance_regions import HeatFinder
from cos_core.infer.settings import build_engine, finder, model_fingerprint, note_served, setting
from cos_core.infer.side_by_side import QuestionPlan, SharedPictures, side_by_side
from cos_core.infer.steps import failed_prediction
from cos_core.interfaces import Engine, Reporter, Runner, Worker
from cos_core.models import devices
from cos_core.runners import build
from cos_core.runners.local import Local
from cos_core.system import memory
from cos_core.types import Example, Prediction

PORTION = 4
"""Batches in a portion, roughly: whole pictures."""


@dataclass(frozen=True, slots=True)
class QuestionBatch:
    """Questions under the settings of their run, one Config an arm; the arms have model and pictures in common.

    `siblings`: all questions of their pictures, for the policy that asks them. `files`: the pictures, where those are shipped;
    `known_picture`: one that the process which started the run can read. `others`: by example id, the picture to swap regions
    with. `arms`: by example id, the arms (by number) that it is to be answered in, where these are not all.
    """

    configs: tuple[InferConfig, ...]
    examples: Sequence[Example]
    siblings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Shipped | None = None
    known_picture: str | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    arms: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def config(self) -> InferConfig:
        """The first arm's settings, for what all have in common."""
        return self.configs[0]

    def picture_names(self, examples: Sequence[Example]) -> Iterator[str]:
        """The pictures that these of its questions need."""
        for example in examples:
            yield example.image or ""
            if example.id in self.others:
                yield self.others[example.id]

    @property
    def source(self) -> ImageSource:
        return ImageSource(self.config.pictures, self.files)


def portions(
    configs: Sequence[InferConfig],
    examples: Sequence[Example],
    siblings: Mapping[str, Sequence[str]],
    *,
    here: bool,
    names: Sequence[str] = (),
    arms: Mapping[str, tuple[int, ...]] | None = None,
) -> Iterator[QuestionBatch]:
    """The work of a run in order, made as it is asked for; `here`: it stays in this process, with all siblings and no files.

    `names`: the pictures of all questions, sorted and each once; `arms`: see QuestionBatch.
    """
    config, arms = configs[0], arms or {}
    known = None if here else picture_files.first_existing(config.pictures, (e.image or "" for e in examples))
    # A worker that asks a server begins each portion with no request under way: portions are not to be small beside that.
    size = config.batch_size if config.engine == "hf" else max(config.batch_size, config.concurrency)
    for part in cut(examples, size):
        portion = QuestionBatch(tuple(configs), part, others=_others(configs, part, names), known_picture=known)
        used = dict.fromkeys(portion.picture_names(part))
        yield replace(
            portion,
            files=picture_files.shipped(config.pictures, used) if config.scale.ship_images and not here else None,
            siblings=siblings if here else {name: siblings[name] for name in used if name in siblings},
            arms={e.id: arms[e.id] for e in part if e.id in arms},
        )


def _others(configs: Sequence[InferConfig], examples: Sequence[Example], names: Sequence[str]) -> dict[str, str]:
    """By example id, the picture that its region is swapped with, where an arm swaps regions and there is another picture."""
    seed = next((config.seed for config in configs if config.crop == "swap"), None)
    if seed is None:
        return {}
    pairs = ((e.id, partner(names, e.image or "", seed, e.id)) for e in examples)
    return {example_id: other for example_id, other in pairs if other is not None}


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
    """A Job; `config` names the model. Each portion brings its other settings, so that one team serves several runs."""

    config: InferConfig

    def start(self, device: str) -> InferWorker:
        return InferWorker(replace(self.config, device=device))

    def split(self, portion: QuestionBatch) -> list[QuestionBatch]:
        return [replace(portion, examples=part) for part in memory.halves(portion.examples)]

    def lost(self, portion: QuestionBatch, why: str) -> list[Prediction]:
        settings = [setting(config) for config in portion.configs]
        everywhere = tuple(range(len(settings)))
        return [
            failed_prediction(example, settings[arm], why)
            for example in portion.examples
            for arm in portion.arms.get(example.id, everywhere)
        ]


class InferWorker(Worker):
    """A Worker: one model over questions, a batch's answers at a time. The model is loaded by the first question."""

    def __init__(self, config: InferConfig, engine: Engine | None = None) -> None:
        self._config, self._loaded_engine = config, engine
        self._finders: dict[str, HeatFinder | None] = {}

    @property
    def about(self) -> Mapping[str, Any]:
        """`dtype`: what "auto" is here; `model`: the checkpoint's fingerprint. Raises InputError for no checkpoint."""
        hf = self._config.engine == "hf"
        return {
            "dtype": devices.dtype_name(self._config.device, self._config.dtype) if hf else None,
            "model": model_fingerprint(self._config),
        }

    @cached_property
    def _engine(self) -> Engine:
        return self._loaded_engine or build_engine(self._config)

    def work(self, portions: Iterable[QuestionBatch]) -> Iterator[list[Prediction]]:
        """The portions of one call are of one run: their settings are those of the first."""
        source = iter(portions)
        first = next(source, None)
        if first is None:
            return
        configs = [replace(config, device=self._config.device) for config in first.configs]
        config = next((config for config in configs if config.roi == heat.POLICY.name), configs[0])
        if first.files is None:
            picture_files.check_visible(config.pictures, first.known_picture)
        engine = self._engine
        chain = TwoPass(engine, [setting(each) for each in configs], first.siblings, finder=self._finder(config))
        everything = itertools.chain([first], source)
        if engine.concurrency > 1:
            yield from side_by_side(chain, _one_by_one(everything), engine.concurrency)
            return
        yield from answers(chain, everything, engine)

    def _finder(self, config: InferConfig) -> HeatFinder | None:
        if config.roi not in self._finders:
            self._finders[config.roi] = finder(config, self._engine)
        return self._finders[config.roi]


def answers(chain: TwoPass, portions: Iterable[QuestionBatch], engine: Engine) -> Iterator[list[Prediction]]:
    """The predictions of one batch after another; `engine` prepares the pictures of the next one meanwhile, in a thread."""
    with PictureReader(lambda image, _name: engine.prepare(list(chain.views(image)))) as reader:
        for portion, examples, pictures in one_ahead(_in_batches(portions, reader)):
            yield chain.predict([_question(portion, example, pictures) for example in examples])


def _question(portion: QuestionBatch, example: Example, pictures: OpenPictures) -> Question:
    name = portion.others.get(example.id)
    other = None if name is None else (name, pictures.outcome(name))
    return Question(example, pictures.outcome(example.image or ""), other, portion.arms.get(example.id))


def _in_batches(
    portions: Iterable[QuestionBatch], reader: PictureReader
) -> Iterator[tuple[QuestionBatch, Sequence[Example], OpenPictures]]:
    """The batches of all portions in order, the pictures of each being read from the moment it is asked for."""
    pictures: OpenPictures | None = None
    for portion in portions:
        source = portion.source
        for examples in batches(portion.examples, portion.config.batch_size):
            pictures = reader.begin(portion.picture_names(examples), source, pictures)
            yield portion, examples, pictures


def _one_by_one(portions: Iterable[QuestionBatch]) -> Iterator[QuestionPlan]:
    """The questions of all portions in order, each with where its pictures come from."""
    for portion in portions:
        pictures = SharedPictures(portion.source)
        for example in portion.examples:
            yield QuestionPlan(example, pictures, portion.others.get(example.id), portion.arms.get(example.id))


def start(config: InferConfig, reporter: Reporter) -> Runner:
    """Workers for the runs of `config`'s model, not yet begun: use it as a context manager."""
    note_served(config, reporter)
    model = str(config.model) if config.engine == "hf" else None
    return build(config.scale, InferJob(config), config.device, reporter, model)


def around(engine: Engine, config: InferConfig) -> Runner:
    """A Runner around an engine that is there already."""
    return Local(lambda: InferWorker(config, engine))
