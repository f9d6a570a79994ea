"""Features read from files: the public layouts, how pictures are matched to them, and files that are broken or hostile."""

from __future__ import annotations

import base64
import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_files import DIMENSIONS, SIZE, lxmert_row, original_row, record, write_npz, write_tsv
from PIL import Image

from cos_core.detectors import precomputed
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.types import Regions


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new("RGB", size)


def check(found: Regions, made: dict[str, Any]) -> None:
    assert np.array_equal(found.features, made["features"])
    assert found.features.dtype == np.float32
    scale = np.array([made["width"], made["height"]] * 2)
    assert np.allclose(np.array([box.corners for box in found.boxes]), made["boxes"] / scale, atol=1e-12)
    assert {box.frame for box in found.boxes} == {"image"}


class TestNpz:
    @pytest.mark.parametrize("turned", [False, True])
    def test_both_tools(self, tmp_path: Path, turned: bool) -> None:
        made = record()
        write_npz(tmp_path / "000000000139.npz", made, turned=turned)
        found = precomputed.build(str(tmp_path)).detect(picture(), "coco/val2017/000000000139.jpg")
        check(found, made)
        assert found.confidence == (1.0,) * 36

    def test_the_same_tree_comes_before_the_flat_name(self, tmp_path: Path) -> None:
        flat, deep = record(1, 3), record(2, 5)
        write_npz(tmp_path / "1.npz", flat)
        write_npz(tmp_path / "gqa" / "1.npz", deep)
        detector = precomputed.build(str(tmp_path))
        check(detector.detect(picture(), "gqa/1.jpg"), deep)
        check(detector.detect(picture(), "vg/1.png"), flat)

    def test_without_a_size_the_picture_s_own_counts(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.ones((1, 3), np.float16), bbox=[[10, 20, 30, 40]])
        (box,) = precomputed.build(str(tmp_path)).detect(picture((100, 50)), "a.jpg").boxes
        assert box.corners == pytest.approx((0.1, 0.4, 0.3, 0.8))

    def test_no_boxes(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.ones((0, 3)), bbox=np.ones((0, 4)))
        assert precomputed.build(str(tmp_path)).detect(picture(), "a.jpg").boxes == ()

    def test_a_picture_without_features(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no features for the image 'b/a.jpg': .* has no b/a.npz"):
            precomputed.build(str(tmp_path)).detect(picture(), "b/a.jpg")
        with pytest.raises(InputError, match="this picture has none"):
            precomputed.build(str(tmp_path)).detect(picture())

    @pytest.mark.parametrize("path", ["../a.jpg", "/etc/a.jpg", "b/../../a.jpg"])
    def test_a_path_that_leaves_the_folder(self, tmp_path: Path, path: str) -> None:
        (tmp_path / "features").mkdir()
        write_npz(tmp_path / "a.npz", record())
        with pytest.raises(InputError, match="leaves the folder"):
            precomputed.build(str(tmp_path / "features")).detect(picture(), path)

    def test_nothing_pickled_is_read(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "ran",)

        trap = np.array([Trap()], object)
        np.savez(tmp_path / "a.npz", x=np.ones((1, 3)), bbox=[[1, 2, 3, 4]], info=trap)
        np.savez(tmp_path / "b.npz", x=trap, bbox=[[1, 2, 3, 4]])
        detector = precomputed.build(str(tmp_path))
        assert len(detector.detect(picture(), "a.jpg").boxes) == 1
        with pytest.raises(InputError, match=r"b.npz: the array 'x' holds no plain numbers"):
            detector.detect(picture(), "b.jpg")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": np.ones((1, 3))}, "has no array 'bbox'"),
            ({"bbox": np.ones((1, 4))}, "has no array 'x'"),
            ({"x": np.ones((2, 3)), "bbox": np.ones((1, 4))}, r"bbox of shape \(1, 4\) and x of shape \(2, 3\)"),
            ({"x": np.ones(3), "bbox": np.ones((3, 4))}, "are not boxes with features"),
            ({"x": np.ones((2, 3)), "bbox": np.ones((2, 5))}, "are not boxes with features"),
            ({"x": np.ones((1, 3)), "bbox": np.ones((1, 4)), "num_bbox": 2}, "num_bbox is 2, but there are 1 boxes"),
            ({"x": np.ones((1, 3)), "bbox": np.ones((1, 4)), "image_w": [1, 2]}, "image_w should be one number"),
            ({"x": np.ones((1, 3), complex), "bbox": np.ones((1, 4))}, "holds no plain numbers"),
            ({"x": np.ones((5000, 1)), "bbox": np.ones((5000, 4))}, "are not boxes with features"),
        ],
    )
    def test_arrays_that_do_not_fit(self, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(InputError, match=rf"a.npz: .*{message}"):
            precomputed.build(str(tmp_path)).detect(picture(), "a.jpg")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip", b"\x93NUMPY"])
    def test_no_archive(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"a.npz: not a readable .npz file"):
            precomputed.build(str(tmp_path)).detect(picture(), "a.jpg")

    def test_every_cut_and_many_flipped_bytes_are_one_sentence(self, tmp_path: Path) -> None:
        whole = write_npz(tmp_path / "whole.npz", record(0, 2, dimensions=7)).read_bytes()
        detector, generator = precomputed.build(str(tmp_path)), np.random.default_rng(0)
        broken = [whole[:length] for length in range(0, len(whole), 23)]
        for _ in range(200):
            changed = bytearray(whole)
            for place in generator.integers(0, len(whole), 3):
                changed[place] = generator.integers(256)
            broken.append(bytes(changed))
        failed = 0
        for content in broken:
            (tmp_path / "a.npz").write_bytes(content)
            try:
                detector.detect(picture(), "a.jpg")
            except InputError:
                failed += 1
        assert failed > 150

    def test_an_archive_that_unpacks_to_gigabytes(self, tmp_path: Path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2048)})
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("bbox.npy", "w") as member:
                np.save(member, np.ones((1, 4)))
            archive.writestr("x.npy", header.getvalue() + b"\0" * 100)
        with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bbox.npy", "w") as member:
            np.save(member, np.zeros((2**20, 2, 4, 4), np.float16))
        detector = precomputed.build(str(tmp_path))
        tracemalloc.start()
        with pytest.raises(InputError, match="the array 'x' claims 8589934592 bytes, but is stored with 100"):
            detector.detect(picture(), "a.jpg")
        with pytest.raises(InputError, match=r"the array 'bbox' unpacks to \d+ bytes \(at most"):
            detector.detect(picture(), "b.jpg")
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


class TestTsv:
    def test_the_original_layout_by_coco_s_number(self, tmp_path: Path) -> None:
        made = {9: record(1), 150367: record(2, 10), 42: record(3, 1)}
        path = write_tsv(tmp_path / "trainval.tsv", (original_row(key, value) for key, value in made.items()))
        detector = precomputed.build(str(path))
        for name, key in (
            ("train2014/COCO_train2014_000000000009.jpg", 9),
            ("000000150367.jpg", 150367),
            ("coco/train2017/000000000042.jpg", 42),
            ("42.png", 42),
        ):
            check(detector.detect(picture(), name), made[key])

    def test_lxmert_s_layout_with_confidences(self, tmp_path: Path) -> None:
        made = {"COCO_val2014_000000000042": record(1), "n161313": record(2, 10), "0017": record(3, 2)}
        path = write_tsv(tmp_path / "val2014_obj36.tsv", (lxmert_row(key, value) for key, value in made.items()))
        detector = precomputed.build(str(path))
        for name, key in (
            ("val2014/COCO_val2014_000000000042.jpg", "COCO_val2014_000000000042"),
            ("gqa/n161313.jpg", "n161313"),
            ("vg/17.jpg", "0017"),
        ):
            found = detector.detect(picture(), name)
            check(found, made[key])
            assert found.confidence == tuple(made[key]["objects_conf"].tolist())

    @pytest.mark.parametrize("name", ["photo_9.jpg", "9b.jpg", "COCO_9.jpg", "10.jpg", ""])
    def test_a_number_somewhere_in_the_name_is_no_match(self, tmp_path: Path, name: str) -> None:
        detector = precomputed.build(str(write_tsv(tmp_path / "a.tsv", [original_row(9, record(0, 1, dimensions=2))])))
        with pytest.raises(InputError, match=r"no features for the image .*a.tsv: no line has the id|this picture has none"):
            detector.detect(picture(), name)

    def test_of_two_lines_for_one_picture_the_first_counts(self, tmp_path: Path) -> None:
        first, second = record(1, 3, dimensions=5), record(2, 3, dimensions=5)
        path = write_tsv(tmp_path / "a.tsv", [original_row(9, first), original_row("009", second)])
        check(precomputed.build(str(path)).detect(picture(), "9.jpg"), first)

    def _table(self, tmp_path: Path, *lines: str, start: str = "", end: str = "\n") -> precomputed.Precomputed:
        (tmp_path / "f.tsv").write_text(start + "".join(line + end for line in lines), encoding="utf-8", newline="")
        return precomputed.build(str(tmp_path / "f.tsv"))

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    @pytest.mark.parametrize("cut", [1, 2, 3, 500, 8 * 8 * 4 * 2 // 3, 10_000])
    @pytest.mark.parametrize("row", [original_row, lxmert_row])
    def test_a_whole_line_counts_for_a_torn_one(self, tmp_path: Path, row: Any, cut: int, end: str) -> None:
        made, other = record(1, 2, dimensions=64), record(2, 3, dimensions=64)
        whole, last = ("\t".join(map(str, row(name, r))) for name, r in (("42", made), ("43", other)))
        torn = whole[:-cut] if cut < len(whole) else "42\t1"
        detector = self._table(tmp_path, last, torn, whole, end=end)
        if row is original_row:
            check(detector.detect(picture(), "COCO_val2014_000000000042.jpg"), made)
        assert np.array_equal(detector.detect(picture(), "42.jpg").features, made["features"])
        assert np.array_equal(detector.detect(picture(), "43.jpg").features, other["features"])
        assert "'42' (lines 2, 3)" in detector.notes[0]
        assert "line 3 for line 2" in detector.notes[1]

    def test_doubled_lines_are_named(self, tmp_path: Path) -> None:
        made, other = record(1, 2, dimensions=8), record(2, 2, dimensions=8)
        one, same, differs = ("\t".join(map(str, original_row("42", r))) for r in (made, made, other))
        fifth = "\t".join(map(str, original_row("5", other)))
        assert self._table(tmp_path, one, fifth).notes == ()
        (note,) = self._table(tmp_path, one, fifth, same).notes
        assert "1 images have several lines" in note
        detector = self._table(tmp_path, one, fifth, differs, start="\ufeff")
        check(detector.detect(picture(), "42.jpg"), made)
        assert "do not say the same: '42' (lines 1, 3)" in detector.notes[1]
        # All torn: the line is named when its picture is asked for.
        broken = self._table(tmp_path, fifth, one[:-3], one[:-5])
        with pytest.raises(InputError, match=r"f\.tsv:2: "):
            broken.detect(picture(), "42.jpg")

    def test_lines_are_found_wherever_blocks_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = [record(i, 1 + i % 3, dimensions=2) for i in range(12)]
        path = write_tsv(tmp_path / "a.tsv", (original_row(i, value) for i, value in enumerate(made)))
        content = path.read_bytes()
        expected = [content.index(f"\n{i}\t".encode()) + 1 if i else 0 for i in range(12)]
        for block in (1, 2, 7, 64, 10**6):
            monkeypatch.setattr(precomputed, "_BLOCK", block)
            for ending in (content, content.rstrip()):
                path.write_bytes(ending)
                with path.open("rb") as file:
                    starts = list(precomputed._line_starts(file))
                assert [offset for offset, _ in starts] == expected
                assert [start.split(b"\t")[0] for _, start in starts] == [str(i).encode() for i in range(12)]

    def test_memory_does_not_grow_with_the_lines(self, tmp_path: Path) -> None:
        """Sixty records of 393 kB, and one line of 100 MB: opening and reading one takes a few MB."""
        made = record()
        path = write_tsv(tmp_path / "a.tsv", (original_row(i, made) for i in range(60)))
        with path.open("ab") as file:
            file.write(b"60\t640\t427\t36\t" + b"A" * 10**8 + b"\n")
        tracemalloc.start()
        detector = precomputed.build(str(path))
        opened = tracemalloc.get_traced_memory()[1]
        check(detector.detect(picture(), "59.jpg"), made)
        read = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert opened < 6 * 2**20
        assert read < 6 * 2**20
        with pytest.raises(InputError, match=r"a.tsv:61: the line is longer than 64 MiB"):
            detector.detect(picture(), "60.jpg")

    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            (1, "640.5", "width should be a whole number, found '640.5'"),
            (2, "", "height should be a whole number, found ''"),
            (1, "0", "a picture of 0x427 pixels does not exist"),
            (3, "99999999999999999999", "count should be a whole number"),
            (3, "5000", r"5000 boxes \(at most 4096\)"),
            (3, "35", "boxes has 576 bytes, which are not float32 numbers for 35 boxes"),
            (3, "0", "boxes has 576 bytes, which are not float32 numbers for 0 boxes"),
            (4, "?", "boxes is not base64"),
            (4, "AAAA", "boxes has 3 bytes"),
            (5, base64.b64encode(bytes(36 * 8 + 4)).decode(), "features has 292 bytes"),
            (5, "b'AAAA'", "features is not base64"),
        ],
    )
    def test_a_broken_line_is_told_by_file_and_line(self, tmp_path: Path, column: int, value: str, message: str) -> None:
        rows = [original_row(i, record(i, dimensions=2)) for i in range(3)]
        rows[1][column] = value
        detector = precomputed.build(str(write_tsv(tmp_path / "a.tsv", rows)))
        with pytest.raises(InputError, match=rf"a.tsv:2: {message}"):
            detector.detect(picture(), "1.jpg")
        assert len(detector.detect(picture(), "2.jpg").boxes) == 36

    def test_lines_cut_short(self, tmp_path: Path) -> None:
        rows = [original_row(i, record(i, dimensions=2)) for i in range(3)]
        path = write_tsv(tmp_path / "a.tsv", [rows[0], rows[1][:4], ["2"], rows[2]])
        detector = precomputed.build(str(path))
        with pytest.raises(InputError, match=r"a.tsv:2: 4 columns, but the file's first line has 6"):
            detector.detect(picture(), "1.jpg")
        check(detector.detect(picture(), "2.jpg"), record(2, dimensions=2))

    @pytest.mark.parametrize("content", [b"", b"\n", b"a,b,c\n", b"1\t2\t3\n", b"\0" * 4096])
    def test_another_kind_of_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.tsv").write_bytes(content)
        with pytest.raises(InputError, match=r"a.tsv:1: not a known layout of features"):
            precomputed.build(str(tmp_path / "a.tsv"))


class TestFrames:
    def build(self, tmp_path: Path, **changes: Any) -> precomputed.Precomputed:
        write_npz(tmp_path / "a.npz", {**record(0, 1, dimensions=3), **changes})
        return precomputed.build(str(tmp_path))

    def test_a_smaller_copy_of_the_picture_is_the_same_picture(self, tmp_path: Path) -> None:
        detector = self.build(tmp_path, boxes=np.array([[64, 0, 320, 427]]))
        (box,) = detector.detect(picture((320, 213)), "a.jpg").boxes  # 213.5 rounded
        assert box.corners == pytest.approx((0.1, 0, 0.5, 1))

    @pytest.mark.parametrize("size", [(427, 640), (640, 480), (500, 427)])
    def test_a_turned_or_cut_picture_is_another(self, tmp_path: Path, size: tuple[int, int]) -> None:
        message = rf"features of a picture of 640x427 pixels, but this one has {size[0]}x{size[1]}"
        with pytest.raises(InputError, match=message):
            self.build(tmp_path).detect(picture(size), "a.jpg")

    def test_a_pixel_over_the_edge_is_cut(self, tmp_path: Path) -> None:
        detector = self.build(tmp_path, boxes=np.array([[-1, -0.5, 641, 427.9]]))
        assert detector.detect(picture(), "a.jpg").boxes[0].corners == (0, 0, 1, 1)

    @pytest.mark.parametrize(
        "corners",
        [
            (0, 0, 642, 10),
            (-2, 0, 10, 10),
            (5, 5, 5, 9),
            (9, 5, 5, 9),
            (0, 0, 10, np.nan),
            (0, 0, np.inf, 9),
            (640.5, 0, 641, 9),
        ],
    )
    def test_a_box_outside_or_without_area(self, tmp_path: Path, corners: tuple[float, ...]) -> None:
        detector = self.build(tmp_path, boxes=np.array([corners]))
        with pytest.raises(InputError, match=r"a.npz: box 0 has corners .*, not inside a picture of 640x427 pixels"):
            detector.detect(picture(), "a.jpg")


def test_settings_know_the_files_and_not_their_folder(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_npz(tmp_path / folder / "a.npz", record(0, 2, dimensions=3), info=False)
    first, second = (plug.described(precomputed.build(str(tmp_path / folder))) for folder in ("one", "two"))
    assert first == second
    write_npz(tmp_path / "two" / "b.npz", record(0, 2, dimensions=3), info=False)
    assert plug.described(precomputed.build(str(tmp_path / "two"))) != second
    rows = [original_row(i, record(i, 2, dimensions=3)) for i in range(2)]
    marks = [
        plug.described(precomputed.build(str(write_tsv(tmp_path / "a.tsv", chosen))))["files"]
        for chosen in (rows, rows, rows[:1], rows[::-1])
    ]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3


@pytest.mark.parametrize(("path", "message"), [(None, "needs path="), ("nowhere", "no such folder or file")])
def test_no_features_at_all(path: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        precomputed.build(path)
    assert DIMENSIONS == 2048
