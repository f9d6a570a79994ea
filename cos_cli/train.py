"""`cos train`: Chain-of-Spot fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cos_cli import launcher, options, settings
from cos_cli.console import Session, emit_json, reporting, summary
from cos_core.files.manifest import read as read_manifest
from cos_core.interfaces import Reporter
from cos_core.system import bounds


def train(
    ctx: typer.Context,
    data: options.Data,
    images: options.Images,
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the trained model.")],
    store: Annotated[
        Path | None,
        typer.Option(
            help="Store that `cos annotate` wrote, or the released region file (.json).",
            show_default="no regions",
            autocompletion=options.complete("store"),
        ),
    ] = None,
    config: settings.Config = None,
    follow_links: options.FollowLinks = False,
    policy: options.Policy = "from_single_question",
    profile: options.Profile = None,
    epochs: Annotated[int, typer.Option(min=1, max=bounds.BATCH, help="Passes over the data.")] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=10.0,
            callback=options.finite,
            help="Highest learning rate; cosine decay after warm-up.",
            show_default="2e-5; 2e-4 for adapters",
        ),
    ] = None,
    warmup_ratio: Annotated[
        float, typer.Option(min=0.0, max=1.0, callback=options.finite, help="Share of the steps that warm up.")
    ] = 0.03,
    weight_decay: Annotated[float, typer.Option(min=0.0, max=10.0, callback=options.finite, help="AdamW weight decay.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, max=bounds.BATCH, help="Samples a device sees at once.")] = 16,
    global_batch: Annotated[
        int | None, typer.Option(min=1, max=bounds.BATCH, help="Samples an optimiser step (the paper: 1024), by accumulation.")
    ] = 1024,
    max_length: Annotated[int, typer.Option(min=16, max=bounds.BATCH, help="Longest sample, in tokens.")] = 2048,
    max_length_counts: Annotated[
        Literal["positions", "text"],
        typer.Option(help="In --max-length, a picture counts all its positions, or one token, as the released code cuts."),
    ] = "positions",
    max_steps: Annotated[
        int | None, typer.Option(min=1, max=bounds.COUNT, help="Stop after this many steps.", show_default="epochs decide")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(min=1, max=bounds.COUNT, help="Steps between checkpoints.", show_default="by time only")
    ] = None,
    save_minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=bounds.BATCH,
            callback=options.finite,
            help="Minutes between checkpoints; more where one takes long to write.",
        ),
    ] = 30.0,
    resume: Annotated[bool, typer.Option(help="Continue from the last whole checkpoint in --out.")] = True,
    extra_turns: Annotated[
        bool, typer.Option("--extra-turns", help="Append the picture's other questions, as the released code does.")
    ] = False,
    train_projector: Annotated[
        bool, typer.Option("--train-projector", help="Train the projector too, as the released code does.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, max=bounds.PROCESSES, help="Processes that load data.", show_default="0 on a CPU, 4 on a GPU"),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Recompute activations to save memory.", show_default="on a GPU only")
    ] = None,
    group_by_length: Annotated[
        bool, typer.Option("--group-by-length", help="Make batches of samples of like length: less padding.")
    ] = False,
    crop_of: Annotated[
        Literal["text", "region"],
        typer.Option(help="Crop what the box text says, as inference will, or the annotated region, as the released code."),
    ] = "text",
    on_no_region: Annotated[
        Literal["full", "skip"],
        typer.Option(help="A question without a region: train it on the whole picture, and count it, or leave it out."),
    ] = "full",
    max_no_region: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, callback=options.finite, help="Share of questions without a region that the check lets pass."
        ),
    ] = 0.1,
    annotator: Annotated[
        Literal["regions", "patches"] | None,
        typer.Option(
            help="Fine-tune the annotator instead: plain answers, with pictures as this backbone shows them; no --store.",
            show_default="no",
        ),
    ] = None,
    detector: options.Detector = None,
    detector_options: options.DetectorOptions = None,
    region_tokens: Annotated[
        int, typer.Option(min=1, max=bounds.REGION_SIDE, help="Visual tokens a region, along each side (annotator 'regions').")
    ] = 1,
    lora: Annotated[
        int | None,
        typer.Option(
            min=1, max=bounds.RANK, help="Train adapters of this rank, merged at the end.", show_default="all weights"
        ),
    ] = None,
    qlora: Annotated[bool, typer.Option("--qlora", help="Adapters over 4-bit weights (GPU, with --lora).")] = False,
    liger: Annotated[bool, typer.Option("--liger", help="Liger's fused kernels (GPU).")] = False,
    report_to: Annotated[Literal["none", "tensorboard", "wandb"], typer.Option(help="Where the Trainer reports to.")] = "none",
    deepspeed: Annotated[
        str | None, typer.Option(help="zero2, zero3, zero3_offload, or a DeepSpeed JSON file.", show_default="none")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=bounds.PROCESSES, help="Processes (GPUs) on this machine, by DeepSpeed's launcher.", show_default="one"
        ),
    ] = None,
    hostfile: Annotated[
        Path | None, typer.Option(help="Machines and their GPUs, in DeepSpeed's format.", show_default="this machine")
    ] = None,
    check: Annotated[
        Literal["sample", "full", "off"], typer.Option(help="Examine the data first: some samples closely, all, or none.")
    ] = "sample",
    check_only: Annotated[bool, typer.Option("--check-only", help="Examine the data and stop.")] = False,
    max_faults: Annotated[
        int, typer.Option(min=0, max=bounds.COUNT, help="Faulty samples to pass over instead of stopping.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the bill (steps, memory, disk, hours) and stop.")] = False,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1.0, callback=options.finite, help="Share of a GPU's peak that the bill assumes.")
    ] = 0.4,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "fp32", "bf16"],
        typer.Option(help="Arithmetic; what is trained stays float32.", callback=options.number_format),
    ] = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Fine-tune a checkpoint on questions and their regions.

    The loss sees boxes and answers only; vision tower and projector stay frozen.
    The data is examined first. Killed and started again, it continues from its last whole checkpoint.

    \b
    Example:
      cos train --model miniature --data questions.json --images pictures --store rois --out tuned --max-steps 2
      cos train ... --dry-run
      cos train ... --processes 8 --deepspeed zero3
      cos train --config templates/config/train-paper.toml --data questions.json --images pictures --store rois --out tuned
    """
    from cos_core.training import TrainConfig, run

    job = TrainConfig(
        data=options.one_data_set(data),
        images=images,
        follow_links=follow_links,
        model=model,
        out=out,
        store=store,
        policy=policy,
        profile=profile,
        epochs=epochs,
        learning_rate=learning_rate,
        warmup_ratio=warmup_ratio,
        weight_decay=weight_decay,
        batch_size=batch_size,
        global_batch=global_batch,
        max_length=max_length,
        max_length_counts=max_length_counts,
        max_steps=max_steps,
        extra_turns=extra_turns,
        train_projector=train_projector,
        seed=seed,
        dtype=options.number_format(dtype),
        device=device,
        workers=workers,
        gradient_checkpointing=gradient_checkpointing,
        save_every=save_every,
        save_minutes=save_minutes,
        resume=resume,
        deepspeed=deepspeed,
        group_by_length=group_by_length,
        crop_of=crop_of,
        on_no_region=on_no_region,
        max_no_region=max_no_region,
        annotator=annotator,
        detector=detector,
        detector_options=options.settings_of(detector_options),
        region_tokens=region_tokens,
        lora=lora,
        qlora=qlora,
        liger=liger,
        report_to=report_to,
        check=check,
        check_only=check_only,
        max_faults=max_faults,
        processes=processes,
        dry_run=dry_run,
        mfu=mfu,
    )
    with reporting(ctx.ensure_object(Session)) as reporter:
        if launcher.wanted(processes, hostfile):
            launcher.launch(job, processes, hostfile, reporter)
            manifest = read_manifest(out)
        else:
            manifest = run(job, reporter)
        if not (check_only or dry_run):
            _draw(out, reporter)
            reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())


def _draw(out: Path, reporter: Reporter) -> None:
    """The loss curve of a finished run, `loss.png` beside its log; training itself draws nothing."""
    if launcher.inside():
        return
    from cos_core.visualize.loss import draw

    draw(out / "train_log.jsonl", out / "loss.png")
