"""Every shell block of the documents is run here, or by test_newcomer.py, or says why not (the marks are documents.py's).

Blocks run as written, with `bash -e`, in a folder that has what the text speaks of: as many records as the demo's, a photo, and
the tests' golden files.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, Block, blocks, run, shown
from warm_cos import warm

from cos_core.data.datasets import read_examples
from cos_core.demo.config import FULL
from cos_core.store.annotations import Store
from cos_core.types import Annotation

README = ROOT / "README.md"
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


DRAWN = 24
"""Scenes that are drawn; the fixture's further records show these pictures again."""


def _like_the_demo(split: Path, count: int, seed: int, per_image: int) -> None:
    """A data set with as many records as the demo's and few pictures: record N shows the picture N modulo DRAWN."""
    from cos_core.miniature.scenes import write_dataset

    questions = write_dataset(split, DRAWN, seed, per_image)
    drawn = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    records = [{**drawn[number % DRAWN], "id": f"{seed}-{number:05d}"} for number in range(count)]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout in which `make demo` has run, with a photo: as many questions and labels as the demo has."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("readme")
    Image.effect_noise((320, 240), 60).convert("RGB").save(folder / "photo.jpg")
    demo = folder / "runs" / "demo"
    _like_the_demo(demo / "scenes" / "train", FULL.train_scenes, 1, FULL.questions)
    _like_the_demo(demo / "scenes" / "test", FULL.test_scenes, 2, FULL.questions)
    with Store.create_or_resume(demo / "labels" / "from_single_question", "f", {}) as store:
        store.put_many(
            Annotation(example.id, example.gold, 1.0, "from_single_question", "f")
            for example in read_examples(demo / "scenes" / "train" / "questions.jsonl")
        )
    shutil.copytree(ROOT / "tests" / "golden", folder / "tests" / "golden")
    return folder


def test_no_limit_of_the_documents_reaches_the_whole_data() -> None:
    """A block that works only because --limit covers all questions would fail after the real demo."""
    run_blocks = [block for block in BLOCKS if block.mark in ("run", "run: slow")]
    limits = [int(limit) for block in run_blocks for limit in re.findall(r"--limit (\d+)", block.text)]
    assert limits
    assert max(limits) < FULL.test_scenes


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm(tmp_path_factory.mktemp("warm") / "bin", HF_HUB_OFFLINE="1") as made:
        yield made


@pytest.mark.parametrize("block", RUN)
def test_block(block: Block, place: Path, request: pytest.FixtureRequest) -> None:
    """The README's own commands start as a reader's do; those that load a model elsewhere come from a warm process."""
    dear = block.mark == "run: slow" and block.path != README
    printed = run(block, place, request.getfixturevalue("programs") if dear else None, HF_HUB_OFFLINE="1")
    following = BLOCKS[BLOCKS.index(block) + 1 : BLOCKS.index(block) + 2]
    for shows in following:
        if shows.mark == "shows" and shows.path == block.path:
            assert shown(shows, printed), f"{shows} is not what was printed:\n{printed}"


@pytest.mark.slow
def test_the_readme_has_the_arithmetic_of_a_real_run() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "real_run.py")]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert table in README.read_text(encoding="utf-8")


def test_the_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


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
