"""Run manifests: stage, settings, inputs, versions, hardware, counts and results of a run. Written last and atomically.

A directory without a `manifest.json` is not finished. Also here: fingerprints of settings and digests of inputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import cos_core
from cos_core.errors import InputError
from cos_core.files import deciding
from cos_core.files.durable import atomic_write
from cos_core.files.jsonl import decode, open_input
from cos_core.files.text import duration
from cos_core.types import RunManifest

FILE = "manifest.json"
PACKAGES = (
    "accelerate",
    "deepspeed",
    "lmdb",
    "numpy",
    "pillow",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)


def plain(value: Any) -> Any:
    """`value` in JSON's types: dataclasses and mappings become objects, paths strings, tuples and sets (sorted) lists.

    Raises InputError for anything else, so that a fingerprint never depends on an object's address.
    """
    if value is None or isinstance(value, bool | int | str):
        item_value = value.value if isinstance(value, Enum) else value
        return _text(item_value) if isinstance(item_value, str) else item_value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise InputError(f"a setting must be a finite number, got {value}")
        return value
    if isinstance(value, Path):
        return _text(str(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {_text(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=repr)
    raise InputError(f"a setting of type {type(value).__name__} cannot be recorded")


def _text(text: str) -> str:
    """`text` as UTF-8 can hold it: bytes of a path that are not UTF-8 are escaped (in the C locale they may be UTF-8)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        except UnicodeEncodeError:
            return text.encode("utf-8", "backslashreplace").decode()
    return text


def canonical(value: Any) -> bytes:
    """The one JSON spelling of `value`: sorted keys, no spaces, UTF-8."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change when any setting does; the order of the keys does not matter.

    `settings`: those of a Config that decide (deciding.settings), and what decides beside them.
    """
    return hashlib.sha256(canonical(settings)).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises InputError when it cannot be read."""
    with open_input(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None


def file_input(path: Path) -> dict[str, Any]:
    """The record of an input file in a manifest: its absolute path, size in bytes and SHA-256."""
    return {"path": str(Path(path).absolute()), "sha256": file_digest(path), "bytes": Path(path).stat().st_size}


def files_input(data: Path | tuple[Path, ...]) -> dict[str, Any]:
    """`file_input` of a data set; of several files the lists of paths and records, their bytes and a digest of digests."""
    if not isinstance(data, tuple):
        return file_input(data)
    files = [file_input(path) for path in data]
    return {
        "path": [each["path"] for each in files],
        "sha256": hashlib.sha256(canonical([each["sha256"] for each in files])).hexdigest(),
        "bytes": sum(each["bytes"] for each in files),
        "files": files,
    }


def path_for(output: Path) -> Path:
    """Where the manifest of an output lies: inside a directory, or beside a file as `<file>.manifest.json`."""
    output = Path(output)
    return output / FILE if output.is_dir() else output.with_name(f"{output.name}.{FILE}")


def write(path: Path, manifest: RunManifest) -> None:
    """Writes a manifest to `path` (the manifest's own path, see `path_for`), indented for people, atomically."""
    text = json.dumps(plain(manifest.to_json()), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(path, text + "\n")


def read(path: Path) -> RunManifest:
    """The manifest at `path`, or of the run directory `path`. Raises InputError when there is none or it is broken."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    try:
        data = decode(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"no manifest at {path}; the run did not finish, or this is not its folder") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not a manifest: {error}") from None
    try:
        return RunManifest.from_json(data)
    except InputError as error:
        raise InputError(f"{path} is not a manifest: {error}") from None


def beside(output: Path, mark: str) -> RunManifest | None:
    """The manifest beside an output file whose fingerprint is `mark`; None where there is none."""
    for path in sorted(Path(output).parent.glob(f"*.{FILE}")):
        try:
            manifest = read(path)
        except InputError:
            continue
        if mark and manifest.fingerprint == mark:
            return manifest
    return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences of two records of settings, a phrase each: `box_tokens 48, now 64`; nested tables key by key."""
    changes = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key} {_brief(old)}, now {_brief(new)}")
    return changes


def _brief(value: Any) -> str:
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return words if len(words) <= 60 else f"{words[:57]}..."


def versions() -> dict[str, str]:
    """Versions of cos, Python and the installed libraries that change results; imports none of them.

    In a checkout `cos-commit` names the commit, with `-dirty` when files differ from it.
    """
    # Imported here, as below: `cos --help` and every scoring would pay for them.
    import platform
    from importlib import metadata

    known = {"cos": cos_core.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit(Path(cos_core.__file__).resolve().parent.parent)
    return {**known, "cos-commit": commit} if commit else known


def hardware() -> dict[str, Any]:
    """Machine type, processor, usable cores, memory in bytes, names of NVIDIA GPUs. Contains no host or user name."""
    import platform

    gpus = sorted(_field(p, "Model:") for p in Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
    }


@dataclass(frozen=True)
class Started:
    """A run under way, returned by `started`; `finish` returns its manifest."""

    stage: str
    config: Any
    seed: int | None
    inputs: Mapping[str, Mapping[str, Any]]
    at: datetime
    clock: float
    fingerprint: str

    def finish(
        self,
        counts: Mapping[str, int],
        status: Literal["complete", "partial", "failed"] = "complete",
        results: Mapping[str, Any] | None = None,
    ) -> RunManifest:
        """The manifest. Missing counts of ok, failed and skipped are 0; the wall time is from a monotonic clock."""
        return RunManifest(
            stage=self.stage,
            status=status,
            config=plain(self.config),
            fingerprint=self.fingerprint,
            counts={"ok": 0, "failed": 0, "skipped": 0, **counts},
            seed=self.seed,
            inputs=plain(self.inputs),
            results=dict(results or {}),
            versions=versions(),
            hardware=hardware(),
            started=_stamp(self.at),
            finished=_stamp(datetime.now(UTC)),
            seconds=round(time.monotonic() - self.clock, 3),
        )


def started(
    stage: str,
    config: Any,
    *,
    seed: int | None = None,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    settings_fingerprint: str | None = None,
) -> Started:
    """The record of a stage that starts now. `config`: its Config; `settings_fingerprint`: by default that of `config`, where
    nothing counts by its content."""
    mark = settings_fingerprint or fingerprint(deciding.settings(config))
    return Started(stage, config, seed, dict(inputs or {}), datetime.now(UTC), time.monotonic(), mark)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _field(path: Path, name: str) -> str:
    """The value of the first `name: value` line of a file of the kernel, or ""."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _commit(root: Path) -> str | None:
    import shutil
    import subprocess

    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def summary(manifest: RunManifest, out: object) -> str:
    """One sentence about a finished stage: counts, time and the path of the result."""
    counts = ", ".join(f"{n} {name}" for name, n in manifest.counts.items() if n or name in ("ok", "failed"))
    return f"{manifest.stage} {manifest.status}: {counts} in {duration(manifest.seconds)} -> {out}"
