"""The inputs of a run: the samples with their regions, and everything of the start checkpoint but its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core import __version__
from cos_core.data.datasets import Snapshot, paths_of
from cos_core.data.released import ReleasedRegions
from cos_core.dialogue.prompts import DIALOGUE_VERSION, Profile, checkpoint_profile
from cos_core.errors import InputError
from cos_core.files import deciding, manifest, picture_files, plug
from cos_core.interfaces import Policy, Reporter
from cos_core.models import hub
from cos_core.store.annotations import Store
from cos_core.training import data_check, sample_table, shared_folder
from cos_core.training.config import TrainConfig
from cos_core.training.dataset import Recipe
from cos_core.training.flops import ModelSize, size_of
from cos_core.training.region_crops import RegionCrops
from cos_core.training.sample_table import SampleSet
from cos_core.training.samples import Rules

CHECK_FILE = "check.jsonl"


@dataclass(frozen=True, slots=True)
class StartCheckpoint:
    """The local folder of the checkpoint that training starts from, and the prompt profile that training uses with it."""

    folder: str
    profile: Profile


def start_checkpoint(config: TrainConfig) -> StartCheckpoint:
    """Resolves model and profile once for the whole run. Raises InputError or MissingError as hub.resolve does."""
    folder = hub.resolve(config.model)
    return StartCheckpoint(folder, checkpoint_profile(folder, config.profile))


@contextmanager
def read(config: TrainConfig, policy: Policy) -> Iterator[SampleSet]:
    """Samples with their boxes, inside the block.

    Their table lies in the system's temporary folder. One process of each machine makes it, and all of the run map it. Raises
    InputError when the policy needs regions and none are given, or data or regions cannot be read.
    """
    rules = Rules(policy, config.seed, config.on_no_region, config.limit)

    def fill(folder: Path) -> None:
        with regions_of(config, policy) as regions:
            sample_table.build(folder, config.data, rules, regions)

    with shared_folder.folder(f"samples-{_table_key(config)}", fill) as folder:
        yield sample_table.opened(folder)


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


def _table_key(config: TrainConfig) -> str:
    """The name of a run's sample table: equal in all processes of the run, different in every other run."""
    key = {
        "settings": deciding.settings(config),
        "out": config.out.absolute(),
        "data": [path.absolute() for path in paths_of(config.data)],
        "stamps": Snapshot(config.data).stamps,
        "store": config.store and config.store.absolute(),
        "version": __version__,
    }
    return manifest.fingerprint(key)


def settings(
    config: TrainConfig, policy: Policy, devices: int, checkpoint: StartCheckpoint
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings that decide the result (for the fingerprint), and the inputs as the manifest names them."""
    inputs: dict[str, dict[str, Any]] = {
        "data": manifest.files_input(config.data),
        "model": {"path": config.model, "fingerprint": hub.fingerprint(checkpoint.folder)},
    }
    crops = region_crops(config)
    detector = {"detector": plug.described(crops.detector)} if crops is not None else {}
    by_content: dict[str, Mapping[str, Any]] = {
        "data": {"data": inputs["data"]["sha256"]},
        "model": {"model": inputs["model"]["fingerprint"]},
        "store": {},
        "profile": {"profile": checkpoint.profile.to_json()},
        "policy": {"policy": [policy.name, policy.source, policy.asks]},
        "detector": detector,
        "detector_options": detector,
    }
    if config.store is not None and config.store.suffix == ".json":
        inputs["store"] = manifest.file_input(config.store)
        by_content["store"] = {"store": inputs["store"]["sha256"]}
    elif config.store is not None:
        with Store.read(config.store) as store:
            inputs["store"] = {"path": str(config.store), **store.info()}
        # Times, failures and bytes differ between equal stores; the settings of the job and its progress do not.
        by_content["store"] = {"store": {key: inputs["store"][key] for key in ("fingerprint", "annotations")}}
    beside = {"plugins": plug.sources(config.rule, config.detector), "dialogue": DIALOGUE_VERSION}
    decisive: dict[str, Any] = manifest.plain({**config.learnt(devices, by_content), **beside})
    return decisive, inputs


@dataclass(frozen=True, slots=True)
class CheckpointMetadata:
    """A checkpoint without its weights: its configuration, and how it turns samples into tokens."""

    config: Any
    recipe: Recipe
    size: ModelSize


def checkpoint_metadata(config: TrainConfig, policy: Policy, checkpoint: StartCheckpoint) -> CheckpointMetadata:
    """Configuration, size and recipe of the checkpoint. Raises InputError when its tokenizer or processor cannot be read."""
    from cos_core.models import pretrained
    from cos_core.models.devices import quiet_libraries
    from cos_core.models.llava import image_tokens_of
    from cos_core.models.pixels import check_pictures
    from cos_core.models.vocabulary import check_tokens

    where = checkpoint.folder
    quiet_libraries()
    settings, tokenizer = pretrained.configuration(where), pretrained.tokenizer(where)
    check_tokens(where, tokenizer, int(settings.text_config.vocab_size))
    fill = check_pictures(where, pretrained.image_processor(where), int(settings.vision_config.image_size))
    recipe = Recipe(
        policy=policy,
        profile=checkpoint.profile,
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
        region_crops=region_crops(config),
    )
    # Measured before ZeRO-3 is set up, which would shard this model, too.
    return CheckpointMetadata(settings, recipe, size_of(settings))


def region_crops(config: TrainConfig) -> RegionCrops | None:
    """The crops that the annotator "regions" sees in place of a picture, else None. Raises InputError for the detector."""
    if config.annotator != "regions":
        return None
    return RegionCrops(plug.load("detectors", config.detector or "grid", **config.detector_options), config.region_tokens)


def check(config: TrainConfig, data: SampleSet, recipe: Recipe, reporter: Reporter) -> data_check.Report:
    """Checks the data, reports the findings and writes them to `check.jsonl` in the output folder.

    Raises InputError when there are more faults than `max_faults`.
    """
    source = data_check.CheckInput(data, recipe, config.max_no_region)
    report = data_check.examine(source, full=config.check == "full", reporter=reporter)
    findings = report.findings
    refused = findings.faults > config.max_faults
    for serious, line in report.lines():
        # Faults that end the run are reported once, by the error.
        if not (serious and refused):
            (reporter.warn if serious else reporter.note)(line)
    if len(findings):
        config.out.mkdir(parents=True, exist_ok=True)
        findings.write(config.out / CHECK_FILE)
    if refused:
        named = "; ".join(str(finding) for finding in findings.first_faults)
        kinds = ", ".join(f"{kind} ({findings.counts[kind]})" for kind, few in findings.first.items() if few[0].fault)
        raise InputError(
            f"the data has {data_check.plural(findings.faults, 'fault')}, named in {config.out / CHECK_FILE}: {kinds}; "
            f"the first: {named}. Mend the data, or let {findings.faults} pass with --max-faults"
        )
    return report
