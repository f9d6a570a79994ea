"""`cos train`: Chain-of-Spot fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cos_cli import launcher
from cos_cli.command import command
from cos_cli.console import Session, emit_json, reporting
from cos_core.options import SPEED, option

if TYPE_CHECKING:
    from cos_core.interfaces import Reporter
    from cos_core.training import TrainConfig


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What the launcher takes and training does not."""

    hostfile: Path | None = option(None, "Machines and their GPUs, in DeepSpeed's format.", SPEED, shown_default="this machine")


@command("train", "cos_core.training:TrainConfig", LaunchOptions)
def train(session: Session, config: TrainConfig, launch: LaunchOptions) -> None:
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
    from cos_core.files import manifest as manifests
    from cos_core.training import run

    plans = config.check_only or config.dry_run
    with reporting(session) as reporter:
        if launcher.wanted(config.processes, launch.hostfile) and not plans:
            launcher.launch(config, config.processes, launch.hostfile, reporter)
            manifest = manifests.read(config.out)
        else:
            manifest = run(config, reporter)
        if not plans:
            _draw(config.out, reporter)
            reporter.note(manifests.summary(manifest, config.out))
    if session.json:
        emit_json(manifest.to_json())


def _draw(out: Path, reporter: Reporter) -> None:
    """The loss curve of a finished run, `loss.png` beside its log; training itself draws nothing."""
    if launcher.inside():
        return
    from cos_core.visualize.loss import draw

    draw(out / "train_log.jsonl", out / "loss.png")
