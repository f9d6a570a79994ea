"""What a worker of the annotation stage does, wherever a runner puts it: windows of pictures in, what to store of them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cos_core.annotate import annotator as finding
from cos_core.annotate.annotator import Annotator, Heat, RegionResult
from cos_core.annotate.config import AnnotateConfig
from cos_core.annotate.pictures import Opened, WindowReader
from cos_core.data.datasets import spoken
from cos_core.files import manifest, picture_files
from cos_core.files.images import ImageSource
from cos_core.files.picture_files import Shipped
from cos_core.relevance import roi
from cos_core.types import Annotation, Example


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """One window: the questions of some pictures, picture by picture, and which of them are `wanted` (None: all)."""

    groups: Sequence[Sequence[Example]]
    wanted: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Windows that travel together; `files`: their pictures, where those are shipped."""

    asks: Sequence[WindowRequest]
    files: Shipped | None = None


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What became of one window, ready to be stored: annotations with their maps, and (id, sentence) of what failed."""

    annotations: Sequence[Annotation] = ()
    heats: Mapping[str, Heat] = field(default_factory=dict)
    failures: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class AnnotateJob:
    """A Job. `witness`: a picture that is there where the job was started: a worker that lacks it sees another folder."""

    config: AnnotateConfig
    witness: str | None = None

    def start(self, device: str) -> AnnotateWorker:
        config = self.config
        if not config.scale.ship_images:
            picture_files.check_seen(config.pictures, self.witness)
        return AnnotateWorker(finding.build(replace(config, device=device)), config)

    def split(self, portion: WindowBatch) -> list[WindowBatch]:
        asks = portion.asks
        if len(asks) == 1:
            ask = asks[0]
            groups = [[g] for g in ask.groups] if len(ask.groups) > 1 else self._questions(ask.groups[0])
            asks = [WindowRequest(part, ask.wanted) for part in groups]
        half = (len(asks) + 1) // 2
        return [replace(portion, asks=part) for part in (asks[:half], asks[half:]) if part]

    def _questions(self, group: Sequence[Example]) -> list[list[list[Example]]]:
        """A picture's questions apart, unless one region is found for all of them together."""
        if finding.shares_region(self.config.policy):
            return [[list(group)]]
        return [[[example]] for example in group]

    def lost(self, portion: WindowBatch, why: str) -> WindowResult:
        gone = [e for ask in portion.asks for group in ask.groups for e in group if ask.wanted is None or e.id in ask.wanted]
        return WindowResult(failures=[(e.id, _sentence(self.config, e, why)) for e in gone])


class AnnotateWorker:
    """A Worker: an annotator over windows; one Found a window."""

    def __init__(self, annotator: Annotator, config: AnnotateConfig) -> None:
        self._annotator, self._config = annotator, config
        self._reader = WindowReader(getattr(annotator.backbone, "prepare", None))
        self._expected: dict[int, tuple[WindowRequest, Opened]] = {}
        """Windows whose pictures are being read already."""

    @property
    def about(self) -> Mapping[str, Any]:
        """`fingerprint` and `settings` of the annotations, the `rule` for regions, and `notes` for a person."""
        made = self._annotator
        rule = manifest.plain(made.rule)
        return {"fingerprint": made.fingerprint, "settings": made.settings, "rule": rule, "notes": list(made.notes)}

    def work(self, portions: Iterable[WindowBatch]) -> Iterator[WindowResult]:
        for outcomes in self.outcomes(portions):
            yield self._found(outcomes)

    def outcomes(self, portions: Iterable[WindowBatch]) -> Iterator[list[RegionResult]]:
        """What became of the questions wanted of each window; the next window's pictures are read meanwhile."""
        windows = self._windows(portions)
        now = next(windows, None)
        while now is not None:
            following = next(windows, None)
            ask, pictures = now
            made = self._annotator.outcomes(ask.groups, pictures)
            yield [o for o in made if ask.wanted is None or o.example.id in ask.wanted]
            now = following

    def expect(self, portion: WindowBatch) -> None:
        """See interfaces.Worker."""
        if portion.asks:
            ask = portion.asks[0]
            self._expected[id(ask)] = ask, self._begun(ask, self._source(portion))

    def _windows(self, portions: Iterable[WindowBatch]) -> Iterator[tuple[WindowRequest, Opened]]:
        """Windows in order, the pictures of each being read from the moment it is asked for."""
        for portion in portions:
            source = self._source(portion)
            for ask in portion.asks:
                begun = self._expected.pop(id(ask)) if id(ask) in self._expected else None
                yield begun or (ask, self._begun(ask, source))

    def _begun(self, ask: WindowRequest, source: ImageSource) -> Opened:
        return self._reader.begin(self._annotator.opens(ask.groups), source)

    def _source(self, portion: WindowBatch) -> ImageSource:
        source = ImageSource(self._config.pictures)
        source.take(portion.files)
        return source

    def _found(self, outcomes: Sequence[RegionResult]) -> WindowResult:
        return WindowResult(
            [annotation(o.example, o.roi, self._annotator) for o in outcomes if o.roi is not None],
            {o.example.id: o.heat for o in outcomes if o.heat is not None},
            [(o.example.id, _sentence(self._config, o.example, o.failure or "unknown")) for o in outcomes if o.roi is None],
        )


def annotation(example: Example, found: roi.Roi, annotator: Annotator) -> Annotation:
    """The record of a region that was found."""
    return Annotation(
        example.id,
        found.box,
        found.score,
        annotator.policy.name,
        annotator.fingerprint,
        found.used,
        found.reason,
        example.image,
    )


def _sentence(config: AnnotateConfig, example: Example, why: str) -> str:
    """Why there is no region, and where the question stands."""
    file = example.file or spoken(config.data)
    where = f"{file}:{example.line}" if example.line is not None else file
    return f"{where}: {why}"
