"""What is built from an InferConfig: the setting that decides answers, the engine, the finder of regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cos_core.dialogue.gate import read_gate
from cos_core.dialogue.prompts import DIALOGUE_VERSION, Profile
from cos_core.engines._served import ServedModel, check_family, of_model
from cos_core.errors import InputError
from cos_core.files import deciding, manifest, plug
from cos_core.files.images import FILL
from cos_core.files.plug import ROI_ALIASES
from cos_core.infer import relevance_regions as heat
from cos_core.infer.config import InferConfig
from cos_core.infer.steps import Setting
from cos_core.interfaces import Engine, Policy, Reporter
from cos_core.models import devices, hub, loading, vision_input
from cos_core.models.checkpoint_info import fill_of
from cos_core.models.vision_input import VisionInput
from cos_core.models.wording import resolved_profile as profile_of
from cos_core.options import policy_name


def _policy(roi: str) -> Policy:
    if roi == heat.POLICY.name:
        return heat.POLICY
    name = policy_name(roi)
    known = plug.available("policies")
    if name.replace("-", "_") not in known and not name.partition(":")[0].endswith(".py"):
        raise InputError(f"there is no roi {roi!r}{plug.nearest(roi, [*ROI_ALIASES, heat.POLICY.name, *known])}")
    policy: Policy = plug.load("policies", name)
    return policy


def checkpoint_folder(config: InferConfig) -> str | None:
    """The checkpoint's local folder; None for a model that another engine knows and that is not here.

    Raises what `hub.resolve` raises where this machine runs the model, and InputError for a server without an address.
    """
    if config.engine == "hf":
        return hub.resolve(config.model)
    served = _served(config)
    return served.folder if served else hub.local(config.model)


def note_served(config: InferConfig, reporter: Reporter) -> None:
    """Says once a run which wording and colour of a served model were found or assumed. Raises as `checkpoint_folder`."""
    if (served := _served(config)) is not None:
        served.report(reporter)


def _served(config: InferConfig) -> ServedModel | None:
    if config.engine != "openai":
        return None
    return of_model(config.model, config.server, config.profile, config.family, config.pixel_budget)


def model_fingerprint(config: InferConfig) -> str:
    """Of the checkpoint's content where its folder or its one file is here, else of its name."""
    folder = checkpoint_folder(config)
    if folder is not None:
        return hub.fingerprint(folder)
    file = Path(config.model)
    return hub.file_fingerprint(file) if file.is_file() else hub.name_fingerprint(config.model)


def resolved_profile(config: InferConfig) -> Profile:
    """The one profile of a run: for its dialogues, its crops and the engine's encoding. Raises InputError."""
    served = _served(config)
    return profile_of(checkpoint_folder(config), config.profile) if served is None else served.dialogue.profile


def _vision(config: InferConfig) -> VisionInput | None:
    """The vision input of the run's model; None for LLaVA-1.5, and where an engine of another kind decides.

    Raises InputError for a pixel budget that the model's family does not have, and for a family that is not the model's.
    """
    if (served := _served(config)) is not None:
        return served.vision
    folder = checkpoint_folder(config)
    if folder is None:
        return vision_input.of_family(vision_input.LLAVA_15, config.pixel_budget)
    check_family(folder, config.family)
    return vision_input.of_folder(folder, config.pixel_budget)


def setting(config: InferConfig) -> Setting:
    """Resolves policy, profile, padding colour and pixel budget. Raises InputError for an unknown policy or profile, and for a
    checkpoint that cannot be used."""
    policy, profile, folder = _policy(config.roi), resolved_profile(config), checkpoint_folder(config)
    if folder is not None and policy is heat.POLICY:
        loading.check_grids(folder, config.pixel_budget)
    if folder is not None and config.engine == "hf":
        loading.check(folder, pictures=1 if policy.source == "none" else 2)
    vision = _vision(config)
    # Families that do not pad have no colour of their own. A served model that is no folder here says nothing of its pictures;
    # LLaVA's own colour is assumed for it.
    fill = FILL if folder is None or (vision is not None and not vision.family.pads_to_square) else fill_of(folder)
    vision_settings = {} if vision is None else vision.settings()
    budget = {name: value for name, value in vision_settings.items() if name == "pixel_budget"}
    # What counts by its content, and not as it is written.
    by_content: dict[str, dict[str, Any]] = {
        "model": {"model": model_fingerprint(config)},
        # Rounding differs between number formats, and answers with it; where the model stands is no setting.
        "dtype": {"dtype": devices.dtype_name(config.device, config.dtype) if config.engine == "hf" else None},
        "profile": {"profile": profile.to_json()},
        "roi": {"policy": {"name": policy.name, "source": policy.source, "asks": policy.asks}},
        "family": {name: value for name, value in vision_settings.items() if name != "pixel_budget"},
        **dict.fromkeys(("min_pixels", "max_pixels", "max_tiles", "longest_edge"), budget),
    }
    settings = {
        **deciding.settings(config, by_content),
        "plugins": plug.sources(config.engine, policy_name(config.roi)),
        "fill": fill,
        "dialogue": DIALOGUE_VERSION,
    }
    plain: dict[str, Any] = manifest.plain(settings)
    result = Setting(
        policy=policy,
        profile=profile,
        fill=fill,
        fingerprint=manifest.fingerprint(plain),
        settings=plain,
        on_bad_box=config.on_bad_box,
        max_new_tokens=config.max_new_tokens,
        box_tokens=config.box_tokens,
        box_decode=config.box_decode,
        seed=config.seed,
        crop=config.crop,
        box_text=config.box_text,
        global_scale=config.global_scale,
        gate=None if config.gate is None else read_gate(config.gate),
        temperature=config.temperature,
        top_p=config.top_p,
        samples=config.samples,
        seen=None if vision is None else vision.seen,
    )
    result.check()  # before a model is loaded: there are boxes that no grammar describes
    return result


def note_dtype(config: InferConfig, reporter: Reporter) -> None:
    """Says which number format is taken where this machine's GPU lacks the usual one."""
    if config.engine != "hf" or config.scale.chosen(list) == "ray":
        return
    if (remark := devices.dtype_remark(config.device, config.dtype)) is not None:
        (reporter.note if config.dtype == "auto" else reporter.warn)(remark)


def finder(config: InferConfig, engine: Engine) -> heat.HeatFinder | None:
    """The HeatFinder for `roi="relevance"`, on the engine's model where it has one; None for every other choice."""
    if config.roi != heat.POLICY.name:
        return None
    return heat.build(str(config.model), config.device.partition(",")[0], config.dtype, engine, config.pixel_budget)


def build_engine(config: InferConfig) -> Engine:
    """The engine that the settings name, loaded, on the first of its devices. Raises InputError or MissingError."""
    engine: Engine = plug.load(
        "engines",
        config.engine,
        model=config.model,
        device=config.device.partition(",")[0],
        dtype=config.dtype,
        profile=resolved_profile(config),
        reuse=config.reuse,
        server=config.server,
        concurrency=config.concurrency,
        timeout=config.timeout,
        kv_budget=None if config.kv_budget is None else int(config.kv_budget * 2**30),
        family=config.family,
        budget=config.pixel_budget,
    )
    if engine.one_picture and _policy(config.roi).source != "none":
        raise InputError(f"{engine.one_picture}, and Chain-of-Spot shows two; ask it with --roi none")
    return engine


def note_family(config: InferConfig, reporter: Reporter) -> None:
    """Says once a run what is special about the model's family: dialogues computed anew, a family without a file."""
    if config.engine != "hf" or (remark := loading.remark(hub.resolve(config.model))) is None:
        return
    reporter.note(remark)
