"""Writes completions/commands.tsv, the commands and options that completion offers: `make completions`.

A line is: command, name, how many words it takes, whether it may be repeated (+), what its values are, help. A command's own
line has the value "command" (the usual one of a group "usual"); arguments are named 1, 2, ...; fixed choices begin with "=".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from cos_cli.commands import Parameter, commands, first_sentence, groups, path_like
from cos_cli.main import app

FILE = "commands.tsv"
_WIDTH = 70


def table() -> str:
    """The whole table."""
    lines = ["\t".join(row) for row in _rows()]
    return "\n".join(lines) + "\n"


def _rows() -> Iterator[tuple[str, ...]]:
    yield ("", "--version", "0", "", "flag", "Print the version")
    for name, words in groups(app):
        yield ("", name, "0", "", "command", _short(words))
    for command in commands(app):
        path = " ".join(command.words)
        parent = " ".join(command.words[:-1])
        yield (parent, command.words[-1], "0", "", "usual" if command.usual else "command", _short(command.help))
        place = 0
        for parameter in command.parameters:
            if parameter.names:
                yield from _option(path, parameter)
            else:
                place += 1
                repeated = "+" if parameter.many else ""
                yield (path, str(place), str(parameter.values), repeated, _values(parameter), _short(parameter.help))
        yield (path, "--help", "0", "", "flag", "Show the options and examples")


def _option(path: str, parameter: Parameter) -> Iterator[tuple[str, ...]]:
    for name in (*parameter.names, *parameter.off):
        if name.startswith("--"):
            repeated = "+" if parameter.many else ""
            yield (path, name, str(parameter.values), repeated, _values(parameter), _short(parameter.help))


def _values(parameter: Parameter) -> str:
    if parameter.values == 0:
        return "flag"
    if parameter.choices:
        return "=" + " ".join(parameter.choices)
    return parameter.completes or ("path" if path_like(parameter) else "text")


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
