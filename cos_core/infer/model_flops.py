"""What of a run's manifest gives the FLOPs of its answers: the arithmetic of its model, known from its configuration alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cos_core.dialogue.box_text import write_box
from cos_core.dialogue.gate import Gate
from cos_core.dialogue.prompts import Profile
from cos_core.files import manifest
from cos_core.files.text import one_line
from cos_core.geometry import central_box
from cos_core.infer import relevance_regions as heat
from cos_core.infer.config import InferConfig
from cos_core.infer.settings import checkpoint_folder, model_fingerprint
from cos_core.infer.steps import PassReply, PassRequest, QuestionSteps, Setting, initial_state
from cos_core.interfaces import Reply
from cos_core.models import checkpoint_files as files
from cos_core.models import families, general, llava
from cos_core.models.encoder import Encoder
from cos_core.models.families import PixelBudget
from cos_core.models.flops import ModelSize
from cos_core.scoring.cost import AnswerFlops, flops_record
from cos_core.types import Example, Turn

_ENGINES = ("hf", "openai")
"""Engines whose model is a checkpoint that the settings name."""
_LONGEST = 200


def recorded(config: InferConfig, setting: Setting, examples: Sequence[Example]) -> dict[str, Any]:
    """{"flops": ...} for the manifest's results, or nothing where no checkpoint's folder is known.

    A run that adds no answer keeps what its manifest says. Never raises: what cannot be measured says why.
    """
    if config.engine not in _ENGINES or not examples:
        return {}
    try:
        folder = checkpoint_folder(config)
        if folder is None:
            return {}
        if (kept := _kept(config.out, setting.fingerprint)) is not None:
            return {"flops": kept}
        return {"flops": flops_record(_of_run(config, setting, folder, examples[0]))}
    except Exception as error:  # a model's own code is asked, and no answer depends on it
        return {"flops": flops_record(one_line(f"{type(error).__name__}: {error}", _LONGEST))}


def _kept(out: Path | None, fingerprint: str) -> Mapping[str, Any] | None:
    """What the manifest of this very run says already."""
    if out is None or not manifest.path_for(out).is_file():
        return None
    before = manifest.read(manifest.path_for(out))
    found = before.results.get("flops")
    return found if before.fingerprint == fingerprint and isinstance(found, Mapping) else None


def _of_run(config: InferConfig, setting: Setting, folder: str, example: Example) -> AnswerFlops | str:
    family = families.of_config(files.settings(Path(folder), files.CONFIG) or {})
    if family.text_profile:
        return "a model without dialogues: how its pictures enter the text is not measured"
    size, encoder = _measured(folder, model_fingerprint(config), setting.profile, config.pixel_budget)
    if size.not_measured:
        return size.not_measured
    word = 2.0 * size.hidden * size.vocabulary
    continues = setting.policy.source == "model" and setting.box_text == "written" and not family.not_continued
    return AnswerFlops(
        position=size.position - word,
        word=word,
        square=size.square,
        picture=size.picture,
        text={} if size.one_size else _text(encoder, setting, example),
        continued=continues,
        seen_again=bool(family.second_view_change),
    )


@functools.lru_cache(maxsize=8)
def _measured(folder: str, _fingerprint: str, profile: Profile, budget: PixelBudget) -> tuple[ModelSize, Encoder]:
    """The size of the checkpoint in a folder, and its encoder; measured once a content."""
    from cos_core.models.model_size import size_of, tensors_of

    encoder: Encoder
    if general.serves(folder):
        encoder = general.encoder_of(folder, profile=profile, budget=budget)
    else:
        encoder = llava.encoder(folder, profile, pictures=True)
    return size_of(encoder.config, tensors_of(encoder)), encoder


def _text(encoder: Encoder, setting: Setting, example: Example) -> dict[str, int]:
    """How many tokens of each pass's prompt for one question are text."""
    from cos_core.models.text_tokens import text_tokens

    count = text_tokens(encoder)
    return {name: count(turns) for name, turns in prompts(setting, example).items()}


def prompts(setting: Setting, example: Example) -> dict[str, tuple[Turn, ...]]:
    """The dialogues of one question's passes, by the pass's name in `Prediction.tokens`, as they are when a box is read."""
    from PIL import Image

    two = setting.policy.source != "none"
    whole = replace(setting, gate=Gate("all") if two else None, crop="absent" if setting.crop == "absent" else "region")
    state = initial_state(example, Image.new("RGB", (64, 64)))
    box = write_box(central_box(setting.profile.box_frame), setting.profile, setting.seen_of((64, 64)))
    finds = setting.policy is heat.POLICY
    first = ["plain", "pass1"] if finds or setting.policy.source == "model" else ["plain"]
    names = iter([*first, "pass2"] if two else ["pass1"])
    steps = QuestionSteps(whole, {}, None, finds, lambda crop: False).steps(state)
    found: dict[str, tuple[Turn, ...]] = {}
    step = next(steps, None)
    try:
        while step is not None:
            asked = isinstance(step, PassRequest)
            if isinstance(step, PassRequest):
                found[next(names)] = step.request.turns
            step = steps.send(PassReply(Reply(box, margins=(0.0,))) if asked else central_box())
    except StopIteration:
        return found
    return found
