"""How the region of a question is found: by relevance, or as another row of CoS Table 3a says.

Examples with their pictures go in, regions and reasons come out. Stores and files of questions are not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from msgspec import structs

from cos_core.annotate.config import AnnotateConfig
from cos_core.backbones._each import relevance_of_each
from cos_core.errors import InputError
from cos_core.files import deciding, manifest, plug
from cos_core.files.durable import utf8
from cos_core.files.images import ImageSource
from cos_core.files.picture_files import Root
from cos_core.files.read_ahead import PictureOpener
from cos_core.geometry import SquarePad
from cos_core.interfaces import Backbone, Detector, Policy, Relevance
from cos_core.models import devices
from cos_core.models.checkpoint_info import annotator_differences, annotator_provenance
from cos_core.relevance import roi
from cos_core.relevance.heat import painted
from cos_core.types import Example, Regions

if TYPE_CHECKING:
    from PIL.Image import Image

Heat = tuple[tuple[float, ...], ...]
NO_ANSWER = "no answer to explain"
NO_GOLD = "the data set names no gold region"


@dataclass(frozen=True, slots=True)
class RegionResult:
    """The result of one example: its region (perhaps none, with a reason), or a failure to be tried again.

    `heat`: the map over the square frame that a model's region was chosen from, where maps are kept.
    """

    example: Example
    roi: roi.Roi | None
    heat: Heat | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Annotator:
    """Finds regions as one policy of CoS Table 3a does.

    `settings`: all that decides them, `fingerprint` its hash. `notes`: what a person should know before the work begins.
    """

    policy: Policy
    rule: roi.RoiRule
    images: Root
    seed: int
    needs_answer: bool
    settings: dict[str, Any]
    fingerprint: str
    backbone: Backbone | None = None
    candidates: Detector | None = field(default=None, repr=False)
    keep_heat: bool = False
    notes: tuple[str, ...] = ()

    def opens(self, groups: Sequence[Sequence[Example]]) -> list[str]:
        """The names of the pictures that `outcomes` will open for these groups."""
        if self.policy.source == "model":
            return [group[0].image or "" for group in groups if self._explained_examples(group)[0]]
        return [] if self.candidates is None or self.policy.source == "gold" else [group[0].image or "" for group in groups]

    def outcomes(self, groups: Sequence[Sequence[Example]], pictures: PictureOpener | None = None) -> list[RegionResult]:
        """One result an example, in order; `pictures` None: from the folder `images`."""
        pictures = pictures or ImageSource(self.images)
        if self.policy.source == "model":
            return self._by_relevance(groups, pictures)
        return [result for group in groups for result in self._without_model(group, pictures)]

    def _without_model(self, group: Sequence[Example], pictures: PictureOpener) -> list[RegionResult]:
        """Policies that need no model: the data set's own region, a fixed one, or (control) a random candidate."""
        if self.policy.source == "gold":
            return [RegionResult(e, roi.Roi(e.gold) if e.gold else None, None, None if e.gold else NO_GOLD) for e in group]
        if self.candidates is None:
            return [RegionResult(e, roi.Roi(self.policy.fixed_box(e, self.seed))) for e in group]
        image = _opened(group, pictures)
        if isinstance(image, str):
            return [RegionResult(e, None, None, image) for e in group]
        try:
            regions: Regions = self.candidates.detect(image, group[0].image or "")
        except InputError as error:
            return [RegionResult(e, None, None, str(error)) for e in group]
        return [RegionResult(e, self._random(e, regions)) for e in group]

    def _random(self, example: Example, regions: Regions) -> roi.Roi:
        if not regions.boxes:
            return roi.Roi(None, reason=roi.NO_RELEVANCE)
        digest = hashlib.sha256(utf8(f"{self.seed}:{example.id}")).digest()
        index = int.from_bytes(digest[:8], "big") % len(regions.boxes)
        return roi.Roi(regions.boxes[index].extended(self.rule.extend), 0.0, (index,))

    def _by_relevance(self, groups: Sequence[Sequence[Example]], pictures: PictureOpener) -> list[RegionResult]:
        failures: dict[str, str] = {}
        work: list[tuple[Image, list[Example]]] = []
        owners: list[Sequence[Example]] = []
        for group in groups:
            examples, unusable = self._explained_examples(group)
            failures.update(unusable)
            image = _opened(group, pictures) if examples else NO_ANSWER
            if isinstance(image, str):
                failures.update({e.id: failures.get(e.id, image) for e in group})
            else:
                work.append((image, examples))
                owners.append(group)
        rois: dict[str, tuple[roi.Roi, Heat | None]] = {}
        relevant = relevance_of_each(self.backbone, work) if self.backbone is not None else []
        for (image, examples), group, relevances in zip(work, owners, relevant, strict=True):
            pad = SquarePad(*image.size)
            usable = {e.id: r for e, r in zip(examples, relevances, strict=True) if isinstance(r, Relevance)}
            failures.update({e.id: r for e, r in zip(examples, relevances, strict=True) if isinstance(r, str)})
            if self.policy.asks == "single":
                rois.update({name: self._choose(relevance, pad) for name, relevance in usable.items()})
            elif usable:
                shared = self._choose(merged(list(usable.values())), pad)
                rois.update({e.id: shared for e in group})
            else:
                failures.update({e.id: failures[examples[0].id] for e in group})
        return [
            RegionResult(e, *rois[e.id]) if e.id in rois else RegionResult(e, None, None, failures[e.id])
            for group in groups
            for e in group
        ]

    def _explained_examples(self, group: Sequence[Example]) -> tuple[list[Example], dict[str, str]]:
        """The examples that the backbone explains on a group's image, and the reasons of those that have no answer, by id."""
        if self.policy.asks == "image":
            return [structs.replace(group[0], question="", answers=())], {}
        usable = [e for e in group if not self.needs_answer or (e.answers and e.answers[0].strip())]
        if self.policy.asks == "all" and usable:
            return usable, {}
        ids = {e.id for e in usable}
        return usable, {e.id: NO_ANSWER for e in group if e.id not in ids}

    def _choose(self, relevance: Relevance, pad: SquarePad) -> tuple[roi.Roi, Heat | None]:
        """The region, and the map it was chosen from when that is to be kept."""
        regions, heat = relevance.regions, relevance.heat
        if regions is not None:
            region = roi.from_regions(regions, self.rule)
            if heat is None and self.keep_heat:
                heat = painted(regions.boxes, regions.scores or (), pad)
        elif heat is not None:
            region = roi.from_heat(heat, pad, self.rule)
        else:
            raise InputError("the backbone gave neither regions nor a heat map")
        if region.reason is None and relevance.note is not None:
            region = replace(region, reason=relevance.note)
        return region, heat if self.keep_heat else None


def _opened(group: Sequence[Example], pictures: PictureOpener) -> Image | str:
    """The group's picture, or why it cannot be used."""
    try:
        return pictures.open(group[0].image or "")
    except InputError as error:
        return str(error)


def shares_region(policy: str) -> bool:
    """Whether the policy finds one region for all questions of a picture."""
    rules: Policy = plug.load("policies", policy)
    return rules.source == "model" and rules.asks != "single"


def merged(relevances: Sequence[Relevance]) -> Relevance:
    """One Relevance for several questions on an image: each scaled to a maximum of 1, then summed (policy from_questions)."""
    if len(relevances) == 1:
        return relevances[0]
    regions = relevances[0].regions
    if regions is not None:
        scores = roi.combined([r.regions.scores for r in relevances if r.regions is not None and r.regions.scores is not None])
        return Relevance(replace(regions, scores=scores))
    maps = [r.heat for r in relevances if r.heat is not None]
    columns = len(maps[0][0])
    flat = roi.combined([[value for line in heat for value in line] for heat in maps])
    return Relevance(heat=tuple(flat[i : i + columns] for i in range(0, len(flat), columns)))


_OF_BACKBONE = (
    *("model", "backbone", "backbone_options", "detector", "detector_options", "target", "last_layers", "dtype"),
    *("min_pixels", "max_pixels", "max_tiles", "longest_edge"),
)
_OF_RULE = ("region", "threshold", "keep_mass", "extend", "finer")
"""The fields of AnnotateConfig that count as the backbone, and as the rule for regions, that are built of them."""


def build(config: AnnotateConfig) -> Annotator:
    """Loads what the policy needs. Raises InputError for names that are not there, MissingError without torch."""
    policy: Policy = plug.load("policies", config.policy)
    if policy.source == "none":
        raise InputError(f"the policy {config.policy!r} looks at no region, so there is nothing to annotate")
    rule = config.rule(roi.RoiRule("top1"))
    backbone: Backbone | None = None
    candidates: Detector | None = None
    if policy.source == "model":
        options = {"last_layers": config.last_layers, **config.backbone_options}
        if config.target is not None:
            options["target"] = config.target
        where = {"model": config.model, "device": config.device, "dtype": config.dtype}
        if config.pixel_budget.words:
            options["budget"] = config.pixel_budget
        backbone = plug.load("backbones", config.backbone, detector=_detector(config), **options, **where)
        rule = config.rule(backbone.roi or rule)
    elif policy.name == "random":
        candidates = _detector(config) or plug.load("detectors", "grid")
    plain: dict[str, Any] = manifest.plain(_settings(config, policy, rule, backbone, candidates))
    mark = manifest.fingerprint(plain)
    notes: tuple[str, ...] = candidates.notes if candidates is not None else ()
    if backbone is not None:
        # Told, but no setting: a moved folder is the same model, whose weights the backbone's fingerprint knows.
        plain["model"] = config.model
        plain["annotator"] = tuned = annotator_provenance(config.model)
        remark = devices.dtype_remark(config.device, config.dtype)
        tuned_otherwise = _differences(tuned, backbone.settings) if tuned else ()
        notes = (*([remark] if remark else ()), *backbone.notes, *tuned_otherwise)
    return Annotator(
        policy,
        rule,
        config.pictures,
        config.seed,
        config.target != "argmax",
        plain,
        mark,
        backbone,
        candidates,
        config.keep_heat,
        notes,
    )


def _settings(
    config: AnnotateConfig, policy: Policy, rule: roi.RoiRule, backbone: Backbone | None, candidates: Detector | None
) -> dict[str, Any]:
    """All that decides annotations. What is built of fields counts in their place; those of which nothing is built do not."""
    by_content: dict[str, Mapping[str, Any]] = {name: {} for name in (*_OF_BACKBONE, *_OF_RULE, "seed")}
    by_content["policy"] = {"policy": policy.name}
    if backbone is not None:
        by_content |= {name: {"backbone": backbone.settings} for name in _OF_BACKBONE}
        by_content |= {name: {"rule": rule} for name in _OF_RULE}
    if candidates is not None:
        by_content |= {name: {"detector": plug.described(candidates)} for name in ("detector", "detector_options")}
        by_content["extend"] = {"extend": rule.extend}
    if candidates is not None or policy.source == "fixed":
        by_content["seed"] = {"seed": config.seed}
    # A plug-in of one's own counts by its content; a shipped one by its name, and by the version of what it shows a model.
    files = plug.sources(config.policy, config.backbone if backbone is not None else None, config.detector)
    return {**deciding.settings(config, by_content), **({"plugins": files} if files else {})}


def _differences(tuned: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What this annotator is shown now and was not tuned with."""
    shown = {"backbone": settings["name"], "detector": settings.get("detector")}
    if "tokens" in settings:
        shown["region_tokens"] = settings["tokens"]
    return annotator_differences(tuned, **shown)


def _detector(config: AnnotateConfig) -> Detector | None:
    if config.detector is None:
        return None
    detector: Detector = plug.load("detectors", config.detector, **config.detector_options)
    return detector
