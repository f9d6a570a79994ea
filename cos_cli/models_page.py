"""Writes docs/models.md, the table of families, from the families themselves: `make reference`."""

from __future__ import annotations

import sys
from pathlib import Path

from cos_core.dialogue.prompts import load_profile
from cos_core.models import families, support
from cos_core.models.families import Family

_HEAD = """\
# Models

`cos` asks any vision-language model that `transformers` has as an image-text-to-text model, with a chat template, an image
processor that works with Pillow, and room for two pictures in a dialogue. It annotates with those whose image tokens look at
known parts of the picture, and trains those with a dialogue. `cos model convert` reads original LLaVA-1.5 folders. `cos model
info M` says what works with a checkpoint, and how it is shown pictures. This page is written by `make reference`; a test fails
when it is stale.

<!-- not run: needs a checkpoint of 7 billion weights -->
```bash
cos model info Qwen/Qwen2.5-VL-7B-Instruct
cos infer --model Qwen/Qwen2.5-VL-7B-Instruct --image photo.jpg --question "What does the sign say?"
```

## Families

`model type` stands in the checkpoint's `config.json`. "Continued": pass 2 goes on from pass 1's keys and values. "Annotated":
whether its relevance can be mapped to the picture, for `cos annotate` (both backbones) and `--roi relevance`. "Trained": by
`cos train`, whole or with adapters. "Boxes": the unit, and what it is a share of. "Options": what changes how finely a picture
is shown; the same model differs by many points over it, so these are part of the fingerprint.
"""
_EXAMPLES = """
## How a box is written

The box of {box} in a picture of {width} x {height} pixels that is shown in this size. A profile with `box = "family"` (the
profile `chat`) writes boxes so; a checkpoint that was fine-tuned with another writing carries its profile. Text that a model
writes is read leniently.
"""
_TAIL = """
## Families without a file

Every other type is tried when it is loaded: a dialogue of one picture and one of two, computed as `cos` computes them, must
give the model's own logits. Where they differ, each dialogue is computed from its start by the library's own `generate`, which
is slower, and a note says so. Boxes are fractions of the picture, as for families whose way is not documented. They are not
annotated with: which part of the picture an image token looks at, says the family's file.

## What is refused

One sentence each, code 3 (code 4 for a package that is missing), before a weight is read:

| what | what to do |
|---|---|
| code in the checkpoint (`auto_map`) and a type that `transformers` does not know | serve it, `--engine openai` |
| a type that is no image-text-to-text model, a language model, a tower alone, LXMERT | name a vision-language model |
| weights that are not those of `config.json`: missing, of another shape, fewer than its model has | take the whole checkpoint |
| quantized weights, pickles, adapters | take the checkpoint that they were made from; merge the adapter |
| no processor, one for torchvision only, or one that does not work with Pillow | save its files beside the weights |
| no chat template | put the family's into the folder, as `chat_template.jinja` |
| one picture in a dialogue | `--roi none` |
| annotating and `--roi relevance` where no image token looks at a known part of the picture | the sentence says why |
| an option of the pixel budget that the family does not have; a floor above the ceiling | the sentence names those it has |
| `--box-decode grammar` where a box is written with special tokens | decode freely |

`config.json` is looked at before anything is built: the model is built without memory, no larger than the table of weights in
front of each file says, and the library's own loader puts that table into it.
"""


def page() -> str:
    """The whole page."""
    known = [(kind, families.of_type(kind)) for kind in families.names()]
    rows = "\n".join(_row(kind, family) for kind, family in known)
    examples = "\n".join(_example(family) for _, family in known if not family.text_profile)
    sources = "\n".join(f"- {family.name}: {family.boxes_source}" for _, family in known if family.boxes_source)
    width, height = support.EXAMPLE
    words = {"box": "0.25, 0.5, 0.75, 1 (left, top, right, bottom)", "width": width, "height": height}
    return (
        f"{_HEAD}\n| family | model type | two passes | continued | annotated | trained | boxes | options |\n"
        f"|---|---|---|---|---|---|---|---|\n{rows}\n"
        f"{_EXAMPLES.format(**words)}\n| family | order | text |\n|---|---|---|\n{examples}\n\nDocumented "
        f"by:\n\n{sources}\n{_TAIL}"
    )


def _row(kind: str, family: Family) -> str:
    learns = f"{_annotated(family)} | {_trained(family)}"
    if family.text_profile:
        return f"| {family.name} | {_types(kind)} | no: one picture, `--roi none` | | {learns} | | |"
    style = family.boxes
    unit = f"{support.UNITS[style.unit]}" + ("" if style.unit == "pixel" else f" of the {_frame(style.frame)}")
    options = ", ".join(f"`{families.option(word)}`" for word in family.budget_words) or "none: one size"
    continued = f"no: {family.not_continued}" if family.not_continued else "yes"
    return f"| {family.name} | {_types(kind)} | yes | {continued} | {learns} | {unit} | {options} |"


def _annotated(family: Family) -> str:
    if family.no_grid:
        return f"no: {family.no_grid}"
    return "no: its grids are not known" if type(family).grids is Family.grids else "yes"


def _trained(family: Family) -> str:
    return f"no: {family.not_trained}" if family.not_trained else "yes"


def _types(stem: str) -> str:
    """The `model_type` of a family's file; Pixtral-12B's is LLaVA's."""
    return {"pixtral": "`llava`, tower `pixtral`", "blip_2": "`blip-2`"}.get(stem, f"`{stem}`")


def _frame(frame: str) -> str:
    return "picture" if frame == "image" else "padded square"


def _example(family: Family) -> str:
    shown = support.boxes(load_profile("chat").with_boxes(family.boxes), family)
    text = shown["example"].replace("|", "\\|")
    return f"| {family.name} | {shown['order']} | `{text}` |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
