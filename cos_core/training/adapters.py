"""Low-rank adapters on the language model (LoRA; QLoRA over 4-bit weights), by `peft`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cos_core.models import pretrained
from cos_core.models.families import Family
from cos_core.training import parts, runtime
from cos_core.training.config import TrainConfig
from cos_core.training.inputs import StartCheckpoint

FOLDER = "adapter"


def lora_settings(model: Any, config: TrainConfig, family: Family) -> Any:
    """Adapters on every linear layer of the language model; with `train_projector` the projector is trained whole."""
    from peft import LoraConfig

    names = "|".join(map(re.escape, parts.linear_layers(model)))
    return LoraConfig(
        r=config.lora or 0,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules=rf"{re.escape(parts.decoder_name(model))}\..*\.({names})",
        modules_to_save=parts.projector_names(model, family) if config.train_projector else None,
    )


def base_dtype(config: TrainConfig) -> Any:
    """What 4-bit weights are unpacked to: the arithmetic's format, bfloat16 where that is float32."""
    import torch

    half = runtime.arithmetic(config)
    return torch.bfloat16 if half == "float32" else getattr(torch, half)


def four_bits(config: TrainConfig, checkpoint: StartCheckpoint) -> Any:
    """The language model's linear layers in 4 bits (NF4, with quantized scales)."""
    from transformers import BitsAndBytesConfig

    from cos_core.models.model_size import built

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=base_dtype(config),
        # Matched from the start of a module's full name (transformers 5.23).
        llm_int8_skip_modules=parts.beside_the_decoder(built(pretrained.any_configuration(checkpoint.folder))),
    )


def adapt(model: Any, config: TrainConfig, family: Family) -> Any:
    """The model with adapters; nothing else is trained. What is trained is in float32, here or in DeepSpeed's optimiser."""
    import torch
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    settings = lora_settings(model, config, family)
    if config.qlora:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    # Adapters begin at random, before the Trainer sets the seed: unset, no two runs and no two processes would agree.
    set_seed(config.seed)
    # DeepSpeed wants all that is trained in one format; left to itself, peft makes adapters float32, and only these.
    masters = runtime.has_master_weights(config)
    adapted = get_peft_model(model, settings, autocast_adapter_dtype=not masters)
    if not masters:
        for weight in adapted.parameters():
            if weight.requires_grad and weight.dtype in (torch.float16, torch.bfloat16):
                weight.data = weight.data.float()
    # Inputs that carry gradients, without which recomputed activations would not reach the adapters.
    adapted.enable_input_require_grads()
    return adapted


def merge(base: Any, adapter: dict[str, Any], config: TrainConfig, family: Family, folder: Path) -> Any:
    """`base` with the trained adapters added to its weights; the adapters alone are written to `folder`, for peft.

    Each weight is summed in float32 and rounded once to the format that `base` has, so that no second copy of all is needed.
    """
    import torch
    from peft import get_peft_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    adapted = get_peft_model(base, lora_settings(base, config, family))
    set_peft_model_state_dict(adapted, adapter)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        layers: list[Any] = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            weight = layer.get_base_layer().weight
            weight.copy_(weight.float() + layer.get_delta_weight("default").float())
    return adapted.unload()
