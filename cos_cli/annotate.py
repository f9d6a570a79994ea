"""`cos annotate`: regions of interest by relevance propagation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cos_cli import options, settings
from cos_cli.console import Session, emit_json, reporting, summary
from cos_core.errors import InputError
from cos_core.files.shard import Shard
from cos_core.system import bounds


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


def _threshold(text: str) -> float | str:
    if text == "otsu":
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor 'otsu'") from None


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
        Literal["log-odds", "logit", "logprob", "argmax"] | None,
        typer.Option(
            help="What is explained: a score of the gold answer, or the model's own choice ('argmax').",
            show_default="log-odds; logit with lxmert",
        ),
    ] = None,
    last_layers: Annotated[
        int | None, typer.Option(min=1, max=bounds.TOKENS, help="Use the last K layers only.", show_default="all layers")
    ] = None,
    threshold: Annotated[
        Any,
        typer.Option(
            parser=_threshold,
            metavar="SHARE|otsu",
            help="Share of the range of relevance above which areas count; 'otsu' finds it in each picture.",
            show_default="0.3; 0.5 with patches",
        ),
    ] = None,
    keep_mass: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            callback=options.finite,
            help="Instead of a threshold: the best areas that hold this share of the relevance.",
            show_default=False,
        ),
    ] = None,
    region: Annotated[
        Literal["top1", "component", "union"] | None,
        typer.Option(help="How scores become one box.", show_default="union; component with patches"),
    ] = None,
    extend: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=10.0,
            callback=options.finite,
            help="Each side moves outwards by this share of its length.",
            show_default="0; 0.1 with patches",
        ),
    ] = None,
    finer: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=bounds.FINER,
            help="Interpolate maps to this many times as many cells a side.",
            show_default="1; 4 with patches",
        ),
    ] = None,
    backbone_options: options.BackboneOptions = None,
    keep_heat: Annotated[bool, typer.Option("--keep-heat", help="Keep the relevance maps in the store.")] = False,
    batch_images: Annotated[
        int, typer.Option(min=1, max=bounds.BATCH, help="Pictures that go through the model together.")
    ] = 8,
    shard: Annotated[
        Shard | None,
        typer.Option(
            parser=_shard, metavar="I/N", help="Only this part of the pictures, for 'cos store merge'.", show_default="all"
        ),
    ] = None,
    limit: options.Limit = None,
    max_failures: options.MaxFailures = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, look at the pictures, estimate time and size, and stop.")
    ] = False,
    seed: options.Seed = 0,
    runner: options.Runner = "auto",
    workers: options.Workers = None,
    ray_address: options.RayAddress = None,
    ship_images: options.ShipImages = False,
    follow_links: options.FollowLinks = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    config_file: settings.Config = None,
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
      cos annotate ... --dry-run
      cos annotate ... --workers 8
    """
    from cos_core.annotate import AnnotateConfig, run
    from cos_core.runners import RunnerConfig

    config = AnnotateConfig(
        data=options.one_data_set(data),
        images=images,
        follow_links=follow_links,
        model=model,
        out=out,
        backbone=backbone,
        detector=detector,
        detector_options=options.settings_of(detector_options),
        policy=policy,
        target=target,
        last_layers=last_layers,
        threshold=threshold,
        keep_mass=keep_mass,
        region=region,
        extend=extend,
        finer=finer,
        backbone_options=options.settings_of(backbone_options),
        keep_heat=keep_heat,
        seed=seed,
        batch_images=batch_images,
        shard=shard,
        scale=RunnerConfig(runner, workers, ray_address, ship_images),
        limit=limit,
        max_failures=max_failures,
        dry_run=dry_run,
        device=device,
        dtype=dtype,
    )
    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = run(config, reporter)
        if not dry_run:
            reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())
