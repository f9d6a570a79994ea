"""The machine: GPUs, disks, file systems, locks, memory shared between processes, threads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cos_core.doctor.finding import MachineFinding
from cos_core.doctor.probe import ask
from cos_core.files import filesystems

GIB = 2**30
_QUERY = "--query-gpu=name,memory.free,memory.total,driver_version"
_STORE_SECONDS = 30.0
_NEEDED_GIB = {"train": 60, "annotate": 10, "infer": 20}
"""Free space: a 7B checkpoint and its optimiser states; a store; the weights in the hub's cache."""


def gpus(wanted: bool) -> tuple[list[str], list[MachineFinding]]:
    """(names, findings) of the NVIDIA GPUs, as the driver's own tool tells them."""
    output = _nvidia_smi(_QUERY, "--format=csv,noheader,nounits")
    if output is None:
        if any(Path("/proc/driver/nvidia/gpus").glob("*")):
            todo = "check the driver: nvidia-smi; in a container: --gpus all"
            return [], [MachineFinding("gpu", "warning", "there is a GPU, but its driver does not answer", todo)]
        advice = "a 7B model needs one; the miniature does not" if wanted else None
        return [], [MachineFinding("gpu", "warning" if wanted else "note", "no NVIDIA GPU", advice)]
    names, findings = [], []
    for line in output.splitlines():
        name, free, total, driver = (part.strip() for part in line.rsplit(",", 3))
        names.append(name)
        words = f"{name}, {_mib(free)} of {_mib(total)} free, driver {driver}"
        full = free.isdigit() and total.isdigit() and int(free) < int(total) // 2
        advice = "another process uses it: nvidia-smi" if full else None
        findings.append(MachineFinding("gpu", "warning" if full else "ok", words, advice))
    return names, findings or [MachineFinding("gpu", "note", "no NVIDIA GPU")]


def driver_cuda() -> str | None:
    """The newest CUDA version that the driver knows."""
    match = re.search(r"CUDA Version: *([\d.]+)", _nvidia_smi() or "")
    return match[1] if match else None


def store(folder: Path, needed: bool) -> Iterator[MachineFinding]:
    """Whether a store can be written in `folder` and its lock keeps others out; and whether the file system is a safe one."""
    kind = filesystems.network_type(folder)
    if kind is not None:
        todo = "write stores to a local disk, then copy them; --folder names another place to look at"
        message = f"{folder} is on a network file system ({kind}), where LMDB is not safe"
        yield MachineFinding("store", "missing" if needed else "warning", message, todo)
        return
    answer = ask([f"store:{folder}"], _STORE_SECONDS).get("store", {"error": "the trial did not start"})
    if "error" in answer:
        todo = "name a folder on a local disk that you may write to: --folder"
        yield MachineFinding(
            "store", "missing" if needed else "warning", f"no store can be kept in {folder}: {answer['error']}", todo
        )
    elif not answer["locks"]:
        message = f"locks do not hold in {folder}: two runs could write the same files"
        yield MachineFinding("store", "missing" if needed else "warning", message, "use a local disk")
    else:
        yield MachineFinding("store", "ok", f"LMDB writes, reads and locks in {folder}")


def disk(folder: Path, task: str | None) -> Iterator[MachineFinding]:
    """Free space and free files."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    needed = _NEEDED_GIB.get(task or "", 2)
    space = f"{free / GIB:.1f} GiB free in {folder}"
    if free < needed * GIB:
        message = f"{space}; {task or 'a run'} may want {needed} GiB"
        yield MachineFinding("disk", "warning", message, "make room, or name another folder")
    else:
        yield MachineFinding("disk", "ok", space)
    if status.f_files and status.f_favail < 1000:
        yield MachineFinding(
            "disk", "warning", f"only {status.f_favail} more files fit in {folder}", "remove files, not only bytes"
        )


def hub(wanted: bool) -> MachineFinding:
    """Where weights by hub id come from."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    models = sorted(p.name.removeprefix("models--").replace("--", "/") for p in cache.glob("models--*"))
    shown = f" ({', '.join(models[:3])}{', ...' if len(models) > 3 else ''})" if models else ""
    words = f"{cache}: {len(models)} models{shown}"
    if offline:
        todo = "fetch models where there is a network and copy the cache, or unset HF_HUB_OFFLINE" if not models else None
        return MachineFinding("hub", "warning" if wanted and not models else "note", f"offline (HF_HUB_OFFLINE); {words}", todo)
    nearest = next((p for p in (cache, *cache.parents) if p.exists()), Path("/"))
    if not os.access(nearest, os.W_OK):
        return MachineFinding("hub", "warning", f"{words}; it cannot be written to", "set HF_HOME to a folder of your own")
    free = shutil.disk_usage(nearest).free / GIB
    if wanted and free < _NEEDED_GIB["infer"] and not models:
        return MachineFinding("hub", "warning", f"{words}; {free:.1f} GiB free, 7B takes 14", "set HF_HOME to a larger disk")
    return MachineFinding("hub", "ok", words)


def shared_memory() -> MachineFinding:
    """What processes that load data pass pictures through."""
    place = Path("/dev/shm")  # noqa: S108 (looked at, not written)
    if not place.is_dir():
        return MachineFinding("shared memory", "note", "no /dev/shm", "train with --num-workers 0")
    size = shutil.disk_usage(place)
    words = f"{size.free / GIB:.1f} of {size.total / GIB:.1f} GiB free in /dev/shm"
    if size.free < GIB:
        return MachineFinding("shared memory", "warning", words, "in a container: --shm-size 8g; or train with --num-workers 0")
    return MachineFinding("shared memory", "ok", words)


def threads() -> MachineFinding:
    """Threads against the cores that this process may really use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    usable = min(cores, max(1, round(quota))) if quota else cores
    words = f"{usable} cores" + (f" ({cores} seen, limited to {quota:g})" if quota and usable < cores else "")
    text = os.environ.get("OMP_NUM_THREADS", "")
    if text.isdigit() and int(text) > usable:
        return MachineFinding("threads", "warning", f"{words}, OMP_NUM_THREADS={text}", f"export OMP_NUM_THREADS={usable}")
    if not text and usable < cores:
        return MachineFinding(
            "threads", "warning", f"{words}; torch would start {cores} threads", f"export OMP_NUM_THREADS={usable}"
        )
    return MachineFinding("threads", "ok", words + (f", OMP_NUM_THREADS={text}" if text else ""))


def _nvidia_smi(*arguments: str) -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _mib(text: str) -> str:
    return f"{int(text) / 1024:.0f} GiB" if text.isdigit() else text


def _quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores that the control group may use at once, or None."""
    try:
        most, period = path.read_text().split()
        return int(most) / int(period)
    except (OSError, ValueError):
        return None
