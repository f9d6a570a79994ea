"""A newcomer follows the documents word for word: the tutorial, a benchmark of their own, then three things broken on purpose.

Every block of the pages is used in order in one empty folder, with an empty home and no model hub: shell blocks are run, files
are written, and what a block is said to print must have been printed.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import pytest
from documents import ROOT, Block, blocks, run, shown
from warm_cos import warm

TUTORIAL, BENCHMARK = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "howto" / "add-a-benchmark.md"
LAST_SECTION = "## Break three things\n"


def _way() -> list[Block]:
    """The blocks in the order of a reader, whom the tutorial sends to the benchmark before its last section."""
    tutorial = blocks(TUTORIAL)
    last = TUTORIAL.read_text(encoding="utf-8").partition(LAST_SECTION)[0].count("\n") + 1
    first = list(takewhile(lambda block: block.line < last, tutorial))
    return [*first, *blocks(BENCHMARK), *tutorial[len(first) :]]


def test_every_block_is_used() -> None:
    way = _way()
    assert all(block.mark in ("run: newcomer", "shows") or block.mark.startswith("file: ") for block in way)
    elsewhere = [block for block in blocks() if block.mark == "run: newcomer" and block.path not in (TUTORIAL, BENCHMARK)]
    assert not elsewhere
    broken = "".join(block.text for block in way[-6:])
    assert [f"exit code {code}" in broken for code in (5, 2, 3)] == [True] * 3


@pytest.mark.slow
def test_a_newcomer(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    desk = tmp_path / "desk"
    desk.mkdir()
    said = ""
    environment = {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with warm(tmp_path / "bin", **environment) as programs:
        for block in _way():
            if block.mark == "run: newcomer":
                said = run(block, desk, programs, **environment)
            elif block.mark == "shows":
                assert shown(block, said), f"{block} is not what was printed:\n{said}"
            else:
                file = desk / block.mark.removeprefix("file: ")
                file.write_text(block.text, encoding="utf-8")
    assert not (desk / "lesson" / "half").exists()
