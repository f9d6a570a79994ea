"""`cos annotate`: regions of interest by relevance propagation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cos_cli import options
from cos_cli.console import Session, emit_json, reporting, summary


def annotate(
    ctx: typer.Context,
    data: options.Data,
    images: options.Images,
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Store to write or to continue: a folder with an LMDB database.")],
    backbone: options.Backbone = "regions",
    detector: options.Detector = None,
    detector_options: options.DetectorOptions = None,
    policy: options.Policy = "from_single_question",
    target: Annotated[
        Literal["log-odds", "logit", "logprob", "argmax"],
        typer.Option(help="What is explained: a score of the gold answer, or the model's own choice ('argmax')."),
    ] = "log-odds",
    last_layers: Annotated[
        int | None, typer.Option(min=1, help="Use the last K layers only.", show_default="all layers")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Share of the highest relevance that still counts.", show_default="0.3; 0.5 with patches"
        ),
    ] = None,
    region: Annotated[
        Literal["top1", "component", "union"] | None,
        typer.Option(help="How scores become one box.", show_default="union; component with patches"),
    ] = None,
    extend: Annotated[
        float | None,
        typer.Option(min=0.0, help="Each side moves outwards by this share of its length.", show_default="0; 0.1 with patches"),
    ] = None,
    region_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Visual tokens a region, along each side (backbone regions).", show_default="1"),
    ] = None,
    batch_images: Annotated[int, typer.Option(min=1, help="Pictures that go through the model together.")] = 8,
    limit: options.Limit = None,
    max_failures: options.MaxFailures = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Find the region behind each answer, by relevance propagation.

    The relevance of the answer to each region is read from the model's own attention (CoS Eq. 4-6).
    Killed and started again, it does only what is missing.

    \b
    Example:
      cos annotate --model miniature --data questions.json --images pictures --out rois
    """
    from cos_core.annotate import AnnotateConfig, run

    config = AnnotateConfig(
        data=data,
        images=images,
        model=model,
        out=out,
        backbone=backbone,
        detector=detector,
        detector_options=options.settings_of(detector_options),
        policy=policy,
        target=target,
        last_layers=last_layers,
        threshold=threshold,
        region=region,
        extend=extend,
        region_tokens=region_tokens,
        seed=seed,
        batch_images=batch_images,
        limit=limit,
        max_failures=max_failures,
        device=device,
        dtype=dtype,
    )
    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = run(config, reporter)
        reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())
