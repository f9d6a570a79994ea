"""`cos model`: checkpoints in and out of the original LLaVA layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cos_cli import options
from cos_cli.console import Session, emit, emit_json, emit_text, reporting
from cos_core.files.text import Lines

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def model() -> None:
    """Convert and inspect checkpoints.

    \b
    Examples:
      cos model convert llava-v1.5-7b --vision-tower clip-vit-large-patch14-336 --out llava-7b
      cos model info miniature
      cos model template --profile repo-2024 > cos.jinja
    """


@app.command()
def convert(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(help="Original LLaVA-1.5 checkpoint: a local folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New folder for the converted checkpoint.", show_default=False)],
    base: Annotated[
        Path | None, typer.Option(help="The language model, when SOURCE holds only a projector or a LoRA adapter.")
    ] = None,
    vision_tower: Annotated[
        Path | None, typer.Option(help="The CLIP folder, when it is not where the checkpoint's mm_vision_tower says.")
    ] = None,
    profile: options.Profile = None,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Convert an original LLaVA checkpoint.

    Reads sharded .bin or safetensors, separate projectors and LoRA adapters; writes the transformers layout that every
    command takes.

    \b
    Example:
      cos model convert llava-CoS-13B --vision-tower clip-vit-large-patch14-336 --out llava-cos-13b
    """
    from cos_core.models.convert import ConvertConfig
    from cos_core.models.convert import convert as run

    with reporting(ctx.ensure_object(Session)) as reporter:
        for note in run(ConvertConfig(source, out, base, vision_tower, profile)):
            reporter.note(note)


@app.command()
def info(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A converted checkpoint: a local folder, or 'miniature'.",
            show_default=False,
            autocompletion=options.complete("model"),
        ),
    ],
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Say what a checkpoint is: weights, sizes, wording; and whether cos can use it.

    \b
    Example:
      cos model info miniature
    """
    from cos_core.errors import InputError
    from cos_core.models.checkpoint_info import describe

    with reporting(ctx.ensure_object(Session)):
        found, refused = describe(model)
        if json:
            emit_json(found)
        else:
            width = max(map(len, found))
            emit(Lines(f"{name:<{width}}  {value}" for name, value in found.items()))
        if refused is not None:
            raise InputError(refused)


@app.command()
def template(
    ctx: typer.Context,
    profile: options.Profile = None,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Print the chat template of a wording, for a server.

    Checkpoints that cos writes have theirs. This is for serving those of other hands, whose templates move pictures to the
    front of a turn and leave out the end mark. The wording is "paper" unless another is given.

    \b
    Example:
      cos model template > cos.jinja; vllm serve llava-hf/llava-1.5-7b-hf --chat-template cos.jinja
    """
    from cos_core.dialogue.prompts import load_profile
    from cos_core.models.layout.template import chat_template

    with reporting(ctx.ensure_object(Session)):
        text = chat_template(load_profile(profile or "paper"), "<image>", start=True)
    emit_text(text.rstrip("\n"))
