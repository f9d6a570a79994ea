"""`cos visualize`: pictures of finished work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cos_cli import options
from cos_cli.console import Session, emit_json, reporting, summary

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def visualize() -> None:
    """See where the model looked: overlays and statistics.

    \b
    Examples:
      cos visualize overlay --predictions answers.jsonl --images pictures --out overlay.png
      cos visualize stats answers.jsonl --out boxes
    """


@app.command()
def overlay(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .webp or .pdf.")],
    predictions: Annotated[
        Path | None, typer.Option(help="Predictions file, or the folder that holds predictions.jsonl.")
    ] = None,
    example: Annotated[
        str | None, typer.Option(help="Id of the prediction to draw.", show_default="the first with a box")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that the image paths in --predictions start from.")] = None,
    data: Annotated[Path | None, typer.Option(help="The questions' file: adds the true answer and the gold region.")] = None,
    store: Annotated[Path | None, typer.Option(help="A store of `cos annotate`: adds the annotated region.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture, instead of --predictions.")] = None,
    box: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(help="Its box: left, top, right, bottom as fractions of the picture.", show_default=False),
    ] = None,
    question: Annotated[str | None, typer.Option(help="The question on --image.")] = None,
    answer: Annotated[str | None, typer.Option(help="The answer to it.")] = None,
    heat: Annotated[
        Path | None, typer.Option(help="A relevance map to lay over the picture: .npy, or rows of numbers as JSON.")
    ] = None,
    heat_frame: Annotated[
        Literal["square", "image"], typer.Option(help="What the map's cells divide: the padded square, or the picture.")
    ] = "square",
    detector: Annotated[
        str | None,
        typer.Option(
            help="Also draw the candidate regions of this detector.",
            parser=options.plugin_name,
            metavar="NAME",
            autocompletion=options.complete("detectors"),
            show_default="none",
        ),
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show the picture in the terminal, too (24-bit colour).")] = False,
    longest: Annotated[int, typer.Option(min=64, help="Longer side of the drawn picture, in pixels.")] = 640,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Draw one answer: the picture with its boxes, the zoomed region, question and answer.

    \b
    Examples:
      cos visualize overlay --predictions answers.jsonl --images pictures --out overlay.png
      cos visualize overlay --image photo.jpg --box 0.2 0.3 0.6 0.8 --out overlay.png
    """
    from cos_core.visualize.overlay import OverlayConfig, run

    config = OverlayConfig(
        out=out,
        predictions=predictions,
        example=example,
        images=images,
        data=data,
        store=store,
        image=image,
        box=box,
        question=question,
        answer=answer,
        heat=heat,
        heat_frame=heat_frame,
        detector=detector,
        longest=longest,
    )
    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = run(config, reporter)
        reporter.note(summary(manifest, out))
    if preview:
        from cos_cli.preview import show

        show(config.out, sys.stderr)
    if json:
        emit_json(manifest.to_json())


@app.command()
def stats(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(help="Store of `cos annotate`, or a predictions file.", metavar="SOURCE")],
    out: Annotated[Path, typer.Option(help="Folder for the plots and the numbers beside them.")],
    images: Annotated[
        Path | None, typer.Option(help="Picture folder, for aspect ratios in pixels.", show_default="fractions of the picture")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Where the boxes lie: centre-bias heat map, sizes, shapes, box status.

    \b
    Examples:
      cos visualize stats rois --out boxes
      cos visualize stats answers.jsonl --out boxes --json
    """
    from cos_core.visualize.boxes import BoxStatsConfig, run

    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = run(BoxStatsConfig(source=source, out=out, images=images), reporter)
        reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())
