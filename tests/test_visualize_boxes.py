"""Statistics of boxes: figures by hand, batches that change nothing, and the files of a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reference.coverage_reference import covered
from reporters import Told

from cos_core.errors import InputError
from cos_core.files import manifest
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.scoring import box_tally
from cos_core.scoring.box_tally import MAP_CELLS, BoxTally, Histogram
from cos_core.scoring.placement import Placement
from cos_core.store.annotations import Store
from cos_core.types import Annotation, Prediction
from cos_core.visualize import plots
from cos_core.visualize.boxes import BoxStatsConfig, run
from cos_core.visualize.config import FigureOptions


def test_figures_by_hand() -> None:
    counted = BoxTally()
    counted.add(Box(0.0, 0.0, 0.5, 0.5), "ok")
    counted.add(Box(0.5, 0.25, 1.0, 0.75), "clamped")
    counted.add(None, "unparsable")
    figures = counted.to_json()
    assert figures["examples"] == 3
    assert figures["boxes"] == 2
    assert figures["status"]["ok"] == {"count": 1, "share": 1 / 3}
    assert figures["area"]["mean"] == pytest.approx(0.25)
    assert figures["aspect"]["mean"] == pytest.approx(1.0)
    # offsets: the corner box sqrt(2)/4, the other 1/4
    assert figures["centre_offset"]["mean"] == pytest.approx((np.sqrt(2) / 4 + 0.25) / 2)
    assert figures["covers_picture_centre"] == 1.0
    cover = counted.centre_bias
    half = MAP_CELLS // 2
    assert cover[0, 0] == 0.5
    assert cover[half - 1, 0] == 0.5
    assert cover[0, half] == 0.0
    assert cover[half, half] == 0.5
    assert cover[half, 0] == 0.0


def test_a_cell_counts_by_the_share_that_is_covered() -> None:
    counted = BoxTally()
    counted.add(Box(0.0, 0.0, 1.5 / MAP_CELLS, 0.25 / MAP_CELLS), "ok")
    assert counted.centre_bias[0, :3] == pytest.approx([0.25, 0.125, 0.0])
    assert counted.centre_bias[1].sum() == 0


def test_the_picture_shape_enters_the_aspect() -> None:
    counted = BoxTally()
    counted.add(Box(0.0, 0.0, 0.5, 0.5), "ok", shape=4.0)
    assert counted.to_json()["aspect"]["mean"] == pytest.approx(4.0)


CORNERS = st.tuples(*[st.floats(0, 0.98)] * 2, *[st.floats(0.01, 1)] * 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(CORNERS, min_size=1, max_size=40), st.integers(1, 7))
def test_batches_change_nothing(corners: list[tuple[float, float, float, float]], batch: int) -> None:
    boxes = [Box(x, y, min(1.0, x + w * 0.9 + 0.01), min(1.0, y + h * 0.9 + 0.01)) for x, y, w, h in corners]
    whole = BoxTally()
    parts = BoxTally()
    usual = box_tally._BATCH
    for box in boxes:
        whole.add(box, "ok")
    assert whole.boxes == len(boxes)
    box_tally._BATCH = batch
    try:
        for box in boxes:
            parts.add(box, "ok")
    finally:
        box_tally._BATCH = usual
    parts._flush()
    assert np.allclose(whole.centre_bias, parts.centre_bias)
    assert whole.area.rows() == parts.area.rows()
    # The map integrates to the mean area.
    assert whole.centre_bias.mean() == pytest.approx(np.mean([b.area for b in boxes]))
    assert whole.centre_bias.max() <= 1 + 1e-12


def test_quantiles_are_near_the_true_ones() -> None:
    values = np.random.default_rng(0).beta(2, 5, 5000)
    histogram = Histogram(np.linspace(0, 1, 21))
    for part in np.array_split(values, 7):
        histogram.add(part)
    summary = histogram.summary()
    assert summary["n"] == 5000
    assert summary["mean"] == pytest.approx(values.mean())
    assert summary["sd"] == pytest.approx(values.std())
    for name, q in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
        assert summary[name] == pytest.approx(np.quantile(values, q), abs=1e-3)


def test_values_outside_go_to_the_end_bins() -> None:
    histogram = Histogram(np.geomspace(1 / 8, 8, 7), log=True)
    histogram.add(np.array([0.001, 1000.0]))
    assert [n for _, _, n in histogram.rows()] == [1, 0, 0, 0, 0, 1]


def predictions(path: Path, count: int = 10) -> Path:
    lines = [
        Prediction(f"q{i}", "x", Box(0.25, 0.25, 0.75, 0.75), "[...]", "ok", image="a.png").to_json() for i in range(count)
    ]
    lines.append(Prediction("bad", "x", None, "red", "unparsable").to_json())
    lines.append(Prediction("gone", None, error="no such image").to_json())
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_run_over_predictions(tmp_path: Path) -> None:
    source = predictions(tmp_path / "predictions.jsonl")
    with source.open("a") as file:
        file.write('{"no": "id"}\n{"torn')
    reporter = Told()
    result = run(BoxStatsConfig(source, tmp_path / "out"), reporter)
    assert result.counts == {"ok": 10, "failed": 3, "skipped": 1}
    assert len(reporter.warnings) == 2
    assert "predictions.jsonl:13" in reporter.warnings[0]
    for name in ("centre_bias", "area", "aspect", "offset", "status"):
        with Image.open(tmp_path / "out" / f"{name}.png") as plot:
            assert min(plot.size) > 150
        rows = list(csv.reader((tmp_path / "out" / f"{name}.csv").open()))
        assert len(rows) > 1
    cover = np.loadtxt(tmp_path / "out" / "centre_bias.csv", delimiter=",", skiprows=1)
    assert cover.shape == (MAP_CELLS, MAP_CELLS)
    assert cover[MAP_CELLS // 2, MAP_CELLS // 2] == 1.0
    assert cover[0, 0] == 0.0
    figures = json.loads((tmp_path / "out" / "boxes.json").read_text())
    assert figures["area"]["mean"] == 0.25
    assert manifest.read(tmp_path / "out").status == "complete"


def test_a_run_over_a_directory_and_pixel_aspect(tmp_path: Path) -> None:
    predictions(tmp_path / "predictions.jsonl")
    Image.new("RGB", (300, 100)).save(tmp_path / "a.png")
    result = run(BoxStatsConfig(tmp_path, tmp_path / "out", images=tmp_path), SilentReporter())
    assert result.results["aspect"]["mean"] == pytest.approx(3.0)
    assert "pixels" in result.results["aspect_unit"]


def test_a_run_over_a_store(tmp_path: Path) -> None:
    with Store.create_or_resume(tmp_path / "rois", "f" * 16, {}) as store:
        store.put_many(
            [
                Annotation("a", Box(0.0, 0.0, 0.5, 0.5), 1.0, "from_single_question", "f" * 16),
                Annotation("b", None, 0.0, "from_single_question", "f" * 16, reason="no region scored above zero"),
            ]
        )
        store.put_failures([("c", "the image is missing")])
    result = run(BoxStatsConfig(tmp_path / "rois", tmp_path / "out"), SilentReporter())
    assert result.counts == {"ok": 1, "failed": 1, "skipped": 1}
    assert {k: v["count"] for k, v in result.results["status"].items()} == {"failed": 1, "labelled": 1, "no region": 1}


def test_no_boxes_still_make_a_page_of_plots(tmp_path: Path) -> None:
    source = predictions(tmp_path / "p.jsonl", count=0)
    reporter = Told()
    result = run(BoxStatsConfig(source, tmp_path / "out"), reporter)
    assert result.results["area"]["mean"] is None
    assert any(str(source) in warning for warning in reporter.warnings)
    assert (tmp_path / "out" / "area.png").exists()


def test_nothing_to_count_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone"):
        run(BoxStatsConfig(tmp_path / "gone", tmp_path / "out"), SilentReporter())
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=r"empty\.jsonl"):
        run(BoxStatsConfig(tmp_path / "empty.jsonl", tmp_path / "out"), SilentReporter())
    assert not (tmp_path / "out").exists()


# --- against a reference, by data set, at scale ---


def test_against_a_reference_by_hand() -> None:
    counted = BoxTally()
    counted.add(Box(0.0, 0.0, 0.5, 0.5), "ok", reference=Box(0.25, 0.25, 0.5, 0.5))  # IoU 1/4, centre held
    counted.add(Box(0.0, 0.0, 0.2, 0.2), "ok", reference=Box(0.5, 0.5, 1.0, 1.0))  # apart
    counted.add(None, "unparsable", reference=Box(0.5, 0.5, 1.0, 1.0))
    counted.add(Box(0.0, 0.0, 1.0, 1.0), "ok")
    found = counted.to_json()["reference"]
    assert (found["n"], found["without_box"]) == (3, 1)
    assert found["holds_centre"] == pytest.approx(1 / 3)
    assert found["iou_mean"] == pytest.approx(0.25 / 3)
    assert found["iou"]["mean"] == pytest.approx(0.125)


def test_merged_parts_are_the_whole() -> None:
    numbers = np.random.default_rng(3).uniform(0, 0.5, (300, 4))
    boxes = [Box(x, y, x + w / 2 + 0.01, y + h / 2 + 0.01) for x, y, w, h in numbers]
    whole, merged = BoxTally(), BoxTally()
    parts = [BoxTally() for _ in range(3)]
    for number, box in enumerate(boxes):
        for counted in (whole, parts[number % 3]):
            counted.add(box, "ok", reference=boxes[0])
    for part in parts:
        merged.merge(part)
    assert merged.boxes == 300
    assert merged.centre_bias == pytest.approx(whole.centre_bias)
    one, other = merged.to_json(), whole.to_json()
    for name in ("area", "aspect", "centre_offset"):
        assert one[name] == pytest.approx(other[name])
    assert one["reference"]["iou"] == pytest.approx(other["reference"]["iou"])
    assert one["reference"]["holds_centre"] == other["reference"]["holds_centre"]


def test_data_sets_and_references_of_a_store(tmp_path: Path) -> None:
    box, mark = Box(0.0, 0.0, 0.5, 0.5), "f" * 16
    with Store.create_or_resume(tmp_path / "store", mark, {}) as store:
        rows = [("a", "coco/1.jpg"), ("b", "gqa/2.jpg"), ("c", "coco/3.jpg")]
        store.put_many([Annotation(i, box, 1.0, "p", mark, image=image) for i, image in rows])
    predictions = [Prediction("a", "x", box, "", "ok"), Prediction("b", "x", Box(0.5, 0.5, 1.0, 1.0), "", "ok")]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(p.to_json()) + "\n" for p in predictions))
    config = BoxStatsConfig(tmp_path / "store", tmp_path / "out", reference=tmp_path / "predictions.jsonl")
    found = run(config, SilentReporter()).results
    assert found["data_sets"]["coco"]["boxes"] == 2
    assert found["data_sets"]["gqa"]["boxes"] == 1
    assert found["reference"]["n"] == 2
    assert found["reference"]["iou_mean"] == pytest.approx(0.5)
    with (tmp_path / "out" / "data_sets.csv").open() as file:
        assert [row[0] for row in csv.reader(file)] == ["data_set", "coco", "gqa"]
    assert (tmp_path / "out" / "overlap.png").is_file()
    turned = BoxStatsConfig(tmp_path / "predictions.jsonl", tmp_path / "turned", reference=tmp_path / "store")
    assert run(turned, SilentReporter()).results["reference"]["holds_centre"] == 0.5


def test_statistics_equal_a_plain_numpy_computation() -> None:
    """What benchmarks/box_statistics.py checks on 3.3 million boxes, on as many as fill several batches."""
    generator = np.random.default_rng(11)
    low = generator.uniform(0, 0.8, (10_000, 2))
    high = np.minimum(1.0, low + generator.uniform(0.01, 0.9, (10_000, 2)))
    counted = BoxTally()
    for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True):
        counted.add(Box(x0, y0, x1, y1), "ok")
    figures = counted.to_json()
    side = high - low
    area, aspect = side.prod(axis=1), side[:, 0] / side[:, 1]
    offset = np.hypot(*(((low + high) / 2 - 0.5).T))
    assert figures["area"]["mean"] == pytest.approx(area.mean())
    assert figures["area"]["sd"] == pytest.approx(area.std())
    assert figures["area"]["median"] == pytest.approx(np.median(area), abs=1 / 2000)
    assert figures["aspect"]["mean"] == pytest.approx(np.exp(np.log(aspect).mean()))
    assert figures["centre_offset"]["mean"] == pytest.approx(offset.mean())
    assert counted.area.counts.tolist() == np.histogram(area, box_tally.AREA_EDGES)[0].tolist()
    assert counted.offset.counts.tolist() == np.histogram(offset, box_tally.OFFSET_EDGES)[0].tolist()
    edges = np.arange(MAP_CELLS + 1) / MAP_CELLS
    cover = [
        np.clip(np.minimum(high[:, a, None], edges[1:]) - np.maximum(low[:, a, None], edges[:-1]), 0, None) for a in (0, 1)
    ]
    assert counted.centre_bias == pytest.approx(np.einsum("ny,nx->yx", cover[1], cover[0]) * MAP_CELLS**2 / len(low))


def test_the_centre_bias_map_equals_its_definition() -> None:
    dice = np.random.default_rng(11)
    low = dice.uniform(0, 0.8, (60, 2))
    boxes = np.concatenate([low, np.minimum(1.0, low + dice.uniform(0.001, 0.7, (60, 2)))], axis=1)
    # On cell borders, at the picture's, thinner than a cell, and the whole picture.
    boxes[:4] = [[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1 / 64, 1 / 64], [0.501, 0.2, 0.502, 0.9], [0.0, 0.0, 1.0, 1.0]]
    counted = box_tally.BoxTally()
    counted.add_many(boxes, "ok")
    assert counted.centre_bias == pytest.approx(covered(boxes, MAP_CELLS) / 60, abs=1e-12)
    one_by_one = box_tally.BoxTally()
    for corners in boxes:
        one_by_one.add(Box(*map(float, corners)), "ok")
    assert one_by_one.to_json() == counted.to_json()
    assert (one_by_one.centre_bias == counted.centre_bias).all()


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_plots_as_vectors(tmp_path: Path, kind: str) -> None:
    source, config = predictions(tmp_path / "predictions.jsonl"), {"format": kind, "figure": FigureOptions("paper")}
    run(BoxStatsConfig(source, tmp_path / "out", **config), SilentReporter())  # type: ignore[arg-type]
    for name in ("centre_bias", "area", "aspect", "offset", "status"):
        data = (tmp_path / "out" / f"{name}.{kind}").read_bytes()
        assert b"/Subtype /Image" not in data
        assert b"<image" not in data
        assert kind == "svg" or b"/FontFile2" in data
    (tmp_path / "out" / f"area.{kind}").write_bytes(b"mine")
    with pytest.raises(InputError, match=f"area.{kind}"):
        run(BoxStatsConfig(source, tmp_path / "out", **config), SilentReporter())  # type: ignore[arg-type]


def test_the_maps_beside_each_other_have_one_scale(tmp_path: Path) -> None:
    run(BoxStatsConfig(predictions(tmp_path / "p.jsonl"), tmp_path / "out"), SilentReporter())
    random = np.loadtxt(tmp_path / "out" / "centre_bias_at_random.csv", delimiter=",", skiprows=1)
    # A box of half the width and height covers the middle surely, wherever it lies, and a quarter of the picture.
    assert random.max() == pytest.approx((1 - 1 / MAP_CELLS) ** 2)
    assert random.mean() == pytest.approx(0.25, abs=1e-5)
    found = json.loads((tmp_path / "out" / "boxes.json").read_text())["placed_at_random"]
    assert 0 < found["total_variation"] < 1
    assert found["resampled"] is None, "all boxes lie on one picture"
    tally, random_places = BoxTally(), Placement()
    tally.add(Box(0.25, 0.25, 0.75, 0.75), "ok")
    random_places.add(np.array([[0.25, 0.25, 0.75, 0.75]]), ["a.png"])
    limits = {mesh.get_clim() for axes in plots.centre_bias(tally, random_places).axes[:2] for mesh in axes.collections}
    assert limits == {(0.0, 1.0)}
