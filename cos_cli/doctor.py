"""`cos doctor`: what this machine lacks, and what to do about it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from cos_cli.command import command
from cos_cli.console import Session, emit, emit_json
from cos_core import options
from cos_core.errors import MissingError
from cos_core.options import CHECKS, OUTPUT, SERVER, option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cos_core.doctor import MachineFinding


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """What is examined."""

    task: Literal["annotate", "train", "infer", "eval", "visualize"] | None = option(
        None, "Examine for this task: imports its libraries, ends with 4 when one is missing.", CHECKS, flag="--for"
    )
    folder: Path = option(Path(), "Where stores and checkpoints are to be written.", OUTPUT)
    server: str | None = option(None, "Examine a served model instead: the server's address, up to /v1.", SERVER)
    model: str | None = option(None, "With --server: the model, as the server calls it.", SERVER)
    profile: str | None = options.profile_option(options.ANY_FAMILY)
    family: str | None = options.family_option()


@command("doctor", DoctorOptions, leaves_out=("config_file",))
def doctor(session: Session, at: DoctorOptions) -> None:
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

    if (at.server is None) != (at.model is None) or (at.server is None and (at.profile or at.family)):
        raise typer.BadParameter("--server and --model belong together, and --profile and --family to them")
    findings = []
    about: list[Iterable[MachineFinding]] = [] if at.server is not None and at.task is None else [examine(at.task, at.folder)]
    if at.server is not None and at.model is not None:
        from cos_core.doctor.server import ServerConfig, examine_server

        about.append(examine_server(ServerConfig(at.server, at.model, at.profile, at.family)))
    for finding in itertools.chain.from_iterable(about):
        findings.append(finding)
        if not session.json and not (session.quiet and finding.level in ("ok", "note")):
            todo = f"  ->  {finding.todo}" if finding.todo else ""
            emit(f"{finding.level:<8}  {finding.check:<13}  {finding.said}{todo}")
    missing = sorted({finding.check for finding in findings if finding.level == "missing"})
    if session.json:
        emit_json({"task": at.task, "missing": missing, "findings": [finding.to_json() for finding in findings]})
    if missing and at.server is not None and at.task is None:
        raise MissingError(
            f"{at.model!r} at {at.server} does not answer as the local engine would; wrong: {', '.join(missing)}"
        )
    if missing and at.task is not None:
        raise MissingError(f"{at.task} is not possible here yet; missing or broken: {', '.join(missing)}")
