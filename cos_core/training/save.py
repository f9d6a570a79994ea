"""Writing the trained checkpoint, complete, so that any loader and any server of LLaVA checkpoints takes it (layout/)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cos_core import __version__
from cos_core.data.datasets import paths_of
from cos_core.files import durable, manifest
from cos_core.files.durable import atomic_write, sync_folder
from cos_core.models import checkpoint_files, families, general, hub, layout, pretrained
from cos_core.models.checkpoint_info import ANNOTATOR_FILE
from cos_core.models.general import GeneralModel
from cos_core.models.layout import any_family
from cos_core.models.llava import Llava
from cos_core.models.loaded import LoadedModel
from cos_core.training import adapters, resume_points
from cos_core.training.config import TrainConfig

_STAGING = "saving"


def gathered(trainer: Any, config: TrainConfig) -> dict[str, Any] | None:
    """The trained weights by name, on the main process; called by all, for ZeRO-3 gathers them from all. None elsewhere."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not (trainer.is_world_process_zero() or trainer.sharded):
        return None
    state = trainer.accelerator.get_state_dict(trainer.deepspeed) if trainer.is_deepspeed_enabled else model.state_dict()
    if not trainer.is_world_process_zero():
        return None
    if config.lora is not None:
        from peft import get_peft_model_state_dict

        return dict(get_peft_model_state_dict(model, state_dict=state))
    learnt = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: weight for name, weight in state.items() if name in learnt}


def save_checkpoint(
    trained: LoadedModel, weights: dict[str, Any], config: TrainConfig, annotator: dict[str, Any] | None
) -> list[str]:
    """Model, tokenizer, processor, generation settings and profile, into `config.out`; for an annotator its record, too.

    The start checkpoint is read anew, in the numbers that it is stored in, and only what was trained is put into it: frozen
    weights come out bit for bit as they went in, whatever arithmetic and however many processes trained. Everything is written
    to a folder inside `out` first and moved when it is whole and on the disk. Returns what a user should know of the
    checkpoint, a sentence each (layout.complete). Raises InputError when the disk is full.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # Otherwise ZeRO-3 would shard this model, too.
    unset_hf_deepspeed_config()
    staging = config.out / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    with durable.library_folder(staging, then=resume_points.THEN):
        staging.mkdir(parents=True)
        notes = _write(staging, trained, weights, config)
        if annotator is not None:
            atomic_write(staging / ANNOTATOR_FILE, json.dumps(manifest.plain(annotator), indent=1) + "\n")
        durable.flush_folder(staging)
        _move(staging, config.out)
    return notes


def _write(staging: Path, trained: LoadedModel, weights: dict[str, Any], config: TrainConfig) -> list[str]:
    import torch

    where = hub.resolve(config.model)
    read = pretrained.network if isinstance(trained, Llava) else pretrained.any_network
    model, _ = read(where, dtype=stored_dtype(where))
    family = families.of_config(model.config.to_dict())
    if config.lora is not None:
        model = adapters.merge(model, weights, config, family, staging / adapters.FOLDER)
    else:
        with torch.no_grad():
            own = dict(model.named_parameters())
            for name, weight in weights.items():
                own[name].copy_(weight)
    card = _card(trained, config)
    if isinstance(trained, Llava):
        layout.save_model(model, staging)
        return layout.complete(
            staging,
            settings=model.config,
            tokenizer=trained.tokenizer,
            image_processor=trained.encoder.image_processor,
            profile=trained.profile,
            card=card,
        )
    assert isinstance(trained, GeneralModel)
    return any_family.save(model, staging, trained.encoder, source=Path(where), budget=config.pixel_budget, card=card)


def _card(trained: LoadedModel, config: TrainConfig) -> layout.ModelCard:
    """The model card. It holds file names only, no paths of this machine."""
    base = layout.plain_name(config.model)
    learnt = f"adapters of rank {config.lora} on the language model, merged" if config.lora else "the language model"
    facts = {
        "base model's fingerprint": trained.fingerprint,
        "data": ", ".join(path.name for path in paths_of(config.data)),
        "regions": config.store.name if config.store else "none",
        "policy": config.rule,
        "trained": learnt + (" and the projector" if config.train_projector else ""),
        "epochs": str(config.epochs) if config.max_steps is None else f"{config.max_steps} steps",
        "learning rate": f"{config.learning_rate:g}, warm-up {config.warmup_ratio:g}, cosine",
        "global batch": str(config.global_batch or "batch size x devices"),
        "seed": str(config.seed),
        "written by": f"cos {__version__}",
    }
    kind = "an annotator" if config.annotator else "a checkpoint"
    name = "LLaVA-1.5-layout" if isinstance(trained, Llava) else trained.model.config.model_type
    origin = f"A {name} model, tuned by `cos train` from {base}: {kind} for Chain-of-Spot."
    model_type = "llava" if isinstance(trained, Llava) else str(trained.model.config.model_type)
    return layout.ModelCard(
        config.out.resolve().name,
        origin,
        base,
        facts,
        chain=config.rule != "none",
        model_type=model_type,
        own_processor=isinstance(trained, Llava),
    )


def _move(staging: Path, out: Path) -> None:
    # A folder without config.json is no checkpoint, so it is moved last: an incomplete checkpoint cannot be loaded.
    for path in sorted(staging.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
        target = out / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    sync_folder(out)
    staging.rmdir()


def stored_dtype(where: str) -> Any:
    """The number type that a checkpoint's configuration names; where it names none, that of its weights, float32 for LLaVA."""
    import torch

    config = pretrained.any_configuration(where)
    if config.dtype is not None or not general.serves(where):
        return config.dtype or torch.float32
    held = {tensor.dtype for tensor in checkpoint_files.tensors(Path(where)).values()}
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(held.pop(), torch.float32) if len(held) == 1 else torch.float32
