"""Regions in the formats of others: what a store is written as, and what it can be made from.

jsonl          one annotation a line, our own; nothing is lost
chain-of-spot  the file that the Chain-of-Spot authors released: squares in pixels, keyed by row, id and question
coco           images and annotations with `bbox` [x, y, width, height] in pixels, one category
visual-cot     the metadata lines of Visual-CoT (`bboxs` in pixels); its converted conversations can be read, too
"""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["jsonl", "chain-of-spot", "coco", "visual-cot"]
FORMATS: tuple[Format, ...] = get_args(Format)
