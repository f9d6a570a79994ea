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
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"the worker {pid} outlived its parent")
