"""`cos model`: checkpoints in and out of the original LLaVA layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        REQUIRED, "A converted checkpoint: a local folder, or 'miniature'.", INPUT, argument=True, completes="model"
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
    """Say what a checkpoint is: weights, sizes, wording; and whether cos can use it.

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
            width = max(map(len, facts))
            emit(Lines(f"{name:<{width}}  {value}" for name, value in facts.items()))
        if refused is not None:
            raise InputError(refused)


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
