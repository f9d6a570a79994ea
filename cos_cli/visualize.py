"""`cos visualize`: pictures of finished work."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cos_cli.command import Group, command
from cos_cli.console import Session, run_stage
from cos_core.options import OUTPUT, option
from cos_core.system.streams import behind

if TYPE_CHECKING:
    from cos_core.visualize.config import BoxStatsConfig, CompareConfig, OverlayConfig, ReportConfig, RunExportConfig

HELP = """\
See where the model looked, and whether it mattered.

\b
Examples:
  cos visualize overlay --predictions answers.jsonl --images pictures --out overlay.png
  cos visualize stats answers.jsonl --out boxes
  cos visualize report run --out report.html
"""


@dataclass(frozen=True, slots=True)
class PreviewOptions:
    """What the terminal shows beside the file."""

    preview: bool = option(False, "Show the picture in the terminal, too (24-bit colour).", OUTPUT)


@command("visualize report", "cos_core.visualize.config:ReportConfig")
def report(session: Session, config: ReportConfig) -> None:
    """Write runs as one page that opens from disk: table, plots, every answer.

    \b
    Examples:
      cos visualize report run --out report.html
      cos visualize report before after --flipped --out changed.html
    """
    from cos_core.visualize.run_report import run

    run_stage(session, run, config, config.out)


@command("visualize compare", "cos_core.visualize.config:CompareConfig")
def compare(session: Session, config: CompareConfig) -> None:
    """Put the same questions of two runs on contact sheets: answers, boxes, verdicts.

    \b
    Examples:
      cos visualize compare before after --flipped --out flipped.pdf
      cos visualize compare run --wrong --grid 5x4 --out wrong.png
    """
    from cos_core.visualize.contact_sheets import run

    run_stage(session, run, config, config.out)


@command("visualize export", "cos_core.visualize.config:RunExportConfig")
def export(session: Session, config: RunExportConfig) -> None:
    """Write a run for another viewer: COCO, FiftyOne, Label Studio, lmms-eval samples.

    \b
    Examples:
      cos visualize export run --format coco --out boxes.json
      cos visualize export run --format lmms-eval --out samples.jsonl
    """
    from cos_core.visualize.export import run

    run_stage(session, run, config, config.out)


@command("visualize overlay", "cos_core.visualize.config:OverlayConfig", PreviewOptions)
def overlay(session: Session, config: OverlayConfig, terminal: PreviewOptions) -> None:
    """Draw one answer: the picture with its boxes, the zoomed region, question and answer.

    \b
    Examples:
      cos visualize overlay --predictions answers.jsonl --images pictures --out overlay.png
      cos visualize overlay --store rois --example 000000123#q0 --images pictures --out overlay.png
      cos visualize overlay --image photo.jpg --box 0.2 0.3 0.6 0.8 --out overlay.png
    """
    from cos_core.visualize.overlay import run

    run_stage(session, run, config, config.out)
    if terminal.preview:
        from cos_cli.preview import show

        show(config.out, behind(sys.stderr))


@command("visualize stats", "cos_core.visualize.config:BoxStatsConfig")
def stats(session: Session, config: BoxStatsConfig) -> None:
    """Where the boxes lie: centre-bias heat map, sizes, shapes, box status.

    \b
    Examples:
      cos visualize stats rois --out boxes
      cos visualize stats answers.jsonl --out boxes --json
    """
    from cos_core.visualize.boxes import run

    run_stage(session, run, config, config.out)


group = Group("visualize", HELP, (report, compare, export, overlay, stats))
