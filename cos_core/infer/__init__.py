"""The two passes of Chain-of-Spot (CoS Eq. 2-3): ask where to look, cut that region out, answer with both pictures.

    box text = generate(image, Inst.1(question))                                        Eq. 2
    answer   = generate(image, Inst.1(question), box text, crop, Inst.2(question))      Eq. 3

Everything that goes wrong for one question becomes a Prediction with `error`; everything that goes wrong with a box becomes its
`box_status`. Predictions are appended durably in the order of the data, so a killed run continues where it stopped.
Imports no torch itself: the engine does when it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from cos_core import llava, manifest, plug
from cos_core.datasets import Problem, read_examples
from cos_core.errors import FailuresError, InputError
from cos_core.images import open_image
from cos_core.infer import heat
from cos_core.infer.passes import BoxDecode, OnBadBox, Setting, TwoPass
from cos_core.infer.pictures import PictureReader
from cos_core.interfaces import Engine, Reporter
from cos_core.jsonl import DurableWriter, read_lines
from cos_core.prompts import checkpoint_profile
from cos_core.types import BOX_STATUSES, Example, Prediction, RunManifest

ROI_ALIASES = {"model": "from_single_question", "center": "center_crop"}
"""Short names of the option `--roi`; every other name is a policy module's."""

UNUSABLE = ("unparsable", "degenerate")
"""Box statuses after which `on_bad_box` decided what was looked at."""


@dataclass(frozen=True, slots=True)
class InferConfig:
    """Settings of one run: a file of questions (`data`, `images`, `out`), or one `image` with one `question`.

    `roi`: a policy, "model" or "center" for short, or "relevance" (heat.py: no training needed); `on_bad_box`: what to look at
    when there is no usable region: the whole image again, its centre, or nothing (the question is left unanswered and counted
    as skipped).
    `question` with `images` and no `data`: the same question about every picture of the folder.
    `box_tokens`: budget of the first pass; three decimals take 29 tokens in LLaVA's tokenizer, six take 41, and a few words may
    stand around them. `max_new_tokens`: budget of the answer. `max_failures`: stop once more items than this have failed;
    `retry_failed`: ask again what a former run recorded as failed. `box_decode`: "grammar" lets the first pass write only
    boxes. `reuse`: the second pass continues the first, and questions on one picture share its beginning; `kv_budget` (GiB)
    bounds the keys and values of both (None: a quarter of the free memory, 70 % on a GPU).
    `server`, `concurrency`, `timeout` (seconds): the engine openai's address up to /v1, requests at once, patience with one.
    """

    model: str | Path
    out: Path | None = None
    data: Path | None = None
    images: Path | None = None
    image: Path | None = None
    question: str | None = None
    roi: str = "model"
    batch_size: int = 16
    max_new_tokens: int = 128
    box_tokens: int = 48
    box_decode: BoxDecode = "free"
    on_bad_box: OnBadBox = "full"
    profile: str | None = None
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "hf"
    max_failures: int | None = None
    retry_failed: bool = False
    reuse: bool = True
    kv_budget: float | None = None
    server: str | None = None
    concurrency: int = 8
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if self.box_decode not in get_args(BoxDecode):
            raise InputError(f"box_decode is one of {', '.join(get_args(BoxDecode))}, got {self.box_decode!r}")
        if self.kv_budget is not None and not self.kv_budget > 0:
            raise InputError(f"kv_budget must be positive, got {self.kv_budget}")
        if self.on_bad_box not in get_args(OnBadBox):
            raise InputError(f"on_bad_box is one of {', '.join(get_args(OnBadBox))}, got {self.on_bad_box!r}")
        for name in ("batch_size", "max_new_tokens", "box_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("limit", "max_failures"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")


def setting(config: InferConfig) -> Setting:
    """Resolves policy and profile. Raises InputError for an unknown policy or profile."""
    policy = heat.POLICY if config.roi == heat.POLICY.name else plug.load("policies", ROI_ALIASES.get(config.roi, config.roi))
    where = llava.resolve(config.model)
    profile = checkpoint_profile(where, config.profile)
    fingerprint = manifest.fingerprint(
        {
            "model": llava.checkpoint_fingerprint(where),
            "engine": config.engine,
            "profile": profile.to_json(),
            "policy": policy.name,
            "on_bad_box": config.on_bad_box,
            "max_new_tokens": config.max_new_tokens,
            "box_tokens": config.box_tokens,
            "box_decode": config.box_decode,
            "seed": config.seed,
        }
    )
    return Setting(
        policy=policy,
        profile=profile,
        fingerprint=fingerprint,
        on_bad_box=config.on_bad_box,
        max_new_tokens=config.max_new_tokens,
        box_tokens=config.box_tokens,
        box_decode=config.box_decode,
        seed=config.seed,
    )


def run(config: InferConfig, reporter: Reporter, engine: Engine | None = None) -> RunManifest:
    """Answers every question of `config.data` into the JSON Lines file `config.out`, and writes its manifest last.

    Questions that `out` already holds are not asked again (recorded failures too, unless `retry_failed`). `engine` replaces the
    one that `config.engine` names. Counts are those of the whole file; bad lines of the data count as failed, samples without a
    picture as skipped. Raises InputError for settings or data that cannot be used, LockedError when another run writes `out`,
    FailuresError once more than `max_failures` items have failed; what was finished stays.
    """
    if config.out is None or (config.data is None and not (config.images and config.question)):
        raise InputError("a run needs a file of questions (data) and a file for the answers (out)")
    made = setting(config)
    inputs = {
        "data": manifest.file_input(config.data) if config.data else {"path": str(config.images)},
        "model": {"path": str(config.model), "fingerprint": llava.checkpoint_fingerprint(llava.resolve(config.model))},
    }
    begun = manifest.started("infer", config, seed=config.seed, inputs=inputs, settings_fingerprint=made.fingerprint)
    asked = questions(config, reporter)
    if config.retry_failed:
        _drop_failures(config.out)
    tally = _Tally(failed=asked.problems, skipped=asked.text_only)
    with DurableWriter(config.out, batch=config.batch_size) as writer:
        done = _already_answered(config.out, made.fingerprint, asked.examples, tally)
        todo = [example for example in asked.examples if example.id not in done]
        before = len(asked.examples) - len(todo)
        reporter.progress("infer", before, len(asked.examples))
        if todo:
            if before:
                reporter.note(f"{before} of {len(asked.examples)} questions are answered already")
            engine = engine or build_engine(config)
            # The old manifest speaks of a finished file, which this one no longer is.
            manifest.path_for(config.out).unlink(missing_ok=True)
            chain = TwoPass(engine, made, asked.siblings, finder=finder(config))
            batches = [todo[start : start + config.batch_size] for start in range(0, len(todo), config.batch_size)]
            with PictureReader(config.images, getattr(engine, "prepare", None)) as pictures:
                for batch, after in zip(batches, [*batches[1:], []], strict=True):
                    if tally.exceeds(config.max_failures):
                        break
                    for prediction in chain.predict(pictures.beside(batch, after)):
                        writer.append(prediction.to_json())
                        tally.add(prediction)
                    before += len(batch)
                    reporter.progress("infer", before, len(asked.examples), tally.words())
    stopped = tally.exceeds(config.max_failures)
    finished = begun.finish(tally.counts(), status="failed" if stopped else "complete")
    manifest.write(manifest.path_for(config.out), finished)
    if stopped:
        raise FailuresError(
            f"{tally.failed} questions failed, more than the {config.max_failures} allowed; the reasons stand in {config.out}"
        )
    return finished


def answer_one(
    config: InferConfig, reporter: Reporter, engine: Engine | None = None, listen: Callable[[str], None] | None = None
) -> Prediction:
    """Answers `config.question` about `config.image`; writes nothing. `listen` hears the answer as it comes.

    Raises InputError when the picture cannot be used or the model gave no answer; a question left unanswered because of its box
    (`on_bad_box="skip"`) comes back with `error`.
    """
    if config.image is None or not config.question:
        raise InputError("one answer needs an image and a question")
    made = setting(config)
    picture = open_image(None, str(config.image))
    chain = TwoPass(engine or build_engine(config), made, listen=listen, finder=finder(config))
    example = Example(id=config.image.name, dataset="single", image=str(config.image), question=config.question)
    prediction = chain.predict([(example, picture)])[0]
    if prediction.error is not None and not _was_skipped(prediction):
        raise InputError(prediction.error)
    if prediction.box_status in UNUSABLE and config.on_bad_box != "skip":
        reporter.warn(f"the first pass named no usable region ({prediction.box_status}); looked at: {config.on_bad_box}")
    return prediction


def finder(config: InferConfig) -> heat.HeatFinder | None:
    """What finds regions for `roi="relevance"`; None for every other choice."""
    if config.roi != heat.POLICY.name:
        return None
    return heat.build(str(config.model), config.device, config.dtype)


def build_engine(config: InferConfig) -> Engine:
    """The engine that the settings name, loaded. Raises InputError or MissingError."""
    made: Engine = plug.load(
        "engines",
        config.engine,
        model=config.model,
        device=config.device,
        dtype=config.dtype,
        profile=config.profile,
        reuse=config.reuse,
        server=config.server,
        concurrency=config.concurrency,
        timeout=config.timeout,
        kv_budget=None if config.kv_budget is None else int(config.kv_budget * 2**30),
    )
    return made


@dataclass(frozen=True, slots=True)
class Questions:
    examples: list[Example]
    siblings: Mapping[str, Sequence[str]]
    """All questions of each image, in the order of the file, whatever `limit` says."""
    problems: int
    text_only: int


def questions(config: InferConfig, reporter: Reporter) -> Questions:
    """What a run asks: one picture's questions side by side. Raises InputError when there is none."""
    if config.data is None:
        found = _same_question(config)
        return Questions(found[: config.limit], {}, 0, 0)
    problems: list[Problem] = []
    text_only = 0
    found = []
    siblings: dict[str, list[str]] = {}
    for example in read_examples(config.data, text_only="keep", on_problem=problems.append):
        if example.image is None:
            text_only += 1
            continue
        found.append(example)
        siblings.setdefault(example.image, []).append(example.question)
    for problem in problems[:_SHOWN]:
        reporter.warn(str(problem))
    if len(problems) > _SHOWN:
        reporter.warn(f"{len(problems) - _SHOWN} more problems in {config.data}")
    if text_only:
        reporter.note(f"{text_only} samples without a picture are skipped")
    if not found:
        raise InputError(f"{config.data} holds no question about a picture")
    return Questions(_grouped(found[: config.limit]), siblings, len(problems), text_only)


def _grouped(examples: Sequence[Example]) -> list[Example]:
    """The questions of one picture side by side, pictures in the order in which they first appear."""
    groups: dict[str | None, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.image, []).append(example)
    return [example for group in groups.values() for example in group]


def _same_question(config: InferConfig) -> list[Example]:
    """`config.question` about every picture that lies in the folder `config.images`, by name."""
    folder = Path(config.images or "")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
    if not names:
        raise InputError(f"the folder {folder} holds no picture")
    return [Example(id=name, dataset="folder", image=name, question=config.question or "") for name in names]


_SHOWN = 5
"""How many problems of a data file are shown one by one."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What counts as a picture in a folder."""


@dataclass(slots=True)
class _Tally:
    """Counts over everything that the output holds."""

    ok: int = 0
    failed: int = 0
    skipped: int = 0
    boxes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BOX_STATUSES, 0))

    def add(self, prediction: Prediction) -> None:
        self.boxes[prediction.box_status] += 1
        if prediction.error is None:
            self.ok += 1
        elif _was_skipped(prediction):
            self.skipped += 1
        else:
            self.failed += 1

    def exceeds(self, allowed: int | None) -> bool:
        return allowed is not None and self.failed > allowed

    def counts(self) -> dict[str, int]:
        boxes = {f"box_{status}": number for status, number in self.boxes.items()}
        return {"ok": self.ok, "failed": self.failed, "skipped": self.skipped, **boxes}

    def words(self) -> str:
        return f"{self.failed} failed" if self.failed else ""


def _was_skipped(prediction: Prediction) -> bool:
    """Left unanswered because its box was unusable and the settings said so."""
    return prediction.error is not None and prediction.box is None and prediction.box_status in UNUSABLE


def _stored(path: Path) -> Iterator[Prediction]:
    for line, record in read_lines(path):
        try:
            yield Prediction.from_json(record)
        except InputError as error:
            raise InputError(f"{path}:{line}: not a prediction: {error}; give another output file") from None


def _already_answered(path: Path, fingerprint: str, examples: Sequence[Example], tally: _Tally) -> set[str]:
    """Ids that the output holds; adds them to the tally.

    Raises InputError when the file was written with other settings, or for another question of the same id.
    """
    questions = {example.id: example.question for example in examples}
    done: set[str] = set()
    for prediction in _stored(path):
        if prediction.fingerprint != fingerprint:
            raise InputError(
                f"{path} holds predictions made with other settings ({prediction.fingerprint or 'no fingerprint'}, "
                f"now {fingerprint}); give another output file, or remove it"
            )
        if questions.get(prediction.example_id, prediction.question) != prediction.question:
            raise InputError(f"{path} holds an answer to another question with the id {prediction.example_id!r}")
        if prediction.example_id not in done:
            done.add(prediction.example_id)
            tally.add(prediction)
    return done


def _drop_failures(path: Path) -> None:
    """Takes the failed predictions out of a former run's output, so that they are asked again. Raises LockedError."""
    if not path.exists():
        return
    # Opening for writing mends a torn last line first; the lock is held until the new file stands in the old one's place.
    with DurableWriter(path), manifest.atomic_file(path) as file:
        for prediction in _stored(path):
            if prediction.error is None or _was_skipped(prediction):
                file.write(manifest.canonical(prediction.to_json()) + b"\n")
