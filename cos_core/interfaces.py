"""What can be plugged in: one file each under the folder of its kind, found by its file name (see plug.py).

These Protocols are read by type checkers and contract tests; nothing inherits from them.
Each plug-in module offers one function `build(**options)` that returns the object described here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from cos_core.geometry import Box
from cos_core.types import Example, Prediction, Regions, Score, Turn

if TYPE_CHECKING:
    from PIL.Image import Image


class Reporter(Protocol):
    """Where a stage says how far it is. The CLI draws it; `SilentReporter` ignores it."""

    def note(self, text: str) -> None:
        """One line of words for a person (stderr)."""

    def warn(self, text: str) -> None:
        """One line about something wrong that does not stop the run (stderr)."""

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        """`done` of `total` items of `stage`; called often, must be cheap."""


class SilentReporter:
    """A Reporter that says nothing."""

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None: ...


class Detector(Protocol):
    """Proposes candidate regions; boxes in frame "image".

    `path`: the picture's path in its data set, for detectors that read what was computed before; others ignore it. Some give
    `features`, (boxes, d) float32; one that knows d beforehand says it as `feature_size`, 0 for none. Raises InputError for a
    picture that it cannot serve.
    """

    def detect(self, image: Image, path: str = "") -> Regions:
        """The candidates on one upright RGB picture; none is an empty Regions."""


@dataclass(frozen=True, slots=True)
class Relevance:
    """What a backbone found for one question.

    `regions`: candidate boxes with relevance scores; `heat`: optional (rows, columns) map over the *square* frame, row-major
    nested tuples, non-negative, arbitrary units (backbones over patches). `note`: what sets this question apart from what the
    settings promise (another answer than the gold one was explained), to be recorded.
    """

    regions: Regions | None = None
    heat: tuple[tuple[float, ...], ...] | None = None
    note: str | None = None


class Backbone(Protocol):
    """Relevance of the answer to areas of one image, for several questions on it (CoS Eq. 4-6).

    `settings`: everything that scores depend on, the weights' fingerprint and the detector's settings included; annotations
    are told apart by it. A backbone may also have `roi`, the roi.RoiRule that suits its scores; `notes`, what a user should
    know of it before the work begins; and a method `prepare(image, path)`, which in any thread does beforehand what it can of a
    picture that `relevance` will be asked about (the same object), and changes no result. Its `build(model, detector, ...)` is
    given a Detector, or None for the backbone's own choice.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """See above; plain JSON, for `manifest.fingerprint`."""

    def relevance(self, groups: Sequence[tuple[Image, Sequence[Example]]]) -> list[list[Relevance]]:
        """One Relevance per example, grouped as given: each group is one image with its questions.

        `example.answers[0]` is the gold answer. An empty question asks about the image alone (policy from_image). What it
        raises for want of memory (memory.is_out_of_memory) or as InputError costs no more than the question that is to blame:
        fewer are then asked at once.
        """


class Grammar(Protocol):
    """A finite language of texts that a reply must come from, asked one prefix at a time."""

    @property
    def alphabet(self) -> frozenset[str]:
        """Every character that occurs in a text of the language."""

    @property
    def pattern(self) -> str:
        """A regular expression that every text of the language matches, for servers; it may match more than the language."""

    def follows(self, prefix: str) -> frozenset[str]:
        """The characters that can stand next; empty when `prefix` is a whole text, or no prefix of one."""

    def viable(self, prefix: str) -> bool:
        """Whether some text of the language begins with `prefix`."""

    def finish(self, prefix: str) -> str:
        """A whole text that begins with the viable `prefix`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: a dialogue whose last turn is the user's, and its pictures by slot ("full", "roi").

    `grammar`: only its texts may come out (engines that cannot promise it refuse); `listen` is called with each new
    piece of the text as it comes.
    """

    turns: tuple[Turn, ...]
    images: Mapping[str, Image]
    max_new_tokens: int = 128
    grammar: Grammar | None = None
    listen: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The text generated for a Request, without the end-of-sequence mark; `error` set (and text "") when it failed.

    `transient`: it failed for a reason outside the request (see errors.TransientError), so that it is worth asking again.
    `cached`: how many of the `tokens_in` needed no computation; `steps`: how often the model was asked for a token (fewer than
    `tokens_out` where a grammar left one choice); `ids` and `margins`: the tokens, and for each the lead of the best logit over
    the second (infinite for a forced token), where the engine knows them.
    """

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    finished: bool = True
    error: str | None = None
    transient: bool = False
    cached: int = field(default=0, compare=False)
    steps: int = field(default=0, compare=False)
    ids: tuple[int, ...] = field(default=(), compare=False)
    margins: tuple[float, ...] = field(default=(), compare=False)


class Engine(Protocol):
    """Turns requests into replies, in order. It knows nothing of Chain-of-Spot.

    An engine may also have `concurrency`: how many requests it likes to have under way at once; more than 1 says that
    `generate` may be called from several threads, each with a question's next request.
    """

    name: str

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One Reply a Request, in order. A request that fails is a Reply with `error`; the others are answered."""


@runtime_checkable
class HoldsModel(Protocol):
    """What an Engine also is when its model lives in this process: others may compute with the same weights while it rests."""

    llava: Any
    """The loaded model, a llava.Llava."""

    def make_room(self, wanted: int) -> int:
        """How many bytes of memory, at most `wanted`, it leaves to others from now on."""

    def release(self) -> None:
        """Lets go of what it keeps for later."""


PolicySource = Literal["none", "model", "fixed", "gold"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How the region of interest is chosen (the rows of CoS Table 3a, and controls).

    source    "none": one pass, no region; "model": the model writes the box, supervised in training by the store's labels;
              "fixed": `fixed_box(example, seed)` gives it; "gold": the data set's own region (`example.meta["gold"]`).
    asks      which questions stand in Inst.1: the example's own ("single"), all of its image's ("all"), or none ("image").
    """

    name: str
    source: PolicySource
    asks: Literal["single", "all", "image"] = "single"
    summary: str = ""
    fixed_box: Any = None


@dataclass(frozen=True, slots=True)
class BenchmarkData:
    """The questions of one benchmark split, with where their images are and what was checked."""

    name: str
    split: str
    examples: Sequence[Example]
    image_root: Path
    protocol: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(Protocol):
    """One benchmark: reads its official files, says how answers are scored, aggregates scores.

    More that is used where a benchmark has it: `headline` (the metric to name, "accuracy" without it) and its `unit`; `needs`
    (_files.Need) and `counts` (questions a split); `scorers`; the methods `estimates`, `protocol`, `asked`, `judged` and
    `submission`. docs/howto/add-a-benchmark.md shows them.
    """

    name: str
    summary: str

    def load(self, root: Path) -> BenchmarkData:
        """The questions in the official files below `root`. Raises InputError that names the file that is missing or wrong."""

    def score(self, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> Sequence[Score]:
        """One Score a question of `data`, in order; `predictions` by example id. One without a prediction scores 0."""

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        """The official aggregates, in the official units, from the scores alone; nested by what they are of."""


class Worker(Protocol):
    """Holds what a stage's work needs (a model, as a rule) and maps it over portions.

    `about`: plain JSON that decides the results (settings, the model's fingerprint); equal on all workers of a run. A method
    `expect(portion)` may be there, too: called in any thread with a portion that `work` will be given later, so that it can
    begin to read what is needed.
    """

    @property
    def about(self) -> Mapping[str, Any]: ...

    def work(self, portions: Iterable[Any]) -> Iterator[Any]:
        """Results in the order of the portions, as they are made: the same for a portion whoever works, and whatever else it
        worked on. Raises CosError for what the user must mend; what is wrong with one example is a result."""


class Job(Protocol):
    """What workers are made of; carried to where they live, so it holds settings and no model."""

    def start(self, device: str) -> Worker:
        """A worker on `device`. Raises CosError when it cannot be: no model, no pictures, other files."""

    def split(self, portion: Any) -> Sequence[Any]:
        """A portion in smaller ones, in order; just itself when it cannot be cut."""

    def lost(self, portion: Any, why: str) -> Any:
        """The one result of a portion that cannot be cut and kills its workers: each of its examples failed, with `why`."""


class Runner(Protocol):
    """Maps a Job's workers over portions; a context manager that ends them. Plug-ins of the kind `runners`."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What each of its workers is (Worker.about)."""

    def map(self, portions: Iterable[Any]) -> Generator[Any]:
        """All results, in the order of the portions, which are read no further ahead than a bound. Raises CosError.

        Closed in the middle, it stops its workers.
        """

    def __enter__(self) -> Any: ...

    def __exit__(self, *_error: object) -> None: ...


__all__ = [
    "Backbone",
    "Benchmark",
    "BenchmarkData",
    "Box",
    "Detector",
    "Engine",
    "Grammar",
    "HoldsModel",
    "Job",
    "Policy",
    "Relevance",
    "Reply",
    "Reporter",
    "Request",
    "Runner",
    "SilentReporter",
    "Worker",
]
