"""`cos train`: Chain-of-Spot fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cos_cli import options
from cos_cli.console import Session, emit_json, reporting, summary


def train(
    ctx: typer.Context,
    data: options.Data,
    images: options.Images,
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the trained model.")],
    store: Annotated[Path | None, typer.Option(help="Store that `cos annotate` wrote.", show_default="no regions")] = None,
    policy: options.Policy = "from_single_question",
    profile: options.Profile = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Highest learning rate; cosine decay after warm-up.")] = 2e-5,
    warmup_ratio: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the steps that warm up.")] = 0.03,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="AdamW weight decay.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a device sees at once.")] = 16,
    global_batch: Annotated[
        int | None, typer.Option(min=1, help="Samples an optimiser step (the paper: 1024), by accumulation.")
    ] = 1024,
    max_length: Annotated[int, typer.Option(min=16, help="Longest sample, in tokens.")] = 2048,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many steps.", show_default="epochs decide")
    ] = None,
    save_every: Annotated[int | None, typer.Option(min=1, help="Steps between checkpoints.", show_default="at the end")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last whole checkpoint in --out.")] = True,
    extra_turns: Annotated[
        bool, typer.Option("--extra-turns", help="Append the picture's other questions, as the released code does.")
    ] = False,
    train_projector: Annotated[
        bool, typer.Option("--train-projector", help="Train the projector too, as the released code does.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that load data.", show_default="0 on a CPU, 4 on a GPU")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Recompute activations to save memory.", show_default="on a GPU only")
    ] = None,
    deepspeed: Annotated[Path | None, typer.Option(help="DeepSpeed configuration (JSON).", show_default="none")] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Arithmetic; weights stay float32.")] = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Fine-tune a checkpoint on questions and their regions.

    The loss sees boxes and answers only; vision tower and projector stay frozen.
    Killed and started again, it continues from its last whole checkpoint.

    \b
    Example:
      cos train --model miniature --data questions.json --images pictures --store rois --out tuned --max-steps 2
    """
    from cos_core.training import TrainConfig, run

    config = TrainConfig(
        data=data,
        images=images,
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
        max_steps=max_steps,
        extra_turns=extra_turns,
        train_projector=train_projector,
        seed=seed,
        dtype=dtype,
        device=device,
        workers=workers,
        gradient_checkpointing=gradient_checkpointing,
        save_every=save_every,
        resume=resume,
        deepspeed=deepspeed,
    )
    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = run(config, reporter)
        reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())
