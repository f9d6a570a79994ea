"""`cos annotate`: regions of interest by relevance propagation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cos_cli.command import command
from cos_cli.console import Session, emit_json, reporting, run_stage

if TYPE_CHECKING:
    from cos_core.annotate import AnnotateConfig


@command("annotate", "cos_core.annotate:AnnotateConfig")
def annotate(session: Session, config: AnnotateConfig) -> None:
    """Find the region behind each answer, by relevance propagation.

    The relevance of the answer to each region is read from the model's own attention (CoS Eq. 4-6).
    Killed and started again, it does only what is missing.

    \b
    Example:
      cos annotate --model miniature --data questions.json --images pictures --out rois
      cos annotate ... --dry-run
      cos annotate ... --workers 8
    """
    from cos_core.annotate import run

    if not config.dry_run:
        run_stage(session, run, config, config.out)
        return
    with reporting(session) as reporter:
        manifest = run(config, reporter)
    if session.json:
        emit_json(manifest.to_json())
