"""What a worker of the annotation stage does, wherever a runner puts it: windows of pictures in, what to store of them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cos_core.annotate import annotator as regions
from cos_core.annotate.annotator import Annotator, Heat, RegionResult
from cos_core.annotate.config import AnnotateConfig
from cos_core.data.datasets import spoken
from cos_core.files import manifest, picture_files
from cos_core.files.images import ImageSource
from cos_core.files.picture_files import Shipped
from cos_core.files.read_ahead import OpenPictures, PictureReader, one_ahead
from cos_core.interfaces import Worker
from cos_core.relevance import roi
from cos_core.system import memory, worker_process
from cos_core.types import Annotation, Example


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """One window: the questions of some pictures, picture by picture, and the `ids` of those to annotate (None: all)."""

    groups: Sequence[Sequence[Example]]
    ids: frozenset[str] | None = None

    def wants(self, example: Example) -> bool:
        return self.ids is None or example.id in self.ids


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Windows that travel together; `files`: their pictures, where those are shipped."""

    windows: Sequence[WindowRequest]
    files: Shipped | None = None


@dataclass(frozen=True, slots=True)
class WindowResult:
    """The results of one window, ready to be stored: annotations with their maps, and (id, sentence) of what failed."""

    annotations: Sequence[Annotation] = ()
    heats: Mapping[str, Heat] = field(default_factory=dict)
    failures: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class AnnotateJob:
    """A Job. `known_picture`: one that the process which started the run can read; a worker that cannot has another folder."""

    config: AnnotateConfig
    known_picture: str | None = None

    def start(self, device: str) -> AnnotateWorker:
        config = self.config
        if not config.scale.ship_images:
            picture_files.check_visible(config.pictures, self.known_picture)
        return AnnotateWorker(regions.build(replace(config, device=device)), config)

    def split(self, portion: WindowBatch) -> list[WindowBatch]:
        windows = portion.windows
        if len(windows) == 1:
            windows = [WindowRequest(groups, windows[0].ids) for groups in self._smaller(windows[0].groups)]
        return [replace(portion, windows=part) for part in memory.halves(windows)]

    def _smaller(self, groups: Sequence[Sequence[Example]]) -> list[list[Sequence[Example]]]:
        """A window picture by picture; one picture question by question, unless all of its questions share one region."""
        if len(groups) > 1 or regions.shares_region(self.config.policy):
            return [[group] for group in groups]
        return [[[example]] for example in groups[0]]

    def lost(self, portion: WindowBatch, why: str) -> WindowResult:
        lost = [e for window in portion.windows for group in window.groups for e in group if window.wants(e)]
        return WindowResult(failures=[(e.id, _sentence(self.config, e, why)) for e in lost])


class AnnotateWorker(Worker):
    """A Worker: an annotator over windows; one WindowResult a window."""

    def __init__(self, annotator: Annotator, config: AnnotateConfig) -> None:
        self._annotator, self._config = annotator, config
        self._reader = PictureReader(annotator.backbone.prepare if annotator.backbone else None, worker_process.feeders())
        self._expected: dict[int, tuple[WindowRequest, OpenPictures]] = {}
        """Windows whose pictures are being read already, by identity."""

    @property
    def about(self) -> Mapping[str, Any]:
        """`fingerprint` and `settings` of the annotations, the `rule` for regions, and `notes` for a person."""
        annotator = self._annotator
        rule = manifest.plain(annotator.rule)
        notes = list(annotator.notes)
        return {"fingerprint": annotator.fingerprint, "settings": annotator.settings, "rule": rule, "notes": notes}

    def work(self, portions: Iterable[WindowBatch]) -> Iterator[WindowResult]:
        for results in self.outcomes(portions):
            yield self._to_store(results)

    def outcomes(self, portions: Iterable[WindowBatch]) -> Iterator[list[RegionResult]]:
        """The results of the wanted questions of each window; the next window's pictures are read meanwhile."""
        for window, pictures in one_ahead(self._opened(portions)):
            results = self._annotator.outcomes(window.groups, pictures)
            yield [result for result in results if window.wants(result.example)]

    def expect(self, portion: WindowBatch) -> None:
        """See interfaces.Worker."""
        if portion.windows:
            window = portion.windows[0]
            self._expected[id(window)] = window, self._begin(window, self._source(portion))

    def _opened(self, portions: Iterable[WindowBatch]) -> Iterator[tuple[WindowRequest, OpenPictures]]:
        """Windows in order, the pictures of each being read from the moment it is asked for."""
        for portion in portions:
            source = self._source(portion)
            for window in portion.windows:
                if id(window) in self._expected:
                    yield self._expected.pop(id(window))
                else:
                    yield window, self._begin(window, source)

    def _begin(self, window: WindowRequest, source: ImageSource) -> OpenPictures:
        return self._reader.begin(self._annotator.opens(window.groups), source)

    def _source(self, portion: WindowBatch) -> ImageSource:
        return ImageSource(self._config.pictures, portion.files)

    def _to_store(self, results: Sequence[RegionResult]) -> WindowResult:
        return WindowResult(
            [annotation(r.example, r.roi, self._annotator) for r in results if r.roi is not None],
            {r.example.id: r.heat for r in results if r.heat is not None},
            [(r.example.id, _sentence(self._config, r.example, r.failure or "unknown")) for r in results if r.roi is None],
        )


def annotation(example: Example, region: roi.Roi, annotator: Annotator) -> Annotation:
    """The record of a region."""
    return Annotation(
        example.id,
        region.box,
        region.score,
        annotator.policy.name,
        annotator.fingerprint,
        region.used,
        region.reason,
        example.image,
    )


def _sentence(config: AnnotateConfig, example: Example, why: str) -> str:
    """Why there is no region, and where the question stands."""
    file = example.file or spoken(config.data)
    where = f"{file}:{example.line}" if example.line is not None else file
    return f"{where}: {why}"
