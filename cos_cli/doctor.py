"""`cos doctor`: what this machine lacks, and what to do about it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cos_cli import options
from cos_cli.console import emit, emit_json
from cos_core.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cos_core.doctor import MachineFinding


def doctor(
    task: Annotated[
        Literal["annotate", "train", "infer", "eval", "visualize"] | None,
        typer.Option("--for", help="Examine for this task: imports its libraries, ends with 4 when one is missing."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where stores and checkpoints are to be written.")] = Path(),
    json: options.Json = False,
    server: Annotated[
        str | None, typer.Option(help="Examine a served model instead: the server's address, up to /v1.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --server: the model, as the server calls it.", show_default=False)
    ] = None,
    profile: options.Profile = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is wrong.")] = False,
    traceback: options.Traceback = False,
) -> None:
    """Examine this machine: packages, GPUs, compilers, file systems, limits.

    Each finding is one line, with what to do. Without --for nothing heavy is imported.
    With --server: asks a served model both passes about a small picture, and compares the prompts that the server computes
    with the local engine's; ends with 4 when they differ.

    \b
    Examples:
      cos doctor
      cos doctor --for train --folder /scratch/me --json
      cos doctor --server http://localhost:8000/v1 --model cos-13b
    """
    from cos_core.doctor import examine

    if (server is None) != (model is None) or (server is None and profile is not None):
        raise typer.BadParameter("--server and --model belong together, and --profile to them")
    findings = []
    about: list[Iterable[MachineFinding]] = [] if server is not None and task is None else [examine(task, folder)]
    if server is not None and model is not None:
        from cos_core.doctor.server import ServerConfig, examine_server

        about.append(examine_server(ServerConfig(server, model, profile)))
    for finding in itertools.chain.from_iterable(about):
        findings.append(finding)
        if not json and not (quiet and finding.level in ("ok", "note")):
            todo = f"  ->  {finding.todo}" if finding.todo else ""
            emit(f"{finding.level:<8}  {finding.check:<13}  {finding.said}{todo}")
    missing = sorted({finding.check for finding in findings if finding.level == "missing"})
    if json:
        emit_json({"task": task, "missing": missing, "findings": [finding.to_json() for finding in findings]})
    if missing and server is not None and task is None:
        raise MissingError(f"{model!r} at {server} does not answer as the local engine would; wrong: {', '.join(missing)}")
    if missing and task is not None:
        raise MissingError(f"{task} is not possible here yet; missing or broken: {', '.join(missing)}")
