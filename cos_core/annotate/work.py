"""What a worker of the annotation stage does, wherever a runner puts it: windows of pictures in, what to store of them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cos_core import images, manifest, roi
from cos_core.annotate import annotator as finding
from cos_core.annotate.annotator import Annotator, Heat, Outcome
from cos_core.annotate.config import AnnotateConfig
from cos_core.images import ImageFile, ImageSource
from cos_core.types import Annotation, Example


@dataclass(frozen=True, slots=True)
class Ask:
    """One window: the questions of some pictures, picture by picture, and which of them are `wanted` (None: all)."""

    groups: Sequence[Sequence[Example]]
    wanted: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Portion:
    """Windows that travel together; `files`: their pictures, where those are shipped."""

    asks: Sequence[Ask]
    files: Mapping[str, ImageFile | str] | None = None


@dataclass(frozen=True, slots=True)
class Found:
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
            images.check_seen(config.images, self.witness)
        return AnnotateWorker(finding.build(replace(config, device=device)), config)

    def split(self, portion: Portion) -> list[Portion]:
        asks = portion.asks
        if len(asks) == 1:
            ask = asks[0]
            groups = [[g] for g in ask.groups] if len(ask.groups) > 1 else self._questions(ask.groups[0])
            asks = [Ask(part, ask.wanted) for part in groups]
        half = (len(asks) + 1) // 2
        return [replace(portion, asks=part) for part in (asks[:half], asks[half:]) if part]

    def _questions(self, group: Sequence[Example]) -> list[list[list[Example]]]:
        """A picture's questions apart, unless one region is found for all of them together."""
        if finding.shares_region(self.config.policy):
            return [[list(group)]]
        return [[[example]] for example in group]

    def lost(self, portion: Portion, why: str) -> Found:
        gone = [e for ask in portion.asks for group in ask.groups for e in group if ask.wanted is None or e.id in ask.wanted]
        return Found(failures=[(e.id, _sentence(self.config, e, why)) for e in gone])


class AnnotateWorker:
    """A Worker: an annotator over windows; one Found a window."""

    def __init__(self, annotator: Annotator, config: AnnotateConfig) -> None:
        self._annotator, self._config = annotator, config
        self._pictures = ImageSource(config.images)

    @property
    def about(self) -> Mapping[str, Any]:
        """`fingerprint` and `settings` of the annotations, the `rule` for regions, and `notes` for a person."""
        made = self._annotator
        rule = manifest.plain(made.rule)
        return {"fingerprint": made.fingerprint, "settings": made.settings, "rule": rule, "notes": list(made.notes)}

    def work(self, portions: Iterable[Portion]) -> Iterator[Found]:
        for portion in portions:
            self._pictures.take(portion.files)
            for ask in portion.asks:
                outcomes = self._annotator.outcomes(ask.groups, self._pictures)
                yield self._found([o for o in outcomes if ask.wanted is None or o.example.id in ask.wanted])

    def _found(self, outcomes: Sequence[Outcome]) -> Found:
        return Found(
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
    where = f"{config.data}:{example.line}" if example.line is not None else str(config.data)
    return f"{where}: {why}"
