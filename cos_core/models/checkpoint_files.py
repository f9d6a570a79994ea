"""The files of a checkpoint's folder, read within bounds: settings, tables of weights, and which files hold the weights.

A checkpoint can come from a stranger. Only regular files are opened, none larger than such a file is, and none that lies
outside the folder: neither by a name in an index nor by a link. The hub's cache is made of links to its own `blobs`, which are
followed. Weights are never read here, only the table in front of them. Needs neither torch nor transformers.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from cos_core.errors import InputError
from cos_core.files.jsonl import decode, kind_of, open_input, why
from cos_core.files.text import one_line

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

MIB = 2**20
LIMITS = {
    CONFIG: 4 * MIB,
    "generation_config.json": MIB,
    "tokenizer_config.json": 16 * MIB,
    "special_tokens_map.json": MIB,
    "added_tokens.json": 16 * MIB,
    "processor_config.json": MIB,
    "preprocessor_config.json": MIB,
    "adapter_config.json": MIB,
    INDEX: 64 * MIB,
    "tokenizer.json": 128 * MIB,
}
"""The JSON files that a loader reads, each an object, and the bytes beyond which one is taken for something else."""
PLAIN_LIMITS = {
    "tokenizer.model": 64 * MIB,
    "vocab.json": 64 * MIB,
    "merges.txt": 64 * MIB,
    "vocab.txt": 64 * MIB,
    "chat_template.jinja": MIB,
    "chat_template.json": MIB,
    "cos_profile.json": MIB,
}
"""Other files that a loader reads, looked at for what they are and not for what they say."""

MAX_HEADER_BYTES = 100 * 10**6
"""The format's own bound of the table in front of the weights."""
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a table of weights; `shape`: its sides, `dtype`: as safetensors writes it (F32, BF16)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


def state(folder: Path) -> tuple[object, ...]:
    """What changes when a file of the folder does: names, sizes and times of what lies in it. Raises InputError."""
    try:
        entries = [(entry.name, entry.stat()) for entry in os.scandir(folder) if Path(entry.path).exists()]
    except OSError as error:
        raise InputError(f"the checkpoint {folder} cannot be read: {error.strerror}") from None
    return tuple(sorted((name, info.st_size, info.st_mtime_ns, info.st_ino, info.st_mode) for name, info in entries))


def regular(folder: Path, name: str, limit: int | None = None) -> Path | None:
    """The path of a file of the folder; None where there is none of this name.

    Raises InputError for what is no regular file (a pipe, a device, a folder), for a link that leads out of the folder, and for
    a file of more than `limit` bytes.
    """
    path = folder / name
    try:
        link = path.is_symlink()
        info = path.stat()
    except FileNotFoundError:
        if link:
            raise InputError(f"{path} is a link to a file that is not there") from None
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{path} is not a file (a folder, a pipe or a device)")
    if link and not _stays_inside(folder, path):
        raise InputError(
            f"{path} is a link out of the checkpoint's folder; put the file itself there, or name the folder it lies in"
        )
    if limit is not None and info.st_size > limit:
        raise InputError(f"{path} is larger than {limit // MIB} MiB, which no such file is")
    return path


def _stays_inside(folder: Path, link: Path) -> bool:
    """Whether a link stays in its folder, or in the blobs of the hub's cache that the folder is a snapshot in."""
    target, home = link.resolve(), folder.resolve()
    if target.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and target.is_relative_to(home.parent.parent / "blobs")


def settings(folder: Path, name: str) -> dict[str, Any] | None:
    """A settings file of the folder, one of LIMITS; None where there is none. Raises InputError when it cannot be used."""
    path = regular(folder, name, LIMITS[name])
    if path is None:
        return None
    with open_input(path) as file:
        data = file.read(LIMITS[name] + 1)
    _no_pointer(path, data)
    try:
        value = decode(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: it is not valid JSON: {why(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not an object of settings, but {kind_of(value)}")
    return value


def has_weights(folder: Path) -> bool:
    """Whether the folder has a file of weights, or an index of several, of whatever kind."""
    return any((folder / name).exists() or (folder / name).is_symlink() for name in (WEIGHTS, INDEX))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the checkpoint's weights, in order: the one file, or those of the index.

    Raises InputError where there are none, where one is missing, and where the index names what lies outside the folder.
    """
    one = regular(folder, WEIGHTS)
    if one is not None:
        return [one]
    index = settings(folder, INDEX)
    if index is None:
        raise InputError(f"cannot load the checkpoint {folder}: {_without_weights(folder)}")
    path, names = folder / INDEX, index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{path} is broken: its `weight_map` must name a file for each weight")
    files = []
    for name in sorted(set(names.values())):
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise InputError(f"{path} names the file {one_line(name)!r}, which is not one of its own folder")
        file = regular(folder, name)
        if file is None:
            raise InputError(f"{path} names {one_line(name)}, which is not there: the download was cut off?")
        files.append(file)
    if not files:
        raise InputError(f"{path} names no file of weights")
    return files


def _without_weights(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        base = (settings(folder, "adapter_config.json") or {}).get("base_model_name_or_path")
        named = f" of {one_line(base)}" if isinstance(base, str) and base else ""
        return (
            f"it holds a LoRA adapter{named} and not the model; merge it first (peft: merge_and_unload, then save_pretrained)"
        )
    if any(folder.glob("*.bin")):
        return "its weights are pickles (.bin), which can run code; save them as safetensors"
    return f"it has no weights ({WEIGHTS})"


def header(path: Path) -> dict[str, Tensor]:
    """The table in front of a safetensors file. Raises InputError when it has none, or one that the file does not hold."""
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        _no_pointer(path, first + file.read(len(_LFS)) if len(first) == 8 else first)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _unreadable(path, "it does not begin with a table of types and shapes")
        file.seek(8)
        table = file.read(length)
    try:
        entries = decode(table)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"its table is not valid JSON: {why(error)}") from None
    if not isinstance(entries, dict):
        raise _unreadable(path, "it does not begin with a table of types and shapes")
    end, tensors = 0, {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        tensors[name], stop = _tensor(path, name, entry)
        end = max(end, stop)
    if 8 + length + end != size:
        raise _unreadable(path, f"its table speaks of {8 + length + end:,} bytes, and it has {size:,}: cut off?")
    return tensors


def _tensor(path: Path, name: str, entry: Any) -> tuple[Tensor, int]:
    """A table's entry, and where its bytes end."""
    if isinstance(entry, dict):
        shape, dtype, place = entry.get("shape"), entry.get("dtype"), entry.get("data_offsets")
        if isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(place) and len(place) == 2 and place[0] <= place[1]:
            return Tensor(dtype, tuple(shape)), place[1]
    raise _unreadable(path, f"its table gives {one_line(name)} no type, shape and place")


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint by their name in its files. Raises InputError as `weight_files` and `header` do."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= header(path)
    return tensors


def _no_pointer(path: Path, data: bytes) -> None:
    if data.startswith(_LFS):
        raise InputError(f"{path} is a Git LFS pointer and not the file itself; fetch it with: git lfs pull")


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"the weights {path} cannot be read: {reason}")


def look_over(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The settings files that the folder has, by name, each within its bounds. Raises InputError for what cannot be used."""
    for name, limit in PLAIN_LIMITS.items():
        regular(folder, name, limit)
    files = {name: settings(folder, name) for name in LIMITS if name != CONFIG}
    return {name: value for name, value in files.items() if value is not None}
