"""Worker processes as the system sees them."""

from __future__ import annotations

import os
import time
from pathlib import Path


def children(parent: int | None = None) -> list[int]:
    """Workers that a process (this one by default) has spawned, the oldest first."""
    parent = parent or os.getpid()
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
    return [int(c) for c in found if b"spawn_main" in _command(c)]


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def wait_for_end(pid: int) -> None:
    """Returns once the process is gone, or is one that its parent has not yet asked after; fails after a quarter of an hour."""
    until = time.monotonic() + 7200
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"the worker {pid} outlived its parent")
