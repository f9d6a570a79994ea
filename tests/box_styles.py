"""How the families write boxes: the styles that the tests of the codec, the grammar and the crops go through."""

from __future__ import annotations

from cos_core.dialogue.prompts import BoxStyle, Profile, load_profile

JSON = '{"bbox_2d": [{x0}, {y0}, {x1}, {y1}]}'
STYLES = {
    "llava": BoxStyle("square"),
    "qwen2_vl": BoxStyle("image", "thousandth", text="<|box_start|>({x0},{y0}),({x1},{y1})<|box_end|>", decimals=0),
    "qwen2_5_vl": BoxStyle("image", "pixel", text=JSON, decimals=0),
    "qwen3_vl": BoxStyle("image", "thousandth", text=JSON, decimals=0),
    "internvl": BoxStyle("image", "thousandth", text="<box>[[{x0}, {y0}, {x1}, {y1}]]</box>", decimals=0),
    "paligemma": BoxStyle("image", "1024th", "y0x0y1x1", "<loc{y0}><loc{x0}><loc{y1}><loc{x1}>", 0),
    "undocumented": BoxStyle(),
    "whole numbers in brackets": BoxStyle("image", "thousandth", decimals=0),
    "pixels, x first": BoxStyle("image", "pixel", "x0x1y0y1", "x {x0}:{x1}; y {y0}/{y1};", 0),
    "words around fractions": BoxStyle("square", "fraction", text="box({x0} {y0} {x1} {y1})", decimals=2),
}
PROFILES: dict[str, Profile] = {name: load_profile("chat").with_boxes(style) for name, style in STYLES.items()}
SPECIAL = ("qwen2_vl", "paligemma")
"""Those whose texts are made of special tokens."""
