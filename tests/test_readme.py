"""Every shell block of the documents is run here, or says why not.

A comment before each ```bash block decides: `<!-- run -->`, `<!-- run: slow -->` (a model is loaded), `<!-- not run: why -->`.
Blocks run as written, with `bash -e`, in a folder that has what the text speaks of: the demo's scenes (a few), a photo, and the
tests' golden files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"(?:<!-- (?P<mark>(?:not )?run[^\n]*?) -->\n)?```(?:bash|sh|shell|console)\n(?P<code>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A shell block, where it stands, and the comment before it."""

    path: Path
    line: int
    mark: str
    code: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            found.append(Block(path, line, (match["mark"] or "").strip(), match["code"]))
    return found


RUN = [
    pytest.param(b, id=str(b), marks=[pytest.mark.slow] if b.mark == "run: slow" else [])
    for b in blocks()
    if b.mark[:3] == "run"
]


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_every_block_is_marked(block: Block) -> None:
    reason = block.mark.removeprefix("not run:").strip() if block.mark.startswith("not run:") else None
    assert block.mark in ("run", "run: slow") or reason, (
        f"{block} needs <!-- run -->, <!-- run: slow --> or <!-- not run: why -->"
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout in which the demo has run, with a photo."""
    from PIL import Image

    from cos_core.miniature.scenes import write_dataset

    folder = tmp_path_factory.mktemp("readme")
    Image.effect_noise((320, 240), 60).convert("RGB").save(folder / "photo.jpg")
    for split, seed in (("train", 1), ("test", 2)):
        write_dataset(folder / "runs" / "demo" / "scenes" / split, 4, seed, 3, 0.0)
    shutil.copytree(ROOT / "tests" / "golden", folder / "tests" / "golden")
    return folder


@pytest.mark.parametrize("block", RUN)
def test_block(block: Block, place: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        ["bash", "-eu", "-c", block.code],
        cwd=place,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def test_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"
