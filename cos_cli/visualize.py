"""`cos visualize`: pictures of finished work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cos_cli import options, settings
from cos_cli.console import Session, emit_json, reporting, summary
from cos_core.system import bounds
from cos_core.system.streams import behind

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def visualize() -> None:
    """See where the model looked, and whether it mattered.

    \b
    Examples:
      cos visualize overlay --predictions answers.jsonl --images pictures --out overlay.png
      cos visualize stats answers.jsonl --out boxes
      cos visualize report run --out report.html
    """


Runs = Annotated[
    list[Path],
    typer.Argument(
        help="Folders of `cos eval`; the last is the one looked at.",
        metavar="RUN [RUN...]",
        autocompletion=options.complete("run"),
    ),
]
RunData = Annotated[
    Path | None, typer.Option(help="The benchmark's folder or questions' file.", show_default="where the run found it")
]
RunImages = Annotated[
    Path | None, typer.Option(help="Folder that the image paths start from.", show_default="where the run found them")
]
Flipped = Annotated[bool, typer.Option("--flipped", help="Only questions on which the first two runs' verdicts differ.")]
Wrong = Annotated[bool, typer.Option("--wrong", help="Only questions that the last run got wrong.")]
Fallback = Annotated[bool, typer.Option("--fallback", help="Only questions whose box could not be used.")]
MinArea = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, callback=options.finite, help="Only regions of at least this share of the picture.", show_default="any"
    ),
]
Question = Annotated[str | None, typer.Option(help="Only questions that match this regular expression.", show_default="any")]
Sample = Annotated[
    int | None, typer.Option(min=1, max=bounds.COUNT, help="So many of them, drawn at random.", show_default="all")
]


@app.command()
def report(
    ctx: typer.Context,
    runs: Runs,
    out: Annotated[Path, typer.Option(help="Page to write, .html.")],
    data: RunData = None,
    images: RunImages = None,
    follow_links: options.FollowLinks = False,
    store: Annotated[
        Path | None,
        typer.Option(
            help="A store of `cos annotate`: adds the annotated regions and its relevance maps.",
            autocompletion=options.complete("store"),
        ),
    ] = None,
    heat: Annotated[
        Path | None, typer.Option(help="Folder of relevance maps, EXAMPLE_ID.npy or .json; '/' is written '_'.")
    ] = None,
    cards: Annotated[int, typer.Option(min=0, max=bounds.BATCH, help="Questions shown with their pictures, at most.")] = 2000,
    embed_mb: Annotated[
        float,
        typer.Option(
            min=0, max=100_000, callback=options.finite, help="Megabytes of pictures inside the page; more go to a folder."
        ),
    ] = 30.0,
    flipped: Flipped = False,
    wrong: Wrong = False,
    fallback: Fallback = False,
    min_area: MinArea = None,
    question: Question = None,
    sample: Sample = None,
    seed: options.Seed = 0,
    config_file: settings.Config = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Write runs as one page that opens from disk: table, plots, every answer.

    \b
    Examples:
      cos visualize report run --out report.html
      cos visualize report before after --flipped --out changed.html
    """
    from cos_core.visualize.run_report import ReportConfig, run
    from cos_core.visualize.select import Selection

    selection = Selection(flipped, wrong, fallback, min_area, question, sample, seed)
    with reporting(ctx.ensure_object(Session)) as reporter:
        config = ReportConfig(tuple(runs), out, data, images, store, heat, cards, embed_mb, selection, follow_links)
        manifest = run(config, reporter)
        reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())


@app.command()
def compare(
    ctx: typer.Context,
    runs: Runs,
    out: Annotated[Path, typer.Option(help="Contact sheet to write: .pdf (vector), .png or .webp; OUT.csv has the table.")],
    data: RunData = None,
    images: RunImages = None,
    follow_links: options.FollowLinks = False,
    grid: Annotated[str, typer.Option(help="Columns x rows of a sheet.")] = "4x3",
    flipped: Flipped = False,
    wrong: Wrong = False,
    fallback: Fallback = False,
    min_area: MinArea = None,
    question: Question = None,
    sample: Annotated[
        int | None, typer.Option(min=1, max=bounds.COUNT, help="So many questions, drawn at random.", show_default="one sheet")
    ] = None,
    seed: options.Seed = 0,
    config_file: settings.Config = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Put the same questions of two runs on contact sheets: answers, boxes, verdicts.

    \b
    Examples:
      cos visualize compare before after --flipped --out flipped.pdf
      cos visualize compare run --wrong --grid 5x4 --out wrong.png
    """
    from cos_core.visualize.contact_sheets import CompareConfig, run
    from cos_core.visualize.select import Selection

    selection = Selection(flipped, wrong, fallback, min_area, question, sample, seed)
    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = run(CompareConfig(tuple(runs), out, data, images, grid, selection, follow_links), reporter)
        reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())


@app.command()
def export(
    ctx: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of `cos eval`, or a predictions file.",
            metavar="RUN",
            autocompletion=options.complete("run"),
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write.")],
    format: Annotated[Literal["coco", "fiftyone", "label-studio", "lmms-eval"], typer.Option(help="What reads it.")],
    data: RunData = None,
    images: RunImages = None,
    follow_links: options.FollowLinks = False,
    image_prefix: Annotated[str, typer.Option(help="What stands before a picture's path in label-studio.")] = "",
    wrong: Wrong = False,
    fallback: Fallback = False,
    min_area: MinArea = None,
    question: Question = None,
    sample: Sample = None,
    seed: options.Seed = 0,
    config_file: settings.Config = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Write a run for another viewer: COCO, FiftyOne, Label Studio, lmms-eval samples.

    \b
    Examples:
      cos visualize export run --format coco --out boxes.json
      cos visualize export run --format lmms-eval --out samples.jsonl
    """
    from cos_core.visualize.export import RunExportConfig, run
    from cos_core.visualize.select import Selection

    selection = Selection(False, wrong, fallback, min_area, question, sample, seed)
    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = run(RunExportConfig(source, out, format, data, images, image_prefix, selection, follow_links), reporter)
        reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())


@app.command()
def overlay(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .webp or .pdf.")],
    predictions: Annotated[
        Path | None, typer.Option(help="Predictions file, or the folder that holds predictions.jsonl.")
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            help="Id of the prediction or annotation to draw.",
            show_default="the first with a box",
            autocompletion=options.complete("example"),
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that the image paths in --predictions or --store start from.")
    ] = None,
    follow_links: options.FollowLinks = False,
    data: Annotated[Path | None, typer.Option(help="The questions' file: adds the true answer and the gold region.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="A store of `cos annotate`: adds the annotated region and relevance map, or is drawn by itself.",
            autocompletion=options.complete("store"),
        ),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A picture, instead of --predictions.")] = None,
    box: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            callback=options.finite, help="Its box: left, top, right, bottom as fractions of the picture.", show_default=False
        ),
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
    longest: Annotated[
        int, typer.Option(min=64, max=bounds.LONGEST_PX, help="Longer side of the drawn picture, in pixels.")
    ] = 640,
    config_file: settings.Config = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Draw one answer: the picture with its boxes, the zoomed region, question and answer.

    \b
    Examples:
      cos visualize overlay --predictions answers.jsonl --images pictures --out overlay.png
      cos visualize overlay --store rois --example 000000123#q0 --images pictures --out overlay.png
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
        follow_links=follow_links,
    )
    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = run(config, reporter)
        reporter.note(summary(manifest, out))
    if preview:
        from cos_cli.preview import show

        show(config.out, behind(sys.stderr))
    if json:
        emit_json(manifest.to_json())


@app.command()
def stats(
    ctx: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            help="Store of `cos annotate`, or a predictions file.",
            metavar="SOURCE",
            autocompletion=options.complete("store"),
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the plots and the numbers beside them.")],
    images: Annotated[
        Path | None, typer.Option(help="Picture folder, for aspect ratios in pixels.", show_default="fractions of the picture")
    ] = None,
    follow_links: options.FollowLinks = False,
    reference: Annotated[
        Path | None, typer.Option(help="Regions to measure against: a store, predictions, or questions with gold regions.")
    ] = None,
    config_file: settings.Config = None,
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
        manifest = run(
            BoxStatsConfig(source=source, out=out, images=images, reference=reference, follow_links=follow_links), reporter
        )
        reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())
