"""Reading what a run is made of: the samples with their regions, and everything of the checkpoint but its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core import __version__
from cos_core.data.datasets import Snapshot, paths_of
from cos_core.data.released import ReleasedRegions
from cos_core.dialogue.prompts import DIALOGUE_VERSION, checkpoint_profile
from cos_core.errors import InputError
from cos_core.files import manifest, picture_files, plug
from cos_core.interfaces import Policy, Reporter
from cos_core.models import hub
from cos_core.store.annotations import Store
from cos_core.training import data_check as doctor
from cos_core.training import shared, table
from cos_core.training.album import RegionCrops
from cos_core.training.config import TrainConfig
from cos_core.training.data import Recipe
from cos_core.training.flops import ModelSize, size_of
from cos_core.training.samples import Rules
from cos_core.training.table import Data

CHECK_FILE = "check.jsonl"


@contextmanager
def read(config: TrainConfig, policy: Policy) -> Iterator[Data]:
    """Samples with their boxes, inside the block.

    Their table lies in the system's temporary folder. One process of each machine makes it, and all of the run map it. Raises
    InputError when the policy needs regions and none are given, or data or regions cannot be read.
    """
    rules = Rules(policy, config.seed, config.on_no_region)

    def fill(place: Path) -> None:
        with regions_of(config, policy) as regions:
            table.build(place, config.data, rules, regions)

    with shared.folder(f"samples-{_mark(config)}", fill) as place:
        yield table.opened(place, config.limit)


@contextmanager
def regions_of(config: TrainConfig, policy: Policy) -> Iterator[Store | ReleasedRegions | None]:
    if policy.source != "model":
        yield None
    elif config.store is None:
        raise InputError(f"the policy {policy.name!r} learns boxes: give the store that cos annotate made")
    elif config.store.suffix == ".json":
        yield ReleasedRegions(config.store)
    else:
        with Store.read(config.store) as store:
            yield store


def _mark(config: TrainConfig) -> str:
    """Names the samples of a run: its processes agree on it, and no other run does."""
    what = {
        "out": config.out.absolute(),
        "data": [path.absolute() for path in paths_of(config.data)],
        "stamps": Snapshot(config.data).stamps,
        "store": config.store and config.store.absolute(),
        "policy": config.rule,
        "seed": config.seed,
        "on_no_region": config.on_no_region,
        "version": __version__,
    }
    return manifest.fingerprint(what)


def settings(config: TrainConfig, policy: Policy, devices: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What decides the result (for the fingerprint), and the inputs as the manifest names them."""
    where = hub.resolve(config.model)
    inputs: dict[str, dict[str, Any]] = {
        "data": manifest.files_input(config.data),
        "model": {"path": config.model, "fingerprint": hub.fingerprint(where)},
    }
    decisive = {
        **config.learnt(devices),
        "policy": [policy.name, policy.source, policy.asks],
        "plugins": plug.sources(config.rule, config.detector),
        "dialogue": DIALOGUE_VERSION,
        "profile": checkpoint_profile(where, config.profile).to_json(),
        "data": inputs["data"]["sha256"],
        "model": inputs["model"]["fingerprint"],
    }
    shown = album(config)
    if shown is not None:
        decisive["detector"] = plug.described(shown.detector)
    if config.store is not None and config.store.suffix == ".json":
        inputs["store"] = manifest.file_input(config.store)
        decisive["store"] = inputs["store"]["sha256"]
    elif config.store is not None:
        with Store.read(config.store) as store:
            inputs["store"] = {"path": str(config.store), **store.info()}
        # Times, failures and bytes differ between equal stores; what the job was told to do and how far it is do not.
        decisive["store"] = {key: inputs["store"][key] for key in ("fingerprint", "annotations")}
    return decisive, inputs


@dataclass(frozen=True, slots=True)
class CheckpointMetadata:
    """A checkpoint without its weights: its configuration, and how it turns samples into tokens."""

    config: Any
    recipe: Recipe
    size: ModelSize


def light(config: TrainConfig, policy: Policy) -> CheckpointMetadata:
    """The recipe under the checkpoint's own tokenizer and processor. Raises InputError when they cannot be read."""
    from cos_core.models import pretrained
    from cos_core.models.llava import check_pictures, check_tokens, image_tokens_of, quiet_libraries

    where = hub.resolve(config.model)
    quiet_libraries()
    settings, tokenizer = pretrained.configuration(where), pretrained.tokenizer(where)
    check_tokens(where, tokenizer, int(settings.text_config.vocab_size))
    fill = check_pictures(where, pretrained.image_processor(where), int(settings.vision_config.image_size))
    recipe = Recipe(
        policy=policy,
        profile=checkpoint_profile(where, config.profile),
        tokenizer=tokenizer,
        image_token_id=int(settings.image_token_id),
        image_tokens=image_tokens_of(settings),
        fill=fill,
        images=picture_files.folder(config.images, config.follow_links),
        seed=config.seed,
        max_length=config.max_length,
        max_length_counts=config.max_length_counts,
        on_no_region=config.on_no_region,
        extra_turns=config.extra_turns,
        crop_of=config.crop_of,
        album=album(config),
    )
    # Measured here, before ZeRO-3 is told to cut up every model that is built.
    return CheckpointMetadata(settings, recipe, size_of(settings))


def album(config: TrainConfig) -> RegionCrops | None:
    """How the annotator sees a picture; None for anything but the annotator "regions". Raises InputError for the detector."""
    if config.annotator != "regions":
        return None
    return RegionCrops(plug.load("detectors", config.detector or "grid", **config.detector_options), config.region_tokens)


def check(config: TrainConfig, data: Data, recipe: Recipe, reporter: Reporter) -> doctor.Report:
    """The data doctor's report, said and kept in `check.jsonl` in the output folder.

    Raises InputError when there are more faults than `max_faults`.
    """
    patient = doctor.CheckInput(data, recipe, config.max_no_region)
    report = doctor.examine(patient, full=config.check == "full", reporter=reporter)
    findings = report.findings
    refused = findings.faults > config.max_faults
    for serious, line in report.lines():
        # What ends the run is said once, by the error.
        if not (serious and refused):
            (reporter.warn if serious else reporter.note)(line)
    if len(findings):
        config.out.mkdir(parents=True, exist_ok=True)
        findings.write(config.out / CHECK_FILE)
    if refused:
        named = "; ".join(str(finding) for finding in findings.first_faults)
        kinds = ", ".join(f"{kind} ({findings.counts[kind]})" for kind, few in findings.first.items() if few[0].fault)
        raise InputError(
            f"the data has {doctor.plural(findings.faults, 'fault')}, named in {config.out / CHECK_FILE}: {kinds}; "
            f"the first: {named}. Mend the data, or let {findings.faults} pass with --max-faults"
        )
    return report
