"""The pictures of the documents: made again by the committed script, small, and shown by a page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT
from PIL import Image

PICTURES = ROOT / "docs" / "pictures"
SHOWN = {
    (page.parent / target).resolve()
    for page in DOCUMENTS
    for target in re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
}


def test_every_picture_is_shown_and_small() -> None:
    pictures = {path.resolve() for path in PICTURES.iterdir() if path.suffix in (".png", ".svg")}
    assert pictures == SHOWN
    assert max(path.stat().st_size for path in pictures) < 200_000


@pytest.mark.slow
def test_the_script_makes_them_again(tmp_path: Path) -> None:
    """The same box, answer and region: drawn with the same fonts the pixels are the same but for a few at edges."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / "pictures.py"), str(tmp_path)], check=True, timeout=600)
    committed = {path.name: path for path in PICTURES.glob("*.png")}
    assert {path.name for path in tmp_path.iterdir()} == set(committed)
    for name, path in committed.items():
        again, before = Image.open(tmp_path / name).convert("RGB"), Image.open(path).convert("RGB")
        assert again.size == before.size
        differing = sum(a != b for a, b in zip(again.get_flattened_data(), before.get_flattened_data(), strict=True))
        assert differing < 0.01 * again.width * again.height, name
