"""Regions in the formats of others: what a store is written as, and what it can be made from.

jsonl          one annotation a line, our own; nothing is lost
chain-of-spot  the file that the Chain-of-Spot authors released: squares in pixels, keyed by row, id and question
coco           images and annotations with `bbox` [x, y, width, height] in pixels, one category
parquet        a folder for the hub, with a dataset card; nothing is lost but failures
visual-cot     the metadata lines of Visual-CoT (`bboxs` in pixels); its converted conversations can be read, too

Written only, for the trainers of others (see `trainers`): llama-factory, ms-swift, trl, verl.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Format = Literal["jsonl", "parquet", "chain-of-spot", "coco", "visual-cot"]
FORMATS: tuple[Format, ...] = get_args(Format)
TrainerFormat = Literal["llama-factory", "ms-swift", "trl", "verl"]
TRAINERS: tuple[TrainerFormat, ...] = get_args(TrainerFormat)
ExportFormat = Literal[Format, TrainerFormat]
SUFFIXES: Mapping[TrainerFormat, tuple[str, ...]] = {
    "llama-factory": (".json", ".jsonl"),
    "ms-swift": (".json", ".jsonl"),
    "trl": (".parquet",),
    "verl": (".parquet",),
}
"""How a file must end for its tool to read it."""
