"""The data doctor: fifteen planted faults named with file and line, frames told apart, nothing reported of good data."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reporters import Told
from tiny_llava import make_checkpoint

from cos_core import training
from cos_core.data.datasets import read_examples
from cos_core.data.released import ReleasedRegions, Square
from cos_core.errors import InputError
from cos_core.geometry import Box, SquarePad
from cos_core.store.annotations import Store
from cos_core.training import TrainConfig
from cos_core.types import Annotation, Example

MAX_LENGTH = 700
GOOD = 24
LONG = "why? " * 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model")


def conversation(name: str, image: str | None, *turns: str) -> dict[str, Any]:
    turns = turns or ("What is it?", "a cup")
    speakers = ("human", "gpt")
    record: dict[str, Any] = {"id": name, "conversations": [{"from": speakers[i % 2], "value": t} for i, t in enumerate(turns)]}
    return record if image is None else {**record, "image": image}


def config(root: Path, model: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": root / "data.jsonl",
        "images": root / "images",
        "model": str(model),
        "out": root / "out",
        "store": root / "regions.json",
        "max_length": MAX_LENGTH,
        "device": "cpu",
        "check_only": True,
        "check": "full",
    }
    return TrainConfig(**{**settings, **changes})


def picture(path: Path, size: tuple[int, int] = (100, 60)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)


def planted(root: Path) -> dict[int, str]:
    """Good samples and fifteen faults; returns the line of each fault and the kind it must be reported as."""
    images = root / "images"
    lines: list[str] = []
    regions: dict[str, Any] = {}
    expected: dict[int, str] = {}
    row = 0

    def add(record: dict[str, Any] | str, kind: str | None = None, params: Any = (0, 0, 40), shift: int = 0) -> None:
        nonlocal row
        lines.append(record if isinstance(record, str) else json.dumps(record))
        if kind:
            expected[len(lines)] = kind
        if isinstance(record, str):
            return
        if params is not None and "image" in record:
            regions[f"{row + shift:06d}_{record['id'].replace('/', '_')}_q0"] = {"params": list(params)}
        row += 1

    for i in range(GOOD):
        picture(images / f"{i}.png")
        add(conversation(f"VG/{i}", f"{i}.png"), params=(i % 20, 2 * i, 30))
    add(conversation("missing", "nowhere.png"), "image")
    picture(images / "torn.png", (400, 300))
    (images / "torn.png").write_bytes((images / "torn.png").read_bytes()[:300])
    add(conversation("torn", "torn.png"), "image")
    (images / "empty.png").write_bytes(b"")
    add(conversation("empty", "empty.png"), "image")
    Image.new("P", (100, 60)).save(images / "named.jpg", format="GIF")
    add(conversation("named", "named.jpg"), "extension")
    add(conversation("outside", "../data.jsonl"), "image")
    add('{"id": "broken", "conversations": [', "record")
    add(conversation("odd", "0.png", "What?", "a cup", "And?"), "record")
    add({"id": "gptfirst", "image": "0.png", "conversations": [{"from": "gpt", "value": "Hi"}]}, "record")
    add(conversation("mute", "0.png", "What is it?", "  "), "record")
    add(conversation("VG/0", "0.png"), "repeated", params=None)
    add(conversation("unseen", "1.png"), "no region", params=None)
    add(conversation("shifted", "2.png"), "row of another sample", shift=7)
    add(conversation("beyond", "3.png"), "region outside the picture", params=(0, 170, 40))
    add(conversation("talk", None, LONG + LONG, "Because."), "tokens")
    add(conversation("cutimage", "4.png", LONG, "Because."), "tokens")
    (root / "data.jsonl").write_text("\n".join(lines) + "\n")
    (root / "regions.json").write_text(json.dumps(regions))
    return expected


def test_fifteen_planted_faults_are_named_with_file_and_line(tmp_path: Path, model: Path) -> None:
    expected = planted(tmp_path)
    assert len(expected) == 15
    ears = Told()
    with pytest.raises(
        InputError, match=r"the data has 11 faults, named in .*check\.jsonl: .*image \(4\).*; the first: .*data\.jsonl:\d+"
    ) as error:
        training.run(config(tmp_path, model), ears)
    assert error.value.exit_code == 3
    found = [json.loads(line) for line in (tmp_path / "out" / "check.jsonl").read_text().splitlines()]
    assert {record["line"]: record["kind"] for record in found} == expected
    assert {record["path"] for record in found} == {str(tmp_path / "data.jsonl")}
    assert {record["kind"] for record in found if not record["fault"]} == {
        "extension",
        "repeated",
        "no region",
        "region outside the picture",
    }
    reasons = {record["line"]: record["reason"] for record in found}
    assert "an image would be cut" in reasons[max(expected)]
    assert "nothing to learn" in reasons[max(expected) - 1]
    assert not any("11 faults" in text or "image: 4" in text for text in ears.lines[:-1]), "said once, by the error"
    assert not (tmp_path / "out" / "run.json").exists()


def test_as_many_faults_as_allowed_pass(tmp_path: Path, model: Path) -> None:
    planted(tmp_path)
    done = training.run(config(tmp_path, model, max_faults=11), Told())
    assert done.results["check"] == {"checked": 35, "faults": 11, "findings": 15}


def spread(n: int) -> list[Box]:
    """Boxes all over a 100x60 picture, in frame "image"."""
    draw = random.Random(3)
    corners = [(draw.uniform(0, 0.65), draw.uniform(0, 0.65)) for _ in range(n)]
    return [Box(x, y, x + 0.35, y + 0.35) for x, y in corners]


@pytest.mark.parametrize("wrong", [False, True])
def test_boxes_measured_in_the_padded_square_are_detected(tmp_path: Path, model: Path, wrong: bool) -> None:
    picture(tmp_path / "images" / "a.png")
    records = [conversation(str(i), "a.png", f"What is {i}?", "a cup") for i in range(30)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pad = SquarePad(100, 60)
    with Store.create_or_resume(tmp_path / "store", "f", {}) as store:
        for example, box in zip(read_examples(tmp_path / "data.jsonl"), spread(30), strict=True):
            square = pad.to_square(box)
            stored = Box(*square.corners, "image") if wrong else box
            store.put_many([Annotation(example.id, stored, 1.0, "p", "f", image="a.png")])
    made = config(tmp_path, model, store=tmp_path / "store")
    if not wrong:
        assert training.run(made, Told()).results["check"] == {"checked": 30, "faults": 0, "findings": 0}
        assert not (tmp_path / "out").exists(), "good data leaves nothing behind"
        return
    with pytest.raises(InputError, match=r"data\.jsonl:1: boxes .* fractions of the padded square"):
        training.run(made, Told())


def test_a_region_of_another_image_is_a_fault(tmp_path: Path, model: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "data.jsonl").write_text(json.dumps(conversation("a", "a.png")) + "\n" + json.dumps(conversation("b", "a.png")))
    with Store.create_or_resume(tmp_path / "store", "f", {}) as store:
        box = Box(0.1, 0.1, 0.5, 0.5)
        store.put_many([Annotation("a#q0", box, 1.0, "p", "f", image="a.png")])
        store.put_many([Annotation("b#q0", box, 1.0, "p", "f", image="b.png")])
    with pytest.raises(InputError, match=r"data\.jsonl:2: its region in the store was made on another image \(id 'b#q0'\)"):
        training.run(config(tmp_path, model, store=tmp_path / "store"), Told())


def test_the_released_file_is_joined_by_id(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(
        json.dumps({"000000_a_b_q1": {"params": [1, 2, 3]}, "nonsense": {}, "000001_c_q0": {"params": ["x", 2, 3]}})
    )
    (tmp_path / "d.jsonl").write_text(json.dumps(conversation("a/b", "a.png", "q", "a", "q", "a")) + "\n")
    first, second = read_examples(tmp_path / "d.jsonl")
    regions = ReleasedRegions(tmp_path / "r.json")
    assert len(regions) == 1
    assert regions.bad.keys() == {"nonsense", "000001_c_q0"}
    assert regions.find(first) is None
    assert regions.find(second) == ("000000_a_b_q1", 0, Square(1, 2, 3))
    assert regions.shifted(second) is None
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(InputError, match="is not a JSON object"):
        ReleasedRegions(tmp_path / "broken.json")


def test_regions_in_arrays_equal_a_plain_dictionary(tmp_path: Path) -> None:
    """The key of an example is looked up among regions of the same id in several rows, odd spellings and broken ones."""
    draw = random.Random(1)
    data: dict[str, Any] = {}
    for _ in range(600):
        row, name = draw.randrange(30), draw.choice(["a", "b_q1", "\u00e9", "c_d"])
        key = draw.choice(["{:06d}_{}_q{}", "{:07d}_{}_q{}", "{:06d}_{}_q0{}", "{}_{}_q{}"]).format(
            row, name, draw.randrange(3)
        )
        data[key] = {"params": draw.choice([[draw.random(), 2, 3], [1, 2, 0.5, 9], [1, 2], [1, 2, -3], None])}
    (tmp_path / "r.json").write_text(json.dumps(data))
    regions = ReleasedRegions(tmp_path / "r.json")
    plain: dict[tuple[str, int], list[tuple[int, str, Square]]] = {}
    for key, value in data.items():
        match = re.fullmatch(r"(\d{6,})_(.*)_q(\d+)", key)
        params = value["params"]
        if match and params and len(params) > 2 and params[2] > 0:
            square = Square(*map(float, params[:3]))
            plain.setdefault((match[2], int(match[3])), []).append((int(match[1]), key, square))
        else:
            assert key in regions.bad
    assert len(regions) == sum(map(len, plain.values())) == len(data) - len(regions.bad)
    looked_up = 0
    for (name, turn), entries in plain.items():
        for index in (None, *range(30)):
            example = Example("e", "d", "x.png", "q", meta={"sample": name, "turn": turn, "index": index})
            row, _, square = min(entries, key=lambda entry: entry[0] != index)
            found = regions.find(example)
            assert found is not None
            alike = [entry for entry in entries if entry[0] == row]
            # Two spellings of one row in one file: either of them.
            assert (found[1], found[2]) in [(entry[0], entry[2]) for entry in alike]
            if len(alike) == 1:
                assert found == (alike[0][1], row, square)
                looked_up += 1
    assert looked_up > 100
    assert regions.find(Example("e", "d", "x.png", "q", meta={"sample": "nobody"})) is None
