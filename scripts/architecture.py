"""Draws docs/pictures/architecture.svg: `python scripts/architecture.py`. Five things, each through the code in one direction.

The paths below are those of the repository; tests/test_docs.py reads them in the picture and fails for one that is not there.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

OUT = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "architecture.svg"
LANES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "Example": (
        "#0072B2",
        [
            ("cos_core/data/records.py", "a record gives Examples"),
            ("cos_core/data/datasets.py", "files are read in order"),
            ("cos_core/runners/_dealer.py", "whole pictures go to workers"),
            ("cos_core/infer/passes.py", "Example to Prediction"),
            ("cos_core/evaluate/joining.py", "Predictions join by id"),
            ("cos_core/benchmarks", "both give a Score"),
        ],
    ),
    "Box": (
        "#D55E00",
        [
            ("cos_core/relevance/roi.py", "relevance gives a Box"),
            ("cos_core/store", "kept, frame “image”"),
            ("cos_core/geometry.py", "in the profile's frame"),
            ("cos_core/models/families", "unit, and the size seen"),
            ("cos_core/dialogue/box_text.py", "written; the model's read"),
            ("cos_core/dialogue/cropping.py", "back to frame “image”"),
        ],
    ),
    "Crop": (
        "#009E73",
        [
            ("cos_core/files/picture_files.py", "the path is checked"),
            ("cos_core/files/images.py", "the picture is decoded"),
            ("cos_core/dialogue/cropping.py", "box text gives an area"),
            ("cos_core/dialogue/cropping.py", "the area is cut"),
            ("cos_core/models", "padded or tiled, resized"),
            ("cos_core/engines/hf.py", "image tokens of pass 2"),
        ],
    ),
    "Profile": (
        "#CC79A7",
        [
            ("templates/prompts", "wording as TOML"),
            ("cos_core/models/wording.py", "with the family's boxes"),
            ("cos_core/dialogue/prompts.py", "Profile gives the Turns"),
            ("cos_core/dialogue", "roles: its own, or a template's"),
            ("cos_core/training/save.py", "kept with the checkpoint"),
            ("cos_core/engines", "read from there to answer"),
        ],
    ),
    "Fingerprint": (
        "#6B6B6B",
        [
            ("cos_core/models/hub.py", "digest of the checkpoint"),
            ("cos_core/files/deciding.py", "fields that decide"),
            ("cos_core/files/manifest.py", "16 hexadecimal digits"),
            ("cos_core/types.py", "kept in each record"),
            ("cos_core/infer/stage.py", "compared on resuming"),
            ("cos_core/errors.py", "different: InputError, code 3"),
        ],
    ),
}
LAYERS = (
    ("cos_cli", "commands"),
    ("demo suite", "several stages"),
    ("annotate training infer evaluate visualize miniature doctor", "stages"),
    ("backbones detectors policies engines benchmarks runners", "adapters"),
    ("data dialogue models relevance scoring store system web", "libraries"),
    ("files options", "files"),
    ("types geometry interfaces errors", "records"),
)
BOX, GAP, HEIGHT, LEFT, LANE = 196, 20, 52, 112, 84
WIDTH = LEFT + 6 * (BOX + GAP)


def text(x: float, y: float, words: str, size: int = 11, **more: str) -> str:
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x}" y="{y}" font-size="{size}"{attributes}>{escape(words)}</text>'


def lane(top: int, name: str, colour: str, steps: list[tuple[str, str]]) -> list[str]:
    parts = [text(8, top + HEIGHT / 2 + 5, name, 15, font_weight="bold", fill=colour)]
    for number, (path, words) in enumerate(steps):
        x = LEFT + number * (BOX + GAP)
        parts.append(f'<rect x="{x}" y="{top}" width="{BOX}" height="{HEIGHT}" rx="5" fill="#ffffff" stroke="{colour}"/>')
        parts.append(text(x + 8, top + 21, words, 12, fill="#1b1b1f"))
        parts.append(text(x + 8, top + 40, path, 10, fill="#55555c", font_family="monospace"))
        if number:
            parts.append(f'<path d="M {x - GAP + 3} {top + HEIGHT / 2} H {x - 5}" stroke="{colour}" marker-end="url(#end)"/>')
    return parts


def layers(top: int) -> list[str]:
    parts = [text(8, top, "Layers: an import points downwards only", 15, font_weight="bold", fill="#1b1b1f")]
    for number, (names, kind) in enumerate(LAYERS):
        y = top + 14 + number * 28
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - GAP}" height="24" rx="3" fill="#f2f2ef" stroke="#c9c9c4"/>'
        )
        parts.append(text(8, y + 17, kind, 12, fill="#55555c"))
        parts.append(text(LEFT + 10, y + 16, names, 12, fill="#1b1b1f", font_family="monospace"))
    return parts


def picture() -> str:
    parts = [
        part for row, (name, (colour, steps)) in enumerate(LANES.items()) for part in lane(16 + row * LANE, name, colour, steps)
    ]
    below = 16 + len(LANES) * LANE + 18
    parts += layers(below)
    height = below + 14 + len(LAYERS) * 28 + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif">\n'
        '<defs><marker id="end" markerWidth="7" markerHeight="6" refX="5" refY="3" orient="auto">'
        '<path d="M0 0 L6 3 L0 6 Z" fill="#55555c"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    OUT.write_text(picture(), encoding="utf-8")
