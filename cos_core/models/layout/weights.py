"""Weights under the names that the hub's LLaVA-1.5 checkpoints have (`llava-hf/llava-1.5-7b-hf` and its kin).

`transformers` 5 names the same weights otherwise inside, and writes the vision tower's under a name that released servers do
not know (vLLM 0.32: "no module or parameter named 'vision_tower.embeddings'"). All of them read the hub's names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_PLACES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    # As `transformers` 5 itself writes them.
    ("vision_tower.vision_model.", "vision_tower.vision_model."),
    ("vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)


def hub_name(name: str) -> str:
    """The hub's name of a weight of `LlavaForConditionalGeneration` with a CLIP tower, in memory or in a file."""
    for mine, theirs in _PLACES:
        if name.startswith(mine):
            return theirs + name.removeprefix(mine)
    return name


def save_model(model: Any, folder: Path) -> None:
    """Writes config.json, generation settings without sampling, and the weights of a LlavaForConditionalGeneration."""
    import transformers

    before = model.generation_config
    # Sampling settings (Vicuna's temperature, a penalty on repetition) are a server's defaults; answers here are greedy.
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=before.bos_token_id, eos_token_id=before.eos_token_id, pad_token_id=before.pad_token_id
    )
    tied = model.all_tied_weights_keys
    state = {hub_name(name): tensor for name, tensor in model.state_dict().items() if name not in tied}
    # The names are the original format already.
    model.save_pretrained(folder, state_dict=state, save_original_format=False)
    model.generation_config = before
