"""Settings of an annotation job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cos_core import options
from cos_core.errors import InputError
from cos_core.files import picture_files
from cos_core.files.picture_files import PictureFolder
from cos_core.files.shard import Shard
from cos_core.models.budget_options import BudgetOptions
from cos_core.options import CHECKS, INPUT, OUTPUT, REGION, REQUIRED, SPEED, Files, option
from cos_core.runners import RunnerConfig

if TYPE_CHECKING:
    from cos_core.relevance.roi import RoiRule

TargetKind = Literal["log-odds", "logit", "logprob", "argmax"]


def _threshold(text: str) -> float | Literal["otsu"]:
    if text == "otsu":
        return "otsu"
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{text!r} is neither a number nor 'otsu'") from None


@dataclass(frozen=True, slots=True)
class AnnotateConfig(BudgetOptions):
    """Settings of one job; each field says what it is.

    `roi` on the command line is `policy` here: a row of CoS Table 3a or a control ("random" takes a random candidate of the
    detector, so that its sizes are those of real labels). `detector`, `target`, and what the user sets of roi.RoiRule
    (`threshold`, `keep_mass`, `region`, `extend`, `finer`) are the backbone's own choice when they are None. With `limit` a job
    ends after the image with which this many questions are reached.
    """

    data: Files = options.data_option(not_in_fingerprint="which questions there are")
    images: Path = options.images_option()
    model: str = options.model_option(what="Vision-language checkpoint")
    out: Path = option(
        REQUIRED,
        "Store to write or to continue: a folder with an LMDB database.",
        OUTPUT,
        not_in_fingerprint="where the regions go",
    )
    backbone: str = option(
        "regions",
        "How relevance is measured: 'regions', 'patches' or 'lxmert'.",
        REGION,
        parser=options.plugin_name,
        metavar="NAME",
        completes="backbones",
    )
    backbone_options: Mapping[str, Any] = options.settings_option("backbone")
    detector: str | None = options.detector_option()
    detector_options: Mapping[str, Any] = options.settings_option("detector")
    policy: str = options.policy_option()
    target: TargetKind | None = option(
        None,
        "What is explained: a score of the gold answer, or the model's own choice ('argmax').",
        REGION,
        shown_default="log-odds; logit with lxmert",
    )
    last_layers: int | None = option(
        None, "Use the last K layers only.", REGION, low=1, high=options.TOKENS, shown_default="all layers"
    )
    threshold: float | Literal["otsu"] | None = option(
        None,
        "Share of the range of relevance above which areas count; 'otsu' finds it in each picture.",
        REGION,
        parser=_threshold,
        metavar="SHARE|otsu",
        shown_default="0.3; 0.5 with patches",
    )
    keep_mass: float | None = option(
        None, "Instead of a threshold: the best areas that hold this share of the relevance.", REGION, low=0, high=1
    )
    region: Literal["top1", "component", "union"] | None = option(
        None, "How scores become one box.", REGION, shown_default="union; component with patches"
    )
    extend: float | None = option(
        None,
        "Each side moves outwards by this share of its length.",
        REGION,
        low=0,
        high=10,
        shown_default="0; 0.1 with patches",
    )
    finer: int | None = option(
        None,
        "Interpolate maps to this many times as many cells a side.",
        REGION,
        low=1,
        high=options.FINER,
        shown_default="1; 4 with patches",
    )
    keep_heat: bool = option(
        False,
        "Keep the relevance maps in the store.",
        OUTPUT,
        not_in_fingerprint="maps are stored beside the regions and change none",
    )
    seed: int = options.seed_option()
    batch_images: int = option(
        8,
        "Pictures that go through the model together.",
        SPEED,
        low=1,
        high=options.BATCH,
        not_in_fingerprint="which pictures share a batch does not change their regions",
    )
    shard: Shard | None = option(
        None,
        "Only this part of the pictures, for 'cos store merge'.",
        INPUT,
        parser=Shard.parse,
        metavar="I/N",
        shown_default="all",
        not_in_fingerprint="which pictures are looked at",
    )
    scale: RunnerConfig = options.group(RunnerConfig, not_in_fingerprint="where the work is done")
    limit: int | None = options.limit_option()
    max_failures: int | None = options.max_failures_option(not_in_fingerprint="how many failures end a job")
    dry_run: bool = option(
        False,
        "Count, look at the pictures, estimate time and size, and stop.",
        CHECKS,
        not_in_fingerprint="writes nothing",
    )
    device: str = options.device_option()
    dtype: str = options.dtype_option(("float32", "bfloat16", "float16", "float64"), "Number format of the weights.")
    follow_links: bool = options.follow_links_option(not_in_fingerprint="where the pictures may be")
    columns: str | None = options.columns_option(not_in_fingerprint="which questions there are")

    def __post_init__(self) -> None:
        from cos_core.relevance.roi import RoiRule

        options.check(self)
        self.rule(RoiRule())
        if self.pixel_budget.words and self.backbone == "lxmert":
            raise InputError("lxmert sees features of regions and no pixels, so that there is no pixel budget to set")
        if self.detector_options and self.detector is None:
            raise InputError("detector options need a detector")

    @property
    def pictures(self) -> PictureFolder | None:
        """The folder of pictures with what is thought of its links."""
        return picture_files.folder(self.images, self.follow_links)

    def rule(self, default: RoiRule) -> RoiRule:
        """The default with what the user set instead. Raises InputError for values out of range."""
        settings = {name: getattr(self, name) for name in ("region", "threshold", "keep_mass", "extend", "finer")}
        return replace(default, **{name: value for name, value in settings.items() if value is not None})
