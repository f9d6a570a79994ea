"""A checkpoint of a family other than LLaVA-1.5: weights as `transformers` writes them, beside the processor's own files.

Those files are copied from the checkpoint that training began with. Written anew they would lose what is not loaded here: a
processor without its video part would save itself so.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cos_core.dialogue.prompts import PROFILE_FILE
from cos_core.errors import CosError
from cos_core.models import checkpoint_files
from cos_core.models import processor as processors
from cos_core.models.families import PixelBudget, option
from cos_core.models.general_encoder import GeneralEncoder
from cos_core.models.layout.card import ModelCard, written

CARD_FILE = "README.md"
_COPIED = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
"""Files of a checkpoint that no training changes; besides, those in which its tokenizer keeps its vocabulary."""
_TEMPLATES = "additional_chat_templates"


def save(model: Any, folder: Path, encoder: GeneralEncoder, *, source: Path, budget: PixelBudget, card: ModelCard) -> list[str]:
    """Writes a whole checkpoint into `folder`; returns what a user should know of it, a sentence each.

    `source`: the folder that the processor's files are copied from; `budget`: what pictures were shown with, which is written
    into them.
    """
    if budget.words:
        encoder.family.agree(model.base_model.config, encoder.processor.image_processor)
    model.save_pretrained(folder)
    for name in sorted({*_COPIED, *encoder.tokenizer.vocab_files_names.values()}):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, folder / _TEMPLATES)
    notes = [_with_budget(folder, encoder, source, budget)] if budget.words else []
    text = json.dumps(encoder.profile.to_json(), indent=2, ensure_ascii=False)
    (folder / PROFILE_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(written(card, encoder.profile, notes), encoding="utf-8")
    return notes


def _with_budget(folder: Path, encoder: GeneralEncoder, source: Path, budget: PixelBudget) -> str:
    """Writes the settings that the budget changed into the copied file; returns a sentence that says so."""
    before, after = processors.image_processor(source).to_dict(), encoder.processor.image_processor.to_dict()
    changed = {name: value for name, value in after.items() if value != before.get(name)}
    whole = checkpoint_files.settings(folder, "processor_config.json") or {}
    nested = isinstance(whole.get("image_processor"), dict)
    path = folder / ("processor_config.json" if nested else "preprocessor_config.json")
    file = dict(whole) if nested else dict(checkpoint_files.settings(folder, path.name) or {})
    settings = dict(file["image_processor"]) if nested else file
    if "size" in changed:
        # Older words for the same, which would win.
        settings = {name: value for name, value in settings.items() if name not in ("min_pixels", "max_pixels")}
    settings |= changed
    file = {**file, "image_processor": settings} if nested else settings
    path.write_text(json.dumps(file, indent=2, default=dict) + "\n", encoding="utf-8")
    family = encoder.family
    if family.budget(processors.image_processor(folder)) != family.budget(encoder.processor.image_processor):
        raise CosError(f"the pixel budget could not be written into {path}")
    said = " and ".join(f"{option(word)} {value}" for word, value in budget.words.items())
    return f"pictures were shown with {said}; {path.name} says so, and whoever asks the checkpoint shows them alike"
