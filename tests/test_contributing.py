"""The five tasks of CONTRIBUTING.md: each diff fits the tree, and the modules that it adds work as files of a user's own."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import family_contract
import pytest
import tiny_families
from documents import ROOT, blocks
from PIL import Image
from tiny_parts import SHAPES

from cos_core.files import plug
from cos_core.interfaces import Request
from cos_core.types import Prediction, Turn


@dataclass(frozen=True)
class FileDiff:
    """The changes of one file: hunks of lines with their mark (" ", "+" or "-")."""

    path: str
    new: bool
    hunks: list[list[str]]

    def added(self) -> str:
        return "".join(line[1:] + "\n" for hunk in self.hunks for line in hunk if line.startswith("+"))


def diffs() -> list[FileDiff]:
    """The diffs of CONTRIBUTING.md, file by file; a hunk begins at `@@` or at the head."""
    parts = []
    for block in blocks(ROOT / "CONTRIBUTING.md"):
        if block.language == "diff":
            for part in re.split(r"^--- ", block.text, flags=re.MULTILINE)[1:]:
                before, after, *lines = part.splitlines()
                hunks = [hunk.split("\n") for hunk in re.split(r"^@@.*\n", "\n".join(lines), flags=re.MULTILINE) if hunk]
                hunks = [[line for line in hunk if line] for hunk in hunks]
                parts.append(FileDiff(after.removeprefix("+++ ").strip(), before.strip() == "/dev/null", hunks))
    return parts


DIFFS = diffs()


def test_there_is_a_diff_for_each_task() -> None:
    paths = {diff.path for diff in DIFFS}
    added = {"cos_core/benchmarks/yesno.py", "cos_core/engines/constant.py", "cos_core/models/families/glm4v.py"}
    assert added | {"cos_core/infer/config.py", "cos_core/types.py"} <= paths


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: diff.path)
def test_a_diff_fits_the_tree(diff: FileDiff) -> None:
    path = ROOT / diff.path
    assert path.exists() is not diff.new
    for hunk in [] if diff.new else diff.hunks:
        before = "\n".join(line[1:] for line in hunk if line[0] in " -")
        assert before, "a hunk needs lines of context"
        assert path.read_text(encoding="utf-8").count(before) == 1


def _written(path: str, folder: Path) -> Path:
    """The file that a diff adds, written into `folder`."""
    (diff,) = [each for each in DIFFS if each.path == path]
    file = folder / Path(path).name
    file.write_text(diff.added(), encoding="utf-8")
    return file


def _plugged(path: str, kind: str, folder: Path, **options: object) -> Any:
    """The plug-in that a diff adds, as a file of a user's own."""
    return plug.load(kind, str(_written(path, folder)), **options)


def test_the_benchmark_scores(tmp_path: Path) -> None:
    rows = [("1", "Is it red?", "yes"), ("2", "Is it big?", "no")]
    records = [{"id": name, "image": "a.png", "question": question, "answer": answer} for name, question, answer in rows]
    (tmp_path / "yesno.json").write_text(json.dumps(records), encoding="utf-8")
    benchmark = _plugged("cos_core/benchmarks/yesno.py", "benchmarks", tmp_path)
    data = benchmark.load(tmp_path)
    scores = benchmark.score(data, {"1": Prediction("1", "Yes."), "2": Prediction("2", "yes")})
    assert [score.value for score in scores] == [1.0, 0.0]
    assert benchmark.metrics(data, scores) == {"accuracy": 0.5}


def test_the_engine_answers(tmp_path: Path) -> None:
    engine = _plugged("cos_core/engines/constant.py", "engines", tmp_path, model="no", device="cpu")
    (reply,) = engine.generate([Request((Turn("user", ("Is it red?",)),), {})])
    assert reply.text == "no"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_family_holds_the_contract(shape: str, tmp_path: Path) -> None:
    file = _written("cos_core/models/families/glm4v.py", tmp_path)
    spec = importlib.util.spec_from_file_location("added_family", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    family, processor = module.build(), tiny_families.by_hand(file.stem, shape)
    config, images = tiny_families.BUILDERS[file.stem](SHAPES[shape]).config, processor.image_processor
    family_contract.check(family, config, processor)
    for size in family_contract.SIZES:
        _, rows, columns = images(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"][0].tolist()
        assert family.resized(images, *size) == (columns * images.patch_size, rows * images.patch_size)
        (grid,) = family.grids(config, processor, size)
        assert (grid.rows, grid.columns) == (rows // images.merge_size, columns // images.merge_size)
