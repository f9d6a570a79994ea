"""Devices, number formats, DeepSpeed settings and the Trainer's arguments. Imports torch and the others only when called."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from cos_core.errors import InputError, MissingError
from cos_core.files import assets
from cos_core.files.jsonl import decode
from cos_core.models.devices import dtype_name, has_bfloat16, quiet_libraries
from cos_core.system.extras import install
from cos_core.training.config import TrainConfig
from cos_core.training.run_folder import CHECKPOINTS, TENSORBOARD

if TYPE_CHECKING:
    from transformers import TrainingArguments


_SINGLE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
_BITS_ON_CPU = "0.50"
"""The first version of bitsandbytes that trains without a GPU."""


@dataclass(frozen=True, slots=True)
class World:
    """Rank of this process and number of processes, from the environment of the launcher (deepspeed, torchrun)."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_launcher(cls) -> World:
        """Raises InputError when RANK or WORLD_SIZE is no number."""
        try:
            return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        except ValueError:
            raise InputError("RANK and WORLD_SIZE in the environment must be numbers") from None

    @property
    def main(self) -> bool:
        return self.rank == 0


def require(config: TrainConfig) -> None:
    """Checks packages, device and DeepSpeed settings before data or model are read.

    Raises MissingError for a missing package or device, InputError for settings that exclude each other or cannot be read.
    """
    deepspeed_settings(config)
    try:
        import accelerate  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingError(f"training needs the extra 'model': {install('model')} ({error})") from None
    quiet_libraries()
    if config.device == "cuda" and not torch.cuda.is_available():
        raise MissingError("device 'cuda' was asked for, but torch sees no CUDA GPU on this machine")
    if config.dtype == "bfloat16" and on_gpu(config) and not has_bfloat16("cuda"):
        name = torch.cuda.get_device_name()
        raise MissingError(f"the GPU {name} has no bfloat16; dtype 'auto' takes float16 there, with scaled losses")
    if not on_gpu(config):
        # Otherwise DeepSpeed, which the Trainer imports where it is installed, looks for an accelerator and warns of none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if config.dry_run and not on_gpu(config):
        # Arithmetic alone: what trains may be on another machine.
        return
    if config.liger and not on_gpu(config):
        raise MissingError("Liger's kernels run on a GPU, and torch sees none to use here; leave liger out")
    packages = {
        "deepspeed": config.deepspeed is not None,
        "peft": config.lora is not None,
        "bitsandbytes": config.qlora,
        "liger_kernel": config.liger,
        "tensorboard": config.report_to == "tensorboard",
        "wandb": config.report_to == "wandb",
    }
    for package, needed in packages.items():
        if needed and not _installed(package):
            how = install("train") if package in ("deepspeed", "peft") else f"pip install {package.replace('_', '-')}"
            raise MissingError(f"these settings need the package {package!r}: {how}")
    if config.qlora and not on_gpu(config) and Version(metadata.version("bitsandbytes")) < Version(_BITS_ON_CPU):
        raise MissingError(f"4-bit weights without a GPU need bitsandbytes {_BITS_ON_CPU} or newer")
    if config.qlora and config.deepspeed:
        raise InputError("qlora keeps 4-bit weights whole on every GPU, which DeepSpeed's stages cannot cut; leave one out")


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def on_gpu(config: TrainConfig) -> bool:
    """Whether this run computes on a GPU."""
    import torch

    return config.device != "cpu" and torch.cuda.is_available()


def arithmetic(config: TrainConfig) -> str:
    """The number format that this run computes in: "float32", "bfloat16", or "float16" on a GPU that has no bfloat16."""
    return dtype_name("cuda" if on_gpu(config) else "cpu", config.dtype)


def weights(config: TrainConfig) -> str:
    """The number format in which the start checkpoint's weights are held.

    Weights that are trained stay in float32 whatever the arithmetic: at 2e-5 most AdamW steps are too small for bfloat16. Where
    DeepSpeed keeps that float32 copy itself, and where the weights are frozen under adapters, they are in the arithmetic's.
    """
    return arithmetic(config) if config.lora is not None or has_master_weights(config) else "float32"


def has_master_weights(config: TrainConfig) -> bool:
    """Whether DeepSpeed computes on weights in 16 bits and keeps trained weights in float32, sharded over the processes.

    It begins with casting the model's weights to that format (deepspeed 0.19, `_cast_module_mixed_precision`).
    """
    section = {"bfloat16": "bf16", "float16": "fp16"}.get(arithmetic(config), "")
    return (deepspeed_settings(config) or {}).get(section, {}).get("enabled") in (True, "auto")


def recomputes(config: TrainConfig) -> bool:
    """Whether activations are recomputed."""
    return on_gpu(config) if config.gradient_checkpointing is None else config.gradient_checkpointing


def deepspeed_settings(config: TrainConfig) -> dict[str, Any] | None:
    """The DeepSpeed settings: a shipped template by name, or a file. Raises InputError when they cannot be read."""
    if config.deepspeed is None:
        return None
    path = Path(config.deepspeed)
    if path.suffix != ".json":
        names = sorted(p.stem for p in assets.template("deepspeed").glob("*.json"))
        if config.deepspeed not in names:
            raise InputError(f"deepspeed is {', '.join(names)} or a .json file, got {config.deepspeed!r}")
        path = assets.template("deepspeed", f"{config.deepspeed}.json")
    try:
        settings = decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"the DeepSpeed settings {path} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"the DeepSpeed settings {path} are not a JSON object")
    return settings


def zero_stage(settings: dict[str, Any] | None) -> int:
    """The ZeRO stage of DeepSpeed settings; 0 without them."""
    return int((settings or {}).get("zero_optimization", {}).get("stage", 0))


def shards_weights(config: TrainConfig) -> bool:
    """Whether each process holds a part of the weights only (ZeRO-3)."""
    return zero_stage(deepspeed_settings(config)) == 3


def offloads(settings: dict[str, Any] | None) -> bool:
    """Whether DeepSpeed settings keep the optimiser in the host's memory."""
    return "offload_optimizer" in (settings or {}).get("zero_optimization", {})


def arguments(config: TrainConfig, world: World) -> TrainingArguments:
    """The Trainer's arguments. Starts the process group and takes the device, so all early checks must come before it.

    Must be called before the model is loaded, which ZeRO-3 shards while it is read.
    """
    from cos_core.training.trainer import OneDeviceArguments

    gpu = on_gpu(config)
    settings = deepspeed_settings(config)
    if not gpu:
        _use_plain_gloo(settings)
    if settings is not None and "RANK" not in os.environ:
        # DeepSpeed needs a launcher's variables even for one process.
        os.environ.update(_SINGLE_PROCESS)
    recompute, half = recomputes(config), arithmetic(config)
    result = OneDeviceArguments(
        output_dir=str(config.out / CHECKPOINTS),
        seed=config.seed,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation(world.size),
        learning_rate=config.rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=1.0,
        # DeepSpeed shards the optimiser that it is given, which the fused one does not support.
        optim="adamw_torch" if settings else "adamw_torch_fused",
        use_cpu=not gpu,
        bf16=half == "bfloat16",
        # With scaled losses, as gradients in float16 would be lost below 6e-8.
        fp16=half == "float16",
        activation_checkpointing=recompute,
        activation_checkpointing_kwargs={"use_reentrant": False} if recompute else None,
        dataloader_num_workers=(4 if gpu else 0) if config.workers is None else config.workers,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        log_level="error",
        disable_tqdm=True,
        use_liger_kernel=config.liger,
        # The Trainer would put TensorBoard's files among the checkpoints, which go when the run is finished; see reporters.
        report_to="none" if config.report_to == "tensorboard" else config.report_to,
        run_name=config.out.name,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        deepspeed=settings,
        ddp_backend=None if gpu or world.size == 1 else "gloo",
        ddp_find_unused_parameters=False,
    )
    if settings is not None and not gpu:
        import deepspeed

        # On a CPU the Trainer's helpers open torch's group only, and ZeRO-3's loading would count one process.
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    return result


def reporters(config: TrainConfig, main: bool) -> list[Any]:
    """The Trainer's own TensorBoard reports, into `tensorboard/` in the output folder.

    Weights & Biases needs no callback here, but its project is set: the Trainer takes "huggingface" where WANDB_PROJECT names
    none, even when the user's W&B settings name one. That one, or else "cos", is put there.
    """
    if config.report_to == "wandb" and main:
        import wandb

        # Removed first: wandb would read an empty value as a project's name.
        named = os.environ.pop("WANDB_PROJECT", "")
        os.environ["WANDB_PROJECT"] = named or wandb.setup().settings.project or "cos"
    if config.report_to != "tensorboard" or not main:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(config.out / TENSORBOARD)))]


def _use_plain_gloo(settings: dict[str, Any] | None) -> None:
    """Keeps DeepSpeed on plain gloo, so that it compiles no shared-memory backend."""
    if settings is None:
        return
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings.get("zero_optimization", {}).pop("overlap_comm", None)
