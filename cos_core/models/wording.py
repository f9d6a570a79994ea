"""Which wording a checkpoint is asked in: the profile of its folder, of its user or of its family, with the family's boxes."""

from __future__ import annotations

from pathlib import Path

from cos_core.dialogue.prompts import Profile, checkpoint_profile
from cos_core.models import checkpoint_files as files
from cos_core.models import families
from cos_core.models.layout.families import is_other

CHAT = "chat"
"""The profile of checkpoints that are asked through their own chat template."""


def resolved_profile(folder: str | Path | None, profile: str | Profile | None = None) -> Profile:
    """The profile to use with a checkpoint: the given one, else the one stored with the checkpoint, else "paper" for LLaVA-1.5,
    the family's own where it has no dialogue, and "chat" for every other; boxes that are left to the family are the family's.

    `folder`: as for `checkpoint_profile`; None: a model that is known by its name alone. Raises InputError for a profile that
    cannot be read or does not go with the family.
    """
    config = None if folder is None else files.settings(Path(folder), files.CONFIG)
    if config is None:
        return checkpoint_profile(folder, profile).with_boxes(families.DEFAULT_BOXES)
    family = families.of_config(config)
    chosen = checkpoint_profile(folder, profile, family.text_profile or CHAT if is_other(config) else None)
    return chosen.with_boxes(family.boxes)


def assumed_profile(kind: str, profile: str | Profile | None = None) -> Profile:
    """The profile to use with a model of the family `kind` ("": not known) whose files are not here: the given one, else
    "paper" for LLaVA-1.5 and "chat" for every other. Raises InputError as `resolved_profile` does.
    """
    chosen = checkpoint_profile(None, profile, None if kind == "llava" else CHAT)
    return chosen.with_boxes(families.of_type(kind).boxes)
