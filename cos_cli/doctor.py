"""`cos doctor`: what this machine lacks, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cos_cli import options
from cos_cli.console import emit, emit_json
from cos_core.errors import MissingError


def doctor(
    task: Annotated[
        Literal["annotate", "train", "infer", "eval", "visualize"] | None,
        typer.Option("--for", help="Examine for this task: imports its libraries, ends with 4 when one is missing."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where stores and checkpoints are to be written.")] = Path(),
    json: options.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is wrong.")] = False,
    traceback: options.Traceback = False,
) -> None:
    """Examine this machine: packages, GPUs, compilers, file systems, limits.

    Each finding is one line, with what to do. Without --for nothing heavy is imported.

    \b
    Examples:
      cos doctor
      cos doctor --for train --folder /scratch/me --json
    """
    from cos_core.doctor import examine

    findings = []
    for finding in examine(task, folder):
        findings.append(finding)
        if not json and not (quiet and finding.level in ("ok", "note")):
            todo = f"  ->  {finding.todo}" if finding.todo else ""
            emit(f"{finding.level:<8}  {finding.check:<13}  {finding.said}{todo}")
    missing = sorted({finding.check for finding in findings if finding.level == "missing"})
    if json:
        emit_json({"task": task, "missing": missing, "findings": [finding.to_json() for finding in findings]})
    if missing and task is not None:
        raise MissingError(f"{task} is not possible here yet; missing or broken: {', '.join(missing)}")
