"""Settings of an annotation job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cos_core.data.datasets import Files
from cos_core.errors import InputError
from cos_core.files import picture_files
from cos_core.files.picture_files import PictureFolder
from cos_core.files.shard import Shard
from cos_core.relevance.roi import RegionKind, RoiRule
from cos_core.runners import RunnerConfig
from cos_core.system import bounds

TargetKind = Literal["log-odds", "logit", "logprob", "argmax"]


NOT_IN_FINGERPRINT: Mapping[str, str] = {
    "data": "which questions are asked",
    "images": "where the pictures are; the data names them",
    "follow_links": "where the pictures may be",
    "out": "where the regions go",
    "keep_heat": "maps are kept beside the regions and change none",
    "batch_images": "who stands beside a picture does not change its regions",
    "shard": "which pictures are looked at",
    "scale": "where the work is done",
    "limit": "where a job stops",
    "max_failures": "when a job is given up",
    "dry_run": "writes nothing",
    "device": "where the model runs",
}
"""Fields of AnnotateConfig that do not decide a region, each with the reason. Every other one counts, by what it builds: the
backbone's settings (with the content of the model), the rule, the detector, the policy (see annotator.build)."""


@dataclass(frozen=True, slots=True)
class AnnotateConfig:
    """Settings of one job.

    `data`, `images`: questions (a file, or several in order) and the folder their image paths start from; `follow_links`:
    whether links in that folder may lead out of it; `out`: the store. `model`: the checkpoint that the `backbone` runs, built
    with `backbone_options`; `detector` (None: the backbone's own choice) proposes regions to it, built with `detector_options`.
    `policy`: a row of CoS Table 3a or a control ("random" takes a random candidate of the detector, so that its sizes are those
    of real labels). `target` (None: the backbone's own), `last_layers`: relevance.SweepSettings.
    `threshold`, `keep_mass`, `region`, `extend`, `finer`: what the user sets of roi.RoiRule; the rest is the backbone's.
    `keep_heat`: relevance maps are stored beside the annotations.

    `shard`: annotate this part of the pictures only; `scale`: where the work is done. `limit`: stop after the image with which
    this many questions are reached; `max_failures`: stop once more questions than this have no region; `dry_run`: count, look
    at pictures and estimate, write nothing.
    """

    data: Files
    images: Path
    model: str
    out: Path
    backbone: str = "regions"
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    detector: str | None = None
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "from_single_question"
    target: TargetKind | None = None
    last_layers: int | None = None
    threshold: float | Literal["otsu"] | None = None
    keep_mass: float | None = None
    region: RegionKind | None = None
    extend: float | None = None
    finer: int | None = None
    keep_heat: bool = False
    seed: int = 0
    batch_images: int = 8
    shard: Shard | None = None
    scale: RunnerConfig = field(default_factory=RunnerConfig)
    limit: int | None = None
    max_failures: int | None = None
    dry_run: bool = False
    device: str = "auto"
    dtype: str = "auto"
    follow_links: bool = False

    def __post_init__(self) -> None:
        self.rule(RoiRule())
        bounds.check("batch_images", self.batch_images, 1, bounds.BATCH)
        bounds.check("limit", self.limit, 1, bounds.COUNT)
        bounds.check("max_failures", self.max_failures, 0, bounds.COUNT)
        bounds.check("seed", self.seed, 0, bounds.SEED)
        bounds.check("last_layers", self.last_layers, 1, bounds.TOKENS)
        if self.detector_options and self.detector is None:
            raise InputError("detector options need a detector")

    @property
    def pictures(self) -> PictureFolder | None:
        """The folder of pictures with what is thought of its links."""
        return picture_files.folder(self.images, self.follow_links)

    def rule(self, default: RoiRule) -> RoiRule:
        """The default with what the user set instead. Raises InputError for values out of range."""
        asked = {name: getattr(self, name) for name in ("region", "threshold", "keep_mass", "extend", "finer")}
        return replace(default, **{name: value for name, value in asked.items() if value is not None})
