"""The start checkpoint, as training takes it: in which numbers, where, and what of it is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core.errors import InputError
from cos_core.models import hub
from cos_core.system.memory import is_out_of_memory
from cos_core.training import engine
from cos_core.training.config import TrainConfig

if TYPE_CHECKING:
    from cos_core.models.llava import Llava


def load(config: TrainConfig, device: Any = None, last: Path | None = None) -> Llava:
    """The start checkpoint with what is not trained frozen, or with adapters.

    Each weight is read from its file to where it is trained, in the format in which it is held (`engine.weights`), and moved
    nowhere: to `device` when that is a GPU; under ZeRO-3 to wherever DeepSpeed keeps its part. `last`: the checkpoint that an
    interrupted run goes on from; where it holds the model whole, the weights are read from there instead.
    """
    import torch

    from cos_core.models import llava
    from cos_core.training import adapters, loss

    where = hub.resolve(config.model)
    whole = last is not None and config.lora is None and config.deepspeed is None
    cut_up = engine.stage_of(engine.deepspeed_settings(config)) == 3
    network = llava.read_network(
        str(last) if whole else where,
        dtype=adapters.base_dtype(config) if config.qlora else getattr(torch, engine.weights(config)),
        device=device if device is not None and device.type != "cpu" and not cut_up else None,
        quantization=adapters.four_bits(config) if config.qlora else None,
    )
    loaded = llava.equipped(network, where, name=config.model, profile=config.profile)
    loss.leave_out(network, loaded.unspoken)
    if config.lora is not None:
        return replace(loaded, model=adapters.adapt(loaded, config))
    freeze(loaded, config.train_projector)
    return loaded


def freeze(llava: Llava, train_projector: bool) -> None:
    """Leaves the language model (and the projector, if asked) to be trained."""
    model = llava.model
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(train_projector)


@contextmanager
def advice(config: TrainConfig, devices: int, doing: str) -> Iterator[None]:
    """Where memory runs out inside, raises InputError with what to change; `doing`: what is done there, for its sentence."""
    try:
        yield
    except Exception as error:
        # No narrower class: torch, the system and NVIDIA's libraries each raise their own.
        if not is_out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        less = ", ".join(_smaller(config, devices))
        raise InputError(
            f"memory ran out while {doing} ({first[:160].rstrip('. ')}); it takes less with {less}. Checkpoints are kept"
        ) from None


def _smaller(config: TrainConfig, devices: int) -> list[str]:
    """The options that make a run smaller, those first that change nothing of what is learnt."""
    options = []
    if config.batch_size > 1:
        half = config.batch_size // 2 if config.batch_size % 2 == 0 else 1
        kept = config.batch_size * devices * config.accumulation(devices)
        step = f" --global-batch {kept}" if config.global_batch is None else ""
        options.append(f"--batch-size {half}{step} (a step stays {kept} samples)")
    if not engine.recomputes(config):
        options.append("--gradient-checkpointing")
    settings = engine.deepspeed_settings(config)
    if settings is None and not config.qlora:
        options.append("--deepspeed zero3" if devices > 1 else "--deepspeed zero3_offload")
    elif settings is not None and engine.stage_of(settings) < 3:
        options.append("--deepspeed zero3")
    elif settings is not None and "offload_optimizer" not in settings.get("zero_optimization", {}):
        options.append("--deepspeed zero3_offload")
    if config.lora is None:
        options.append("--lora 128 (adapters only)")
    elif not config.qlora and settings is None:
        options.append("--qlora (4-bit weights below the adapters)")
    if engine.on_gpu(config) and not config.liger:
        options.append("--liger")
    return options or ["a smaller --max-length"]
