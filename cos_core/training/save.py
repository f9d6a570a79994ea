"""Writing the trained checkpoint in the ordinary transformers layout, so that any loader of LLaVA checkpoints takes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cos_core import folders, hub, manifest
from cos_core.checkpoints import ANNOTATOR_FILE
from cos_core.jsonl import sync_folder
from cos_core.llava import Llava
from cos_core.prompts import PROFILE_FILE
from cos_core.training import adapters, checkpoints
from cos_core.training.config import TrainConfig

_STAGING = "saving"


def gathered(trainer: Any, config: TrainConfig) -> dict[str, Any] | None:
    """The trained weights by name, on the main process; called by all, for ZeRO-3 gathers them from all. None elsewhere."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not (trainer.is_world_process_zero() or trainer.cut_up):
        return None
    state = trainer.accelerator.get_state_dict(trainer.deepspeed) if trainer.is_deepspeed_enabled else model.state_dict()
    if not trainer.is_world_process_zero():
        return None
    if config.lora is not None:
        from peft import get_peft_model_state_dict

        return dict(get_peft_model_state_dict(model, state_dict=state))
    learnt = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: weight for name, weight in state.items() if name in learnt}


def save_checkpoint(llava: Llava, weights: dict[str, Any], config: TrainConfig, annotator: dict[str, Any] | None) -> None:
    """Model, tokenizer, processor, generation settings and profile, into `config.out`; of an annotator, what it was shown.

    The start checkpoint is read anew, in the numbers that it is stored in, and only what was trained is put into it: frozen
    weights come out bit for bit as they went in, whatever arithmetic and however many processes trained. Everything is written
    to a folder inside `out` first and moved when it is whole and on the disk. Raises InputError when the disk is full.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # Otherwise ZeRO-3 would cut up this model, too.
    unset_hf_deepspeed_config()
    staging = config.out / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    with folders.writing(staging, then=checkpoints.THEN):
        staging.mkdir(parents=True)
        _write(staging, llava, weights, config)
        if annotator is not None:
            manifest.atomic_write(staging / ANNOTATOR_FILE, json.dumps(manifest.plain(annotator), indent=1) + "\n")
        folders.flush(staging)
        _move(staging, config.out)


def _write(staging: Path, llava: Llava, weights: dict[str, Any], config: TrainConfig) -> None:
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    where = hub.resolve(config.model)
    kept = stored_dtype(where)
    model = LlavaForConditionalGeneration.from_pretrained(where, dtype=kept, use_safetensors=True)
    if config.lora is not None:
        model = adapters.merge(model, weights, config, staging / adapters.FOLDER)
    else:
        with torch.no_grad():
            mine = dict(model.named_parameters())
            for name, weight in weights.items():
                mine[name].copy_(weight)
    model.save_pretrained(staging)
    LlavaProcessor(
        image_processor=llava.image_processor,
        tokenizer=llava.tokenizer,
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        # CLIP's class token: counted by the processor, then dropped by the strategy "default".
        num_additional_image_tokens=1,
        chat_template=llava.tokenizer.chat_template,
    ).save_pretrained(staging)
    llava.image_processor.save_pretrained(staging)
    profile = json.dumps(llava.profile.to_json(), indent=1, ensure_ascii=False) + "\n"
    manifest.atomic_write(staging / PROFILE_FILE, profile)


def _move(staging: Path, out: Path) -> None:
    # A folder without config.json is no checkpoint, so that comes last: nobody loads half of one.
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
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(where).dtype or torch.float32
