"""The region file of the Chain-of-Spot authors (see `released`), written and read.

Writing it loses: a region becomes the square around it, in whole pixels. The square holds the region; where it does not hang
over the picture's far edges, its side exceeds the region's longer one by less than two pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from cos_core.data.datasets import read_examples
from cos_core.data.formats.records import IMPORTED, ImportSource, Incoming, Outgoing
from cos_core.data.released import ReleasedRegions, Square, key_of
from cos_core.errors import InputError
from cos_core.files.jsonl import Problem, report
from cos_core.types import Annotation


def write(file: BinaryIO, regions: Iterable[Outgoing]) -> int:
    """One key a line, as the regions come; returns their number. Raises InputError for regions without their questions."""
    count = 0
    file.write(b"{")
    for region in regions:
        if region.example is None:
            raise InputError("the released layout names rows of the questions' file; give it (--data)")
        square = Square.around(region.box, region.width, region.height)
        entry = {"params": [round(square.top), round(square.left), round(square.side)]}
        file.write(
            (b",\n" if count else b"\n") + json.dumps(key_of(region.example)).encode() + b": " + json.dumps(entry).encode()
        )
        count += 1
    file.write(b"\n}\n")
    return count


def read(source: ImportSource) -> Iterator[Incoming]:
    """The regions of the questions in `source.data`, joined by id and question, clipped to their pictures.

    What does not fit goes to `source.on_problem`. Raises InputError without the questions' file, and for another layout.
    """
    if source.data is None:
        raise InputError("the released layout says nothing of pictures and questions; give the questions' file (--data)")
    regions = ReleasedRegions(source.path)
    for key, reason in regions.bad.items():
        report(Problem(source.path, None, key, reason), source.on_problem)
    used = 0
    for example in read_examples(source.data, on_problem=source.on_problem):
        region = regions.find(example)
        if region is None:
            continue
        key, _, square = region
        used += 1
        try:
            frame = source.sizes.frame(example.image, example.meta)
            width, height = frame.width, frame.height
            if source.boxes.wants():
                source.boxes.add(_corners(square, width, height), (width, height), example.image, example.id)
            if not square.inside(width, height):
                raise InputError(
                    f"the square {square.top:g}, {square.left:g}, {square.side:g} is not on {width}x{height} pixels"
                )
            box = frame.upright(square.box(width, height))
        except InputError as error:
            report(Problem(source.path, None, key, str(error)), source.on_problem)
            yield Incoming(example.id, failure=f"{source.path.name}: {key}: {error}")
            continue
        yield Incoming(example.id, Annotation(example.id, box, 0.0, IMPORTED, source.fingerprint, image=example.image))
    if used < len(regions):
        reason = f"{len(regions) - used} of its {len(regions)} regions belong to no question of {source.data}"
        report(Problem(source.path, None, None, reason), source.on_problem)


def _corners(square: Square, width: int, height: int) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in pixels; far edges that hang over a picture of `width` x `height` are cut off, as the loader does."""
    right, bottom = square.left + square.side, square.top + square.side
    if square.inside(width, height):
        right, bottom = min(right, width), min(bottom, height)
    return square.left, square.top, right, bottom
