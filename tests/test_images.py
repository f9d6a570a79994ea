"""Pictures from untrusted files, the square, and crops at full resolution."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hostile import BROKEN, ODD, Hostile, encoded, gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused

from cos_core.dialogue import cropping
from cos_core.dialogue.cropping import crop_region
from cos_core.errors import InputError, TransientError
from cos_core.files import images
from cos_core.files.images import FILL, MAX_PIXELS, open_image, picture_size, reduced, reuse_memory, square_pad
from cos_core.files.picture_files import image_path
from cos_core.geometry import Box, SquarePad, full_box
from cos_core.models.pixels import square_resized

GOLDEN = Path(__file__).parent / "golden" / "images"


def refusal(root: Path, name: str) -> str:
    """The message of the error that refuses a picture."""
    with pytest.raises(InputError) as raised:
        open_image(root, name)
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", sorted(json.loads((GOLDEN / "padded.json").read_text())))
def test_padded_pixels_equal_the_original_code(name: str) -> None:
    expected = json.loads((GOLDEN / "padded.json").read_text())[name]
    picture = open_image(GOLDEN, name)
    padded = square_pad(picture)
    assert picture.mode == "RGB"
    assert list(picture.size) == expected["size"]
    assert list(padded.size) == expected["padded_size"]
    assert hashlib.sha256(padded.tobytes()).hexdigest() == expected["padded_rgb_sha256"]


@pytest.mark.parametrize("hostile", BROKEN, ids=str)
def test_unusable_files_give_one_sentence(hostile: Hostile, tmp_path: Path) -> None:
    hostile.make(tmp_path / "x.png")
    message = refusal(tmp_path, "x.png")
    assert hostile.reason is not None
    assert hostile.reason in message
    assert "x.png" in message


@pytest.mark.parametrize("hostile", ODD, ids=str)
def test_odd_files_are_read(hostile: Hostile, tmp_path: Path) -> None:
    hostile.make(tmp_path / "x.jpg")
    picture = open_image(tmp_path, "x.jpg")
    assert picture.mode == "RGB"
    assert picture.size in ((61, 43), (43, 61), (31, 23), (1, 1), (30_000, 40))


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../secret.png", "a/../../secret.png", "link.png", "folder/secret.png", "a\0b"]
)
def test_paths_stay_inside_the_root(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    gradient(3, 3).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    refusal(root, name)


def test_links_and_dots_that_stay_inside_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    gradient(5, 3).save(tmp_path / "a" / "x.png")
    (tmp_path / "link.png").symlink_to("a/x.png")
    for name in ("a/x.png", "a/../a/x.png", "link.png"):
        assert open_image(tmp_path, name).size == (5, 3)
    assert open_image(None, str(tmp_path / "a" / "x.png")).size == (5, 3)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError):
        open_image(tmp_path, "loop")
    assert image_path(tmp_path, "none.png") == tmp_path.resolve() / "none.png"


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded(gradient(7, 5), "GIF"))
    assert open_image(tmp_path, "x.jpg").size == (7, 5)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (7, 5), "red"), Image.new("RGB", (7, 5), "blue")
    for form in ("GIF", "WEBP", "PNG"):
        (tmp_path / "x").write_bytes(encoded(red, form, save_all=True, append_images=[blue]))
        r, g, b = open_image(tmp_path, "x").getpixel((3, 2))
        assert r > 240, form
        assert max(g, b) < 20, form


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 257, 30000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    Image.fromarray(values).save(tmp_path / "x.tif")
    for name in ("x.png", "x.tif"):
        got = np.asarray(open_image(tmp_path, name))
        # 128 / 257 = 0.498, 30000 / 257 = 116.73
        assert got[0, :, 0].tolist() == [0, 0, 1, 117, 255]
        assert (got[..., 0] == got[..., 2]).all()


def test_sixteen_bit_grey_map_of_the_ppm_family(tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 257 * 3, 65535))
    assert np.asarray(open_image(tmp_path, "x.pgm"))[0, :, 0].tolist() == [3, 255]


def test_modes_follow_convert_rgb(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    base = gradient(9, 7)
    cases = {
        "cmyk.jpg": base.convert("CMYK"),
        "grey.png": base.convert("L"),
        "greyalpha.png": base.convert("LA"),
        "bits.png": base.convert("1"),
        "rgba.png": base.convert("RGBA"),
    }
    for name, picture in cases.items():
        picture.save(tmp_path / name)
        with Image.open(tmp_path / name) as stored:
            expected = stored.convert("RGB").tobytes()
        assert open_image(tmp_path, name).tobytes() == expected, name
    assert not recwarn.list


def test_transparency_is_dropped_as_llava_does(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("RGBA", (3, 3), (10, 20, 30, 0)).save(tmp_path / "x.png")
    assert open_image(tmp_path, "x.png").getpixel((1, 1)) == (10, 20, 30)
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 100, 50, 1, 2, 3])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=b"\x00\xff")
    got = open_image(tmp_path, "p.png")
    assert (got.getpixel((0, 0)), got.getpixel((1, 0))) == ((200, 100, 50), (1, 2, 3))
    assert not recwarn.list


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(form: str, orientation: int, tmp_path: Path) -> None:
    # Left half black, right half white, 16 wide: where black lands says how the picture was turned.
    stored = Image.new("RGB", (16, 8), "white")
    stored.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "x").write_bytes(encoded(stored, form, exif=exif))
    got = open_image(tmp_path, "x")
    black = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[orientation]
    probe = {"left": (1, 4), "right": (14, 4), "top": (4, 1), "bottom": (4, 14)}[black]
    assert got.size == ((16, 8) if orientation <= 4 else (8, 16))
    assert max(got.getpixel(probe)) < 40
    assert not got.getexif()
    assert picture_size(tmp_path, "x") == got.size


def test_sizes_come_from_headers(tmp_path: Path) -> None:
    whole = encoded(gradient(211, 97), "PNG")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert picture_size(tmp_path, "cut.png") == (211, 97), "the pixels were not asked for"
    # A PNG may say after its pixels that it lies on its side.
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    (tmp_path / "late.png").write_bytes(whole[:-12] + chunk + whole[-12:])
    assert picture_size(tmp_path, "late.png") == open_image(tmp_path, "late.png").size == (97, 211)
    (tmp_path / "text.png").write_text("no picture")
    for name, kind in (("none.png", TransientError), ("text.png", InputError), ("../x.png", InputError)):
        with refused(name, kind=kind):
            picture_size(tmp_path, name)


def test_a_broken_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded(gradient(9, 7), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert open_image(tmp_path, "x.jpg").size == (9, 7)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (30_000, 2)])
def test_extreme_shapes(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "x.png")
    picture = open_image(tmp_path, "x.png")
    assert picture.size == size
    crop = crop_region(picture, Box(0.4, 0.4, 0.401, 0.401), "image", FILL)
    assert min(crop.size) >= 1
    assert crop.getpixel((0, 0)) == (1, 2, 3)


def pixels_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the canvases that are made from here on."""
    made: list[int] = []
    new = Image.new

    def counted(mode: str, size: tuple[int, int], *more: object) -> Image.Image:
        made.append(size[0] * size[1])
        return new(mode, size, *more)

    monkeypatch.setattr(Image, "new", counted)
    return made


ABSURD = [(1, 65_535), (65_535, 1), (8, 65_535), (65_535, 8), (1, 262_144), (262_144, 1), (700, 30_000)]


@pytest.mark.parametrize("size", ABSURD)
def test_absurd_shapes_are_cut_and_padded_in_bounded_memory(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", size, (255, 0, 0))
    made = pixels_made(monkeypatch)
    small = reduced(picture, 1000 * 1000)
    assert max(small.size) <= 1000
    assert min(small.size) >= 1
    # Limits of a test's size: the same code, with less to do.
    for module in (images, cropping):
        monkeypatch.setattr(module, "MAX_PIXELS", 2**20)
    padded = square_pad(picture, (0, 0, 255))
    assert padded.width == padded.height <= 1024
    assert padded.getpixel(((padded.width - 1) // 2,) * 2) == (255, 0, 0)
    whole = crop_region(picture, full_box("square"), "canvas", (0, 0, 255))
    assert whole.width == whole.height <= 1024
    assert crop_region(picture, full_box("image"), "image", FILL).size == size
    assert max(made) <= 2**20


@pytest.mark.parametrize("size", [(97, 41), (41, 97), (3, 131), (131, 3), (71, 71), (1, 137)])
def test_a_square_is_resized_in_bands_bit_for_bit(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    picture = gradient(*size)
    bicubic = Image.Resampling.BICUBIC
    expected = square_pad(picture, (9, 8, 7)).resize((24, 24), bicubic).tobytes()
    for band in (2**24, 1, 700, 5000):
        monkeypatch.setattr("cos_core.models.pixels._BAND_PIXELS", band)
        assert square_resized(picture, 24, bicubic, (9, 8, 7)).tobytes() == expected, band


@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1), (8, 65_535), (262_144, 1)])
def test_the_encoder_sees_absurd_shapes_in_bounded_memory(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cos_core.models.pixels._BAND_PIXELS", 2**20)
    monkeypatch.setattr("cos_core.models.pixels._TALLEST", 2**11)
    picture = Image.new("RGB", size, (255, 0, 0))
    made = pixels_made(monkeypatch)
    seen = square_resized(picture, 56, Image.Resampling.BICUBIC, (0, 0, 255))
    assert seen.size == (56, 56)
    assert max(made) <= 56 * 2**16


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""
    whole = bytearray(encoded(Image.new("1", (9, 9)), "PNG"))
    whole[16:24] = struct.pack(">II", width, height)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    return bytes(whole)


@pytest.mark.parametrize(
    "size", [(1, 1_000_000), (1_000_000, 1), (100_000_000, 1), (1, 100_000_000), (60_000, 60_000), (2**31 - 1, 1)]
)
def test_shapes_beyond_the_bounds_are_one_sentence(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(claims(*size))
    gif = bytearray(encoded(Image.new("P", (9, 9)), "GIF"))
    gif[6:10] = struct.pack("<HH", *(min(side, 65_535) for side in size))
    (tmp_path / "x.gif").write_bytes(gif)
    said = refusal(tmp_path, "x.png")
    assert "too l" in said or "exceeds limit" in said
    with pytest.raises(InputError):
        picture_size(tmp_path, "x.png")
    with suppress(InputError):
        assert open_image(tmp_path, "x.gif").width * open_image(tmp_path, "x.gif").height <= MAX_PIXELS


def test_want_of_memory_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(encoded(gradient(5, 3), "PNG"))

    def none(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", none)
        with refused("x.png", kind=TransientError):
            open_image(tmp_path, "x.png")
    assert open_image(tmp_path, "x.png").size == (5, 3)


def test_a_large_photograph_passes_without_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("1", (12_000, 9_000)).save(tmp_path / "x.png")  # 108 million pixels: Pillow alone would warn
    assert open_image(tmp_path, "x.png").size == (12_000, 9_000)
    assert not recwarn.list


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_escape_as_another_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000"]))
    raw = bytearray(encoded(gradient(23, 17), form))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=12)):
        raw[at] = value
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(raw)
    with suppress(InputError):
        assert open_image(None, str(path)).mode == "RGB"


def test_freed_memory_is_kept_for_the_next_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.core.get_blocks_max()
    monkeypatch.setenv("PILLOW_BLOCKS_MAX", "3")
    reuse_memory(2)
    assert Image.core.get_blocks_max() == before, "the user's setting stands, and Pillow has read it already"
    monkeypatch.delenv("PILLOW_BLOCKS_MAX")
    try:
        reuse_memory(2)
        assert os.environ["PILLOW_BLOCKS_MAX"] == "2", "for processes that are begun later"
        assert Image.core.get_blocks_max() == 2
        Image.core.clear_cache()
        Image.core.reset_stats()
        for _ in range(3):
            Image.new("RGB", (83, 67)).close()
        stats = Image.core.get_stats()
        assert (stats["allocated_blocks"], stats["reused_blocks"]) == (1, 2)
    finally:
        Image.core.set_blocks_max(before)


def test_square_pad_by_hand() -> None:
    picture = Image.new("RGB", (2, 5), "red")
    padded = square_pad(picture, (1, 2, 3))
    assert padded.size == (5, 5)
    assert [padded.getpixel((x, 0)) for x in range(5)] == [(1, 2, 3), (255, 0, 0), (255, 0, 0), (1, 2, 3), (1, 2, 3)]
    square = Image.new("RGB", (3, 3))
    assert square_pad(square) is square
    assert FILL == (122, 116, 104)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(61, 37), (37, 61), (41, 41), (1, 13), (13, 1)]),
    st.tuples(*[st.floats(0, 1)] * 4).filter(lambda v: abs(v[0] - v[2]) > 1e-3 and abs(v[1] - v[3]) > 1e-3),
)
def test_canvas_crop_equals_cutting_the_padded_square(size: tuple[int, int], v: tuple[float, ...]) -> None:
    picture = gradient(*size)
    box = Box(min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]), "square")
    side = max(size)
    expected = square_pad(picture).crop(box.pixels(side, side))
    got = crop_region(picture, box, "canvas", FILL)
    assert (got.size, got.tobytes()) == (expected.size, expected.tobytes())


def test_crop_takes_either_frame() -> None:
    picture = gradient(61, 37)
    pad = SquarePad(61, 37)
    box = Box(10 / 61, 5 / 37, 30 / 61, 29 / 37)
    expected = picture.crop((10, 5, 30, 29)).tobytes()
    assert crop_region(picture, box, "image", FILL).tobytes() == expected
    assert crop_region(picture, pad.to_square(box), "image", FILL).tobytes() == expected
    assert crop_region(picture, box, "canvas", FILL).tobytes() == expected
    assert crop_region(picture, full_box("square"), "image", FILL).size == (61, 37)
    assert crop_region(picture, full_box("square"), "canvas", FILL).size == (61, 61)
    with pytest.raises(InputError):
        crop_region(picture, Box(0, 0, 1, 0.1, "square"), "image", FILL)
    with pytest.raises(InputError):
        crop_region(picture, box, "elsewhere", FILL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "corners", "pixels"),
    [  # float boxes and integer crops recorded from the original code
        ((100, 60), (0.1, 0.2, 0.8, 0.9), (70, 70)),
        ((1, 50), (0.0, 0.0, 1.0, 1.0), (50, 50)),
        ((151, 100), (0.5, 0.5, 0.75, 0.62), (37, 18)),
        ((64, 97), (0.5, 0.1, 0.52, 0.99), (2, 86)),
    ],
)
def test_canvas_crops_have_the_original_sizes(
    size: tuple[int, int], corners: tuple[float, float, float, float], pixels: tuple[int, int]
) -> None:
    assert crop_region(gradient(*size), Box(*corners, "square"), "canvas", FILL).size == pixels
