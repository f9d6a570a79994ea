"""`cos` as a stranger has it: a wheel in an empty environment, used from another folder, without a network.

Only our own files come from the wheel; the libraries are those of the environment that runs the tests, put at the path's end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(kind: str, folder: Path) -> Path:
    """The distribution of this tree, "wheel" or "sdist", built into `folder`."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=7200)
    (built,) = folder.iterdir()
    return built


def environment(folder: Path) -> Path:
    """A new environment with the wheel in it; returns its folder of programs."""
    place = folder / "environment"
    venv.create(place, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "--disable-pip-version-check", "--quiet"]
    wheel = build("wheel", folder / "dist")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True, timeout=7200)
    (site,) = (place / "lib").glob("python*/site-packages")
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "zz_libraries.pth").write_text("\n".join(libraries) + "\n")
    return place / "bin"


def offline() -> list[str]:
    """What to put before a command so that it has no network, loopback included; nothing where the system does not allow it."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode != 0:
        return []
    return [unshare, "-rn"]


def variables(programs: Path, home: Path) -> dict[str, str]:
    """An environment of little more than a home: no PYTHONPATH, no compiler on the path."""
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "LANG") if name in os.environ}
    return {**kept, "PATH": str(programs), "HOME": str(home), "HF_HUB_OFFLINE": "1"}
