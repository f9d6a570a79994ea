"""Writing the trained checkpoint in the ordinary transformers layout, so that any loader of LLaVA checkpoints takes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cos_core.llava import Llava
from cos_core.prompts import PROFILE_FILE

_STAGING = "saving"


def save_checkpoint(llava: Llava, dtype: Any, out: Path) -> None:
    """Model, tokenizer, processor, generation settings and profile, into `out`.

    Everything is written to a folder inside `out` first and moved when whole. `dtype`: the numbers on disk, the start
    checkpoint's own, so that frozen weights come out bit for bit as they went in.
    """
    from transformers import LlavaProcessor

    staging = out / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model = llava.model
    model.to(dtype).save_pretrained(staging)
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
    (staging / PROFILE_FILE).write_text(
        json.dumps(llava.profile.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for path in sorted(staging.iterdir()):
        path.replace(out / path.name)
    staging.rmdir()


def stored_dtype(where: str) -> Any:
    """The number type that a checkpoint's configuration names; float32 when it names none."""
    import torch
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(where).dtype or torch.float32
