"""Which file system a path lies on: a memory-mapped store is not safe on one that other machines write to as well."""

from __future__ import annotations

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
_NETWORK = re.compile(
    r"nfs\d*|lustre|gpfs|cifs|smb\w*|ceph|9p|afs|beegfs|glusterfs|panfs|orangefs|wekafs|pvfs2|ocfs2|gfs2|virtiofs"
    r"|fuse\.(?!fuse-overlayfs|lxcfs|snapfuse|squashfuse|portal).+"
)
_OCTAL = re.compile(r"\\([0-7]{3})")


def network_type(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type (`nfs4`, `lustre`, `fuse.sshfs`, ...) of the network file system that `path` is or would be on; None for a disk.

    None too where the system keeps no list of mounts.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[1])
        # Of two mounts on one place, the later one is seen.
        if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind if _NETWORK.fullmatch(kind) else None


def warning(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The sentence for a store that is to be written on a network file system, or None."""
    kind = network_type(path, mounts)
    if kind is None:
        return None
    return f"{path} lies on a network file system ({kind}), where LMDB is not safe; write to a local disk, then copy"
