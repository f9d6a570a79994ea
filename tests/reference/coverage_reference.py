"""The centre-bias map cell by cell, as it is defined: the share of every cell that a box covers, summed over the boxes."""

from __future__ import annotations

import numpy as np


def covered(boxes: np.ndarray, cells: int) -> np.ndarray:
    """(cells, cells), rows downwards, of (n, 4) corners x0, y0, x1, y1 in [0, 1]."""
    total = np.zeros((cells, cells))
    for x0, y0, x1, y1 in boxes:
        for row in range(cells):
            for column in range(cells):
                width = min(x1, (column + 1) / cells) - max(x0, column / cells)
                height = min(y1, (row + 1) / cells) - max(y0, row / cells)
                total[row, column] += max(0.0, width) * max(0.0, height) * cells * cells
    return total
