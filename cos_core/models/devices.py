"""Devices and number formats in which models run. Imports torch and transformers only when a function is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cos_core.errors import InputError, MissingError
from cos_core.system.extras import install
from cos_core.system.memory import is_out_of_memory

if TYPE_CHECKING:
    import torch


def quiet_libraries() -> None:
    """Turns off the warnings and progress bars of transformers; its errors are still shown."""
    import logging

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Imported by peft wherever it is installed, it warns of a kernel that only 4-bit weights on a CPU would use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def placement(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Where and in which number format a model runs; see `load`. Makes transformers quiet.

    Raises MissingError without torch, transformers or the GPU asked for, InputError for names that are none.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingError(f"running a model needs the extra 'model': {install('model')} ({error})") from None
    quiet_libraries()
    target = _device(torch, device)
    kind = getattr(torch, _auto_type(torch, target) if dtype == "auto" else dtype, None)
    if not isinstance(kind, torch.dtype):
        raise InputError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return target, kind


def placed(model: Any, value: Any) -> Any:
    """A tensor on a model's device, one of floats in the model's number format; anything else as it is."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    value = value.to(model.device)
    return value.to(model.dtype) if value.is_floating_point() else value


@contextmanager
def fits(where: str, target: torch.device, kind: torch.dtype) -> Iterator[None]:
    """Inside the block a checkpoint is read; what says that memory ran out becomes a MissingError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        name = str(kind).removeprefix("torch.")
        raise MissingError(
            f"the checkpoint {where} does not fit on {target} in {name}; take bfloat16, or serve it with --engine openai"
        ) from None


def gpus() -> int:
    """CUDA GPUs that torch sees on this machine; 0 without torch."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


def devices(name: str) -> list[str]:
    """The devices that a run over many questions means: "auto" is every CUDA GPU, else the CPU; "cuda:0,cuda:1" those two.

    Raises MissingError without torch, or without the GPU that is named, and InputError for an unknown name.
    """
    if name == "cpu":
        return [name]
    torch = _torch()
    if name == "auto":
        return [f"cuda:{i}" for i in range(gpus())] or ["cpu"]
    return [str(_device(torch, part.strip())) for part in name.split(",")]


def dtype_name(device: str, dtype: str) -> str:
    """The number format that `load` would use: "auto" is float32 on a CPU, bfloat16 on a GPU or float16 without it."""
    if dtype != "auto":
        return dtype
    first = devices(device)[0]
    return _auto_type(_torch(), first) if first.startswith("cuda") else "float32"


def dtype_remark(device: str, dtype: str) -> str | None:
    """What a user should know of the number format on the GPU that a run begins with; None when there is nothing to say."""
    first = devices(device)[0]
    if not first.startswith("cuda") or has_bfloat16(first) or dtype not in ("auto", "bfloat16"):
        return None
    name = _torch().cuda.get_device_name(first)
    if dtype == "auto":
        return f"{name} has no units for bfloat16: the model runs in float16"
    return f"{name} has no units for bfloat16, which is emulated there, slowly; take float16"


def _auto_type(torch: Any, device: Any) -> str:
    """What "auto" means on a device (a torch.device or its name)."""
    if torch.device(device).type != "cuda":
        return "float32"
    return "bfloat16" if has_bfloat16(device) else "float16"


def has_bfloat16(device: Any) -> bool:
    """Whether a GPU (a torch.device or its name) computes in bfloat16; torch emulates it elsewhere, many times slower.

    NVIDIA's do from compute capability 8.0 (Ampere) on: neither a V100 (7.0) nor a T4 (7.5) does. AMD's all do.
    """
    torch = _torch()
    return torch.version.hip is not None or bool(torch.cuda.get_device_capability(device) >= (8, 0))


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingError(f"running a model needs the extra 'model': {install('model')} ({error})") from None
    return torch


def _device(torch: Any, name: str) -> Any:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        seen = f"{count} of them" if count else "no CUDA GPU"
        raise MissingError(f"device {name!r} was asked for, but torch sees {seen} on this machine")
    return device
