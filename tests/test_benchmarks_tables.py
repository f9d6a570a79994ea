"""Tables with pictures inside: every form of base64, cells that name rows, unpacking that is cut short, options called None."""

from __future__ import annotations

import base64
import csv
import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from refusals import refused

from cos_core.benchmarks import _tsv, hrbench
from cos_core.evaluate import EvalConfig
from cos_core.evaluate import stage as evaluate
from cos_core.files.durable import atomic_file
from cos_core.files.images import open_image

HEAD = ["index", "question", "A", "B", "C", "D", "answer", "category", "image", "l2-category"]
TABLE = "mmbench_dev_20230712.tsv"


def jpeg(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (96, 64), colour).save(data, "JPEG")
    return data.getvalue()


RED, GREEN, BLUE = jpeg("red"), jpeg("green"), jpeg("blue")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def table(folder: Path, cells: Sequence[tuple[int, str]], name: str = TABLE) -> Path:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(HEAD)
        writer.writerows([index, "Which?", "red", "green", "", "", "A", "c", cell, "l"] for index, cell in cells)
    return folder / name


def shown(folder: Path, name: str = "mmbench") -> tuple[dict[str, bytes | None], list[str]]:
    """What each question is shown once everything is unpacked, and what was said."""
    benchmark, data = evaluate.load(name, folder)
    said = benchmark.unpack(folder)  # type: ignore[attr-defined]
    files = {e.id: data.image_root / str(e.image) for e in data.examples}
    return {index: path.read_bytes() if path.exists() else None for index, path in files.items()}, said


ODD = bytes(range(256)) * 2 + b"\xfb\xff"
FORMS = {
    "plain": b64(ODD),
    "RFC 2045": base64.encodebytes(ODD).decode(),
    "CRLF": base64.encodebytes(ODD).decode().replace("\n", "\r\n"),
    "a line end behind": b64(ODD) + "\n",
    "escaped line ends": base64.encodebytes(ODD).decode().replace("\n", "\\n"),
    "data URI": "data:image/png;base64," + b64(ODD),
    "data URI with a parameter": "data:image/png;charset=utf-8;BASE64," + b64(ODD),
    "data URI, escaped": "data:image/png;base64," + b64(ODD).replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    "url-safe": base64.urlsafe_b64encode(ODD).decode(),
    "unpadded": b64(ODD).rstrip("="),
    "url-safe and unpadded": base64.urlsafe_b64encode(ODD).decode().rstrip("="),
    "a list of one": str([b64(ODD)]),
    "a JSON list of one": json.dumps([b64(ODD)]),
    "a list of a URI": json.dumps(["data:image/png;base64," + b64(ODD)]),
    "quoted": json.dumps(b64(ODD)),
    "Python bytes": repr(base64.b64encode(ODD)),
}


@pytest.mark.parametrize("form", FORMS)
def test_base64_as_it_stands_in_tables(form: str) -> None:
    assert _tsv.picture_of(FORMS[form]) == ODD


@pytest.mark.parametrize(
    "cell", [str([b64(RED), b64(RED)]), "http://x/y.jpg", "data:image/png,abc", "####", "/9j", "[]", b64(RED)[:41] + "é"]
)
def test_a_bad_cell_costs_its_own_question(cell: str, tmp_path: Path) -> None:
    table(tmp_path, [(1, b64(RED)), (2, cell), (3, b64(GREEN))])
    found, said = shown(tmp_path)
    assert (found["1"], found["3"]) == (RED, GREEN)
    if cell != "/9j":  # three letters are two bytes of base64
        assert len(said) == 1
        assert f"{TABLE}:3: the picture of row 2 cannot be unpacked" in said[0]
    with refused("2.jpg"):
        open_image(tmp_path / "images" / "en", "2.jpg")


CELLS = [
    (7, b64(RED)), (1000007, "7"), (12, "7"), (1000012, "12"), (15, b64(GREEN)), (1000015, b64(GREEN)), (2000015, b64(BLUE)),
    (20, "1000012.0"), (30, "31"), (31, "32"), (32, "31"), (40, "40"), (50, "999"), (60, ""), (1000060, "60"),
]  # fmt: skip


def test_cells_that_name_rows_are_followed(tmp_path: Path) -> None:
    table(tmp_path, CELLS)
    found, said = shown(tmp_path)
    for index, picture in [
        *dict.fromkeys((7, 1000007, 12, 1000012, 20), RED).items(),
        (15, GREEN),
        (1000015, GREEN),
        (2000015, BLUE),
    ]:
        assert found[str(index)] == picture, index
    assert all(found[index] is None for index in ("30", "31", "32", "40", "50", "60", "1000060"))
    assert len(said) == 3
    assert any("3 rows show no picture" in words and "(31, 32)" in words for words in said)
    assert any("1 rows show no picture" in words and "(40)" in words for words in said)
    assert any("row 999, which is not in the table" in words for words in said)
    assert sorted(p.name for p in (tmp_path / "images" / "en").iterdir()) == ["15.jpg", "2000015.jpg", "7.jpg"]


def test_a_long_chain_of_rows_is_followed_in_time() -> None:
    pictures = _tsv.Pictures(str)
    for index in range(20_000):
        pictures.add({"index": str(index), "image": str(index + 1)})
    pictures.add({"index": "20000", "image": b64(RED)})
    assert {pictures.file(str(index)) for index in range(20_001)} == {"20000.jpg"}
    assert pictures.problems() == []


class TestUnpacking:
    def test_torn_replaced_and_changed_pictures_are_written_anew(self, tmp_path: Path) -> None:
        table(tmp_path, [(1, b64(RED)), (2, b64(GREEN))])
        folder = tmp_path / "images" / "en"
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(RED[:100])  # as an older version left it on a full disk
        found, _ = shown(tmp_path)
        assert list(found.values()) == [RED, GREEN]
        before = (folder / "2.jpg").stat().st_mtime_ns
        (folder / "1.jpg").write_bytes(b"x" * len(RED))
        assert shown(tmp_path)[0]["1"] == RED
        assert (folder / "2.jpg").stat().st_mtime_ns == before, "what is right is not touched"
        table(tmp_path, [(1, b64(BLUE)), (2, b64(GREEN))])
        assert list(shown(tmp_path)[0].values()) == [BLUE, GREEN]
        (folder.parent / ".en.unpacked.json").write_text("[")
        assert list(shown(tmp_path)[0].values()) == [BLUE, GREEN]
        assert sorted(p.name for p in folder.iterdir()) == ["1.jpg", "2.jpg"]

    def test_a_full_disk_leaves_no_half_picture(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        table(tmp_path, [(1, b64(RED)), (2, b64(GREEN))])

        def full(path: Path, data: bytes) -> None:
            with atomic_file(path) as file:
                file.write(data[:50])
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(_tsv, "atomic_write", full)
            with refused("1.jpg", "No space left on device"):
                shown(tmp_path)
        assert not [*(tmp_path / "images" / "en").iterdir()]
        assert list(shown(tmp_path)[0].values()) == [RED, GREEN]

    def test_two_at_once(self, tmp_path: Path) -> None:
        made = table(tmp_path, [(n, b64(jpeg(f"#0000{n:02x}"))) for n in range(60)])
        threads = [threading.Thread(target=_tsv.unpack, args=(made, tmp_path / "p", str)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all((tmp_path / "p" / f"{n}.jpg").read_bytes() == jpeg(f"#0000{n:02x}") for n in range(60))
        assert len([*(tmp_path / "p").iterdir()]) == 60


# --- options ---------------------------------------------------------------------------------------------------------

OPTIONS = [
    # options, answer; shown by LLaVA's reader; every option of the table
    (("One", "Two", "Three", "None"), "D", "ABC", "ABCD"),
    (("Two", "One", "nan", "Three"), "D", "AB", "ABD"),
    (("nan", "Two", "One", ""), "B", "", "BC"),
    (("N/A", "NA", "null", "sodium"), "D", "", "D"),
    (("N/A", "NA", "null", "sodium"), "B", "", "BD"),
    (("yes", "no", "", ""), "A", "AB", "AB"),
    (("NONE", "NaN", "", ""), "A", "", "A"),
]


def _row(options: Sequence[str], answer: str) -> dict[str, str]:
    return {"index": "1", "question": "Which?", "answer": answer, "image": "", **dict(zip("ABCD", options, strict=True))}


@pytest.mark.parametrize(("options", "answer", "seen", "known"), OPTIONS)
def test_options_that_pandas_reads_as_missing(
    options: tuple[str, ...], answer: str, seen: str, known: str, tmp_path: Path
) -> None:
    with (tmp_path / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["index", "question", *"ABCD", "answer", "image"], delimiter="\t")
        writer.writeheader()
        writer.writerows([_row(options, answer), {**_row(("x", "y", "", ""), "B"), "index": "2"}])
    said = tmp_path / "answers.jsonl"
    said.write_text(
        json.dumps({"question_id": "1", "text": answer}) + "\n" + json.dumps({"question_id": "2", "text": "B"}) + "\n"
    )
    results: Any = evaluate.run(EvalConfig("mmbench", tmp_path, said, replicates=10)).results["metrics"]
    assert results["accuracy"] == 100.0
    assert results.get("options_hidden", 0) == (seen != known)
    _, data = evaluate.load("mmbench", tmp_path)
    letters = [line[0] for line in data.examples[0].question.splitlines()[1:]]
    assert "".join(letters) == seen


@pytest.mark.parametrize("options", [row[0] for row in OPTIONS])
def test_hrbench_shows_every_option(options: tuple[str, ...]) -> None:
    there = [letter for letter, text in zip("ABCD", options, strict=True) if text]
    for answer in there:
        example = hrbench._example(_row(options, answer), "x:1")
        assert [line[:3] for line in example.question.splitlines()[1:-1]] == [f"{letter}. " for letter in there]
        assert hrbench.build(split="4k").rule()(example, answer).value == 1.0
