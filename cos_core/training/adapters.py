"""Low-rank adapters on the language model (LoRA; QLoRA over 4-bit weights), by `peft`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cos_core import hub
from cos_core.llava import Llava
from cos_core.training.config import TrainConfig

FOLDER = "adapter"
_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def lora_settings(config: TrainConfig) -> Any:
    """Adapters on every linear layer of the language model; with `train_projector` the projector is trained whole."""
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora or 0,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules=_TARGETS,
        modules_to_save=["multi_modal_projector"] if config.train_projector else None,
    )


def quantized(llava: Llava, config: TrainConfig) -> Llava:
    """The same checkpoint with its language model in 4 bits (NF4, bfloat16 arithmetic); needs bitsandbytes and a GPU."""
    import torch
    from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", "vision_tower", "multi_modal_projector"],
    )
    model = LlavaForConditionalGeneration.from_pretrained(
        hub.resolve(config.model), quantization_config=four_bits, dtype=torch.bfloat16, use_safetensors=True
    )
    return replace(llava, model=model)


def adapt(llava: Llava, config: TrainConfig) -> Any:
    """The model with adapters; nothing else is trained."""
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    model = llava.model
    if config.qlora:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    # Adapters begin at random, before the Trainer sets the seed: unset, no two runs and no two processes would agree.
    set_seed(config.seed)
    adapted = get_peft_model(model, lora_settings(config))
    # Inputs that carry gradients, without which recomputed activations would not reach the adapters.
    adapted.enable_input_require_grads()
    return adapted


def merge(base: Any, adapter: dict[str, Any], config: TrainConfig, folder: Path) -> Any:
    """`base` with the trained adapters added to its weights; the adapters alone are kept in `folder` for peft's users."""
    from peft import get_peft_model, set_peft_model_state_dict

    adapted = get_peft_model(base, lora_settings(config))
    set_peft_model_state_dict(adapted, adapter)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()
