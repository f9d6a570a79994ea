"""What every checkpoint that `cos` writes consists of, so that programs of others run it as `cos` does.

weights       under the names of the hub's LLaVA-1.5 checkpoints, which released servers load as they are (weights.py)
processor     pads pictures to squares, as training did; with the profile's chat template (template.py)
tokenizer     gives a whole dialogue, in one text, the ids that training gave it piece by piece (tokens.py)
profile, generation settings without sampling, and a model card that says how to serve it (card.py)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cos_core.dialogue.prompts import PROFILE_FILE, Profile
from cos_core.models.layout.card import ModelCard, plain_name, written
from cos_core.models.layout.template import chat_template
from cos_core.models.layout.tokens import say_plainly, whole_text
from cos_core.models.layout.weights import hub_name, save_model

__all__ = ["CARD_FILE", "ModelCard", "complete", "hub_name", "padding_processor", "plain_name", "save_model"]

CARD_FILE = "README.md"


def complete(
    folder: Path, *, settings: Any, tokenizer: Any, image_processor: Any, profile: Profile, card: ModelCard
) -> list[str]:
    """Writes everything else into `folder`, which has config.json already; returns what a user should know, a sentence each.

    `settings`: the model's LlavaConfig; `tokenizer`: the one that the checkpoint was trained with. It is written in a form
    whose ids of a whole dialogue are those of `encoding.encode`; where there is no such form, a sentence says so, here and on
    the card.
    """
    from transformers import LlavaProcessor

    image_token = tokenizer.convert_ids_to_tokens(settings.image_token_id)
    served = whole_text(tokenizer, profile, settings.image_token_id, folder / "config.json")
    notes = (
        []
        if served is not None
        else [
            "a server tokenises whole dialogues differently from what this checkpoint was trained on: its answers will differ"
        ]
    )
    padding = padding_processor(image_processor)
    LlavaProcessor(
        image_processor=padding,
        tokenizer=served or tokenizer,
        patch_size=settings.vision_config.patch_size,
        vision_feature_select_strategy=settings.vision_feature_select_strategy,
        # CLIP's class token: counted by the processor, then dropped by the strategy "default".
        num_additional_image_tokens=1,
        image_token=image_token,
        chat_template=chat_template(profile, image_token, start=_begins_with_start(tokenizer)),
    ).save_pretrained(folder)
    # Older readers look for it in a file of its own.
    padding.save_pretrained(folder)
    say_plainly(folder / "tokenizer_config.json")
    (folder / PROFILE_FILE).write_text(json.dumps(profile.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(written(card, profile, notes), encoding="utf-8")
    return notes


def padding_processor(image_processor: Any) -> Any:
    """The same image processor, but one that pads a picture to a square in its mean colour first, as LLaVA does.

    `LlavaImageProcessor` of `transformers` (since 4.49) does it bit for bit as `images.square_pad`. One that does more or less
    than resize, rescale and normalise is returned as it is.
    """
    from transformers import LlavaImageProcessorPil

    from cos_core.models.pixels import square_side

    if square_side(image_processor) is None:
        return image_processor
    names = ("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor")
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    settings = {name: getattr(image_processor, name) for name in (*names, *steps) if hasattr(image_processor, name)}
    return LlavaImageProcessorPil(**{k: dict(v) if isinstance(v, Mapping) else v for k, v in settings.items()}, do_pad=True)


def _begins_with_start(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
