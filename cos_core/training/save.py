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
from cos_core.models import hub, layout, pretrained
from cos_core.models.checkpoint_info import ANNOTATOR_FILE
from cos_core.models.llava import Llava
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


def save_checkpoint(llava: Llava, weights: dict[str, Any], config: TrainConfig, annotator: dict[str, Any] | None) -> list[str]:
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
        notes = _write(staging, llava, weights, config)
        if annotator is not None:
            atomic_write(staging / ANNOTATOR_FILE, json.dumps(manifest.plain(annotator), indent=1) + "\n")
        durable.flush_folder(staging)
        _move(staging, config.out)
    return notes


def _write(staging: Path, llava: Llava, weights: dict[str, Any], config: TrainConfig) -> list[str]:
    import torch

    where = hub.resolve(config.model)
    model, _ = pretrained.network(where, dtype=stored_dtype(where))
    if config.lora is not None:
        model = adapters.merge(model, weights, config, staging / adapters.FOLDER)
    else:
        with torch.no_grad():
            mine = dict(model.named_parameters())
            for name, weight in weights.items():
                mine[name].copy_(weight)
    layout.save_model(model, staging)
    return layout.complete(
        staging,
        settings=model.config,
        tokenizer=llava.tokenizer,
        image_processor=llava.image_processor,
        profile=llava.profile,
        card=_card(llava, config),
    )


def _card(llava: Llava, config: TrainConfig) -> layout.ModelCard:
    """The model card. It holds file names only, no paths of this machine."""
    base = layout.plain_name(config.model)
    learnt = f"adapters of rank {config.lora} on the language model, merged" if config.lora else "the language model"
    facts = {
        "base model's fingerprint": llava.fingerprint,
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
    origin = f"A LLaVA-1.5-layout model, tuned by `cos train` from {base}: {kind} for Chain-of-Spot."
    return layout.ModelCard(config.out.resolve().name, origin, base, facts, chain=config.rule != "none")


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
    """The number type that a checkpoint's configuration names; float32 when it names none."""
    import torch

    return pretrained.configuration(where).dtype or torch.float32
