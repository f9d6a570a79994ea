"""Every shell block of the documents is run here, or by test_newcomer.py, or says why not (the marks are documents.py's).

Blocks run as written, with `bash -e`, in a folder that has what the text speaks of: the demo's scenes (a few), a photo, and the
tests' golden files.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, Block, blocks, run

BLOCKS = blocks()
RUN = [
    pytest.param(block, id=str(block), marks=[pytest.mark.slow] if block.mark == "run: slow" else [])
    for block in BLOCKS
    if block.mark in ("run", "run: slow")
]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_no_command_hides_in_a_block_of_another_kind(block: Block) -> None:
    assert block.language, f"{block} needs a language: bash, or text"
    assert block.shell or not re.search(r"^(cos|pip|make|\$) ", block.text, re.MULTILINE)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.shell], ids=str)
def test_every_block_is_marked(block: Block) -> None:
    reason = block.mark.removeprefix("not run:").strip() if block.mark.startswith("not run:") else None
    assert block.mark in ("run", "run: slow", "run: newcomer") or reason, (
        f"{block} needs <!-- run -->, <!-- run: slow -->, <!-- run: newcomer --> or <!-- not run: why -->"
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout in which the demo has run, with a photo; more scenes than any block asks for."""
    from PIL import Image

    from cos_core.data.datasets import read_examples
    from cos_core.geometry import Box
    from cos_core.miniature.scenes import write_dataset
    from cos_core.store.annotations import Store
    from cos_core.types import Annotation

    folder = tmp_path_factory.mktemp("readme")
    Image.effect_noise((320, 240), 60).convert("RGB").save(folder / "photo.jpg")
    for split, seed in (("train", 1), ("test", 2)):
        write_dataset(folder / "runs" / "demo" / "scenes" / split, 24, seed, 3, 0.0)
    demo = folder / "runs" / "demo"
    with Store.create_or_resume(demo / "labels" / "from_single_question", "f", {}) as store:
        store.put_many(
            Annotation(example.id, Box.from_json(example.meta["gold"]), 1.0, "from_single_question", "f")
            for example in read_examples(demo / "scenes" / "train" / "questions.jsonl")
        )
    shutil.copytree(ROOT / "tests" / "golden", folder / "tests" / "golden")
    return folder


@pytest.mark.parametrize("block", RUN)
def test_block(block: Block, place: Path) -> None:
    run(block, place)


def test_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                there = path.parent / target if target else path
                assert there.exists(), f"{path.name} links to {target}"
                assert not anchor or anchor[1:] in _anchors(there), f"{path.name} links to {target}{anchor}"


def _anchors(path: Path) -> set[str]:
    """The headings of a page as its viewers name them: small letters, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
