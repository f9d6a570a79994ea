"""Writes docs/reference/cli.md, the help of every command as it is printed: `make reference`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from cos_cli.command import Group
from cos_cli.main import TREE, run

_HEAD = """\
# Commands

Everything that `cos` can be told, as `--help` prints it. Written by `make reference`; a test fails when it is stale. What the
codes mean that commands end with: [exit codes](exit-codes.md).
"""


def reference() -> str:
    """The whole page: `cos` itself, then each group with its commands, in the order of `cos --help`."""
    parts = [_HEAD, _section(())]
    for member in TREE:
        if not isinstance(member, Group):
            parts.append(_section(member.words))
            continue
        if not any(command.usual for command in member.commands):  # else the group's own help is that command's
            parts.append(_section((member.name,)))
        parts.extend(_section(command.table) for command in member.commands)
    return "\n".join(parts)


def _section(words: tuple[str, ...]) -> str:
    return f"{'#' * (2 if len(words) < 2 else 3)} {' '.join(('cos', *words))}\n\n```text\n{_help(words)}\n```\n"


def _help(words: tuple[str, ...]) -> str:
    """What `cos WORDS --help` prints in a terminal of 80 columns."""
    printed, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.redirect_stdout(printed):
            run([*words, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
