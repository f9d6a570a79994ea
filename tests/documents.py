"""The fenced blocks of the documents, and how a reader would use them.

A comment on the line before a fence says what the block is:

    <!-- run -->, <!-- run: slow -->   a shell block that test_readme.py runs (slow: a model is loaded)
    <!-- run: newcomer -->             one that test_newcomer.py runs, in the order of the pages
    <!-- not run: why -->              one that no test runs
    <!-- file: NAME -->                what the reader writes to NAME
    <!-- shows -->                     what the shell block before it prints (its test compares); "..." stands for anything
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("bash", "sh", "shell", "console")
_FENCE = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block, where it stands, and the comment before it."""

    path: Path
    line: int
    mark: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def shell(self) -> bool:
        return self.language in SHELLS


def blocks(*paths: Path) -> list[Block]:
    """The blocks of `paths` (all documents without any), in order."""
    found = []
    for path in paths or DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start("text"))
            found.append(Block(path, line, (match["mark"] or "").strip(), match["language"], match["text"]))
    return found


def run(block: Block, folder: Path, programs: Path | None = None, **environment: str) -> str:
    """Runs a shell block as written in `folder`, with these tests' `cos`, or with that of `programs`.

    Returns what it said; fails unless it ended well.
    """
    path = os.pathsep.join(
        [*filter(None, [programs and str(programs)]), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    )
    done = subprocess.run(
        ["bash", "-eu", "-c", block.text],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=7200,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}"
    return done.stdout


def shown(block: Block, said: str) -> bool:
    """Whether `said` holds the text of a `shows` block."""
    return re.search(re.escape(block.text.strip()).replace(r"\.\.\.", ".*?"), said, re.DOTALL) is not None
