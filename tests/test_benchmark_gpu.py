"""benchmarks/gpu.py on a CPU with a tiny shape: every part runs, every row has its figures, the page gets the tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]


def between_marks(page: Path) -> str:
    text = page.read_text()
    return text.partition("<!-- gpu tables: begin -->")[2].partition("<!-- gpu tables: end -->")[0]


@pytest.mark.slow
def test_every_part_runs_and_fills_its_row(tmp_path: Path):
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--small", "--into", str(page)]
    done = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stderr
    written, before = rows(between_marks(page)), rows(between_marks(PAGE))
    assert [row[0] for row in written] == [row[0] for row in before], "the page has a row for each part"
    heads = ("two passes", "annotation", "training")
    figures = {row[0]: row[1:] for row in written if row[0] not in heads}
    for name, cells in figures.items():
        numbers = [cell for cell in cells if cell]
        assert numbers, name
        assert all(float(number) > 0 for number in numbers), (name, done.stderr)
    assert (
        page.read_text().partition("<!-- gpu tables: end -->")[2] == PAGE.read_text().partition("<!-- gpu tables: end -->")[2]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["performance.md"], "the checkpoint is not left behind"
