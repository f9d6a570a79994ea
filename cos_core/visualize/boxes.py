"""Statistics of the regions of a store or predictions file: plots, with their numbers beside them (CoS Fig. 7, appendix B)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cos_core import images, manifest
from cos_core.errors import InputError
from cos_core.interfaces import Reporter
from cos_core.jsonl import Problem
from cos_core.types import RunManifest
from cos_core.visualize import plots, source
from cos_core.visualize.tally import BoxTally


@dataclass(frozen=True, slots=True)
class BoxStatsConfig:
    """`source`: a store, a predictions file, or a directory with predictions.jsonl; `out`: a directory.

    `images`: the root of the image paths, needed only to give aspect ratios in pixels; without it they are in fractions of the
    picture (1: the picture's own shape).
    """

    source: Path
    out: Path
    images: Path | None = None


def run(config: BoxStatsConfig, reporter: Reporter) -> RunManifest:
    """Writes boxes.json, centre_bias/area/aspect/offset/status as .png and .csv, and manifest.json last.

    Unreadable lines are counted as failed and reported, not fatal. Raises InputError when the source is not there or holds
    no example.
    """
    settings = {"source": config.source, "images": config.images}
    work = manifest.started("visualize boxes", config, settings_fingerprint=manifest.fingerprint(settings))
    if not config.source.exists():
        raise InputError(f"{config.source}: no such store or predictions file")
    tally, unreadable = _counted(config, reporter)
    if not tally.status:
        raise InputError(f"{config.source} holds no examples{f' ({unreadable} unreadable lines)' if unreadable else ''}")
    if tally.boxes == 0:
        reporter.warn(f"{config.source} holds no boxes; the plots are empty")
    config.out.mkdir(parents=True, exist_ok=True)
    unit = "pixels" if config.images else "fractions of the picture"
    statistics = {"source": str(config.source), "aspect_unit": f"width / height in {unit}", **tally.to_json()}
    _write_numbers(config.out, tally)
    manifest.atomic_write(config.out / "boxes.json", json.dumps(statistics, indent=2) + "\n")
    plots.write_all(config.out, tally, unit)
    failed = tally.status.get("failed", 0)
    counts = {
        "ok": tally.boxes,
        "failed": failed + unreadable,
        "skipped": sum(tally.status.values()) - tally.boxes - failed,
    }
    result = work.finish(counts, results=statistics)
    manifest.write(config.out / "manifest.json", result)
    reporter.note(f"{tally.boxes} boxes of {sum(tally.status.values())} examples: {config.out}")
    return result


def _counted(config: BoxStatsConfig, reporter: Reporter) -> tuple[BoxTally, int]:
    """The tally, and how many lines could not be read."""
    unreadable = 0

    def problem(found: Problem) -> None:
        nonlocal unreadable
        unreadable += 1
        if unreadable <= 5:
            reporter.warn(str(found))

    tally = BoxTally()
    for done, found in enumerate(source.read_boxes(config.source, problem), 1):
        shape = 1.0
        if config.images is not None and found.box is not None and found.image is not None:
            shape = _shape(config.images, found.image)
        tally.add(found.box, found.status, shape)
        if done % 1000 == 0:
            reporter.progress("boxes", done, None)
    return tally, unreadable


# Questions on one image follow each other; a small memory keeps each header from being read again.
@lru_cache(maxsize=256)
def _shape(root: Path, relative: str) -> float:
    """Width / height of a picture."""
    width, height = images.open_image(root, relative).size
    return width / height


def _write_numbers(out: Path, tally: BoxTally) -> None:
    for name, histogram in (("area", tally.area), ("aspect", tally.aspect), ("offset", tally.offset)):
        _write_csv(out / f"{name}.csv", ("low", "high", "count"), histogram.rows())
    _write_csv(out / "status.csv", ("status", "count"), sorted(tally.status.items()))
    cover = tally.centre_bias
    _write_csv(out / "centre_bias.csv", [f"x{i}" for i in range(cover.shape[1])], (tuple(f"{v:.6g}" for v in r) for r in cover))


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    manifest.atomic_write(path, text.getvalue())
