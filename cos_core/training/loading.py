"""Loading the start checkpoint for training: number formats, devices, and which weights are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core.errors import InputError
from cos_core.files.text import first_line
from cos_core.models.families import Family
from cos_core.system.memory import is_out_of_memory
from cos_core.training import runtime
from cos_core.training.config import TrainConfig
from cos_core.training.inputs import StartCheckpoint

if TYPE_CHECKING:
    from cos_core.models.encoder import Encoder
    from cos_core.models.loaded import LoadedModel


def load(
    config: TrainConfig, checkpoint: StartCheckpoint, encoder: Encoder, device: Any = None, last: Path | None = None
) -> LoadedModel:
    """The start checkpoint with the untrained weights frozen, or with adapters.

    Each weight is read from its file to the device on which it is trained, in its final format (`runtime.weights`): to `device`
    when that is a GPU; under ZeRO-3 to wherever DeepSpeed keeps its shard. `encoder`: the start checkpoint's. `last`: the
    checkpoint that an interrupted run is resumed from; where it holds the whole model, the weights are read from there instead.
    """
    import torch

    from cos_core.models import llava, pretrained
    from cos_core.training import adapters, loss, parts

    whole = last is not None and config.lora is None and config.deepspeed is None
    sharded = runtime.shards_weights(config)
    network = llava.read_network(
        str(last) if whole else checkpoint.folder,
        dtype=adapters.base_dtype(config) if config.qlora else getattr(torch, runtime.weights(config)),
        device=device if device is not None and device.type != "cpu" and not sharded else None,
        quantization=adapters.four_bits(config, checkpoint) if config.qlora else None,
        read=pretrained.any_network if checkpoint.general else pretrained.network,
    )
    parts.check(network, checkpoint.family)
    loaded = _equipped(network, config, checkpoint, encoder)
    loss.mask_rows(network, loaded.unused_rows)
    if config.lora is not None:
        loaded.model = adapters.adapt(network, config, checkpoint.family)
    else:
        freeze(network, checkpoint.family, config.train_projector)
    return loaded


def _equipped(network: Any, config: TrainConfig, checkpoint: StartCheckpoint, encoder: Encoder) -> LoadedModel:
    from cos_core.models import general, llava

    if not isinstance(encoder, general.GeneralEncoder):
        return llava.equipped(network, checkpoint.folder, name=config.model, profile=checkpoint.profile)
    return general.equipped(network, checkpoint.folder, encoder, config.pixel_budget)


def freeze(model: Any, family: Family, train_projector: bool) -> None:
    """Leaves the language model (and the projector, with `train_projector`) to be trained."""
    from cos_core.models import parts as model_parts
    from cos_core.training import parts

    model.requires_grad_(False)
    projector = parts.projector_names(model, family) if train_projector else ()
    for weight in (*model_parts.language(model), *model_parts.weights(model, projector)):
        weight.requires_grad_(True)


@contextmanager
def advice(config: TrainConfig, devices: int, doing: str) -> Iterator[None]:
    """When memory runs out inside the block, raises InputError with options that need less; `doing`: words for its sentence."""
    try:
        yield
    except Exception as error:
        # No narrower class: torch, the system and NVIDIA's libraries each raise their own.
        if not is_out_of_memory(error):
            raise
        less = ", ".join(_smaller(config, devices))
        reason = first_line(error)[:160].rstrip(". ")
        raise InputError(f"memory ran out while {doing} ({reason}); it takes less with {less}. Checkpoints are kept") from None


def _smaller(config: TrainConfig, devices: int) -> list[str]:
    """The options that make a run smaller, those first that change nothing of what is learnt."""
    options = []
    if config.batch_size > 1:
        half = config.batch_size // 2 if config.batch_size % 2 == 0 else 1
        samples = config.batch_size * devices * config.accumulation(devices)
        step = f" --global-batch {samples}" if config.global_batch is None else ""
        options.append(f"--batch-size {half}{step} (a step stays {samples} samples)")
    if not runtime.recomputes(config):
        options.append("--gradient-checkpointing")
    settings = runtime.deepspeed_settings(config)
    if settings is None and not config.qlora:
        options.append("--deepspeed zero3" if devices > 1 else "--deepspeed zero3_offload")
    elif settings is not None and runtime.zero_stage(settings) < 3:
        options.append("--deepspeed zero3")
    elif settings is not None and not runtime.offloads(settings):
        options.append("--deepspeed zero3_offload")
    if config.lora is None:
        options.append("--lora 128 (adapters only)")
    elif not config.qlora and settings is None:
        options.append("--qlora (4-bit weights below the adapters)")
    if runtime.on_gpu(config) and not config.liger:
        options.append("--liger")
    return options or ["a smaller --max-length"]
