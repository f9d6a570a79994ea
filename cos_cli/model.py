"""`cos model`: checkpoints in and out of the original LLaVA layouts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cos_cli.command import Group, command
from cos_cli.console import Session, emit, emit_json, emit_text, reporting
from cos_core import options
from cos_core.files.text import Lines
from cos_core.options import INPUT, REQUIRED, option

if TYPE_CHECKING:
    from cos_core.models.convert_config import ConvertConfig

HELP = """\
Convert and inspect checkpoints.

\b
Examples:
  cos model convert llava-v1.5-7b --vision-tower clip-vit-large-patch14-336 --out llava-7b
  cos model info miniature
  cos model template --profile repo-2024 > cos.jinja
"""


@dataclass(frozen=True, slots=True)
class ModelPath:
    """The checkpoint that is described."""

    model: str = option(
        REQUIRED, "A checkpoint: a local folder, a hub id, or 'miniature'.", INPUT, argument=True, completes="model"
    )


@dataclass(frozen=True, slots=True)
class Wording:
    """The wording whose template is printed."""

    profile: str | None = options.profile_option()


@command("model convert", "cos_core.models.convert_config:ConvertConfig", leaves_out=("config_file", "json"))
def convert(session: Session, config: ConvertConfig) -> None:
    """Convert an original LLaVA checkpoint.

    Reads sharded .bin or safetensors, separate projectors and LoRA adapters; writes the transformers layout that every
    command takes.

    \b
    Example:
      cos model convert llava-CoS-13B --vision-tower clip-vit-large-patch14-336 --out llava-cos-13b
    """
    from cos_core.models.convert import convert as run

    with reporting(session) as reporter:
        for note in run(config):
            reporter.note(note)


@command("model info", ModelPath, leaves_out=("config_file",))
def info(session: Session, which: ModelPath) -> None:
    """Say what a checkpoint is, and what of cos works with it.

    Weights, sizes, wording; how its family writes a box, how finely it shows a picture, and which options change that.

    \b
    Example:
      cos model info miniature
    """
    from cos_core.errors import InputError
    from cos_core.models.checkpoint_info import describe

    with reporting(session):
        facts, refused = describe(which.model)
    if session.json:
        emit_json(facts)
    else:
        emit(Lines(_lines(facts)))
    if refused is not None:
        raise InputError(refused)


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """A line for each fact, longer ones broken at 80 columns; facts of several parts are indented below their name."""
    width = max(len(name) for value in (facts, *facts.values()) if isinstance(value, Mapping) for name in value) + 2
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{_WORDS.get(name, name)}" + ("" if value else f"{'':<{width + 2 - len(name)}}every picture in one size")
            for part, each in value.items():
                text = f"no: {each}" if name == "works" and each is not True else _text(each)
                yield from _wrapped(f"  {_WORDS.get(part, part):<{width}}", text)
        else:
            yield from _wrapped(f"{_WORDS.get(name, name):<{width + 2}}", _text(value))


_WORDS = {
    "two_passes": "two passes",
    "model_type": "model type",
    "example_of": "",
    "image_side": "image side",
    "image_tokens": "image tokens",
}


def _text(value: Any) -> str:
    if value is True:
        return "yes"
    return "none" if value is None else str(value)


def _wrapped(label: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, 80 - len(label), break_long_words=False, break_on_hyphens=False) or [""]
    return [(label if at == 0 else " " * len(label)) + line for at, line in enumerate(lines)]


@command("model template", Wording, leaves_out=("config_file", "json"))
def template(session: Session, wording: Wording) -> None:
    """Print the chat template of a wording, for a server.

    Checkpoints that cos writes have theirs. This is for serving those of other hands, whose templates move pictures to the
    front of a turn and leave out the end mark. The wording is "paper" unless another is given.

    \b
    Example:
      cos model template > cos.jinja; vllm serve llava-hf/llava-1.5-7b-hf --chat-template cos.jinja
    """
    from cos_core.dialogue.prompts import load_profile
    from cos_core.models.layout.template import chat_template

    with reporting(session):
        text = chat_template(load_profile(wording.profile or "paper"), "<image>", start=True)
    emit_text(text.rstrip("\n"))


group = Group("model", HELP, (convert, info, template))
