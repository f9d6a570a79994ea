"""Whatever stands in a file, its parser reads it or refuses it with an InputError: those that have no property elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cos_cli import launcher
from cos_core.benchmarks import _files
from cos_core.data.formats import Format, chain_of_spot, coco, lines, viscot
from cos_core.data.formats.frames import FileBoxes
from cos_core.data.formats.records import ImportSource, Sizes
from cos_core.data.released import ReleasedRegions
from cos_core.dialogue.prompts import load_profile
from cos_core.errors import InputError
from cos_core.files import jsonl, manifest
from cos_core.files.shard import Shard
from cos_core.models import checkpoint_files
from cos_core.store import codec
from cos_core.suite.config import seconds
from cos_core.types import Annotation, Prediction, RunManifest, Score
from cos_core.visualize.relevance_maps import read_heat

ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([[], {}, "a.png", [0, 0, 1, 1]])
JSON = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def around(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that have some of the right keys, with anything behind them."""
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=3), JSON, max_size=len(names))


def fields(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    return around(*kind.__slots__)


@pytest.mark.parametrize("kind", [Annotation, Prediction, RunManifest, Score], ids=lambda kind: kind.__name__)
@few
@given(data=st.data())
def test_any_record(kind: Any, data: st.DataObject) -> None:
    with suppress(InputError):
        kind.from_json(data.draw(fields(kind)))


@few
@given(value=st.binary(max_size=80))
def test_any_bytes_in_a_store(value: bytes) -> None:
    for read in (lambda: codec.unpack(b"k", value, "f"), lambda: codec.failure(b"k", value)):
        with suppress(InputError):
            read()
    with suppress(ValueError):
        codec.Heat.unpacked(value)


def regions(read: Callable[[ImportSource], Any], form: Format) -> Callable[[Path], object]:
    return lambda path: list(read(ImportSource(path, "f", Sizes(None), None, lambda problem: None, FileBoxes(form))))


READERS: dict[str, Callable[[Path], object]] = {
    "manifest": manifest.read,
    "object": _files.read_object,
    "profile.json": lambda path: load_profile(str(path)),
    "profile.toml": lambda path: load_profile(str(path)),
    "heat.json": read_heat,
    "heat.npy": read_heat,
    "weights": checkpoint_files.header,
    "hostfile": launcher.machines,
    "released": ReleasedRegions,
    "coco": lambda path: regions(lambda source: coco.read(coco.load(path), source), "coco")(path),
    "lines": regions(lines.read, "jsonl"),
    "viscot": regions(viscot.read, "visual-cot"),
}
KEYS = ("images", "annotations", "id", "image_id", "bbox", "file_name", "example_id", "score", "policy", "fingerprint", "box")
KEYS += ("heat", "failure", "bboxs", "question", "image", "dataset", "split", "width", "height", "question_id", "conversations")
TEXTS = st.text(max_size=40).map(str.encode) | st.binary(max_size=60)
OBJECTS = st.recursive(
    around(*KEYS), lambda inner: st.dictionaries(st.sampled_from(KEYS), st.lists(inner, max_size=3)), max_leaves=4
)


@pytest.mark.parametrize("name", READERS)
@few
@given(data=st.data())
def test_any_file(name: str, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data.draw(TEXTS | (OBJECTS | JSON).map(lambda value: json.dumps(value).encode())))
    with suppress(InputError):
        READERS[name](path)


@few
@given(text=st.text())
def test_any_words(text: str) -> None:
    for read in (Shard.parse, seconds):
        with suppress(InputError):
            read(text)
    with suppress(ValueError):
        jsonl.decode(text.encode("utf-8", "surrogatepass"))


def test_regions_of_the_authors_need_their_questions() -> None:
    with pytest.raises(InputError, match="--data"):
        regions(chain_of_spot.read, "chain-of-spot")(Path("x"))
