"""A picture in the terminal, two pixels a character, for looking at a result over ssh."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from PIL import Image

RAMP = " .:-=+*#%@"
_RESET = "\x1b[0m"


def show(path: Path, stream: TextIO) -> None:
    """Writes the picture at `path` to `stream`, as wide as the terminal: in colour, or in letters where NO_COLOR is set.

    A PDF is not shown: its PNG would be.
    """
    from PIL import Image

    if path.suffix.lower() == ".pdf":
        stream.write("no preview of a PDF; write .png or .webp to see one here\n")
        return
    with Image.open(path) as picture:
        columns = max(20, min(200, shutil.get_terminal_size().columns))
        stream.write(drawn(picture.convert("RGB"), columns, "NO_COLOR" not in os.environ) + "\n")


def drawn(picture: Image.Image, columns: int, colour: bool) -> str:
    """`picture` as lines of at most `columns` characters: upper half blocks over a background, or letters by brightness."""
    from PIL import Image

    width = min(columns, picture.width)
    rows = max(1, round(picture.height * width / picture.width / 2))
    if not colour:
        grey = picture.convert("L").resize((width, rows), Image.Resampling.BOX)
        letters = [RAMP[value * (len(RAMP) - 1) // 255] for value in grey.tobytes()]
        return "\n".join("".join(letters[row * width : (row + 1) * width]).rstrip() for row in range(rows))
    data = picture.resize((width, 2 * rows), Image.Resampling.BOX).tobytes()
    lines = []
    for row in range(rows):
        cells = []
        for column in range(width):
            upper, lower = ((2 * row + half) * width * 3 + 3 * column for half in (0, 1))
            front, back = data[upper : upper + 3], data[lower : lower + 3]
            cells.append(f"\x1b[38;2;{front[0]};{front[1]};{front[2]}m\x1b[48;2;{back[0]};{back[1]};{back[2]}m▀")
        lines.append("".join(cells) + _RESET)
    return "\n".join(lines)
