"""The inputs of a run: the samples with their regions, and everything of the start checkpoint but its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core import __version__
from cos_core.data.datasets import Snapshot, paths_of
from cos_core.data.released import ReleasedRegions
from cos_core.dialogue.prompts import DIALOGUE_VERSION, Profile
from cos_core.errors import InputError
from cos_core.files import deciding, manifest, picture_files, plug
from cos_core.interfaces import Policy, Reporter
from cos_core.models import checkpoint_files, families, general, general_probe, hub, vision_input
from cos_core.models import processor as processors
from cos_core.models.families import Family
from cos_core.models.flops import ModelSize
from cos_core.models.wording import resolved_profile
from cos_core.store.annotations import Store
from cos_core.training import data_check, sample_table, shared_folder
from cos_core.training.config import TrainConfig
from cos_core.training.dataset import Recipe
from cos_core.training.region_crops import RegionCrops
from cos_core.training.sample_table import SampleSet
from cos_core.training.samples import Rules

if TYPE_CHECKING:
    from cos_core.models.encoder import Encoder
    from cos_core.models.general_encoder import GeneralEncoder
    from cos_core.models.llava import LlavaEncoder

CHECK_FILE = "check.jsonl"


@dataclass(frozen=True, slots=True)
class StartCheckpoint:
    """The local folder of the checkpoint that training starts from, its family, and the prompt profile that training uses.

    `general`: it is not LLaVA-1.5.
    """

    folder: str
    profile: Profile
    family: Family
    general: bool


def start_checkpoint(config: TrainConfig) -> StartCheckpoint:
    """Resolves model and profile once for the whole run.

    Raises InputError or MissingError as hub.resolve does, and InputError for a checkpoint that cannot be trained so.
    """
    return checkpoint_in(config, hub.resolve(config.model))


def checkpoint_in(config: TrainConfig, folder: str, *, weights: bool = True, texts: bool = True) -> StartCheckpoint:
    """As start_checkpoint, of a folder that may be without `weights`, or without a tokenizer (`texts`), where only a plan is
    made."""
    family = families.of_config(checkpoint_files.settings(Path(folder), checkpoint_files.CONFIG) or {})
    other = general.serves(folder)
    if other:
        _check_family(config, family)
    if other and texts:
        general_probe.check_dialogue(folder, pictures=1 if config.rule == "none" else 2, weights=weights)
    return StartCheckpoint(folder, resolved_profile(folder, config.profile), family, other)


def _check_family(config: TrainConfig, family: Family) -> None:
    """Raises InputError for a family without a dialogue, and for settings that go with LLaVA-1.5 alone."""
    if family.not_trained:
        raise InputError(
            f"{family.name} cannot be trained on Chain-of-Spot dialogues: {family.not_trained}; take a model of another family"
        )
    if config.annotator == "regions":
        raise InputError(
            "the annotator 'regions' shows crops in a picture's place, which training does with LLaVA-1.5 alone; train with "
            "--annotator patches"
        )


@contextmanager
def read(config: TrainConfig, policy: Policy) -> Iterator[SampleSet]:
    """Samples with their boxes, inside the block.

    Their table lies in the system's temporary folder. One process of each machine makes it, and all of the run map it. Raises
    InputError when the policy needs regions and none are given, or data or regions cannot be read.
    """
    rules = Rules(policy, config.seed, config.on_no_region, config.limit)

    def fill(folder: Path) -> None:
        with regions_of(config, policy) as regions:
            sample_table.build(folder, config.data, rules, regions, config.columns)

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
    vision = vision_input.of_folder(checkpoint.folder, config.pixel_budget)
    shown = {} if vision is None else vision.settings()
    inputs["model"] |= shown
    budget = {name: value for name, value in shown.items() if name == "pixel_budget"}
    crops = region_crops(config)
    detector = {"detector": plug.described(crops.detector)} if crops is not None else {}
    by_content: dict[str, Mapping[str, Any]] = {
        "data": {"data": inputs["data"]["sha256"]},
        "model": {
            "model": inputs["model"]["fingerprint"],
            **{name: value for name, value in shown.items() if name != "pixel_budget"},
        },
        **dict.fromkeys(("min_pixels", "max_pixels", "max_tiles", "longest_edge"), budget),
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
    from cos_core.models.model_size import size_of, tensors_of

    encoder = encoder_of(config, checkpoint)
    # Measured before ZeRO-3 is set up, which would shard this model, too.
    size = size_of(encoder.config, tensors_of(encoder, 1 if config.rule == "none" else 2))
    return CheckpointMetadata(encoder.config, recipe(config, policy, encoder), size)


def recipe(config: TrainConfig, policy: Policy, encoder: Encoder) -> Recipe:
    """The recipe of a run with a checkpoint's encoder."""
    return Recipe(
        policy=policy,
        encoder=encoder,
        images=picture_files.folder(config.images, config.follow_links),
        seed=config.seed,
        max_length=config.max_length,
        max_length_counts=config.max_length_counts,
        on_no_region=config.on_no_region,
        extra_turns=config.extra_turns,
        crop_of=config.crop_of,
        region_crops=region_crops(config),
    )


def encoder_of(config: TrainConfig, checkpoint: StartCheckpoint) -> LlavaEncoder | GeneralEncoder:
    """How the checkpoint turns dialogues and pictures into what its model takes. Raises InputError as its loading does."""
    from cos_core.models import llava
    from cos_core.models.devices import quiet_libraries

    quiet_libraries()
    if not checkpoint.general:
        return llava.encoder(checkpoint.folder, checkpoint.profile, pictures=True)
    budget = config.pixel_budget
    encoder = general.encoder_of(checkpoint.folder, profile=checkpoint.profile, budget=budget, name=config.model)
    if not encoder.has_image_tokens:
        raise InputError(
            f"{config.model} reads pictures through cross-attention: they have no tokens in a dialogue, and training needs "
            "these; take a model of another family"
        )
    return encoder


def remarks(checkpoint: StartCheckpoint, encoder: Encoder) -> list[str]:
    """What a user should know of how dialogues are learnt with a checkpoint, a sentence each."""
    said = [*encoder.remarks]
    if checkpoint.family.second_view_change:
        said.append(f"{checkpoint.family.second_view_change}; training shows the picture as pass 2 does")
    if checkpoint.general and "strftime_now" in (processors.chat_template(Path(checkpoint.folder)) or ""):
        said.append("its chat template writes today's date, so that a run that is resumed on another day learns another prompt")
    return [f"{checkpoint.family.name or 'this model'}: {each}" for each in said]


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
