"""Writes completions/commands.tsv, the commands and options that completion offers: `make completions`.

A line is: command, name, number of words of its value, "+" if it may be repeated, kind of values, help. A command's own line
has the value "command" (the usual one of a group "usual"); arguments are named 1, 2, ...; fixed choices begin with "=".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from cos_cli.command import Command, Group, all_commands, first_sentence
from cos_cli.main import TREE
from cos_core.options import Option

FILE = "commands.tsv"
_WIDTH = 70


def table() -> str:
    """The whole table."""
    lines = ["\t".join(row) for row in _rows()]
    return "\n".join(lines) + "\n"


def _rows() -> Iterator[tuple[str, ...]]:
    yield ("", "--version", "0", "", "flag", "Print the version")
    for member in TREE:
        yield _named(member)
    for group in (member for member in TREE if isinstance(member, Group)):
        yield from map(_named, group.commands)
    for command in all_commands(TREE):
        path = " ".join(command.words)
        place = 0
        for option in command.options:
            if option.names:
                yield from _spelled(path, option)
            else:
                place += 1
                yield _row(path, str(place), option)
        yield (path, "--help", "0", "", "flag", "Show the options and examples")


def _named(member: Command | Group) -> tuple[str, ...]:
    words = (member.name,) if isinstance(member, Group) else member.words
    value = "usual" if isinstance(member, Command) and member.usual else "command"
    return (" ".join(words[:-1]), words[-1], "0", "", value, _short(member.help))


def _spelled(path: str, option: Option) -> Iterator[tuple[str, ...]]:
    for name in (*option.names, *option.off):
        if name.startswith("--"):
            yield _row(path, name, option)


def _row(path: str, name: str, option: Option) -> tuple[str, ...]:
    return (path, name, str(option.values), "+" if option.many else "", _values(option), _short(option.help))


def _values(option: Option) -> str:
    if option.values == 0:
        return "flag"
    if option.choices:
        return "=" + " ".join(option.choices)
    return option.declared.completes or ("path" if option.kind is Path else "text")


def _short(text: str) -> str:
    """The first sentence, cut between words; shells show it beside the name."""
    sentence = first_sentence(text).replace("\t", " ")
    if len(sentence) <= _WIDTH:
        return sentence
    return sentence[:_WIDTH].rpartition(" ")[0].rstrip(",;:(") + " ..."


def main(folder: Path) -> None:
    """Writes the table into `folder`."""
    (folder / FILE).write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "completions"))
