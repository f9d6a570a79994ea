"""The model card: what a checkpoint was made from, how it is asked, and what a stranger types to serve it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cos_core.dialogue.prompts import Profile


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a card says beside the wording.

    `name`: what the checkpoint is called (a folder's name, no path); `origin`: one sentence, how it came to be; `base`: a hub
    id or a folder's name; `facts`: data and settings, in the order in which they are to stand; `chain`: whether it learnt to
    look first (Chain-of-Spot), or answers plain questions; `own_processor`: processor and chat template were written after the
    wording (layout.complete), else they are the base model's.
    """

    name: str
    origin: str
    base: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    chain: bool = True
    model_type: str = "llava"
    own_processor: bool = True


def plain_name(model: str | Path) -> str:
    """The name of a checkpoint without its path: a hub id, or the folder's name."""
    path = Path(model)
    if not path.is_dir():
        return str(model)
    path = path.resolve()
    cached = re.fullmatch(r"models--(.+?)--(.+)", path.parent.parent.name) if path.parent.name == "snapshots" else None
    return f"{cached[1]}/{cached[2]}" if cached else path.name


def _box(profile: Profile) -> str:
    """How the profile writes a box, in words."""
    frame = {"square": "padded square", "image": "picture"}[profile.box_frame]
    units = {
        "fraction": f"fractions of the {frame}, {profile.box_decimals} decimals",
        "thousandth": f"thousandths of the {frame}",
        "1024th": f"1024ths of the {frame}",
        "pixel": f"pixels of the {frame} as the model sees it",
    }
    return ", ".join([profile.box_order, units[profile.box_unit], *([f"`{profile.box_text}`"] if profile.box_text else [])])


def written(card: ModelCard, profile: Profile, notes: Sequence[str] = ()) -> str:
    """The card as Markdown with the hub's metadata in front; `notes`: what to beware of, a sentence each."""
    facts = {"base model": card.base or "none, weights began at random", **card.facts}
    crop = {"image": "the picture", "canvas": "the padded square"}[profile.crop_from]
    facts |= {
        "wording (profile)": profile.name,
        "a box": _box(profile),
        "the region is cut from": crop,
    }
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items())
    plain = "" if card.chain else " --roi none"
    warning = "".join(f"\n**Beware:** {note}.\n" for note in notes)
    return f"""\
---
library_name: transformers
pipeline_tag: image-text-to-text
{_base(card.base)}tags:
- {card.model_type}
- chain-of-spot
---

# {card.name}

{card.origin}
{warning}
| | |
|---|---|
{rows}

## Ask it

{_TWICE if card.chain else _ONCE}

```bash
cos infer --model {card.name} --image photo.jpg --question "What colour is the car?"{plain}
```

## Serve it

```bash
vllm serve {card.name} --limit-mm-per-prompt '{{"image": 2}}'
# or: transformers serve {card.name}
cos infer --engine openai --server http://localhost:8000/v1 --model {card.name} \\
    --image photo.jpg --question "What colour is the car?"{plain}
```

Where this folder is not at hand, or the model is served under another name, give `cos infer` the wording, too: `--profile`
(`cos_profile.json` of this folder is one). `cos doctor --server` compares what the server makes of a dialogue with what `cos`
makes of it.

## For other programs

{_OWN_PROCESSOR if card.own_processor else _BASE_PROCESSOR}
{_requests(card, profile)}
"""


_OWN_PROCESSOR = """\
- The image processor pads a picture to a square in its mean colour, as in training; nothing of it is cut off. Boxes are
  fractions of that square.
- The chat template writes the wording's roles, its system message (unless one is given), the end mark behind an answer and the
  start token. A program that renders it to text and tokenises the text later must not add a second start token."""
_BASE_PROCESSOR = "- Processor, tokenizer and chat template are the base model's, as in training."


_TWICE = (
    "It is asked twice (Chain-of-Spot): where to look, then the question, with the whole picture and the region that it named."
)
_ONCE = "It answers plain questions; whether it was taught to look first (Chain-of-Spot) is not known, or it was not."


def _requests(card: ModelCard, profile: Profile) -> str:
    if not card.chain:
        return f"- The request: `{_shown(profile.plain)}`."
    first = f"- First request: `{_shown(profile.inst1)}`; the reply is a box."
    return f"{first}\n- Second request: the same, the reply, then `{_shown(profile.inst2)}`."


def _base(base: str | None) -> str:
    """The hub's line for a base model, which takes a hub id alone."""
    return f"base_model: {base}\n" if base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shown(template: str) -> str:
    """A wording in one line of code."""
    return template.replace("{image}", "<image>").replace("\n", "\\n").replace("`", "'")
