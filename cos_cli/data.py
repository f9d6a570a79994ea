"""`cos data`: says what a file of questions is read as, and writes it in another layout."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cos_cli.command import Group, command
from cos_cli.console import Session, columns, emit, emit_json, reporting
from cos_core.errors import InputError
from cos_core.files.text import Lines

if TYPE_CHECKING:
    from cos_core.data.convert import DataConvertConfig
    from cos_core.data.survey import DataCheckConfig, Survey

HELP = """\
Look at files of questions, and write them in another layout.

\b
Examples:
  cos data check questions.csv --columns question=q,answer=a
  cos data convert train.parquet --out questions.jsonl --pictures pictures
"""


def _command(name: str, source: str) -> Any:
    return command(f"data {name}", source, leaves_out=("config_file",))


@_command("check", "cos_core.data.survey:DataCheckConfig")
def check(session: Session, config: DataCheckConfig) -> None:
    """Say what a file of questions is read as: layout, counts, the first record, what is missing.

    \b
    Examples:
      cos data check questions.csv --images pictures
      cos data check v2_questions.json v2_annotations.json
      cos data check 'data/*.parquet' --columns question=q,answer=a
    """
    from cos_core.data.datasets import spoken
    from cos_core.data.survey import survey

    with reporting(session):
        found = survey(config)
    if session.json:
        emit_json(asdict(found))
    else:
        emit(_described(found))
    if not found.questions:
        raise InputError(f"{spoken(config.data)} holds no question that can be read")


def _described(found: Survey) -> Lines:
    rows = [(path, name) for path, name in found.layouts.items()]
    rows += [("records", f"{found.records:,} ({', '.join(found.kinds)})"), ("questions", f"{found.questions:,}")]
    rows.append(
        ("pictures", f"{found.pictures:,}" + (" inside the data: cos data convert writes them out" if found.inside else ""))
    )
    for name, count in (("without a picture", found.without_picture), ("without an answer", found.without_answer)):
        if count:
            rows.append((name, f"{count:,} questions"))
    if found.missing is not None and not found.inside:
        first = f", the first is {found.first_missing}" if found.first_missing else ""
        rows.append(("pictures not there", f"{found.missing:,}{first}"))
    if found.unused:
        rows.append(("not read", ", ".join(found.unused)))
    rows.append(("cannot be used", f"{found.problems:,} records or questions"))
    lines: list[str] = [columns(rows), *(f"  {each}" for each in found.shown_problems)]
    if found.first is not None:
        lines += ["", "The first question:", columns([(f"  {name}", _shown(value)) for name, value in found.first.items()])]
    return Lines(lines)


def _shown(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


_LONGEST = 200


@_command("convert", "cos_core.data.convert:DataConvertConfig")
def convert(session: Session, config: DataConvertConfig) -> None:
    """Write questions in another layout; pictures inside a table become files.

    \b
    Examples:
      cos data convert questions.csv --out questions.jsonl
      cos data convert train.parquet --out questions.jsonl --pictures pictures
      cos data convert questions.jsonl --format llava --out conversations.jsonl
    """
    from cos_core.data.convert import run

    with reporting(session) as reporter:
        done = run(config, reporter)
        for count, what in (
            (done.left_out, "questions without an answer have no place in conversations and are left out"),
            (done.answers_left_out, "further answers have no place in conversations and are left out"),
        ):
            if count:
                reporter.warn(f"{count:,} {what}")
        pictures = f", {done.pictures:,} pictures in {config.pictures}" if done.pictures else ""
        reporter.note(f"{done.questions:,} questions in {config.out}{pictures}")
    if session.json:
        emit_json(asdict(done))


group = Group("data", HELP, (check, convert))
