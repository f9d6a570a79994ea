"""Writers of feature files in the public layouts, as their tools write them."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (640, 427)
DIMENSIONS = 2048


def record(seed: int = 0, boxes: int = 36, size: tuple[int, int] = SIZE, dimensions: int = DIMENSIONS) -> dict[str, Any]:
    """Random boxes in a picture of `size` pixels, with features and what LXMERT's tool adds."""
    generator = np.random.default_rng(seed)
    corners = np.sort(generator.random((boxes, 2, 2)), axis=1) * np.array(size)
    return {
        "width": size[0],
        "height": size[1],
        "boxes": corners.reshape(boxes, 4).astype(np.float32),
        "features": generator.random((boxes, dimensions), dtype=np.float32),
        "objects_id": generator.integers(0, 1600, boxes),
        "objects_conf": generator.random(boxes, dtype=np.float32),
        "attrs_id": generator.integers(0, 400, boxes),
        "attrs_conf": generator.random(boxes, dtype=np.float32),
    }


def write_npz(path: Path, made: dict[str, Any], *, turned: bool = False, info: bool = True) -> Path:
    """As bottom-up-attention.pytorch does, with its pickled `info`; `turned`: features (d, n), as the Caffe tool does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    more = {"info": {"image_id": path.stem, "objects_id": made["objects_id"]}} if info else {}
    features = made["features"].T if turned else made["features"]
    size = {"image_h": made["height"], "image_w": made["width"]}
    np.savez_compressed(path, x=features, bbox=made["boxes"], num_bbox=len(made["boxes"]), **size, **more)
    return path


def original_row(name: str | int, made: dict[str, Any]) -> list[Any]:
    """A line of peteanderson80/bottom-up-attention."""
    return [name, made["width"], made["height"], len(made["boxes"]), _text(made["boxes"]), _text(made["features"])]


def lxmert_row(name: str, made: dict[str, Any]) -> list[Any]:
    """A line of airsplay/lxmert."""
    more = [_text(made[key]) for key in ("objects_id", "objects_conf", "attrs_id", "attrs_conf")]
    return [name, made["height"], made["width"], *more, len(made["boxes"]), _text(made["boxes"]), _text(made["features"])]


def write_tsv(path: Path, rows: Iterable[list[Any]]) -> Path:
    with path.open("w", encoding="ascii", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)  # \r\n, as the tools leave it
    return path


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values)).decode("ascii")
