"""What can be plugged in: one file each under the folder of its kind, found by its file name (see plug.py).

A plug-in module offers one function `build(**options)` that returns the object described here. `Benchmark`, `Backbone`,
`Engine` and `Detector` are base classes: what a plug-in leaves out has a default, and a misspelt member is refused when its
class is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from cos_core.errors import InputError
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


class Plugin(ABC):  # noqa: B024 (its own subclasses have the abstract methods)
    """What the base classes of plug-ins share.

    A public member that no base class has and that reads like one of theirs is taken for a misspelling: InputError when the
    class is made. Other members of a plug-in begin with an underscore, or have names that differ more.
    """

    __slots__ = ()

    def __new__(cls, *_args: object, **_options: object) -> Any:
        if missing := sorted(cls.__abstractmethods__):
            raise InputError(f"the class {cls.__name__} has no {missing[0]!r}, which every {_base(cls).__name__} needs")
        return super().__new__(cls)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        bases = [each for each in cls.__mro__ if each.__module__ == __name__]
        if cls in bases:
            return
        expected = {name for each in bases for name in _members(each)}
        members = {name for each in cls.__mro__ if each not in bases for name in _members(each)}
        if not members <= expected:
            _refuse_misspelt(cls, members - expected, expected - members)


def _base(cls: type) -> type:
    return next(each for each in cls.__mro__ if each.__module__ == __name__)


def _members(cls: type) -> Iterator[str]:
    """The public names that a class itself defines or annotates."""
    yield from (name for name in (*vars(cls), *vars(cls).get("__annotations__", ())) if not name.startswith("_"))


def _refuse_misspelt(cls: type, unknown: Iterable[str], free: Iterable[str]) -> None:
    from difflib import get_close_matches

    for name in sorted(unknown):
        if near := get_close_matches(name, free, 1, 0.85):
            raise InputError(
                f"the class {cls.__name__} has {name!r}, which no {_base(cls).__name__} has; did you mean {near[0]!r}? "
                "(A member of its own begins with an underscore.)"
            )


class Detector(Plugin):
    """Proposes candidate regions; boxes in frame "image".

    What its boxes depend on is its mapping `settings`, else its dataclass fields (plug.described).
    """

    __slots__ = ()

    parallel: ClassVar[bool] = False
    """Whether `detect` may be called from any thread."""

    @property
    def feature_size(self) -> int | None:
        """Numbers a region in `Regions.features`, 0 for no features; None when that is not known before the first picture."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before the work begins, a sentence each."""
        return ()

    @abstractmethod
    def detect(self, image: Image, path: str = "") -> Regions:
        """The candidates on one upright RGB picture; none is an empty Regions. `features`, where there are, (boxes, d) float32.

        `path`: the picture's path in its data set, for detectors that read what was computed before. Raises InputError for a
        picture that it cannot serve.
        """


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


class Backbone(Plugin):
    """Relevance of the answer to areas of one image, for several questions on it (CoS Eq. 4-6).

    Its `build(model, detector, ...)` is given a Detector, or None for the backbone's own choice.
    """

    __slots__ = ()

    settings: Mapping[str, Any]
    """Everything that scores depend on, as plain JSON: the weights' fingerprint and the detector's settings included. Its
    fingerprint tells annotations apart."""
    roi: Any = None
    """The relevance.roi.RoiRule that suits its scores; None for the usual one."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before the work begins, a sentence each: its detector's notes, and its own."""
        return ()

    def prepare(self, image: Image, path: str) -> None:
        """Does beforehand, in any thread, what it can for a picture that `relevance` will get (the same object); no result
        depends on it."""

    @abstractmethod
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
class Sampling:
    """How tokens are drawn: from the softmax of the logits over `temperature` (above 0), of which only the likeliest tokens
    count that together reach `top_p` (in (0, 1]).

    `seed` (32 bits) decides every draw of the request: its reply depends neither on the requests beside it nor on their order.
    """

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: a dialogue whose last turn is the user's, and its pictures by slot ("full", "roi").

    `grammar`: only its texts may come out (engines that cannot promise it refuse); `listen` is called with each new
    piece of the text as it comes. `sampling`: None takes the likeliest token each time. `margins`: the reply's `margins` are
    needed (an engine that cannot know them gives a Reply with `error` that says so).
    """

    turns: tuple[Turn, ...]
    images: Mapping[str, Image]
    max_new_tokens: int = 128
    grammar: Grammar | None = None
    listen: Callable[[str], None] | None = None
    sampling: Sampling | None = None
    margins: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The text generated for a Request, without the end-of-sequence mark; `error` set (and text "") when it failed.

    `transient`: it failed for a reason outside the request (see errors.TransientError), so that it is worth asking again.
    `cached`: how many of the `tokens_in` needed no computation; `steps`: how often the model was asked for a token (fewer than
    `tokens_out` where a grammar left one choice); `ids`: the tokens, where the engine knows them; `margins`: for each token the
    lead of the best logit over the second (infinite for a forced token), which is that of their log-probabilities, where the
    engine knows it or `Request.margins` asks for it. `ended`: the last of `ids` and `margins` is that of the end mark.
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
    ended: bool = field(default=False, compare=False)

    @property
    def margin(self) -> float | None:
        """The least lead of any token of the text; the end mark counts only where there is no other. None where no lead is
        known."""
        words = self.margins[:-1] if self.ended and len(self.margins) > 1 else self.margins
        return min(words, default=None)


class Engine(Plugin):
    """Turns requests into replies, in order. It knows nothing of Chain-of-Spot."""

    name: str
    concurrency: int = 1
    """Requests that may be under way at once; above 1 `generate` is called from several threads, each with one question's next
    request."""
    remark: str = ""
    """What a user should know of how it answers, said once a run."""
    one_picture: str = ""
    """Why a dialogue shows one picture only, as the beginning of a sentence; empty where it shows two."""

    def prepare(self, images: Sequence[Image]) -> None:
        """Does beforehand, in another thread, what it can for pictures of later requests (the same objects)."""

    def refuses(self, crop: Image) -> bool:
        """Whether the model cannot be shown a crop as the second picture of a dialogue: too thin for its image processor."""
        return False

    def without_reuse(self) -> Engine | None:
        """The same model, answering without anything kept from earlier requests; None: such an engine is built anew."""
        return None

    @abstractmethod
    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One Reply a Request, in order. A request that fails is a Reply with `error`; the others are answered."""


@runtime_checkable
class HoldsModel(Protocol):
    """What an Engine also is when its model lives in this process: others may compute with the same weights while it rests."""

    loaded: Any
    """The loaded model, a models.loaded.LoadedModel."""

    def make_room(self, wanted: int) -> int:
        """How many bytes of memory, at most `wanted`, it leaves to others from now on."""

    def release(self) -> None:
        """Lets go of what it keeps for later."""


PolicySource = Literal["none", "model", "fixed", "gold"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How the region of interest is chosen (the rows of CoS Table 3a, and controls).

    source    "none": one pass, no region; "model": the model writes the box, supervised in training by the store's labels;
              "fixed": `fixed_box(example, seed)` gives it; "gold": the data set's own region (`Example.gold`).
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


@dataclass(frozen=True, slots=True)
class Need:
    """One thing to download: a file or folder below the data folder (any of `names`), and where it comes from.

    `split`: only this split needs it; `optional`: scoring works without it; `md5` of the file, where one is published.
    """

    names: tuple[str, ...]
    source: str
    split: str | None = None
    optional: bool = False
    md5: str | None = None

    def path(self, root: Path) -> Path | None:
        """The first of `names` that is there."""
        return next((root / name for name in self.names if (root / name).exists()), None)


class Benchmark(Plugin):
    """One benchmark: reads its official files, says how answers are scored, aggregates scores."""

    __slots__ = ()

    name: str
    summary: str = ""
    split: str | None = None
    scorer: str | None = None
    """What `build` was asked for, where there is a choice."""
    headline: str = "accuracy"
    """The path of the one number that stands for the benchmark: "mean_f1", "kinds.reading.accuracy"."""
    unit: str = "fraction"
    """The headline's: "fraction", "percent" or "points"."""
    upload: str = ".json"
    """The ending of the submission's file."""
    scorers: Sequence[str] = ()
    """The names that `build(scorer=...)` takes."""
    needs: Sequence[Need] = ()
    """What to download."""
    counts: Mapping[str, int] = {}
    """How many questions each official split has."""
    folders: Sequence[str] = ()
    """What others call the benchmark's folder (LLaVA's `seed_bench`)."""

    @abstractmethod
    def load(self, root: Path) -> BenchmarkData:
        """The questions in the official files below `root`. Raises InputError that names the file that is missing or wrong."""

    @abstractmethod
    def score(self, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> Sequence[Score]:
        """One Score a question of `data`, in order; `predictions` by example id. One without a prediction scores 0.

        No scores at all where labels are not public; `metrics` is then {"server_scored": True}.
        """

    @abstractmethod
    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        """The official aggregates, in the official units, from the scores alone; nested by what they are of."""

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> Sequence[Any] | None:
        """The aggregates that get an interval (scoring.metrics.Estimate); None: the mean value of the scores, as "accuracy"."""
        return None

    def protocol(self, predictions: Mapping[str, Prediction]) -> Mapping[str, Any]:
        """What two runs must share to be comparable, beside split, profile and policy (TextVQA: whether prompts had OCR)."""
        return {}

    def asked(self, prompt: str) -> str | None:
        """The question inside a recorded prompt, compared with `Example.asked` where question ids repeat."""
        return prompt

    def same_question(self, question_id: str) -> str:
        """One id for all spellings of an official question id, or of an example's (MME)."""
        return question_id

    def unpack(self, root: Path) -> Sequence[str]:
        """Writes pictures that stand inside the files as files, before a model runs; a sentence for each that is wrong."""
        return ()

    def submission(self, root: Path, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> str | bytes | None:
        """The content of the file that a server scores; None where the benchmark is scored here.

        Raises InputError when an answer is missing.
        """
        return None


class JudgedBenchmark(Benchmark):
    """A benchmark whose answers a language model grades (evaluate/judge.py)."""

    __slots__ = ()

    reading: str = "official"
    """How a judge's replies are read; part of the protocol."""

    @property
    def unread_grade(self) -> float | None:
        """The grade after the last reply without one; None where the answer stays ungraded."""
        return None

    @abstractmethod
    def judge_prompt(self) -> str:
        """What stands before every sample."""

    @abstractmethod
    def judge_sample(self, example: Example, answer: str) -> str:
        """The part of a request that is about one answer."""

    @abstractmethod
    def judge_grade(self, reply: str, cut: bool = False) -> float | None:
        """The grade in a reply, in [0, 1]; None when there is none. `cut`: the reply was cut off at its longest."""

    @abstractmethod
    def judged(
        self, data: BenchmarkData, predictions: Mapping[str, Prediction], grades: Mapping[str, Sequence[float]]
    ) -> Sequence[Score]:
        """One score a question, from its grades by example id (nan for one that could not be read)."""


class Worker(ABC):
    """Holds what a stage's work needs (a model, as a rule) and maps it over portions."""

    @property
    @abstractmethod
    def about(self) -> Mapping[str, Any]:
        """Plain JSON that decides the results (settings, the model's fingerprint); equal on all workers of a run."""

    def expect(self, portion: Any) -> None:  # noqa: B027 (a worker may begin with nothing)
        """Begins to read what a portion needs that `work` will be given later. Called in any thread."""

    @abstractmethod
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
    "JudgedBenchmark",
    "Need",
    "Plugin",
    "Policy",
    "Relevance",
    "Reply",
    "Reporter",
    "Request",
    "Runner",
    "Sampling",
    "SilentReporter",
    "Worker",
]
